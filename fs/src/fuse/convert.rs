//! The kernel's values and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, FopenFlags, INodeNo, RenameFlags, TimeOrNow};
use raftstore::clock::Timestamp;
use raftstore::meta::{Fallocate, FileKind, Inode, RenameMode, SetTime, XattrMode};

use crate::posix::{LockRange, OpenFlags};

/// What stat gives as the preferred size of I/O.
const PREFERRED_IO_BYTES: u32 = 4096;
/// Last byte of a range that reaches to the end of the file, as the kernel writes it.
const KERNEL_END: u64 = i64::MAX as u64;

pub(super) fn attributes(inode: &Inode) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode.ino),
        size: inode.size,
        blocks: inode.allocated_bytes.div_ceil(512),
        atime: system_time(inode.atime),
        mtime: system_time(inode.mtime),
        ctime: system_time(inode.ctime),
        crtime: system_time(inode.btime),
        kind: file_type(inode.kind),
        perm: u16::try_from(inode.mode & 0o7777).unwrap_or(0),
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: PREFERRED_IO_BYTES,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in `st_mode`, as mknod gets it; none for what mknod cannot make.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::Regular),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec >= 0 {
        UNIX_EPOCH.checked_add(seconds)
    } else {
        UNIX_EPOCH.checked_sub(seconds)
    };
    whole.unwrap_or(UNIX_EPOCH) + Duration::from_nanos(u64::from(time.nsec))
}

fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nsec: since.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let sec = i64::try_from(before.as_secs()).map_or(i64::MIN, |sec| -sec);
            match before.subsec_nanos() {
                0 => Timestamp { sec, nsec: 0 },
                nsec => Timestamp {
                    sec: sec.saturating_sub(1),
                    nsec: 1_000_000_000 - nsec,
                },
            }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

pub(super) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    if flags.is_empty() {
        Some(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(RenameMode::Exchange)
    } else {
        None
    }
}

pub(super) fn fallocate_mode(mode: i32) -> Option<Fallocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 => Some(Fallocate::Allocate),
        KEEP => Some(Fallocate::AllocateKeepSize),
        PUNCH => Some(Fallocate::PunchHole),
        ZERO => Some(Fallocate::ZeroRange),
        ZERO_KEEP => Some(Fallocate::ZeroRangeKeepSize),
        _ => None,
    }
}

pub(super) fn xattr_mode(flags: i32) -> Option<XattrMode> {
    match flags {
        0 => Some(XattrMode::Set),
        libc::XATTR_CREATE => Some(XattrMode::Create),
        libc::XATTR_REPLACE => Some(XattrMode::Replace),
        _ => None,
    }
}

pub(super) fn open_flags(flags: i32, kill_suid_sgid: bool) -> OpenFlags {
    let mode = flags & libc::O_ACCMODE;
    OpenFlags {
        read: mode != libc::O_WRONLY,
        write: mode != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        exclusive: flags & libc::O_EXCL != 0,
        kill_suid_sgid,
    }
}

/// Whether the kernel may keep an inode's attributes. It does not learn that a write took these bits away.
pub(super) fn may_keep(inode: &Inode) -> bool {
    inode.kind == FileKind::Directory || inode.mode & 0o6000 == 0
}

/// An inode number that tells the kernel that a name does not exist.
const NOTHING: INodeNo = INodeNo(0);

/// What a look-up answers if there is no such name.
pub(super) fn no_entry() -> FileAttr {
    FileAttr {
        ino: NOTHING,
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// How the kernel is to treat an open file.
///
/// What is opened for reading only is read through its page cache, which it checks by size and mtime whenever the file's
/// attributes are not lent to it. It need not tell when such a descriptor is closed: there are no bytes to report a loss
/// of, and locks that were taken through it go with the release. Whoever reads many small files waits once less for each.
///
/// With `direct`, files that are opened for writing pass by the cache: the kernel trusts its own
/// idea of a file's end, and after each write it would forget all pages of the file anyway. Mappings still use
/// the cache. Kernels before 6.6 cannot map such a file shared; there, only what is appended passes by the cache.
pub(super) fn fopen_flags(flags: i32, direct: bool) -> FopenFlags {
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
    let close = if writes {
        FopenFlags::empty()
    } else {
        FopenFlags::FOPEN_NOFLUSH
    };
    let cache = if flags & libc::O_DIRECT != 0 || (direct && writes) {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    } else if writes && flags & libc::O_APPEND != 0 {
        FopenFlags::FOPEN_DIRECT_IO
    } else {
        FopenFlags::FOPEN_KEEP_CACHE
    };
    cache | close
}

pub(super) fn lock_range(start: u64, end: u64) -> LockRange {
    let end = if end >= KERNEL_END { u64::MAX } else { end };
    LockRange { start, end }
}

pub(super) fn kernel_range(range: LockRange) -> (u64, u64) {
    (range.start.min(KERNEL_END), range.end.min(KERNEL_END))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_kernels_form() {
        for (sec, nsec) in [
            (0, 0),
            (-1, 999_999_999),
            (-2, 1),
            (1 << 33, 5),
            (i64::from(i32::MIN), 7),
        ] {
            let time = Timestamp { sec, nsec };
            assert_eq!(timestamp(system_time(time)), time);
        }
    }

    #[test]
    fn the_kernel_is_silent_about_closing_only_where_nothing_was_written() {
        for direct in [false, true] {
            for how in [0, libc::O_DIRECT, libc::O_APPEND] {
                for (access, silent) in [
                    (libc::O_RDONLY, true),
                    (libc::O_WRONLY, false),
                    (libc::O_RDWR, false),
                ] {
                    let treated = fopen_flags(access | how, direct);
                    assert_eq!(
                        treated.contains(FopenFlags::FOPEN_NOFLUSH),
                        silent,
                        "{access:o} {how:o}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_lock_to_the_end_stays_one() {
        let whole = lock_range(5, i64::MAX as u64);
        assert_eq!(whole.end, u64::MAX);
        assert_eq!(kernel_range(whole), (5, i64::MAX as u64));
    }

    #[test]
    fn unsupported_modes_are_told_apart() {
        assert_eq!(fallocate_mode(libc::FALLOC_FL_COLLAPSE_RANGE), None);
        assert_eq!(fallocate_mode(libc::FALLOC_FL_INSERT_RANGE), None);
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), None);
        assert_eq!(kind_of_mode(libc::S_IFDIR | 0o755), None);
    }
}
