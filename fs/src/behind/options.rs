//! Bounds of write-behind, and what the medium has to say in them.

use std::time::Duration;

use crate::medium::Medium;

/// A batch that nobody has asked for has as many bytes as the medium takes in this time: the two syncs that it costs
/// are a small part of that on any medium.
const BATCH_TIME: Duration = Duration::from_millis(150);
/// Also on a medium that takes less in that time.
const BATCH_BYTES_MIN: usize = 512 << 10;
/// And no more on one that takes more: while one batch is on its way, there is always room for the next.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// What keeping a batch costs beyond its bytes, if it consists of pages or more.
const BATCH_OVERHEAD_BYTES: usize = 128 << 10;
/// What `inline_bytes_max` can be.
const INLINE_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=512 << 10;
/// Of what is synced in small amounts, about one part in so many is still there when it would be moved out of the log:
/// the rest has been overwritten.
const OVERWRITTEN_PARTS: u32 = 2;

/// Bounds of write-behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BehindOptions {
    /// Written bytes that may always wait.
    pub dirty_bytes_min: usize,
    /// Written bytes that may wait while memory allows; writers wait when there are more.
    pub dirty_bytes_max: usize,
    /// Bytes of files that are stored as chunks at a time, and that may gather in one file meanwhile.
    pub large_bytes_max: usize,
    /// From so many on they are pushed without being asked for.
    pub background_bytes: usize,
    /// Changes that may wait in the queue.
    pub queued_max: usize,
    /// Memory that there always is for the queue, and for what it makes of the state.
    pub queue_bytes_min: usize,
    /// Memory for them while there is enough.
    pub queue_bytes_max: usize,
    /// Memory of the process beyond which no more than the least may wait.
    pub memory_bytes_aim: usize,
    /// Nothing waits longer than this.
    pub age_max: Duration,
    /// Bytes of a batch that ride in the log; with more, they go to chunks.
    pub inline_bytes_max: usize,
    /// Size of a chunk.
    pub chunk_bytes_max: usize,
    /// Chunks of one batch that are on their way at the same time.
    pub chunk_writes_max: usize,
    /// Leases that this node holds at most.
    pub leases_max: usize,
    /// The kernel answers on its own for at most so long after it was told something.
    pub lent_max: Duration,
}

impl Default for BehindOptions {
    fn default() -> Self {
        Self {
            dirty_bytes_min: 2 * (BATCH_BYTES_MAX + BATCH_OVERHEAD_BYTES),
            dirty_bytes_max: 12 << 20,
            large_bytes_max: 4 << 20,
            background_bytes: 3 << 19,
            queued_max: 8192,
            queue_bytes_min: 4 << 20,
            queue_bytes_max: 8 << 20,
            memory_bytes_aim: 80 << 20,
            age_max: Duration::from_secs(5),
            inline_bytes_max: 256 << 10,
            chunk_bytes_max: 1 << 20,
            chunk_writes_max: 3,
            leases_max: 6_144,
            lent_max: Duration::from_millis(250),
        }
    }
}

impl BehindOptions {
    /// With batches that suit `medium`.
    #[must_use]
    pub fn for_medium(medium: &Medium) -> Self {
        let options = Self::default();
        let bytes_in = |time| usize::try_from(medium.bytes_in(time)).unwrap_or(usize::MAX);
        Self {
            background_bytes: bytes_in(BATCH_TIME).clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX),
            // In the log, what lives on is written twice; in a chunk, it costs one more sync.
            inline_bytes_max: bytes_in(medium.sync_latency * OVERWRITTEN_PARTS)
                .clamp(*INLINE_BYTES.start(), *INLINE_BYTES.end()),
            ..options
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_follow_the_medium_within_bounds() {
        let sizes = |sync_us, write_bytes_per_s| {
            let sync_latency = Duration::from_micros(sync_us);
            let options = BehindOptions::for_medium(&Medium {
                sync_latency,
                write_bytes_per_s,
            });
            assert!(options.background_bytes * 2 <= options.dirty_bytes_min);
            (options.background_bytes >> 10, options.inline_bytes_max >> 10)
        };
        // A stick: syncs are dear. A card: bytes are.
        assert_eq!(sizes(33_000, 10 << 20), (1536, 512));
        assert_eq!(sizes(4_000, 15 << 20), (2048, 122));
        // A card that is worn out, a disk, and what no medium is.
        assert_eq!(sizes(200_000, 1 << 19), (512, 204));
        assert_eq!(sizes(100, 400 << 20), (2048, 81));
        assert_eq!(sizes(1, 1), (512, 64));
        assert_eq!(sizes(600_000_000, u64::MAX), (2048, 512));
    }
}
