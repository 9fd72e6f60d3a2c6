//! What this process uses of the machine.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bramble_proto::NodeStats;
use raftstore::disk::Space;
use raftstore::journal::Journal;
use raftstore::kv;

use super::session::StatsSource;
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
        NodeStats {
            memory_resident_bytes: memory_resident_bytes(),
            medium_written_bytes: written_bytes(&self.journal, &self.chunks),
            capacity_bytes,
            available_bytes,
            chunks_complete: self.keeper.get().is_some_and(|keeper| keeper.is_clean()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says() {
        assert!(memory_resident_bytes() > 1 << 20);
        let medium = medium_space(Path::new("/"));
        assert!(medium.capacity_bytes >= medium.available_bytes && medium.capacity_bytes > 0);
    }
}
