//! The values that requests carry and answers consist of.

use bytes::Bytes;
use raftstore::meta::{Ino, Inode};

/// On whose behalf a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// Effective (filesystem) uid.
    pub uid: u32,
    /// Effective (filesystem) gid.
    pub gid: u32,
    /// Through which open file, if through one.
    pub handle: Option<u64>,
}

impl Caller {
    /// Whether the caller may keep setuid and setgid bits alive. The kernel knows the capability itself, but does not
    /// pass it on for every request.
    #[must_use]
    pub fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// O_TRUNC.
    pub truncate: bool,
    /// O_EXCL (with creation).
    pub exclusive: bool,
    /// The file's setuid and setgid bits are to go if it is truncated.
    pub kill_suid_sgid: bool,
}

/// An open file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedFile {
    /// The handle that later requests name.
    pub handle: u64,
    /// The inode as it was when it was opened.
    pub inode: Inode,
}

/// A write.
#[derive(Debug, Clone)]
pub struct WriteRequest {
    /// To which file.
    pub ino: Ino,
    /// Through which open file.
    pub handle: u64,
    /// For whom: the kernel's owner token, if it tells.
    pub owner: Option<u64>,
    /// Where, if `append` is not set; where the caller thinks the end is, if it is.
    pub offset: u64,
    /// What.
    pub data: Bytes,
    /// At the end of the file, wherever that is.
    pub append: bool,
    /// From pages that were mapped and changed: such a write must not make the file longer.
    pub from_mapping: bool,
    /// Clear setuid, and setgid if group-executable.
    pub kill_suid_sgid: bool,
}

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes written; fewer than asked for if a later part failed.
    pub len: usize,
    /// Where the first one went.
    pub offset: u64,
}

/// Bytes `start..=end` of a file; `end` is `u64::MAX` for "however long it gets".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
}

impl LockRange {
    /// Every byte.
    pub const WHOLE: Self = Self {
        start: 0,
        end: u64::MAX,
    };

    /// Whether the two have a byte in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// What statfs tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystemSpace {
    /// Unit of the following two, bytes.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that can still be made.
    pub inodes_free: u64,
    /// Longest name, bytes.
    pub name_bytes_max: u32,
}
