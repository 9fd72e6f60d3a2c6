//! Power cuts, kills and failing syncs at every moment.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::Caller;
use super::*;
use crate::disk::CrashMode;
use crate::journal::format::SegmentHeader;

/// Lets the caller act `acts` times or until the journal fails.
fn work(caller: &mut Caller, journal: &Journal, acts: usize) {
    for _ in 0..acts {
        if caller.act(journal).is_err() {
            return;
        }
    }
}

fn recovered(disk: &SimDisk, caller: &mut Caller, what: &str) -> Arc<Journal> {
    match try_open(disk, options()) {
        Ok((journal, _)) => {
            caller.verify(&journal);
            journal
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// The generations of all segment files.
fn generations(disk: &SimDisk) -> Vec<u64> {
    let head = |name: &String| -> Option<u64> {
        let bytes = disk.contents(&Path::new(DIR).join(name)).unwrap();
        Some(SegmentHeader::decode(bytes.first_chunk()?)?.generation)
    };
    disk.list(Path::new(DIR))
        .unwrap()
        .iter()
        .filter_map(head)
        .collect()
}

/// Runs the same workload once for each of its syncs, and cuts the power there.
#[test]
fn crash_at_every_sync_keeps_what_was_acknowledged() {
    for seed in 0..2_u64 {
        let acts = 150;
        let run = |crash: Option<(u64, CrashMode)>| {
            let disk = SimDisk::new();
            let mut caller = Caller::new(StdRng::seed_from_u64(seed));
            if let Some((at, mode)) = crash {
                disk.crash_at_sync(at, mode);
            }
            if let Ok((journal, _)) = try_open(&disk, options()) {
                work(&mut caller, &journal, acts);
            }
            (disk, caller)
        };
        let (disk, caller) = run(None);
        let syncs = disk.counters().syncs;
        assert!(
            syncs > 100 && caller.records() > 100,
            "a workload worth the name: {syncs} syncs"
        );
        for at in 1..=syncs {
            for mode in [CrashMode::Before, CrashMode::After] {
                let (disk, mut caller) = run(Some((at, mode)));
                let what = format!("seed {seed}, {mode:?} sync {at}");
                let disk = disk.crash(at);
                let journal = recovered(&disk, &mut caller, &what);
                // It works on, and survives another cut.
                work(&mut caller, &journal, 10);
                disk.power_off();
                drop(journal);
                let disk = disk.crash(at + 1);
                recovered(&disk, &mut caller, &format!("{what}, second"));
            }
        }
    }
}

/// Many lives of one disk, which ends each in another way: stale bytes of all of them lie in its segments.
#[test]
fn many_crashes_of_one_disk_never_bring_anything_back() {
    for seed in 0..16_u64 {
        let mut disk = SimDisk::new();
        let mut caller = Caller::new(StdRng::seed_from_u64(1000 + seed));
        let mut journal = recovered(&disk, &mut caller, "first");
        let mut cuts = 0;
        for life in 0..25 {
            let what = format!("seed {seed}, life {life}");
            let rng = caller.rng();
            let (crash_seed, kind, at) = (rng.random(), rng.random_range(0..6), rng.random_range(1..40));
            match kind {
                // The medium fails; the process starts again on what the kernel has cached.
                0 => disk.fail_sync_at(at),
                1 => disk.crash_at_sync(at, CrashMode::Before),
                2 => disk.crash_at_sync(at, CrashMode::After),
                _ => {}
            }
            work(&mut caller, &journal, 40);
            cuts += u32::from(disk.power_is_off());
            if kind != 4 {
                disk.power_off();
            }
            drop(journal);
            disk = match kind {
                // The program ended, or was killed: all that was written is still in the kernel's cache.
                0 | 3 | 4 => disk.fork(),
                _ => disk.crash(crash_seed),
            };
            // The power goes while the journal recovers, and again when it has.
            for again in 0..2 {
                disk.crash_at_sync(caller.rng().random_range(1..4), CrashMode::After);
                drop(try_open(&disk, options()));
                disk = disk.crash(crash_seed.wrapping_add(again));
            }
            journal = recovered(&disk, &mut caller, &what);
            let settled = disk.crash(crash_seed.wrapping_add(9));
            let again = recovered(&settled, &mut caller, &format!("{what}, settled"));
            assert_eq!(
                again.ends(),
                journal.ends(),
                "{what}: what recovery accepted is durable"
            );
            assert_eq!(again.vote(), journal.vote(), "{what}");
        }
        let lives: Vec<u64> = generations(&disk);
        let newest = lives.iter().copied().max().unwrap_or(0);
        assert!(
            cuts > 0 && newest > 4 * lives.len() as u64,
            "seed {seed}: {cuts} cuts, lives {lives:?}"
        );
    }
}

#[test]
fn a_failed_sync_poisons_for_good() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    fill(&journal, 1, 1..5, 100);
    let health = journal.poisoned();
    assert!(health.borrow().is_none());
    eventually("the spare segment is ready", || {
        journal.stats().free_segments == 1
    });
    disk.fail_sync_at(1);
    let error = append(&journal, vec![entry(1, 5, 100)]).unwrap_err();
    assert!(matches!(error, JournalError::Poisoned(_)), "{error}");
    let syncs = disk.counters().syncs;
    assert_eq!(append(&journal, vec![entry(1, 6, 100)]).unwrap_err(), error);
    assert_eq!(block_on(journal.save_vote(vote(9, 1))).unwrap_err(), error);
    assert_eq!(block_on(journal.truncate_after(None)).unwrap_err(), error);
    assert_eq!(block_on(journal.purge(log_id(1, 3))).unwrap_err(), error);
    assert_eq!(*health.borrow(), Some(error));
    assert_eq!(disk.counters().syncs, syncs, "nothing is tried again");
    drop(journal);
    assert_eq!(disk.counters().syncs, syncs, "not even at the end");
    let journal = open(&disk.crash(1));
    assert_eq!(read(&journal, 0..100).unwrap().len(), 4);
}

#[test]
fn a_failed_write_poisons_too() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    eventually("the spare segment is ready", || {
        journal.stats().free_segments == 1
    });
    disk.fail_write_at(1);
    let error = append(&journal, vec![entry(1, 1, 100)]).unwrap_err();
    assert!(matches!(error, JournalError::Poisoned(_)), "{error}");
    assert_eq!(*journal.poisoned().borrow(), Some(error));
}

#[test]
fn a_torn_tail_is_cut_and_told() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    fill(&journal, 1, 1..5, 100);
    eventually("the spare segment is ready", || {
        journal.stats().free_segments == 1
    });
    let before = disk.fork();
    fill(&journal, 1, 5..6, 20_000);
    // The last batch lost a sector in its middle.
    let path = segment(0);
    let (old, new) = (before.contents(&path).unwrap(), disk.contents(&path).unwrap());
    let first = (0..old.len()).find(|at| old[*at] != new[*at]).unwrap() / 4096 * 4096;
    let disk = disk.crash(0);
    disk.corrupt(&path, (first + 8192) as u64, &old[first + 8192..first + 8704])
        .unwrap();
    let (journal, report) = try_open(&disk, options()).unwrap();
    let torn = report.torn_tail.unwrap();
    assert_eq!(
        (torn.segment.as_str(), torn.offset),
        ("segment-00000000", first as u64)
    );
    assert_eq!(journal.ends().1, Some(log_id(1, 4)));
    fill(&journal, 2, 5..9, 100);
    drop(journal);
    assert_eq!(open(&disk.crash(0)).ends().1, Some(log_id(2, 8)));
}
