//! What this process uses of the machine.

use std::path::{Path, PathBuf};

use bramble_proto::NodeStats;
use raftstore::disk::Space;

use super::session::StatsSource;

/// Resident memory of this process, bytes; 0 if the kernel does not say.
#[must_use]
pub fn memory_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.unwrap_or(0_u64) * 1024
}

/// Bytes that this process has sent to a medium; 0 if the kernel does not say.
#[must_use]
pub fn medium_written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Reads the process's and the medium's numbers.
#[derive(Debug)]
pub struct ProcessStats {
    /// The store, for its medium.
    pub store: PathBuf,
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
            medium_written_bytes: medium_written_bytes(),
            capacity_bytes,
            available_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says() {
        assert!(memory_resident_bytes() > 1 << 20);
        let stats = ProcessStats { store: "/".into() }.stats();
        assert!(stats.capacity_bytes >= stats.available_bytes && stats.capacity_bytes > 0);
    }
}
