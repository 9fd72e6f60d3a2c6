//! The file layer: every call that is measured goes through [`Files`] and [`OpenFile`], so that tests can count them
//! and let time pass in them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Advice, AtFlags, CWD, Dir, FileType, Mode, OFlags, RawDir, Timespec, Timestamps};

/// Names are read in pieces of this size, as the C library does.
const LIST_BYTES: usize = 32 << 10;

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// For writing too.
    pub write: bool,
    /// Made if it is missing.
    pub create: bool,
    /// Emptied.
    pub truncate: bool,
    /// O_DIRECT.
    pub direct: bool,
    /// O_SYNC.
    pub sync: bool,
    /// O_DSYNC.
    pub dsync: bool,
}

impl Open {
    /// For reading.
    pub const READ: Self = Self {
        write: false,
        create: false,
        truncate: false,
        direct: false,
        sync: false,
        dsync: false,
    };
    /// For writing a new or emptied file.
    pub const FRESH: Self = Self {
        write: true,
        create: true,
        truncate: true,
        ..Self::READ
    };
}

/// A directory. Paths are relative to it.
pub trait Files: Send + Sync {
    /// Opens a file.
    ///
    /// # Errors
    /// As openat.
    fn open(&self, path: &str, how: Open) -> io::Result<Box<dyn OpenFile>>;
    /// Makes a directory.
    ///
    /// # Errors
    /// As mkdirat; `EEXIST` if it is there.
    fn mkdir(&self, path: &str) -> io::Result<()>;
    /// Renames.
    ///
    /// # Errors
    /// As renameat.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As unlinkat.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// A file's size in bytes.
    ///
    /// # Errors
    /// As fstatat.
    fn stat(&self, path: &str) -> io::Result<u64>;
    /// Reads the names in a directory; returns how many there are.
    ///
    /// # Errors
    /// As openat and getdents.
    fn list(&self, path: &str) -> io::Result<u64>;
    /// Asks the kernel to drop the names and attributes that it keeps, of all filesystems.
    ///
    /// # Errors
    /// If this is not root.
    fn drop_names(&self) -> io::Result<()>;
    /// Removes a directory with all that is in it.
    ///
    /// # Errors
    /// The first that occurs.
    fn remove_tree(&self, path: &str) -> io::Result<()>;
    /// syncfs, then fsync of the directory `path`. (No FUSE filesystem hears of a syncfs, but it does of the fsync.)
    ///
    /// # Errors
    /// As syncfs and fsync.
    fn sync_tree(&self, path: &str) -> io::Result<()>;
}

/// An open file; closed when it is dropped.
pub trait OpenFile: Send {
    /// Reads at `offset`; returns how many bytes.
    ///
    /// # Errors
    /// As pread.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at `offset`; returns how many bytes.
    ///
    /// # Errors
    /// As pwrite.
    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<usize>;
    /// fsync.
    ///
    /// # Errors
    /// As fsync.
    fn fsync(&mut self) -> io::Result<()>;
    /// fdatasync.
    ///
    /// # Errors
    /// As fdatasync.
    fn fdatasync(&mut self) -> io::Result<()>;
    /// Its size in bytes, by fstat.
    ///
    /// # Errors
    /// As fstat.
    fn size(&mut self) -> io::Result<u64>;
    /// Sets its times to those of an archive, as tar does.
    ///
    /// # Errors
    /// As futimens.
    fn set_times(&mut self) -> io::Result<()>;
    /// Asks the kernel to drop the file's clean pages from its cache.
    ///
    /// # Errors
    /// As posix_fadvise.
    fn drop_cache(&mut self) -> io::Result<()>;
}

/// Writes all of `buffer`.
///
/// # Errors
/// Of the write; `WriteZero` if it makes no progress.
pub fn write_all(file: &mut dyn OpenFile, buffer: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = buffer.get(done..).filter(|rest| !rest.is_empty()) {
        match file.write_at(rest, offset + done as u64)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            bytes => done += bytes,
        }
    }
    Ok(())
}

/// Fills all of `buffer`.
///
/// # Errors
/// Of the read; `UnexpectedEof` if the file is too short.
pub fn read_all(file: &mut dyn OpenFile, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => done += bytes,
        }
    }
    Ok(())
}

/// A directory of this machine. It holds the directory open, so it also works on one in another mount namespace,
/// reached through `/proc/PID/root`.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// Opens it.
    ///
    /// # Errors
    /// As open; `ENOTDIR` if it is no directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    fn subdirectory(&self, path: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.0, path, flags, Mode::empty())?)
    }
}

impl Files for Directory {
    fn open(&self, path: &str, how: Open) -> io::Result<Box<dyn OpenFile>> {
        let mut flags = OFlags::CLOEXEC;
        flags |= if how.write { OFlags::RDWR } else { OFlags::RDONLY };
        flags.set(OFlags::CREATE, how.create);
        flags.set(OFlags::TRUNC, how.truncate);
        flags.set(OFlags::DIRECT, how.direct);
        flags.set(OFlags::SYNC, how.sync);
        flags.set(OFlags::DSYNC, how.dsync || how.sync);
        let mode = Mode::from_raw_mode(0o644);
        Ok(Box::new(SystemFile(rustix::fs::openat(
            &self.0, path, flags, mode,
        )?)))
    }

    fn mkdir(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.0, path, Mode::from_raw_mode(0o755))?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, path, AtFlags::empty())?)
    }

    fn stat(&self, path: &str) -> io::Result<u64> {
        let stat = rustix::fs::statat(&self.0, path, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn list(&self, path: &str) -> io::Result<u64> {
        let dir = self.subdirectory(path)?;
        // One buffer, however large the directory is.
        let mut buffer = Vec::with_capacity(LIST_BYTES);
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        let mut count = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            count += u64::from(name != b"." && name != b"..");
        }
        Ok(count)
    }

    fn drop_names(&self) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, "/proc/sys/vm/drop_caches", flags, Mode::empty())?;
        Ok(rustix::io::write(&file, b"2").map(drop)?)
    }

    fn remove_tree(&self, path: &str) -> io::Result<()> {
        remove_entries(&self.subdirectory(path)?)?;
        Ok(rustix::fs::unlinkat(&self.0, path, AtFlags::REMOVEDIR)?)
    }

    fn sync_tree(&self, path: &str) -> io::Result<()> {
        rustix::fs::syncfs(&self.0)?;
        Ok(rustix::fs::fsync(self.subdirectory(path)?)?)
    }
}

/// Removes what is in a directory. Its names are read first: not every filesystem likes both at a time.
fn remove_entries(dir: &OwnedFd) -> io::Result<()> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            entries.push((name.to_owned(), entry.file_type()));
        }
    }
    for (name, kind) in entries {
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            remove_entries(&rustix::fs::openat(dir, &name, flags, Mode::empty())?)?;
            rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR)?;
        } else {
            rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
        }
    }
    Ok(())
}

struct SystemFile(OwnedFd);

impl OpenFile for SystemFile {
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(&self.0, buffer, offset)?)
    }

    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwrite(&self.0, buffer, offset)?)
    }

    fn fsync(&mut self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    fn fdatasync(&mut self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn size(&mut self) -> io::Result<u64> {
        Ok(u64::try_from(rustix::fs::fstat(&self.0)?.st_size).unwrap_or(0))
    }

    fn set_times(&mut self) -> io::Result<()> {
        let time = Timespec {
            tv_sec: 1_500_000_000,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        Ok(rustix::fs::futimens(&self.0, &times)?)
    }

    fn drop_cache(&mut self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.0, 0, None, Advice::DontNeed)?)
    }
}

#[cfg(test)]
pub mod fake;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_of_a_large_directory_are_counted() {
        let temporary = tempfile::tempdir().unwrap();
        let files = Directory::open(temporary.path()).unwrap();
        files.mkdir("d").unwrap();
        assert_eq!(files.list("d").unwrap(), 0);
        // More than fit into one buffer.
        for i in 0..2000 {
            files.open(&format!("d/name-{i}"), Open::FRESH).unwrap();
        }
        assert_eq!(files.list("d").unwrap(), 2000);
        assert_eq!(files.list("e").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
