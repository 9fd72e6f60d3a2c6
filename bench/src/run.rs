//! Runs jobs, one after the other, each with its clones at a time.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::engine::{self, Engine};
use crate::job::Job;
use crate::layer::Files;
use crate::stats::{Live, Recorder, Stats};
use crate::{Error, Result};

/// Jobs work in this directory in the measured one.
pub const DATA: &str = "bramble-bench-data";

/// Told of each job as it runs.
pub trait Observer: Sync {
    /// The job's files are being laid out.
    fn prepares(&self, _job: &Job) {}
    /// The job's files are laid out and synced; its time begins when this returns.
    fn begins(&self, job: &Job);
    /// The job has run for this long.
    fn runs(&self, job: &Job, elapsed: Duration, live: &Live);
    /// The job has ended; its files are still there.
    fn ended(&self, job: &Job);
}

/// What a job did.
#[derive(Debug)]
pub struct Outcome {
    /// The job.
    pub job: Job,
    /// Of all its clones.
    pub stats: Stats,
    /// Blocks that were read back and found right.
    pub verified: u64,
}

/// Runs jobs in `files`.
///
/// # Errors
/// The first failure; what was written is removed then too.
pub fn run(
    files: &dyn Files,
    clock: &dyn Clock,
    jobs: &[Job],
    observer: &dyn Observer,
) -> Result<Vec<Outcome>> {
    make_data_dir(files)?;
    let outcomes = jobs
        .iter()
        .map(|job| {
            observer.prepares(job);
            let dir = format!("{DATA}/{}", job.name);
            files.mkdir(&dir).map_err(Error::io("make", &dir))?;
            let outcome = run_job(files, clock, job, &dir, observer)?;
            files.remove_tree(&dir).map_err(Error::io("remove", &dir))?;
            files.sync_tree(DATA).map_err(Error::io("sync", DATA))?;
            Ok(outcome)
        })
        .collect::<Result<Vec<_>>>();
    let removed = files.remove_tree(DATA).map_err(Error::io("remove", DATA));
    let outcomes = outcomes?;
    removed.map(|()| outcomes)
}

fn make_data_dir(files: &dyn Files) -> Result<()> {
    files.mkdir(DATA).map_err(|source| {
        if source.kind() == std::io::ErrorKind::AlreadyExists {
            let what = format!(
                "there is a {DATA} in that directory: another run uses it, or one that was killed left it; \
                 remove it if none runs"
            );
            return Error::Usage(what);
        }
        Error::io("make", DATA)(source)
    })
}

fn run_job(
    files: &dyn Files,
    clock: &dyn Clock,
    job: &Job,
    dir: &str,
    observer: &dyn Observer,
) -> Result<Outcome> {
    let live = Live::default();
    let clones = usize::try_from(job.clones).unwrap_or(1);
    let (prepared, go) = (Barrier::new(clones + 1), Barrier::new(clones + 1));
    let ended = AtomicBool::new(false);
    let (stats, verified) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..job.clones)
            .map(|clone| {
                let (live, prepared, go) = (&live, &prepared, &go);
                let mut engine = engine::new(files, job, dir, clone);
                scope.spawn(move || {
                    let ready = engine.prepare();
                    prepared.wait();
                    go.wait();
                    ready
                        .and_then(|()| work(&mut *engine, clock, job, live))
                        .map(|stats| (engine, stats))
                })
            })
            .collect();
        prepared.wait();
        let settled = files.sync_tree(dir).map_err(Error::io("sync", dir));
        observer.begins(job);
        go.wait();
        scope.spawn(|| watch(clock, job, &live, observer, &ended));
        let done: Vec<_> = workers
            .into_iter()
            .map(|worker| {
                let lost = || Error::Usage(format!("a clone of {} panicked", job.name));
                worker.join().map_err(|_| lost()).flatten()
            })
            .collect();
        ended.store(true, Ordering::Release);
        observer.ended(job);
        settled?;
        gather(done)
    })?;
    Ok(Outcome {
        job: job.clone(),
        stats,
        verified,
    })
}

/// Adds up what the clones did, and reads back what they wrote.
fn gather(done: Vec<Result<(Box<dyn Engine + '_>, Stats)>>) -> Result<(Stats, u64)> {
    let mut stats = Stats::new()?;
    let mut verified = 0;
    for clone in done {
        let (mut engine, part) = clone?;
        stats.merge(&part);
        verified += engine.check()?;
    }
    Ok((stats, verified))
}

fn watch(clock: &dyn Clock, job: &Job, live: &Live, observer: &dyn Observer, ended: &AtomicBool) {
    let start = clock.now();
    while !ended.load(Ordering::Acquire) {
        observer.runs(job, clock.now().saturating_sub(start), live);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One clone's measured time.
fn work(engine: &mut dyn Engine, clock: &dyn Clock, job: &Job, live: &Live) -> Result<Stats> {
    let mut recorder = Recorder::new(clock, live)?;
    let mut operations: u32 = 0;
    while job.runtime.is_none_or(|runtime| recorder.elapsed() < runtime) {
        if !recorder.step(|recorder| engine.step(recorder))? {
            if job.time_based && engine.rewind()? {
                continue;
            }
            break;
        }
        operations = operations.saturating_add(1);
        if !job.think.is_zero() {
            clock.sleep(job.think);
        }
        if let Some(rate) = job.rate_iops {
            let due = Duration::from_secs(1) * operations / rate;
            clock.sleep(due.saturating_sub(recorder.elapsed()));
        }
    }
    engine.finish(&mut recorder)?;
    Ok(recorder.finish())
}
