//! The threads that write sorted files: one flushes what was changed, the other merges what was flushed.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, AnyTree};

use super::instants::Instants;
use super::to_kv;
use crate::kv::KvError;
use crate::kv::contain::contain;
use crate::kv::written;

/// Size of a sorted file. Small ones keep a merge, and the room it takes, small.
const TABLE_BYTES: u64 = 8 << 20;
/// Buffers that wait to be flushed; who changes more waits.
const SEALED_MAX: usize = 3;
/// Merges that may follow one flush: those that are left come after the next.
const MERGES_MAX: usize = 8;
/// Merges that are tried in any case: one may make the next worth while.
const MERGES_MIN: usize = 2;
/// Flushed files from which on they are merged, as the strategy has it.
const UNMERGED_MAX: usize = 4;

/// The two threads.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    tree: AnyTree,
    instants: Arc<Instants>,
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    flushes_asked: u64,
    flushes_done: u64,
    merge: bool,
    stop: bool,
    failed: Option<KvError>,
}

impl Work {
    fn outcome(&self) -> Result<(), KvError> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `idle`.
    fn wait<'a>(&self, work: MutexGuard<'a, Work>, idle: impl Fn(&Work) -> bool) -> MutexGuard<'a, Work> {
        self.changed
            .wait_while(work, |work| idle(work) && work.failed.is_none())
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `call` again and again until there is nothing more to do, or it fails.
    fn run(&self, call: impl Fn(&Self) -> Result<bool, KvError>) {
        let failed = loop {
            match contain(|| call(self)).unwrap_or_else(|panic| Err(KvError::Damaged(panic))) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => break error,
            }
        };
        self.work().failed.get_or_insert(failed);
        self.changed.notify_all();
    }

    /// Flushes what is asked for; false once that is over.
    fn flush(&self) -> Result<bool, KvError> {
        let asked = {
            let work = self.wait(self.work(), |work| {
                work.flushes_asked == work.flushes_done && !work.stop
            });
            if work.stop || work.failed.is_some() {
                return Ok(false);
            }
            work.flushes_asked
        };
        let lock = self.tree.get_flush_lock();
        written::count_during(|| self.tree.flush(&lock, self.instants.oldest())).map_err(to_kv)?;
        drop(lock);
        let mut work = self.work();
        work.flushes_done = asked;
        work.merge = true;
        self.changed.notify_all();
        Ok(true)
    }

    /// Merges after a flush; false once that is over.
    fn merge(&self) -> Result<bool, KvError> {
        {
            let mut work = self.wait(self.work(), |work| !work.merge && !work.stop);
            if work.stop || work.failed.is_some() {
                return Ok(false);
            }
            work.merge = false;
        }
        let strategy = Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES));
        for merges in 0..MERGES_MAX {
            if merges >= MERGES_MIN && self.tree.l0_run_count() < UNMERGED_MAX || self.work().stop {
                break;
            }
            let strategy = strategy.clone();
            written::count_during(|| self.tree.compact(strategy, self.instants.oldest())).map_err(to_kv)?;
        }
        Ok(true)
    }
}

impl Workers {
    /// Starts them. What is left to merge from an earlier run is merged first.
    pub(super) fn start(tree: AnyTree, instants: Arc<Instants>) -> Result<Self, KvError> {
        let shared = Arc::new(Shared {
            tree,
            instants,
            work: Mutex::new(Work {
                merge: true,
                ..Work::default()
            }),
            changed: Condvar::new(),
        });
        let mut workers = Self {
            shared,
            threads: Vec::new(),
        };
        workers.spawn("fjall:flush", |shared| shared.run(Shared::flush))?;
        workers.spawn("fjall:merge", |shared| shared.run(Shared::merge))?;
        Ok(workers)
    }

    fn spawn(&mut self, name: &str, work: fn(&Shared)) -> Result<(), KvError> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || work(&shared));
        self.threads
            .push(thread.map_err(|error| KvError::Io(error.to_string()))?);
        Ok(())
    }

    /// Waits until there is room for changes.
    pub(super) fn wait_for_room(&self) -> Result<(), KvError> {
        let shared = &self.shared;
        if shared.tree.sealed_memtable_count() < SEALED_MAX {
            return shared.work().outcome();
        }
        let work = shared.wait(shared.work(), |_| {
            shared.tree.sealed_memtable_count() >= SEALED_MAX
        });
        work.outcome()
    }

    /// Has what was sealed flushed.
    pub(super) fn ask(&self) -> u64 {
        let mut work = self.shared.work();
        work.flushes_asked += 1;
        self.shared.changed.notify_all();
        work.flushes_asked
    }

    /// As [`Workers::ask`]; returns once it is on the medium.
    pub(super) fn flush(&self) -> Result<(), KvError> {
        let asked = self.ask();
        let work = self
            .shared
            .wait(self.shared.work(), |work| work.flushes_done < asked);
        work.outcome()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.work().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
