//! Runs jobs, one after the other, each with its clones at a time.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::engine::{self, Deadline, Engine};
use crate::job::Job;
use crate::layer::Files;
use crate::stats::{Live, Recorder, Stats};
use crate::{Error, Result};

/// Jobs work in this directory in the measured one.
pub const DATA: &str = "bramble-bench-data";
/// A job that does not come back so long after its limit hangs in a call.
const STUCK_AFTER: Duration = Duration::from_secs(30);

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
    /// The job hangs in a call, beyond its limit. Only ending the filesystem's daemons can help.
    fn hangs(&self, _job: &Job) {}
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
    /// Why there is no result.
    pub failure: Option<Error>,
}

impl Outcome {
    /// Of a job that did all it had to.
    #[must_use]
    pub fn new(job: Job, stats: Stats, verified: u64) -> Self {
        Self {
            job,
            stats,
            verified,
            failure: None,
        }
    }

    /// Of a job that failed.
    ///
    /// # Errors
    /// As [`Stats::new`].
    pub fn failed(job: Job, failure: Error) -> Result<Self> {
        Ok(Self {
            failure: Some(failure),
            ..Self::new(job, Stats::new()?, 0)
        })
    }
}

/// Runs jobs in a directory.
pub struct Runner<'a> {
    /// The directory.
    pub files: &'a dyn Files,
    /// Tells the time.
    pub clock: &'a dyn Clock,
    /// Is told.
    pub observer: &'a dyn Observer,
    /// A job that takes longer, with the layout of its files, is given up.
    pub limit: Option<Duration>,
    /// Leaves all files where they are: the filesystem is thrown away.
    pub keep: bool,
}

impl Runner<'_> {
    /// Runs jobs; one that fails has an outcome too, and those after it have their turn.
    ///
    /// # Errors
    /// Those of `each`; or if the directory cannot be used at all or not be cleaned up.
    pub fn run(&self, jobs: &[Job], each: &mut dyn FnMut(Outcome) -> Result<()>) -> Result<()> {
        make_data_dir(self.files)?;
        let mut failed_tree: Option<&str> = None;
        let mut result = Ok(());
        for (i, job) in jobs.iter().enumerate() {
            let before = |other: Option<&Job>| other.is_some_and(|other| shares(other, job));
            let fresh = !before(i.checked_sub(1).and_then(|i| jobs.get(i)));
            let outcome = if failed_tree.is_some_and(|tree| job.tree.as_deref() == Some(tree)) {
                let what = "not tried: an earlier job of the same tree failed";
                Err(Error::Usage(what.to_owned()))
            } else {
                self.job(job, fresh)
            };
            if outcome.is_err() {
                failed_tree = job.tree.as_deref();
            }
            if !self.keep && !before(jobs.get(i + 1)) {
                // What is left is removed at the end, or tells why not.
                let _ = self.remove(job.directory());
            }
            let outcome = outcome.or_else(|failure| Outcome::failed(job.clone(), failure));
            result = outcome.and_then(&mut *each);
            if result.is_err() {
                break;
            }
        }
        if self.keep {
            return result;
        }
        let removed = self.files.remove_tree(DATA).map_err(Error::io("remove", DATA));
        result.and(removed)
    }

    fn remove(&self, directory: &str) -> Result<()> {
        let dir = format!("{DATA}/{directory}");
        self.files.remove_tree(&dir).map_err(Error::io("remove", &dir))?;
        self.files.sync_tree(DATA).map_err(Error::io("sync", DATA))
    }

    fn job(&self, job: &Job, fresh: bool) -> Result<Outcome> {
        self.observer.prepares(job);
        let dir = format!("{DATA}/{}", job.directory());
        if fresh {
            self.files.mkdir(&dir).map_err(Error::io("make", &dir))?;
        }
        self.clones(job, &dir)
    }

    fn clones(&self, job: &Job, dir: &str) -> Result<Outcome> {
        let live = Live::default();
        let clones = usize::try_from(job.clones).unwrap_or(1);
        let (prepared, go) = (Barrier::new(clones + 1), Barrier::new(clones + 1));
        let (running, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let deadline = Deadline {
            clock: self.clock,
            at: self.limit.map(|limit| self.clock.now() + limit),
        };
        let (stats, verified) = std::thread::scope(|scope| {
            scope.spawn(|| self.watch(job, &live, &running, &ended));
            let workers: Vec<_> = (0..job.clones)
                .map(|clone| {
                    let (live, prepared, go) = (&live, &prepared, &go);
                    let mut engine = engine::new(self.files, job, dir, clone, deadline);
                    scope.spawn(move || {
                        let ready = engine.prepare();
                        prepared.wait();
                        go.wait();
                        ready
                            .and_then(|()| work(&mut *engine, job, live, deadline))
                            .map(|stats| (engine, stats))
                    })
                })
                .collect();
            prepared.wait();
            let settled = self.files.sync_tree(dir).map_err(Error::io("sync", dir));
            self.observer.begins(job);
            running.store(true, Ordering::Release);
            go.wait();
            let done: Vec<_> = workers
                .into_iter()
                .map(|worker| {
                    let lost = || Error::Usage(format!("a clone of {} panicked", job.name));
                    worker.join().map_err(|_| lost()).flatten()
                })
                .collect();
            running.store(false, Ordering::Release);
            self.observer.ended(job);
            let gathered = settled.and_then(|()| gather(done));
            ended.store(true, Ordering::Release);
            gathered
        })?;
        Ok(Outcome::new(job.clone(), stats, verified))
    }

    fn watch(&self, job: &Job, live: &Live, running: &AtomicBool, ended: &AtomicBool) {
        let start = self.clock.now();
        let mut began = None;
        let mut hangs = false;
        while !ended.load(Ordering::Acquire) {
            let now = self.clock.now();
            if running.load(Ordering::Acquire) {
                let began = *began.get_or_insert(now);
                self.observer.runs(job, now.saturating_sub(began), live);
            }
            let limit = self.limit.map(|limit| limit + STUCK_AFTER);
            if !hangs && limit.is_some_and(|limit| now.saturating_sub(start) > limit) {
                hangs = true;
                self.observer.hangs(job);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Whether two jobs work in the same directory.
fn shares(one: &Job, other: &Job) -> bool {
    one.tree.is_some() && one.tree == other.tree
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

/// One clone's measured time.
fn work(engine: &mut dyn Engine, job: &Job, live: &Live, deadline: Deadline) -> Result<Stats> {
    let clock = deadline.clock;
    let mut recorder = Recorder::new(clock, live)?;
    let mut operations: u32 = 0;
    while job.runtime.is_none_or(|runtime| recorder.elapsed() < runtime) {
        deadline.check()?;
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
