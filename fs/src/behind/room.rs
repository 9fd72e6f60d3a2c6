//! How much may wait on this node, given the memory that its process takes.

use super::BehindOptions;

/// Bytes that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Written bytes.
    pub(super) dirty_bytes: usize,
    /// The queue, and what it makes of the state.
    pub(super) queue_bytes: usize,
}

impl Room {
    /// What may wait in any case.
    pub(super) fn least(options: &BehindOptions) -> Self {
        Self {
            dirty_bytes: options.dirty_bytes_min,
            queue_bytes: options.queue_bytes_min,
        }
    }

    /// What may wait in a process that takes `resident_bytes` of memory, of which `waiting_bytes` are for what waits by now.
    pub(super) fn in_process(options: &BehindOptions, resident_bytes: u64, waiting_bytes: usize) -> Self {
        let resident_bytes = usize::try_from(resident_bytes).unwrap_or(usize::MAX);
        let others = resident_bytes.saturating_sub(waiting_bytes);
        let left = options.memory_bytes_aim.saturating_sub(others);
        Self {
            dirty_bytes: (left / 4 * 3)
                .min(options.dirty_bytes_max)
                .max(options.dirty_bytes_min),
            queue_bytes: (left / 4)
                .min(options.queue_bytes_max)
                .max(options.queue_bytes_min),
        }
    }

    /// Bytes of files that may be stored at a time: the next gather meanwhile.
    pub(super) fn large_bytes(&self, options: &BehindOptions) -> usize {
        options.large_bytes_max.min(self.dirty_bytes / 2)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::behind::dirty::RANGE_OVERHEAD_BYTES;
    use crate::medium::Medium;

    #[test]
    fn more_may_wait_in_a_small_process_and_the_least_in_a_large_one() {
        let options = BehindOptions::default();
        let least = Room::least(&options);
        let most = Room {
            dirty_bytes: options.dirty_bytes_max,
            queue_bytes: options.queue_bytes_max,
        };
        let aim = options.memory_bytes_aim as u64;
        assert_eq!(Room::in_process(&options, 0, 0), most);
        assert_eq!(Room::in_process(&options, aim, 0), least);
        assert_eq!(Room::in_process(&options, u64::MAX, 0), least);
        // What waits does not count against itself.
        assert_eq!(Room::in_process(&options, aim, 40 << 20), most);
        let between = Room::in_process(&options, aim - (8 << 20), 0);
        assert_eq!(between.dirty_bytes, 6 << 20);
        // While one part is stored, there is always room for the next.
        for room in [least, between, most] {
            assert!(room.large_bytes(&options) * 2 <= room.dirty_bytes);
        }
        // A file has room for a whole batch of pages.
        let medium = Medium {
            sync_latency: Duration::from_micros(100),
            write_bytes_per_s: 1 << 30,
        };
        let batch_bytes = BehindOptions::for_medium(&medium).background_bytes;
        let pages_bytes = batch_bytes / 4096 * (4096 + RANGE_OVERHEAD_BYTES);
        assert!(pages_bytes <= least.large_bytes(&options));
    }
}
