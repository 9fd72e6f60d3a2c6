//! The medium, injected: [`RealDisk`] in a node, [`SimDisk`] in crash tests.
//!
//! The contract is what a careful program may assume of ext4 on a card that honours flushes: bytes are on the
//! medium after [`DiskFile::sync_data`] returned `Ok`; a file's name is after [`Disk::sync_dir`] of its directory;
//! everything else may be lost, torn at any byte, or reordered by a power cut.

use std::io;
use std::path::Path;
use std::sync::Arc;

mod real;
mod sim;

pub use real::RealDisk;
pub use sim::{CrashMode, SimCounters, SimDisk};

/// How [`Disk::open`] treats a missing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Fail with `NotFound`.
    Existing,
    /// As `Existing`, and not for writing: works on a medium that has become read-only.
    Read,
    /// Create it; fail with `AlreadyExists` if it exists.
    New,
    /// Create it if it is missing.
    Any,
}

/// A directory tree on a medium. All calls block; async code goes through `spawn_blocking` or a thread of its own.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and, unless it is [`Open::Read`], writing.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// Names in a directory, sorted. `NotFound` if there is no such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a directory and its parents. Durable when it returns: no [`Disk::sync_dir`] of the parents is needed.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and what is in it; no error if it does not exist.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Renames a file or directory, replacing a file that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes creations, removals and renames in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Sets the permission bits of a file or directory. No more durable than what is next synced in it.
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Total and available bytes of the medium that holds `path`.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// Room on a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Size of the medium's filesystem.
    pub capacity_bytes: u64,
    /// What is left for this process.
    pub available_bytes: u64,
}

/// An open file. Safe to share between threads; writes to disjoint ranges may run side by side.
pub trait DiskFile: Send + Sync + 'static {
    /// Fills `buf` from `offset`; `UnexpectedEof` if the file is shorter.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf` at `offset`, growing the file as needed.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// fdatasync: contents and length are on the medium when it returns `Ok`. After an error nothing is known
    /// about earlier writes: the caller must stop using the file, not try again.
    fn sync_data(&self) -> io::Result<()>;
    /// Has the medium take bytes that were written, and waits for that, without making them durable: for a file that
    /// is long in the making, so that its one sync at the end does not keep everyone else waiting. An error is as final as one
    /// of [`DiskFile::sync_data`], which will not tell it again.
    fn write_back(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Has room found for the file's first `bytes` bytes, in one piece if there is one, ahead of writing them; its length stays. A
    /// hint: there may be no room, or no such call. [`DiskFile::set_len`] gives back what is beyond the length.
    fn reserve(&self, _bytes: u64) {}
    /// True if the file holds no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

#[cfg(test)]
mod tests;
