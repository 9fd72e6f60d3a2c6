//! Keeps the journal bounded: says what may go, and lets Raft cut its log.
//!
//! Entries go when the engine has what they did on its medium, and no payload at or below them is in use any more. So
//! a node that takes a snapshot finds the bytes that the snapshot refers to either in chunks, which are replicated
//! and repaired, or in the log that it gets with the snapshot.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use raftstore::journal::{Journal, JournalStats};
use raftstore::kv::KvError;
use raftstore::meta::MetaStore;

use super::config::Limits;
use super::raft::Raft;

/// Between two looks at the journal, in a node.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// Fewer entries are not worth a flush of the engine.
const PURGE_ENTRIES_MIN: u64 = 64;

/// Looks after one node's journal.
pub struct Housekeeping {
    raft: Raft,
    meta: Arc<MetaStore>,
    journal: Arc<Journal>,
    limits: Limits,
    interval: Duration,
}

impl Housekeeping {
    /// Within `limits`, with a look each `interval`.
    #[must_use]
    pub fn new(
        raft: Raft,
        meta: Arc<MetaStore>,
        journal: Arc<Journal>,
        limits: Limits,
        interval: Duration,
    ) -> Self {
        Self {
            raft,
            meta,
            journal,
            limits,
            interval,
        }
    }

    /// Works until it is dropped.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(self.interval).await;
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "the journal's housekeeping failed; it goes on");
            }
        }
    }

    async fn look(&self) -> Result<(), KvError> {
        let floor = payload_floor(&self.meta)?;
        self.journal.set_payload_floor(floor);
        let Some(wanted) = cut(&self.journal.stats(), &self.limits) else {
            return Ok(());
        };
        let target = wanted.min(floor.saturating_sub(1));
        let purged = self
            .raft
            .metrics()
            .borrow_watched()
            .purged
            .map_or(0, |id| id.index);
        if target < purged + PURGE_ENTRIES_MIN {
            return Ok(());
        }
        let snapshot = self
            .raft
            .metrics()
            .borrow_watched()
            .snapshot
            .map_or(0, |id| id.index);
        let trigger = self.raft.trigger();
        let done = if snapshot < target {
            // Flushes the engine; the purge follows in a later look.
            trigger.snapshot().await
        } else {
            trigger.purge_log(target).await
        };
        if let Err(error) = done {
            tracing::debug!(%error, "Raft has stopped");
        }
        Ok(())
    }
}

/// The log index below which no payload is in use.
///
/// # Errors
/// If the engine fails.
pub fn payload_floor(meta: &MetaStore) -> Result<u64, KvError> {
    // Taken before the look at the state: a payload that appears meanwhile is above it.
    let applied = *meta.applied().borrow();
    let oldest = meta
        .reader()
        .live_payloads(0, 1)?
        .first()
        .map(|payload| payload.log_index);
    Ok(oldest.unwrap_or(applied + 1))
}

/// The index up to which the log should go so that the journal keeps within its limits; `None` while it does. Cuts
/// half of what is allowed at once, so that the engine is flushed rarely.
#[must_use]
pub fn cut(stats: &JournalStats, limits: &Limits) -> Option<u64> {
    let (first, last) = (stats.first_index?, stats.last_index?);
    let entries = last.saturating_sub(first) + 1;
    let over_entries = entries > limits.journal_entries_max;
    let over_bytes = stats.live_bytes > limits.journal_bytes_max / 4 * 3;
    let keep_entries = limits.journal_entries_max / 2;
    let mut keep = entries;
    if over_entries {
        keep = keep.min(keep_entries);
    }
    if over_bytes {
        let half = u128::from(limits.journal_bytes_max / 2);
        let share = u128::from(entries) * half / u128::from(stats.live_bytes.max(1));
        keep = keep.min(u64::try_from(share).unwrap_or(u64::MAX));
    }
    (keep < entries).then(|| last.saturating_sub(keep))
}

/// How much of a log is kept by [`idle_cut`], and how much there must be: parts of what the journal may have.
const IDLE_KEEP_PART: u64 = 32;
const IDLE_LOOK_PART: u64 = 16;

/// The index up to which the log should be rid of payload while nobody needs the medium, so that there is room when
/// somebody does; `None` if there is little.
#[must_use]
pub fn idle_cut(stats: &JournalStats, limits: &Limits) -> Option<u64> {
    let (first, last) = (stats.first_index?, stats.last_index?);
    if stats.live_bytes <= limits.journal_bytes_max / IDLE_LOOK_PART {
        return None;
    }
    let entries = u128::from(last.saturating_sub(first) + 1);
    let keep = entries * u128::from(limits.journal_bytes_max / IDLE_KEEP_PART) / u128::from(stats.live_bytes);
    last.checked_sub(u64::try_from(keep).ok()?)
        .filter(|cut| *cut >= first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftstore::journal::SpaceCondition;

    fn stats(first: u64, last: u64, live_bytes: u64) -> JournalStats {
        JournalStats {
            live_segments: 1,
            free_segments: 0,
            live_bytes,
            total_bytes: live_bytes,
            oldest_retained_index: Some(first),
            oldest_segment_last_index: None,
            first_index: Some(first),
            last_index: Some(last),
            pending_bytes: 0,
            cache_bytes: 0,
            written_bytes: 0,
            writes: 0,
            syncs: 0,
            sync_latency: Duration::ZERO,
            damaged_reads: 0,
            space: SpaceCondition::Ok,
        }
    }

    #[test]
    fn an_idle_log_keeps_a_thirty_second_part() {
        let limits = Limits {
            journal_bytes_max: 128 << 20,
            ..Limits::default()
        };
        assert_eq!(idle_cut(&stats(1, 1000, 8 << 20), &limits), None);
        assert_eq!(idle_cut(&stats(1, 1000, 16 << 20), &limits), Some(750));
        assert_eq!(idle_cut(&stats(1, 1000, 64 << 20), &limits), Some(938));
        assert_eq!(idle_cut(&stats(1000, 1001, 1 << 30), &limits), Some(1001));
    }

    #[test]
    fn the_log_is_cut_by_entries_and_by_bytes() {
        let limits = Limits {
            journal_entries_max: 1000,
            journal_bytes_max: 100 << 20,
            ..Limits::default()
        };
        assert_eq!(cut(&stats(1, 1000, 1 << 20), &limits), None);
        assert_eq!(cut(&stats(1, 1001, 1 << 20), &limits), Some(501));
        assert_eq!(cut(&stats(101, 200, 100 << 20), &limits), Some(150));
        assert_eq!(cut(&stats(101, 200, 60 << 20), &limits), None);
        let blank = JournalStats {
            first_index: None,
            last_index: None,
            ..stats(0, 0, 0)
        };
        assert_eq!(cut(&blank, &limits), None);
    }
}
