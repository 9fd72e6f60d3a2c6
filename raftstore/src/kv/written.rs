//! What the engines write to the medium, which none of them tells.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Batch;

/// Of all engines of this process, since each may be replaced by a snapshot's.
static COUNTED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Counts a batch that goes to an engine's own log.
pub(super) fn count(batch: &Batch) {
    let bytes = |(key, value): &(bytes::Bytes, Option<bytes::Bytes>)| {
        key.len() + value.as_ref().map_or(0, bytes::Bytes::len)
    };
    let total: usize = batch.changes.iter().map(bytes).sum();
    COUNTED_BYTES.fetch_add(u64::try_from(total).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Counts what this thread hands to the kernel during `work`.
pub(super) fn count_during<T>(work: impl FnOnce() -> T) -> T {
    let before = handed_over();
    let done = work();
    COUNTED_BYTES.fetch_add(handed_over().saturating_sub(before), Ordering::Relaxed);
    done
}

/// What this thread has handed to the kernel; 0 if that cannot be told.
fn handed_over() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
    let handed_over = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    handed_over
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

/// Bytes that the engines of this process have written since it started: what goes to logs of their own, and what is handed to
/// the kernel by flushes and merges. An estimate: an engine frames its log, and what a machine loses power over may never
/// have reached the medium.
#[must_use]
pub fn written_bytes() -> u64 {
    COUNTED_BYTES.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::{Disk, RealDisk};
    use crate::kv::{self, EngineKind, EngineOptions};
    use bytes::Bytes;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn what_goes_to_a_log_and_what_goes_to_tables_is_counted() {
        for kind in [EngineKind::Sled, EngineKind::Fjall] {
            let bytes = written_by(kind);
            // Other tests write at the same time.
            assert!(bytes >= 1_004_000, "{kind}: {bytes} bytes");
        }
    }

    /// Writes a thousand values of 1,000 random bytes, and flushes.
    fn written_by(kind: EngineKind) -> u64 {
        let dir = kv::test_dir();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let options = EngineOptions::default();
        let engine = kv::open(
            kind,
            &disk,
            &dir.path().join("engine"),
            &options,
            Box::new(|_| {}),
        );
        let engine = engine.unwrap();
        let before = written_bytes();
        let mut rng = StdRng::seed_from_u64(1);
        for number in 0_u32..1000 {
            let mut value = vec![0; 1000];
            rng.fill(&mut value[..]);
            let changes = vec![(Bytes::from(number.to_be_bytes().to_vec()), Some(value.into()))];
            engine.write(Batch { changes }).unwrap();
        }
        engine.flush().unwrap();
        written_bytes() - before
    }
}
