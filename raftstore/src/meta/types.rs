//! The nouns of the metadata: inodes, entries, extents, sessions, nodes.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// A Raft node id: given once by the cluster, never used again, even if the same machine comes back blank.
pub type NodeId = u64;

/// An inode number; never used again.
pub type Ino = u64;

/// The root directory's inode.
pub const ROOT_INO: Ino = 1;

/// Longest name of a directory entry, bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target, bytes.
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Largest extended attribute value, bytes.
pub const XATTR_BYTES_MAX: usize = 65_536;
/// Largest file, bytes (what a signed 64-bit offset can address).
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Largest number of hard links to a file.
pub const LINKS_MAX: u32 = 65_000;
/// Number of placement groups; fixed when a cluster is made.
pub const PLACEMENT_GROUPS: u32 = 64;
/// Largest chunk, bytes.
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;

/// One life of a node's daemon: what it proposes is numbered, and its locks and open files go when it ends.
/// 0 is nobody: proposals of the cluster itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct SessionId(pub u64);

impl SessionId {
    /// The cluster itself; its proposals are harmless to repeat.
    pub const SYSTEM: Self = Self(0);
}

/// A chunk's name: the session that made it and that session's count. Session 0 means that `seq` is the index of
/// the log entry whose payload the chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkId {
    /// The naming session, or 0.
    pub session: u64,
    /// Count within the session, or log index.
    pub seq: u64,
}

impl ChunkId {
    /// The chunk that is the payload of the log entry at `log_index`.
    #[must_use]
    pub fn payload(log_index: u64) -> Self {
        Self {
            session: 0,
            seq: log_index,
        }
    }

    /// The log index, if this chunk is a log entry's payload.
    #[must_use]
    pub fn payload_index(self) -> Option<u64> {
        (self.session == 0).then_some(self.seq)
    }

    /// The placement group that the chunk belongs to.
    #[must_use]
    pub fn placement_group(self) -> u32 {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&self.session.to_be_bytes());
        name[8..].copy_from_slice(&self.seq.to_be_bytes());
        crc32fast::hash(&name) % PLACEMENT_GROUPS
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}", self.session, self.seq)
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket's name.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// An inode as `stat` sees it, and what the state machine keeps beside that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links; for a directory 2 plus its subdirectories. 0: unlinked, kept while a session has it open.
    pub nlink: u32,
    /// Device number of a device node, in the kernel's `new_encode_dev` form, as FUSE carries it.
    pub rdev: u32,
    /// Length in bytes; of a directory its number of entries, of a symlink its target's length.
    pub size: u64,
    /// Bytes that extents cover (st_blocks * 512).
    pub allocated_bytes: u64,
    /// Last access, as set by utimensat or creation: reads do not change it (as `noatime`).
    pub atime: Timestamp,
    /// Last change of contents, or what utimensat set it to. No two changes of contents give it the same value,
    /// even if the clocks of their nodes differ.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// A directory's parent (the root's is itself); 0 for other inodes and for a removed directory.
    pub parent: Ino,
    /// A symlink's target.
    pub target: Bytes,
    /// A directory's next entry cookie.
    pub next_cookie: u64,
    /// Whether any extended attribute is set.
    pub has_xattrs: bool,
    /// Counts changes of contents (data of a file, entries of a directory).
    pub data_version: u64,
    /// The mtime that the last change of contents gave; the next one gives a later one, whatever utimensat has
    /// set mtime to in between.
    pub contents_time: Timestamp,
    /// The project it counts for; [`super::NO_PROJECT`] for none. That of its directory, but for a project's root and for
    /// files with names in several places when one of them became a project.
    pub project: super::ProjectId,
}

/// A directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dirent {
    /// The inode that the name stands for.
    pub ino: Ino,
    /// That inode's kind.
    pub kind: FileKind,
    /// Place in the directory's order; given once, never used again in that directory. First is [`FIRST_COOKIE`].
    pub cookie: u64,
}

/// Cookies below this stand for `.` (1) and `..` (2).
pub const FIRST_COOKIE: u64 = 3;

/// Where the bytes of an extent are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Allocated, never written: reads as zeros.
    Zero,
    /// In a chunk, or in a log payload (see [`ChunkId::payload`]), from `offset` on.
    Chunk {
        /// Which chunk.
        id: ChunkId,
        /// Byte offset of the extent's first byte in the chunk.
        offset: u32,
    },
}

/// A run of a file's bytes. Extents of a file never overlap; what none covers is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte's offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the bytes are.
    pub source: Source,
}

impl Extent {
    /// Offset just past the extent.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// The part of the extent that lies in `start..end`; its `len` is 0 if there is none.
    #[must_use]
    pub fn clip(&self, start: u64, end: u64) -> Self {
        let start = start.max(self.offset);
        let skipped = u32::try_from(start - self.offset).unwrap_or(u32::MAX);
        let source = match self.source {
            Source::Zero => Source::Zero,
            Source::Chunk { id, offset } => Source::Chunk {
                id,
                offset: offset.saturating_add(skipped),
            },
        };
        Self {
            offset: start,
            len: end.min(self.end()).saturating_sub(start),
            source,
        }
    }

    /// Whether `next` starts where this extent ends, in the file and in what holds the bytes.
    #[must_use]
    pub fn continues_in(&self, next: &Self) -> bool {
        self.end() == next.offset
            && match (self.source, next.source) {
                (Source::Zero, Source::Zero) => true,
                (
                    Source::Chunk { id, offset },
                    Source::Chunk {
                        id: next_id,
                        offset: next_offset,
                    },
                ) => id == next_id && u64::from(offset).saturating_add(self.len) == u64::from(next_offset),
                _ => false,
            }
    }
}

/// flock or fcntl: the two never conflict with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// fcntl byte-range locks (and open-file-description locks).
    Posix,
    /// flock, always the whole file.
    Flock,
}

/// Who holds a lock: the kernel's owner token is unique on one node for as long as the session lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner {
    /// The node's session.
    pub session: SessionId,
    /// The kernel's token.
    pub token: u64,
    /// Which of the two lock families.
    pub kind: LockKind,
}

/// A lock on bytes `start..=end`; `end == u64::MAX` means to the end of the file, however long it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Holder.
    pub owner: LockOwner,
    /// Process id of the holder on its own node, for F_GETLK.
    pub pid: u32,
    /// Exclusive (write) or shared (read).
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Its name, unique in the cluster.
    pub name: String,
    /// IP:PORT it listens on.
    pub listen: String,
    /// Draining: takes no new placement groups.
    pub draining: bool,
}

/// A session, as the state machine keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The node it belongs to.
    pub node: NodeId,
    /// Every sequence number below this was answered and the answer received: a repeat is refused.
    pub ack_floor: u64,
    /// Every chunk of the session with a `seq` below this has been committed or will never be.
    pub chunk_floor: u64,
}

/// Totals for statfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Inodes in use.
    pub inodes: u64,
    /// Bytes that extents of all files cover (once, not times replicas).
    pub allocated_bytes: u64,
}

/// What was fixed when the cluster was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Random, made by `init`.
    pub cluster_id: String,
    /// Copies of each chunk, if there are that many nodes.
    pub replicas: u32,
}
