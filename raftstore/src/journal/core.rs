//! What the journal's threads and callers share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::bounds::Bounds;
use super::cache::Cache;
use super::log::{Log, Place};
use super::segment::{Life, Workshop};
use super::stats::SpaceCondition;
use super::{JournalError, JournalOptions};
use crate::raft::{LogId, Vote};

/// Called with the outcome once everything queued before is on the medium, or can never be.
pub type Completion = Box<dyn FnOnce(Result<(), JournalError>) + Send>;

/// What a record does to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Adds the entry; the number is its ticket.
    Entry(u64),
    Vote(Vote),
    TruncateAfter(Option<u64>),
    Purge(LogId),
}

/// A record on its way to the medium.
pub(super) struct QueuedRecord {
    pub(super) change: Change,
    /// Log index of an entry, otherwise 0.
    pub(super) index: u64,
    pub(super) body: Vec<u8>,
    pub(super) payload: Bytes,
}

/// What waits for the writer, in order.
pub(super) enum Queued {
    Record(QueuedRecord),
    Done(Completion),
}

/// The state under the lock.
pub(super) struct Core {
    /// The log as callers see it: with all that is queued.
    pub(super) log: Log,
    pub(super) cache: Cache,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,

    pub(super) queue: VecDeque<Queued>,
    /// Bytes of the queued records, and of those being written.
    pub(super) pending_bytes: usize,
    /// Queued truncations and purges: while there are any, `log` is ahead of the medium in more than entries.
    pub(super) queued_cuts: usize,
    pub(super) next_ticket: u64,

    /// Segments that are needed, and those not yet durably given up, by generation. The last one is written to.
    pub(super) live: BTreeMap<u64, Arc<Life>>,
    /// Segments whose life is over, durably.
    pub(super) free: VecDeque<Arc<Life>>,
    /// Segments whose next life has durably begun, but that hold nothing yet.
    pub(super) prepared: VecDeque<Arc<Life>>,
    pub(super) next_generation: u64,
    pub(super) next_slot: u32,
    pub(super) space: SpaceCondition,

    pub(super) failure: Option<JournalError>,
    pub(super) closing: bool,
    pub(super) damaged_reads: u64,
}

/// The lock and what surrounds it.
pub(super) struct Shared {
    core: Mutex<Core>,
    /// The writer waits here for records and for prepared segments.
    pub(super) work: Condvar,
    /// The preparer waits here for something to do.
    pub(super) prepare: Condvar,
    /// Appends wait here for `pending_bytes` to fall.
    pub(super) room: Notify,
    pub(super) health: watch::Sender<Option<JournalError>>,
    pub(super) workshop: Workshop,
    pub(super) options: JournalOptions,
}

impl Shared {
    pub(super) fn new(core: Core, workshop: Workshop, options: JournalOptions) -> Self {
        Self {
            core: Mutex::new(core),
            work: Condvar::new(),
            prepare: Condvar::new(),
            room: Notify::new(),
            health: watch::Sender::new(None),
            workshop,
            options,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the journal for good: the medium failed to do `what`. Everything that waits fails.
    pub(super) fn poison(&self, what: String) {
        tracing::error!(what, "the journal's medium failed; the journal stops");
        self.stop(JournalError::Poisoned(what));
    }

    /// Tells whoever watches that this node's log cannot be relied on; the first reason stands.
    pub(super) fn report(&self, error: &JournalError) {
        self.health.send_if_modified(|health| {
            let first = health.is_none();
            if first {
                *health = Some(error.clone());
            }
            first
        });
    }

    /// Fails everything that waits, and everything to come, with `error` (or an earlier one).
    pub(super) fn stop(&self, error: JournalError) {
        let (failure, completions) = {
            let mut core = self.lock();
            let failure = core.failure.get_or_insert(error).clone();
            core.pending_bytes = 0;
            core.queued_cuts = 0;
            (failure, core.queue.drain(..).collect::<Vec<_>>())
        };
        for queued in completions {
            if let Queued::Done(done) = queued {
                done(Err(failure.clone()));
            }
        }
        if matches!(failure, JournalError::Poisoned(_)) {
            self.report(&failure);
        }
        self.work.notify_all();
        self.prepare.notify_all();
        self.room.notify_waiters();
    }
}

impl Core {
    pub(super) fn bounds(&self) -> &Bounds {
        self.log.bounds()
    }

    /// Segments there are.
    pub(super) fn segments(&self) -> usize {
        self.live.len() + self.free.len() + self.prepared.len()
    }

    /// Fails if the journal takes nothing more.
    pub(super) fn check_open(&self) -> Result<(), JournalError> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None if self.closing => Err(JournalError::Closed),
            None => Ok(()),
        }
    }

    /// Queues a record.
    pub(super) fn enqueue(&mut self, record: QueuedRecord) {
        self.pending_bytes += record.body.len() + record.payload.len();
        self.queued_cuts += usize::from(record.is_cut());
        self.queue.push_back(Queued::Record(record));
    }

    /// Drops cached entries that are on the medium, the oldest first, until the cache is within its bound.
    pub(super) fn trim_cache(&mut self, bytes_max: usize) {
        while let Some(first) = self.cache.first() {
            let pending = self
                .log
                .slot(first)
                .is_some_and(|slot| matches!(slot.place, Place::Pending(_)));
            let purged = first < self.bounds().first;
            if !purged && (pending || self.cache.bytes() <= bytes_max) {
                break;
            }
            self.cache.pop_first();
        }
    }

    /// A number for a segment's next life.
    pub(super) fn take_generation(&mut self) -> u64 {
        let generation = self.next_generation;
        self.next_generation += 1;
        generation
    }

    /// A number for a new segment.
    pub(super) fn take_slot(&mut self) -> u32 {
        let slot = self.next_slot;
        self.next_slot += 1;
        slot
    }

    /// A segment of at least `bytes_min` whose life is over and that nobody reads any more.
    pub(super) fn take_free(&mut self, bytes_min: u64) -> Option<Arc<Life>> {
        // Readers clone an `Arc<Life>` only under the lock, and only of live segments.
        let at = self
            .free
            .iter()
            .position(|life| Arc::strong_count(life) == 1 && life.capacity_bytes >= bytes_min)?;
        self.free.remove(at)
    }

    /// The slot of a free segment beyond those that are kept, or too small to be used again. (A reader that still
    /// holds it keeps its open file.)
    pub(super) fn take_surplus(&mut self, options: &JournalOptions) -> Option<u32> {
        let small = self
            .free
            .iter()
            .position(|life| life.capacity_bytes < options.segment_bytes);
        let surplus = (self.free.len() > options.free_segments_max).then_some(0);
        self.free.remove(small.or(surplus)?).map(|life| life.slot)
    }
}

impl QueuedRecord {
    pub(super) fn is_cut(&self) -> bool {
        matches!(self.change, Change::TruncateAfter(_) | Change::Purge(_))
    }
}
