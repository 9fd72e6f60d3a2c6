//! What each job costs each host.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::host::Hosts;
use crate::clock::{Clock as _, SystemClock};
use crate::job::{Job, Kind};
use crate::progress::Progress;
use crate::report::HostUse;
use crate::run::Observer;
use crate::stats::Live;
use crate::{Result, files};

/// After a job, media are watched until they are quiet, but no longer than this: what a filesystem writes later for
/// a job counts as that job's.
const SETTLE_MAX: Duration = Duration::from_secs(12);
/// A medium is quiet if it wrote less than this in a second.
const QUIET_BYTES: u64 = 64 << 10;

/// Reads the hosts' counters before and after each job.
pub struct Meter<'a> {
    hosts: &'a Hosts,
    progress: Progress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    before: Vec<HostUse>,
    costs: Vec<HostUse>,
    /// An observer cannot fail, so what went wrong is told at the end.
    failed: Option<crate::Error>,
}

impl<'a> Meter<'a> {
    /// For these hosts.
    #[must_use]
    pub fn new(hosts: &'a Hosts, progress: Progress) -> Self {
        Self {
            hosts,
            progress,
            state: Mutex::default(),
        }
    }

    /// What the last job cost each host; nothing if it has not come to its end.
    ///
    /// # Errors
    /// If a counter could not be read.
    pub fn take(&self) -> Result<Vec<HostUse>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let costs = std::mem::take(&mut state.costs);
        state.failed.take().map_or(Ok(costs), Err)
    }

    /// What all hosts have used so far.
    ///
    /// # Errors
    /// If a counter cannot be read.
    pub fn used(&self) -> Result<Vec<HostUse>> {
        self.hosts.all().iter().map(super::host::Host::used).collect()
    }

    fn settle(&self) -> Result<()> {
        let start = SystemClock.now();
        let mut before = self.used()?;
        loop {
            // All at a time: each may have much to write.
            std::thread::scope(|scope| {
                let syncs: Vec<_> = self
                    .hosts
                    .all()
                    .iter()
                    .map(|host| scope.spawn(|| host.sync()))
                    .collect();
                syncs.into_iter().try_for_each(|sync| {
                    let lost = || crate::Error::Usage("a thread that syncs a medium panicked".to_owned());
                    sync.join().map_err(|_| lost()).flatten()
                })
            })?;
            SystemClock.sleep(Duration::from_secs(1));
            let now = self.used()?;
            let pairs = now.iter().zip(&before);
            let most = pairs
                .map(|(now, before)| now.written_bytes.saturating_sub(before.written_bytes))
                .max();
            if most.unwrap_or(0) < QUIET_BYTES || SystemClock.now().saturating_sub(start) > SETTLE_MAX {
                return Ok(());
            }
            before = now;
        }
    }

    fn note(&self, work: impl FnOnce(&mut State) -> Result<()>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = work(&mut state) {
            state.failed.get_or_insert(error);
        }
    }
}

/// Whether a job is to read what is in no cache.
fn reads_media(job: &Job) -> bool {
    job.kind == Kind::Blocks && job.access.read_percent > 0 && job.invalidate && !job.pre_read
}

impl Observer for Meter<'_> {
    fn prepares(&self, job: &Job) {
        self.progress.prepares(job);
    }

    fn begins(&self, job: &Job) {
        self.note(|state| {
            state.costs.clear();
            Ok(())
        });
        self.progress
            .say(&format!("{}: waiting for quiet media", job.name));
        self.note(|state| {
            self.settle()?;
            if reads_media(job) {
                // The hosts' page caches, of which a job knows nothing: it drops those of the mount it works on.
                files::write(Path::new("/proc/sys/vm/drop_caches"), "1\n")?;
            }
            state.before = self.used()?;
            Ok(())
        });
    }

    fn runs(&self, job: &Job, elapsed: Duration, live: &Live) {
        self.progress.runs(job, elapsed, live);
    }

    fn ended(&self, job: &Job) {
        self.progress
            .say(&format!("{}: waiting for quiet media", job.name));
        self.note(|state| {
            // The processors are not charged for the waiting.
            let ended = self.used()?;
            self.settle()?;
            let settled = self.used()?;
            let hosts = settled.iter().zip(&ended).zip(&state.before);
            let costs = hosts.map(|((settled, ended), before)| HostUse {
                cpu_seconds: ended.since(before).cpu_seconds,
                ..settled.since(before)
            });
            state.costs = costs.collect();
            Ok(())
        });
        self.progress.ended(job);
    }

    fn hangs(&self, _: &Job) {
        self.note(|_| self.hosts.all().iter().try_for_each(super::host::Host::kill_all));
    }
}
