//! The verbs: what can be proposed to the state machine, and what it answers.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::batch::*;
use super::error::MetaError;
use super::types::*;
use super::volume::*;
use crate::clock::Timestamp;

/// One entry of Raft's log that is not Raft's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Who proposes; [`SessionId::SYSTEM`] for the cluster itself.
    pub session: SessionId,
    /// Counts the session's proposals from 1. A repeat gets the first one's answer. 0 with `SYSTEM`.
    pub seq: u64,
    /// The proposer has received the answers of all its proposals below this.
    pub ack_floor: u64,
    /// No chunk of this session with a `seq` below this is still on its way to a proposal.
    pub chunk_floor: u64,
    /// The proposer's wall clock: stamps files, decides nothing.
    pub time: Timestamp,
    /// What to do.
    pub op: Op,
    /// Bytes of a small write ([`Data::Inline`]) or of the pieces of flushes ([`PieceData::Inline`]), else empty. The
    /// journal stores them apart from the rest.
    pub payload: Bytes,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} {:?} +{}",
            self.session.0,
            self.seq,
            self.op,
            self.payload.len()
        )
    }
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAt {
    /// At this offset.
    Offset(u64),
    /// At the end of the file, as it is when the write is applied.
    Append,
}

/// Where the written bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Data {
    /// All of the proposal's payload.
    Inline,
    /// In a chunk that a majority of its placement group's nodes has made durable.
    Chunk {
        /// Which chunk.
        id: ChunkId,
        /// First byte in the chunk.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
}

/// What a new inode is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewInode {
    /// Its kind; `Symlink` takes its target from `target`.
    pub kind: FileKind,
    /// Permission bits before umask or default ACL.
    pub mode: u32,
    /// The caller's umask; it does not count if the parent has a default ACL.
    pub umask: u32,
    /// The caller's uid.
    pub uid: u32,
    /// The caller's gid; a setgid parent's group counts instead.
    pub gid: u32,
    /// Device number, kernel's encoding.
    pub rdev: u32,
    /// A symlink's target.
    pub target: Bytes,
}

/// What renameat2 can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace what has the new name.
    Replace,
    /// Fail with EEXIST if something has it.
    NoReplace,
    /// Swap the two.
    Exchange,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The proposal's time.
    Now,
    /// This time.
    At(Timestamp),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AttrChange {
    /// Permission bits (0 to 0o7777). Keeps an access ACL's mask in step.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length: cuts, or extends with a hole.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Clear setuid, and setgid if group-executable.
    pub kill_suid_sgid: bool,
}

/// What fallocate can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fallocate {
    /// Allocate holes; extend the file.
    Allocate,
    /// Allocate holes; keep the size.
    AllocateKeepSize,
    /// Make a hole; keeps the size.
    PunchHole,
    /// Make allocated zeros; extend the file.
    ZeroRange,
    /// Make allocated zeros; keep the size.
    ZeroRangeKeepSize,
}

/// XATTR_CREATE, XATTR_REPLACE or neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// EEXIST if it is there.
    Create,
    /// ENODATA if it is not.
    Replace,
}

/// A merged run of a file: bytes that now stand in a chunk of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// The extents as they were read, in order and without overlap. Those that have changed since are skipped
    /// (compared by offset, len and source), the others are replaced.
    pub expected: Vec<Extent>,
    /// The chunk that holds the bytes of `expected`, one after the other.
    pub chunk: ChunkId,
}

/// What to do. Names are raw bytes: not empty, without `/` and NUL, not `.` or `..`, at most [`NAME_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Opens a session for a node and expires the ones it had before. Answers [`Reply::Session`].
    OpenSession {
        /// The node.
        node: NodeId,
    },
    /// Ends a session: its locks go, and what it still proposes is refused.
    ExpireSession {
        /// Which.
        session: SessionId,
    },
    /// Makes an inode with a name. Answers [`Reply::Inode`].
    Create {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Bytes,
        /// What to make.
        new: NewInode,
        /// EEXIST if the name is taken; otherwise, if it is taken, its inode is the answer ([`Reply::Existing`]).
        exclusive: bool,
        /// A number for the inode that [`Op::ReserveInodes`] has reserved; `None` takes the next one.
        ino: Option<Ino>,
    },
    /// Gives an inode another name. Answers [`Reply::Inode`].
    Link {
        /// What to name.
        ino: Ino,
        /// Directory.
        parent: Ino,
        /// Name.
        name: Bytes,
    },
    /// Removes a name that is not a directory's. Answers [`Reply::Inode`] with the inode as it is afterwards.
    Unlink {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Bytes,
    },
    /// Removes an empty directory. Answers [`Reply::Done`].
    Rmdir {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Bytes,
    },
    /// Renames. Answers [`Reply::Done`].
    Rename {
        /// Old directory.
        parent: Ino,
        /// Old name.
        name: Bytes,
        /// New directory.
        new_parent: Ino,
        /// New name.
        new_name: Bytes,
        /// What to do if the new name is taken.
        mode: RenameMode,
    },
    /// Changes attributes. Answers [`Reply::Inode`].
    SetAttr {
        /// Of which inode.
        ino: Ino,
        /// What.
        change: AttrChange,
    },
    /// Writes. Answers [`Reply::Written`].
    Write {
        /// To which file.
        ino: Ino,
        /// Where.
        at: WriteAt,
        /// What.
        data: Data,
        /// Clear setuid, and setgid if group-executable.
        kill_suid_sgid: bool,
    },
    /// Allocates, punches, zeroes. Answers [`Reply::Inode`].
    Fallocate {
        /// Which file.
        ino: Ino,
        /// What to do.
        what: Fallocate,
        /// First byte.
        offset: u64,
        /// Length in bytes, not 0.
        len: u64,
    },
    /// Shares a range of one file with another (or another place of the same) by reference. Stops at the end of
    /// the source. EINVAL if the two overlap in one file. Answers [`Reply::Copied`].
    CopyRange {
        /// Source file.
        source: Ino,
        /// Its first byte.
        source_offset: u64,
        /// Target file.
        target: Ino,
        /// Its first byte.
        target_offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Sets an extended attribute. `system.posix_acl_access` also sets the mode. Answers [`Reply::Done`].
    SetXattr {
        /// Of which inode.
        ino: Ino,
        /// Name with its namespace.
        name: Bytes,
        /// Value.
        value: Bytes,
        /// Must it, may it, must it not exist.
        mode: XattrMode,
        /// Clear setgid (the caller is neither in the group nor capable).
        kill_sgid: bool,
    },
    /// Removes an extended attribute; ENODATA if it is not there. Answers [`Reply::Done`].
    RemoveXattr {
        /// Of which inode.
        ino: Ino,
        /// Name with its namespace.
        name: Bytes,
    },
    /// Takes a lock, or changes the one that the owner has on these bytes. Answers [`Reply::Done`] or
    /// [`Reply::Blocked`].
    Lock {
        /// On which inode.
        ino: Ino,
        /// What.
        lock: Lock,
    },
    /// Gives up the owner's locks on `start..=end`. Answers [`Reply::Done`].
    Unlock {
        /// On which inode.
        ino: Ino,
        /// Whose.
        owner: LockOwner,
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
    },
    /// Frees unlinked inodes that nobody has open; those that are not unlinked are left alone.
    Reap {
        /// Which.
        inodes: Vec<Ino>,
    },
    /// Puts merged runs in place of the extents they were made of. Answers [`Reply::Done`].
    Merge {
        /// Of which file.
        ino: Ino,
        /// The runs.
        runs: Vec<Merge>,
    },
    /// Fixes what is fixed when the cluster is made; refused with EEXIST if there is one already.
    InitCluster(ClusterInfo),
    /// Adds a node under a fresh id, using up the join token with this SHA-256 hash if one is given. A node of the
    /// same name is retired first. Answers [`Reply::Node`].
    AddNode {
        /// Name.
        name: String,
        /// IP:PORT.
        listen: String,
        /// SHA-256 of the token's secret.
        token_hash: Option<[u8; 32]>,
    },
    /// Changes where a node listens, or whether it drains. Answers [`Reply::Done`].
    UpdateNode(NodeInfo),
    /// Removes a node and expires its sessions.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// Says which nodes hold a placement group, first the first of the chain.
    SetPlacement {
        /// Which group, below [`PLACEMENT_GROUPS`].
        group: u32,
        /// Its nodes.
        nodes: Vec<NodeId>,
    },
    /// Makes a join token valid for one use.
    AddToken {
        /// SHA-256 of its secret.
        hash: [u8; 32],
        /// How long it is to be valid, in seconds of the leader's monotonic clock.
        valid_s: u64,
    },
    /// Ends a token's validity.
    ExpireToken {
        /// SHA-256 of its secret.
        hash: [u8; 32],
    },
    /// Sets numbers of inodes aside for the proposer to make inodes with. Answers [`Reply::Reserved`].
    ReserveInodes {
        /// How many, 1 to [`RESERVED_INODES_MAX`].
        count: u32,
    },
    /// Does several things in order, each at its own time. What is refused changes nothing and does not hold up the
    /// rest. The payload belongs to the batch: the flushes in it point into it. Answers [`Reply::Batch`].
    Batch {
        /// What to do, at most [`BATCH_ITEMS_MAX`].
        items: Vec<BatchItem>,
    },
    /// Brings a file to the state in which the node that has written to it shows it: cuts, then overwrites with the
    /// pieces, then sets the attributes. ESTALE if the file is gone. Answers [`Reply::Inode`].
    Flush {
        /// Which file.
        ino: Ino,
        /// Drops the file's old bytes from here on (it was truncated to this length before it grew again). Old bytes
        /// behind the new end are dropped in any case.
        cut: Option<u64>,
        /// What was written: in order of offset, without overlap, within `state.size`, at most [`FLUSH_PIECES_MAX`].
        pieces: Vec<Piece>,
        /// The file's attributes by then, absolute. ctime and contents_time never go back, whatever is given.
        state: FileState,
    },
    /// Does something with volumes, snapshots or quotas.
    Volume(VolumeOp),
}

impl Op {
    /// Whether the op may be an item of an [`Op::Batch`]: those on names, attributes, extended attributes and locks,
    /// and flushes.
    #[must_use]
    pub fn can_be_batched(&self) -> bool {
        matches!(
            self,
            Self::Create { .. }
                | Self::Link { .. }
                | Self::Unlink { .. }
                | Self::Rmdir { .. }
                | Self::Rename { .. }
                | Self::SetAttr { .. }
                | Self::SetXattr { .. }
                | Self::RemoveXattr { .. }
                | Self::Lock { .. }
                | Self::Unlock { .. }
                | Self::Flush { .. }
        )
    }
}

/// What the state machine answers to an [`Op`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done; there is nothing to say.
    Done,
    /// The new session.
    Session(SessionId),
    /// The inode as it is now.
    Inode(Inode),
    /// The name was taken, by this inode.
    Existing(Inode),
    /// The write was placed here.
    Written {
        /// Offset of the first byte.
        offset: u64,
        /// The inode as it is now.
        inode: Inode,
    },
    /// Bytes were shared.
    Copied {
        /// How many.
        len: u64,
        /// The target inode as it is now.
        inode: Inode,
    },
    /// Another owner's lock is in the way.
    Blocked(Lock),
    /// The node that was added.
    Node(NodeInfo),
    /// These numbers are the proposer's.
    Reserved {
        /// The first; the others follow it.
        first: Ino,
    },
    /// The batch was gone through.
    Batch {
        /// The items that were refused: index in the batch, and why. Answers of the others are not kept.
        refused: Vec<(u32, MetaError)>,
    },
    /// The volume as it is now.
    Volume(Volume),
    /// The new snapshot.
    Snapshot(Snapshot),
    /// The project as it is now.
    Project(Project),
}
