//! System calls that the standard library does not wrap.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, RenameFlags};

/// Locks or unlocks `len` bytes from `start` by fcntl. With `wait`, blocks until the lock is had.
///
/// # Errors
/// `EAGAIN` if the bytes are locked by another and `wait` is false.
#[expect(unsafe_code, reason = "rustix has no byte-range locks")]
pub fn lock_range(file: &File, kind: RangeLock, start: i64, len: i64, wait: bool) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    let command = if wait { libc::F_SETLKW } else { libc::F_SETLK };
    // SAFETY: `lock` is a valid flock structure for the time of the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What [`lock_range`] does.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub enum RangeLock {
    /// Shared lock.
    Read = libc::F_RDLCK,
    /// Exclusive lock.
    Write = libc::F_WRLCK,
    /// No lock.
    Unlock = libc::F_UNLCK,
}

/// A file's first bytes, mapped.
pub struct Map {
    start: *mut u8,
    len: usize,
}

impl Map {
    /// Maps `len` bytes of `file`; with `shared`, writes reach the file.
    ///
    /// # Errors
    /// As mmap.
    pub fn new(file: &File, len: usize, shared: bool) -> io::Result<Self> {
        let flags = if shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        Self::with(file, len, flags, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Maps `len` bytes of `file`, shared, to read them only.
    ///
    /// # Errors
    /// As mmap.
    pub fn read_only(file: &File, len: usize) -> io::Result<Self> {
        Self::with(file, len, libc::MAP_SHARED, libc::PROT_READ)
    }

    #[expect(unsafe_code, reason = "memory maps are what is tested")]
    fn with(file: &File, len: usize, flags: i32, protection: i32) -> io::Result<Self> {
        // SAFETY: a new mapping, at an address that the kernel chooses, unmapped in `drop`.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            len,
        })
    }

    /// A copy of what is mapped at `range`.
    ///
    /// # Panics
    /// If the range is outside the mapping.
    #[must_use]
    #[expect(unsafe_code, reason = "memory maps are what is tested")]
    pub fn read(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: within the mapping; volatile, since others change the file.
        range
            .map(|at| unsafe { self.start.add(at).read_volatile() })
            .collect()
    }

    /// Writes through the mapping.
    ///
    /// # Panics
    /// If `bytes` do not fit.
    #[expect(unsafe_code, reason = "memory maps are what is tested")]
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping.
            unsafe { self.start.add(at + i).write_volatile(*byte) };
        }
    }

    /// msync.
    ///
    /// # Errors
    /// As msync.
    #[expect(unsafe_code, reason = "memory maps are what is tested")]
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly this mapping.
        let result = unsafe { libc::msync(self.start.cast(), self.len, libc::MS_SYNC) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Map {
    #[expect(unsafe_code, reason = "memory maps are what is tested")]
    fn drop(&mut self) {
        // SAFETY: exactly this mapping, which nothing refers to any more.
        let _ = unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// renameat2 with flags.
///
/// # Errors
/// As renameat2.
pub fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags).map_err(Into::into)
}

/// fallocate.
///
/// # Errors
/// As fallocate.
pub fn fallocate(file: impl AsFd, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    rustix::fs::fallocate(file, flags, offset, len).map_err(Into::into)
}

/// Threads of a process that get no turn, until this is dropped.
pub struct Frozen(Vec<libc::pid_t>);

impl Frozen {
    /// Stops those threads of `pid` whose name begins with `prefix`, as a debugger does; the others go on.
    ///
    /// # Errors
    /// As ptrace; if there are none.
    #[expect(unsafe_code, reason = "there is no other way to stop single threads")]
    pub fn threads(pid: u32, prefix: &str) -> io::Result<Self> {
        let mut frozen = Self(Vec::new());
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            if !std::fs::read_to_string(task.path().join("comm"))?.starts_with(prefix) {
                continue;
            }
            let tid: libc::pid_t = task
                .file_name()
                .to_string_lossy()
                .parse()
                .map_err(io::Error::other)?;
            for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
                // SAFETY: these requests read and write no memory of this process.
                if unsafe { libc::ptrace(request, tid, 0, 0) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            frozen.0.push(tid);
            // SAFETY: waits until the thread has stopped; no status is asked for.
            if unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL) } != tid {
                return Err(io::Error::last_os_error());
            }
        }
        if frozen.0.is_empty() {
            return Err(io::Error::other(format!("process {pid} has no thread {prefix}*")));
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    #[expect(unsafe_code, reason = "there is no other way to stop single threads")]
    fn drop(&mut self) {
        for tid in &self.0 {
            // SAFETY: as above.
            let _ = unsafe { libc::ptrace(libc::PTRACE_DETACH, *tid, 0, 0) };
        }
    }
}
