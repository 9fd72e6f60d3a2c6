//! What each job costs each host.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::host::Hosts;
use crate::Result;
use crate::clock::{Clock as _, SystemClock};
use crate::job::Job;
use crate::progress::Progress;
use crate::report::HostUse;
use crate::run::Observer;
use crate::stats::Live;

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
    jobs: Vec<Vec<HostUse>>,
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

    /// What each job cost each host, in the order in which they ran.
    ///
    /// # Errors
    /// If a counter could not be read.
    pub fn finish(self) -> Result<Vec<Vec<HostUse>>> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.failed.map_or(Ok(state.jobs), Err)
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
            for host in self.hosts.all() {
                host.sync()?;
            }
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

impl Observer for Meter<'_> {
    fn prepares(&self, job: &Job) {
        self.progress.prepares(job);
    }

    fn begins(&self, job: &Job) {
        self.progress
            .say(&format!("{}: waiting for quiet media", job.name));
        self.note(|state| {
            self.settle()?;
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
            state.jobs.push(costs.collect());
            Ok(())
        });
        self.progress.ended(job);
    }
}
