//! A simulated disk that takes its time, by a clock that nothing else moves.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use raftstore::clock::{Clock, Timestamp};
use raftstore::disk::{Disk, DiskFile, Open, SimDisk, Space};

/// A clock that [`SlowDisk`] moves.
#[derive(Default)]
pub struct DiskClock(Mutex<Duration>);

impl DiskClock {
    fn pass(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }
}

impl Clock for DiskClock {
    fn wall(&self) -> Timestamp {
        Timestamp::default()
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk on which a sync takes a certain time, and the bytes that it writes out some more.
pub struct SlowDisk {
    sim: SimDisk,
    clock: Arc<DiskClock>,
    sync: Duration,
    bytes_per_s: u64,
}

impl SlowDisk {
    /// An empty one.
    pub fn new(sync: Duration, bytes_per_s: u64) -> Self {
        Self {
            sim: SimDisk::new(),
            clock: Arc::default(),
            sync,
            bytes_per_s,
        }
    }

    /// Its clock.
    pub fn clock(&self) -> Arc<DiskClock> {
        Arc::clone(&self.clock)
    }

    /// The disk without the delays.
    pub fn sim(&self) -> &SimDisk {
        &self.sim
    }
}

impl Disk for SlowDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile {
            file: self.sim.open(path, how)?,
            clock: self.clock(),
            sync: self.sync,
            bytes_per_s: self.bytes_per_s,
            unsynced_bytes: AtomicU64::new(0),
        }))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.sim.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.sim.create_dir_all(dir)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.sim.remove(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.sim.remove_dir_all(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.sim.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.clock.pass(self.sync);
        self.sim.sync_dir(dir)
    }
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.sim.set_mode(path, mode)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.sim.space(path)
    }
}

struct SlowFile {
    file: Arc<dyn DiskFile>,
    clock: Arc<DiskClock>,
    sync: Duration,
    bytes_per_s: u64,
    unsynced_bytes: AtomicU64,
}

impl DiskFile for SlowFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.unsynced_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        let bytes = self.unsynced_bytes.swap(0, Ordering::Relaxed);
        let writing = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        self.clock.pass(self.sync + writing);
        self.file.sync_data()
    }
    fn write_back(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.write_back(offset, len)
    }
}
