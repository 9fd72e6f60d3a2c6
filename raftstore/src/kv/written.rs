//! What the engines write to the medium, which none of them tells.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Batch;
use super::contain::is_engine_thread;

/// Of all engines of this process, since each may be replaced by a snapshot's.
static BATCH_BYTES: AtomicU64 = AtomicU64::new(0);

/// Counts a batch, which goes to the engine's own log.
pub(super) fn count(batch: &Batch) {
    let bytes = |(key, value): &(bytes::Bytes, Option<bytes::Bytes>)| {
        key.len() + value.as_ref().map_or(0, bytes::Bytes::len)
    };
    let total: usize = batch.changes.iter().map(bytes).sum();
    BATCH_BYTES.fetch_add(u64::try_from(total).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Bytes that the engines of this process have written since it started: what was batched, and what their own threads
/// (flushes of memtables, compaction) have handed to the kernel. A close estimate: an engine frames its log, and what
/// a machine loses power over may never have reached the medium.
#[must_use]
pub fn written_bytes() -> u64 {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return BATCH_BYTES.load(Ordering::Relaxed);
    };
    let of_threads: u64 = threads
        .flatten()
        .filter(|thread| {
            fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| is_engine_thread(name.trim_end()))
        })
        .map(|thread| {
            let io = fs::read_to_string(thread.path().join("io")).unwrap_or_default();
            let handed_over = io.lines().find_map(|line| line.strip_prefix("wchar: "));
            handed_over
                .and_then(|value| value.trim().parse().ok())
                .unwrap_or(0_u64)
        })
        .sum();
    BATCH_BYTES.load(Ordering::Relaxed) + of_threads
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::{Disk, RealDisk};
    use crate::kv::{self, EngineKind, EngineOptions};
    use bytes::Bytes;

    #[test]
    fn what_goes_to_the_log_and_what_goes_to_tables_is_counted() {
        let dir = kv::test_dir();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let options = EngineOptions::default();
        let engine = kv::open(
            EngineKind::Fjall,
            &disk,
            &dir.path().join("engine"),
            &options,
            Box::new(|_| {}),
        );
        let engine = engine.unwrap();
        let before = written_bytes();
        let value = Bytes::from(vec![7; 1000]);
        for number in 0_u32..1000 {
            let changes = vec![(Bytes::from(number.to_be_bytes().to_vec()), Some(value.clone()))];
            engine.write(Batch { changes }).unwrap();
        }
        let batched = written_bytes() - before;
        assert!((1_004_000..3_000_000).contains(&batched), "{batched}");
    }
}
