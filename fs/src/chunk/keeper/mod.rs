//! Background work that keeps a node's chunks as they should be: nothing missing, nothing bad, nothing too much.
//!
//! All of it runs at a bounded rate and makes way for users' reads and writes.

mod reclaim;
mod repair;
mod scrub;

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use raftstore::meta::ChunkId;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use repair::RepairProgress;

use super::budget::Budget;
use super::plane::DataPlane;
use super::watcher::ChunkWatcher;
use crate::medium::Medium;

/// Bounds of a [`Keeper`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperOptions {
    /// Bytes that repair fetches per second.
    pub repair_bytes_per_s_max: u64,
    /// Bytes that scrubbing reads per second.
    pub scrub_bytes_per_s_max: u64,
    /// Bytes that compaction copies per second.
    pub compact_bytes_per_s_max: u64,
    /// How long after its first reference a chunk may be missing here: it may still be on its way.
    pub missing_grace: Duration,
    /// How long a dead chunk stays, for readers that hold its name.
    pub dead_grace: Duration,
    /// How long to wait before what could not be repaired is tried again.
    pub retry_after: Duration,
    /// Time between two walks for missing chunks and garbage that no event has told of.
    pub walk_every: Duration,
    /// Time from the start, and from one pass to the next, until all chunks are read again.
    pub scrub_every: Duration,
    /// Time between two looks for packs to compact.
    pub compact_every: Duration,
}

impl Default for KeeperOptions {
    fn default() -> Self {
        Self {
            repair_bytes_per_s_max: 8 << 20,
            scrub_bytes_per_s_max: 1 << 20,
            compact_bytes_per_s_max: 2 << 20,
            missing_grace: Duration::from_secs(10),
            dead_grace: Duration::from_secs(30),
            retry_after: Duration::from_secs(30),
            walk_every: Duration::from_secs(3600),
            scrub_every: Duration::from_secs(3 * 24 * 3600),
            compact_every: Duration::from_secs(30),
        }
    }
}

/// Whatever the medium: so that repair ends some day, and leaves the processor to others.
const REPAIR_BYTES_PER_S: RangeInclusive<u64> = 1 << 20..=32 << 20;
/// Likewise for compaction, whose bytes gain room only.
const COMPACT_BYTES_PER_S: RangeInclusive<u64> = 256 << 10..=8 << 20;

impl KeeperOptions {
    /// With rates that suit `medium`: half of what it takes for copies that are missing, so that programs have the
    /// other half, and an eighth for compaction, which has time.
    #[must_use]
    pub fn for_medium(medium: &Medium) -> Self {
        Self {
            repair_bytes_per_s_max: medium.share(2, REPAIR_BYTES_PER_S),
            compact_bytes_per_s_max: medium.share(8, COMPACT_BYTES_PER_S),
            ..Self::default()
        }
    }
}

/// What the background loops share.
pub(super) struct Work {
    pub(super) plane: Arc<DataPlane>,
    pub(super) watcher: Arc<ChunkWatcher>,
    pub(super) options: KeeperOptions,
    repair_budget: Budget,
    scrub_budget: Budget,
    compact_budget: Budget,
    progress: Mutex<RepairProgress>,
}

impl Work {
    pub(super) fn new(plane: Arc<DataPlane>, watcher: Arc<ChunkWatcher>, options: KeeperOptions) -> Self {
        Self {
            repair_budget: Budget::new(options.repair_bytes_per_s_max),
            scrub_budget: Budget::new(options.scrub_bytes_per_s_max),
            compact_budget: Budget::new(options.compact_bytes_per_s_max),
            progress: Mutex::default(),
            plane,
            watcher,
            options,
        }
    }
}

/// Repairs, reclaims, scrubs and compacts until it is dropped.
pub struct Keeper {
    work: Arc<Work>,
    _loops: JoinSet<()>,
}

impl Keeper {
    /// Starts the background work; must be called within a tokio runtime. `watcher` is to be registered with the
    /// metadata store.
    #[must_use]
    pub fn start(plane: Arc<DataPlane>, watcher: Arc<ChunkWatcher>, options: KeeperOptions) -> Self {
        let suspects = plane.take_suspects();
        let work = Arc::new(Work::new(plane, watcher, options));
        let mut loops = JoinSet::new();
        loops.spawn(Arc::clone(&work).repair_loop(suspects));
        loops.spawn(Arc::clone(&work).reclaim_loop());
        loops.spawn(Arc::clone(&work).scrub_loop());
        loops.spawn(Arc::clone(&work).compact_loop());
        Self { work, _loops: loops }
    }

    /// How far repair has come.
    #[must_use]
    pub fn repair_progress(&self) -> RepairProgress {
        *self.work.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the last look at everything found all chunks here that belong here.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.repair_progress().is_clean()
    }
}

/// Chunks to look at, each not before its time; bounded.
#[derive(Debug, Default)]
struct Later {
    queue: VecDeque<(Instant, ChunkId)>,
}

/// Chunks that [`Later`] holds.
const LATER_CHUNKS_MAX: usize = 65_536;

impl Later {
    /// Adds chunks that are to be looked at after `wait`, the same for all calls. False if there was no room.
    fn add(&mut self, chunks: impl IntoIterator<Item = ChunkId>, wait: Duration) -> bool {
        let due = Instant::now() + wait;
        for id in chunks {
            if self.queue.len() >= LATER_CHUNKS_MAX {
                return false;
            }
            self.queue.push_back((due, id));
        }
        true
    }

    /// When the next chunk is due.
    fn next_due(&self) -> Option<Instant> {
        self.queue.front().map(|(due, _)| *due)
    }

    /// Takes out up to `max` chunks that are due.
    fn take_due(&mut self, max: usize) -> Vec<ChunkId> {
        let now = Instant::now();
        let due = self
            .queue
            .iter()
            .take(max)
            .take_while(|(due, _)| *due <= now)
            .count();
        self.queue.drain(..due).map(|(_, id)| id).collect()
    }
}

/// Sleeps until `due`; for ever if there is nothing due.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
