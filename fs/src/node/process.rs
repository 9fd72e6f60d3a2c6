//! What this process uses of the machine.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bramble_proto::NodeStats;
use raftstore::clock::Clock;
use raftstore::disk::Space;
use raftstore::journal::Journal;
use raftstore::kv;

use super::drain::Drain;
use super::session::StatsSource;
use super::stall::Stall;
use crate::chunk::Keeper;
use crate::chunk::store::ChunkStore;

/// Resident memory of this process, bytes; 0 if the kernel does not say.
#[must_use]
pub fn memory_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.unwrap_or(0_u64) * 1024
}

/// Reads the process's and the medium's numbers.
pub struct ProcessStats {
    /// The store, for its medium.
    pub store: PathBuf,
    /// Its journal.
    pub journal: Arc<Journal>,
    /// Its chunks.
    pub chunks: Arc<ChunkStore>,
    /// Background work on them, once it has begun.
    pub keeper: Arc<OnceLock<Arc<Keeper>>>,
    /// Tells when it was looked at.
    pub clock: Arc<dyn Clock>,
    /// Is told what was written whenever it is looked at: with each sign of life.
    pub rate: Arc<WriteRate>,
    /// Whether the node is draining.
    pub drain: Arc<Drain>,
    /// Whether its medium answers.
    pub stall: Arc<Stall>,
}

/// Looks that a [`WriteRate`] remembers.
const LOOKS: usize = 11;

/// How fast bytes have been written lately: over the last ten looks at their number.
#[derive(Debug, Default)]
pub struct WriteRate(Mutex<VecDeque<(Duration, u64)>>);

impl WriteRate {
    /// By `now`, on the monotonic clock, so many bytes have been written in all.
    pub fn look(&self, now: Duration, written_bytes: u64) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.len() == LOOKS {
            looks.pop_front();
        }
        looks.push_back((now, written_bytes));
    }

    /// Bytes per second; 0 before there is anything to tell.
    #[must_use]
    pub fn bytes_per_s(&self) -> u64 {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some((from, before)), Some((to, after))) = (looks.front(), looks.back()) else {
            return 0;
        };
        let time = to.saturating_sub(*from).as_secs_f64();
        if time > 0.0 {
            (after.saturating_sub(*before) as f64 / time) as u64
        } else {
            0
        }
    }
}

/// Bytes that this process has written to its store, as its parts count them: the kernel's own count of a process's
/// writes charges a whole large folio for each small write into one.
#[must_use]
pub fn written_bytes(journal: &Journal, chunks: &ChunkStore) -> u64 {
    journal.stats().written_bytes + chunks.stats().written_bytes + kv::written_bytes()
}

/// Room on the medium under `path`; nothing if the kernel does not say.
#[must_use]
pub fn medium_space(path: &Path) -> Space {
    let medium = rustix::fs::statvfs(path).ok();
    medium.map_or_else(Space::default, |medium| Space {
        capacity_bytes: medium.f_blocks.saturating_mul(medium.f_frsize),
        available_bytes: medium.f_bavail.saturating_mul(medium.f_frsize),
    })
}

impl StatsSource for ProcessStats {
    fn stats(&self) -> NodeStats {
        let Space {
            capacity_bytes,
            available_bytes,
        } = medium_space(&self.store);
        let written_bytes = written_bytes(&self.journal, &self.chunks);
        self.rate.look(self.clock.monotonic(), written_bytes);
        NodeStats {
            memory_resident_bytes: memory_resident_bytes(),
            medium_written_bytes: written_bytes,
            capacity_bytes,
            available_bytes,
            draining: self.drain.is_on(),
            chunks_complete: self.keeper.get().is_some_and(|keeper| keeper.is_clean()),
            chunks_missing: self.keeper.get().map_or(0, |keeper| {
                let progress = keeper.repair_progress();
                progress.missing.saturating_sub(progress.fetched)
            }),
        }
    }

    fn is_stalled(&self) -> bool {
        self.stall.is_silencing()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_looks() {
        let rate = WriteRate::default();
        assert_eq!(rate.bytes_per_s(), 0);
        let mut written = 0;
        for second in 0..30 {
            written += if second < 15 { 1_000_000 } else { 500 };
            rate.look(Duration::from_secs(second), written);
        }
        assert_eq!(rate.bytes_per_s(), 500);
    }

    #[test]
    fn the_kernel_says() {
        assert!(memory_resident_bytes() > 1 << 20);
        let medium = medium_space(Path::new("/"));
        assert!(medium.capacity_bytes >= medium.available_bytes && medium.capacity_bytes > 0);
    }
}
