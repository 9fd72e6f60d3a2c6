use std::sync::Arc;
use std::time::Duration;

use super::untar::Plan;
use crate::clock::FakeClock;
use crate::job::{self, Job};
use crate::layer::fake::FakeFiles;
use crate::run::{self, Observer, Outcome, Runner};
use crate::stats::Live;
use crate::{Error, Result};

struct Quiet;

impl Observer for Quiet {
    fn begins(&self, _: &Job) {}
    fn runs(&self, _: &Job, _: Duration, _: &Live) {}
    fn ended(&self, _: &Job) {}
}

/// Writes, and syncs, take a millisecond and ten.
fn disk() -> (Arc<FakeClock>, FakeFiles) {
    let clock = Arc::new(FakeClock::default());
    let ms = Duration::from_millis(1);
    let costs = [
        ("write", ms),
        ("read", ms),
        ("fsync", ms * 10),
        ("fdatasync", ms * 10),
        ("stat", ms),
    ];
    (clock.clone(), FakeFiles::new(clock, &costs))
}

fn run_on(clock: &FakeClock, files: &FakeFiles, text: &str) -> Result<Outcome> {
    let jobs = job::parse("test.fio", text)?;
    run_all(clock, files, &jobs, None).remove(0)
}

fn run_all(
    clock: &FakeClock,
    files: &FakeFiles,
    jobs: &[Job],
    limit: Option<Duration>,
) -> Vec<Result<Outcome>> {
    run_observed(clock, files, jobs, limit, &Quiet)
}

fn run_observed(
    clock: &FakeClock,
    files: &FakeFiles,
    jobs: &[Job],
    limit: Option<Duration>,
    observer: &dyn Observer,
) -> Vec<Result<Outcome>> {
    let runner = Runner {
        files,
        clock,
        observer,
        limit,
        keep: false,
    };
    let mut outcomes = Vec::new();
    let mut each = |mut outcome: Outcome| {
        outcomes.push(outcome.failure.take().map_or(Ok(outcome), Err));
        Ok(())
    };
    runner.run(jobs, &mut each).unwrap();
    outcomes
}

fn run_one(text: &str) -> (Outcome, FakeFiles) {
    let (clock, files) = disk();
    (run_on(&clock, &files, text).unwrap(), files)
}

#[test]
fn syncs_are_exactly_as_many_as_asked_for() {
    for (options, fsyncs, fdatasyncs) in [
        ("fdatasync=1", 0, 64),
        ("fsync=4", 16, 0),
        ("fsync=3\nfdatasync=8", 21, 8),
        ("end_fsync=1", 1, 0),
        ("fsync=64\nend_fsync=1", 2, 0),
        ("nrfiles=4\nend_fsync=1", 4, 0),
        ("", 0, 0),
    ] {
        let (outcome, files) = run_one(&format!("[j]\nrw=randwrite\nbs=4k\nsize=256k\n{options}"));
        let calls = files.calls();
        assert_eq!(calls["write"], 64, "{options}");
        assert_eq!(calls.get("fsync").copied().unwrap_or(0), fsyncs, "{options}");
        assert_eq!(
            calls.get("fdatasync").copied().unwrap_or(0),
            fdatasyncs,
            "{options}"
        );
        assert_eq!(outcome.stats.sync.count(), fsyncs + fdatasyncs, "{options}");
        assert_eq!(outcome.stats.write.count(), 64);
        assert_eq!(outcome.stats.write.bytes, 256 << 10);
    }
}

#[test]
fn rates_and_latencies_follow_the_clock() {
    let (outcome, _) = run_one("[j]\nrw=write\nsize=400k\nfdatasync=1");
    // 100 times 1 + 10 ms.
    assert_eq!(outcome.stats.elapsed, Duration::from_millis(1100));
    assert_eq!(outcome.stats.write.max_ns, 1_000_000);
    assert_eq!(outcome.stats.sync.min_ns, 10_000_000);
}

#[test]
fn time_based_jobs_go_round_until_their_time_is_over() {
    let (outcome, _) = run_one("[j]\nrw=write\nsize=40k\nruntime=1\ntime_based");
    assert_eq!(outcome.stats.write.count(), 1000);
    let (outcome, _) = run_one("[j]\nrw=write\nsize=40k\nruntime=1");
    assert_eq!(outcome.stats.write.count(), 10);
    let (outcome, _) = run_one("[j]\nrw=write\nsize=40k\nio_size=100k");
    assert_eq!(outcome.stats.write.count(), 25);
}

#[test]
fn thinking_and_rate_limits_take_their_time() {
    let (outcome, _) = run_one("[j]\nrw=write\nsize=400k\nrate_iops=50");
    assert_eq!(outcome.stats.elapsed, Duration::from_secs(2));
    let (outcome, _) = run_one("[j]\nrw=write\nsize=40k\nthinktime=1000");
    assert_eq!(outcome.stats.elapsed, Duration::from_millis(20));
}

#[test]
fn the_same_seed_writes_the_same_places() {
    let places = |seed: u32| {
        let text = format!("[j]\nrw=randwrite\nsize=1m\nnrfiles=3\nrandseed={seed}");
        run_one(&text).1.writes()
    };
    assert_eq!(places(1), places(1));
    assert_ne!(places(1), places(2));
}

#[test]
fn clones_have_their_own_files_and_offsets() {
    let (outcome, files) = run_one("[j]\nrw=randwrite\nsize=256k\nnumjobs=3");
    assert_eq!(outcome.stats.write.count(), 192);
    let of = |clone: &str| -> Vec<u64> {
        let path = format!("{}/j/{clone}/0", run::DATA);
        let writes = files.writes();
        writes
            .iter()
            .filter(|(name, _)| *name == path)
            .map(|(_, at)| *at)
            .collect()
    };
    assert_eq!(of("0").len(), 64);
    assert_ne!(of("0"), of("1"));
}

#[test]
fn every_byte_written_is_verified() {
    for (options, blocks) in [
        ("rw=randwrite\nsize=256k\nio_size=400k", 64),
        ("rw=write\nbs=5000\nsize=50000\nnrfiles=2", 10),
        ("rw=randrw\nsize=256k\nnumjobs=2", 128),
        ("ioengine=createfiles\nnrfiles=20", 20),
        ("ioengine=replacefile\nnrfiles=5\ntime_based\nruntime=1", 5),
        ("ioengine=untar\nnrfiles=100\nsize=1m", 100),
    ] {
        let (outcome, _) = run_one(&format!("[j]\nverify=crc32\n{options}"));
        assert_eq!(outcome.verified, blocks, "{options}");
    }
}

/// Spoils the files when the job has run.
struct Spoiler(FakeFiles);

impl Observer for Spoiler {
    fn begins(&self, _: &Job) {}
    fn runs(&self, _: &Job, _: Duration, _: &Live) {}
    fn ended(&self, _: &Job) {
        self.0.corrupt();
    }
}

#[test]
fn wrong_bytes_are_found() {
    for options in [
        "rw=randwrite\nsize=256k",
        "ioengine=createfiles\nnrfiles=20",
        "ioengine=replacefile\nnrfiles=5",
        "ioengine=untar\nnrfiles=100\nsize=1m",
    ] {
        let (clock, files) = disk();
        let jobs = job::parse("x", &format!("[j]\nverify=crc32\n{options}")).unwrap();
        let outcome = run_observed(&clock, &files, &jobs, None, &Spoiler(files.clone())).remove(0);
        assert!(
            matches!(outcome, Err(Error::Verify { .. })),
            "{options}: {outcome:?}"
        );
    }
}

#[test]
fn file_engines_call_what_they_are_named_for() {
    let calls = |text: &str| run_one(&format!("[j]\nnrfiles=10\n{text}")).1.calls();
    assert_eq!(calls("ioengine=filestat")["stat"], 20);
    assert_eq!(calls("ioengine=filedelete")["unlink"], 10);
    assert_eq!(calls("ioengine=filecreate")["open"], 10);
    let replaced = calls("ioengine=replacefile");
    // Ten are there before.
    assert_eq!(
        (replaced["write"], replaced["fsync"], replaced["rename"]),
        (20, 10, 10)
    );
    let read = calls("ioengine=readfiles");
    // Written, read once to warm up, read.
    assert_eq!((read["open"], read["fstat"], read["read"]), (30, 20, 20));
    let created = calls("ioengine=createfiles\nend_fsync=1");
    // One sync of the tree before, one in the job, one after.
    assert_eq!((created["write"], created["sync_tree"]), (10, 3));
}

#[test]
fn a_tree_has_the_files_and_bytes_asked_for() {
    let plan = Plan::new(1700, 32 << 20, 1);
    assert_eq!(plan, Plan::new(1700, 32 << 20, 1));
    assert_eq!(plan.files.len(), 1700);
    assert_eq!(plan.files.iter().map(|(_, bytes)| bytes).sum::<u64>(), 32 << 20);
    assert_eq!(plan.dirs.len(), 100);
    assert!(plan.files.iter().any(|(_, bytes)| *bytes < 1000));
    assert!(plan.files.iter().any(|(_, bytes)| *bytes > 100_000));
}

#[test]
fn jobs_of_one_tree_find_what_the_others_made() {
    let (clock, files) = disk();
    let text = "[global]\nstonewall\ntree=t\n[a]\nioengine=treecreate\nnrfiles=1500\nend_fsync=1\n[b]\nioengine=treecreate\nnrfiles=4000\n\
                [stat]\nioengine=treestat\nnrfiles=4000\nnumber_ios=300\n\
                [again]\nioengine=treestat\nnrfiles=4000\nnumber_ios=5\npre_read=1\ntime_based\nruntime=1\n\
                [list]\nioengine=treelist\nnrfiles=4000\n[more]\nioengine=treelist\nnrfiles=4100\nnumber_ios=2";
    let jobs = job::parse("x", text).unwrap();
    let outcomes = run_all(&clock, &files, &jobs, None);
    let counts: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            let stats = &outcome.as_ref().unwrap().stats;
            (stats.write.count(), stats.read.count())
        })
        .collect();
    // A stat takes a millisecond; a listing counts names.
    assert_eq!(
        counts[..5],
        [(1500, 0), (2500, 0), (0, 300), (0, 1000), (0, 4000)]
    );
    assert!([1100, 2000].contains(&counts[5].1), "{counts:?}");
    assert_eq!(files.calls()["open"], 4100, "each file was made once");
    assert!(files.calls()["drop_names"] > 0);
}

#[test]
fn a_job_that_fails_or_takes_too_long_leaves_the_others_their_turn() {
    let (clock, files) = disk();
    let text = "[global]\nstonewall\n[slow]\nrw=randread\nsize=100m\n[endless]\nrw=write\nsize=1m\nfsync=1\n[quick]\nrw=write\nsize=64k\n\
                [x]\ntree=t\nioengine=treestat\nnrfiles=10\n[y]\ntree=t\nioengine=treestat\nnrfiles=10";
    let mut jobs = job::parse("x", text).unwrap();
    let short = Some(Duration::from_millis(90));
    let failed: Vec<_> = run_all(&clock, &files, &jobs[..3], short)
        .iter()
        .map(Result::is_err)
        .collect();
    assert_eq!(failed, [true, true, false]);
    // What one job of a tree could not make, the next one does not try.
    let costs = [("open", Duration::from_secs(1))];
    let slow = FakeFiles::new(clock.clone(), &costs);
    let outcomes = run_all(&clock, &slow, &jobs.split_off(3), Some(Duration::from_secs(5)));
    assert!(outcomes.iter().all(Result::is_err));
    assert!(slow.calls()["open"] < 10, "{:?}", slow.calls());
}
