//! What the journal tells about itself.

use std::time::Duration;

/// Whether there is room for another segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpaceCondition {
    /// A segment is ready, or being made ready.
    Ok,
    /// The medium is too full for another segment. Appends still go into the present one (and those prepared),
    /// and wait once they are full.
    NoRoom {
        /// The system's answer.
        error: String,
    },
}

/// Numbers for `status` and for the merger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalStats {
    /// Segments that hold something needed, the present one included.
    pub live_segments: usize,
    /// Segments that are free or prepared.
    pub free_segments: usize,
    /// Size of the live segments' files.
    pub live_bytes: u64,
    /// Size of all segments' files.
    pub total_bytes: u64,
    /// The oldest index that is kept, as an entry or only as a payload. The oldest live segment begins there or
    /// before: it goes once entries are purged and the payload floor has risen.
    pub oldest_retained_index: Option<u64>,
    /// The lowest index that must become unneeded for the oldest live segment to go: all at and below it.
    /// `None` if it is the present one.
    pub oldest_segment_last_index: Option<u64>,
    /// The first entry of Raft's log that was not purged.
    pub first_index: Option<u64>,
    /// The last entry of Raft's log.
    pub last_index: Option<u64>,
    /// Bytes waiting for the medium.
    pub pending_bytes: usize,
    /// Memory that cached entries take, an estimate.
    pub cache_bytes: usize,
    /// Bytes written to the medium since the journal was opened.
    pub written_bytes: u64,
    /// Writes since the journal was opened.
    pub writes: u64,
    /// Syncs since the journal was opened.
    pub syncs: u64,
    /// Time an fdatasync takes, smoothed over about the last ten.
    pub sync_latency: Duration,
    /// Entries whose record was found damaged when it was read.
    pub damaged_reads: u64,
    /// Room for another segment.
    pub space: SpaceCondition,
}
