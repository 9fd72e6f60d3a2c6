//! Keys of the state: a table's number, then the parts of the key, numbers big-endian so that scans run in order.
//!
//! docs/FORMAT.md draws each of them.

use std::ops::Bound;

use super::types::*;
use super::volume::ProjectId;
use crate::kv::KeyRange;

/// First byte of each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Table {
    /// The store's own: applied index, membership. `apply` never touches it.
    #[allow(dead_code, reason = "reserves the number")]
    Store = 0x00,
    Cluster = 0x01,
    Counter = 0x02,
    Inode = 0x10,
    EntryByName = 0x11,
    EntryByCookie = 0x12,
    Xattr = 0x13,
    Extent = 0x14,
    Orphan = 0x15,
    Project = 0x16,
    Volume = 0x17,
    Snapshot = 0x18,
    Hold = 0x19,
    Doomed = 0x1a,
    ChunkRef = 0x20,
    Lock = 0x30,
    SessionLock = 0x31,
    Session = 0x38,
    Answer = 0x39,
    Node = 0x40,
    Placement = 0x41,
    Token = 0x42,
}

/// Numbers that the state counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Counter {
    NextIno = 0x01,
    NextNode = 0x02,
    Usage = 0x03,
    NextProject = 0x04,
}

/// Builds a key.
struct Key(Vec<u8>);

impl Key {
    fn new(table: Table) -> Self {
        let mut bytes = Vec::with_capacity(34);
        bytes.push(table as u8);
        Self(bytes)
    }

    fn u64(mut self, part: u64) -> Self {
        self.0.extend_from_slice(&part.to_be_bytes());
        self
    }

    fn bytes(mut self, part: &[u8]) -> Self {
        self.0.extend_from_slice(part);
        self
    }
}

/// All keys of a table.
pub(crate) fn table(table: Table) -> Vec<u8> {
    Key::new(table).0
}

pub(crate) fn cluster() -> Vec<u8> {
    Key::new(Table::Cluster).0
}

pub(crate) fn counter(counter: Counter) -> Vec<u8> {
    Key::new(Table::Counter).bytes(&[counter as u8]).0
}

pub(crate) fn inode(ino: Ino) -> Vec<u8> {
    Key::new(Table::Inode).u64(ino).0
}

pub(crate) fn entry_by_name(parent: Ino, name: &[u8]) -> Vec<u8> {
    Key::new(Table::EntryByName).u64(parent).bytes(name).0
}

pub(crate) fn entry_by_cookie(parent: Ino, cookie: u64) -> Vec<u8> {
    Key::new(Table::EntryByCookie).u64(parent).u64(cookie).0
}

/// Also the prefix of an inode's attributes, with an empty name.
pub(crate) fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    Key::new(Table::Xattr).u64(ino).bytes(name).0
}

/// Extents are found by their end, so that one forward scan finds those that intersect a range.
pub(crate) fn extent(ino: Ino, end: u64) -> Vec<u8> {
    Key::new(Table::Extent).u64(ino).u64(end).0
}

/// Extents of `ino` that end after `offset`.
pub(crate) fn extents_ending_after(ino: Ino, offset: u64) -> KeyRange {
    (
        Bound::Excluded(extent(ino, offset)),
        Bound::Included(extent(ino, u64::MAX)),
    )
}

pub(crate) fn orphan(ino: Ino) -> Vec<u8> {
    Key::new(Table::Orphan).u64(ino).0
}

pub(crate) fn project(id: ProjectId) -> Vec<u8> {
    Key::new(Table::Project).bytes(&id.to_be_bytes()).0
}

pub(crate) fn volume(name: &str) -> Vec<u8> {
    Key::new(Table::Volume).bytes(name.as_bytes()).0
}

/// Also the prefix of a volume's snapshots, with an empty name. Names have no NUL.
pub(crate) fn snapshot(volume: &str, name: &str) -> Vec<u8> {
    let volume = Key::new(Table::Snapshot).bytes(volume.as_bytes());
    volume.bytes(b"\0").bytes(name.as_bytes()).0
}

/// Prefix of the holds on a volume.
pub(crate) fn holds(volume: &str) -> Vec<u8> {
    Key::new(Table::Hold).bytes(volume.as_bytes()).bytes(b"\0").0
}

pub(crate) fn hold(volume: &str, node: NodeId, id: &str) -> Vec<u8> {
    Key(holds(volume)).u64(node).bytes(id.as_bytes()).0
}

/// Directories of trees that are to go.
pub(crate) fn doomed(ino: Ino) -> Vec<u8> {
    Key::new(Table::Doomed).u64(ino).0
}

pub(crate) fn chunk_ref(id: ChunkId, ino: Ino) -> Vec<u8> {
    Key::new(Table::ChunkRef).u64(id.session).u64(id.seq).u64(ino).0
}

/// Prefix of all references to a chunk.
pub(crate) fn chunk(id: ChunkId) -> Vec<u8> {
    Key::new(Table::ChunkRef).u64(id.session).u64(id.seq).0
}

fn lock_kind(kind: LockKind) -> u8 {
    match kind {
        LockKind::Posix => 0,
        LockKind::Flock => 1,
    }
}

pub(crate) fn lock(ino: Ino, owner: LockOwner, start: u64) -> Vec<u8> {
    Key(locks_of_owner(ino, owner)).u64(start).0
}

/// Prefix of all locks on an inode.
pub(crate) fn locks(ino: Ino) -> Vec<u8> {
    Key::new(Table::Lock).u64(ino).0
}

/// Prefix of a session's locks on an inode.
pub(crate) fn locks_of_session(ino: Ino, session: SessionId) -> Vec<u8> {
    Key(locks(ino)).u64(session.0).0
}

/// Prefix of an owner's locks on an inode.
pub(crate) fn locks_of_owner(ino: Ino, owner: LockOwner) -> Vec<u8> {
    Key(locks_of_session(ino, owner.session))
        .bytes(&[lock_kind(owner.kind)])
        .u64(owner.token)
        .0
}

pub(crate) fn session_lock(session: SessionId, ino: Ino) -> Vec<u8> {
    Key::new(Table::SessionLock).u64(session.0).u64(ino).0
}

/// Prefix of the inodes on which a session has locks.
pub(crate) fn session_locks(session: SessionId) -> Vec<u8> {
    Key::new(Table::SessionLock).u64(session.0).0
}

pub(crate) fn session(id: SessionId) -> Vec<u8> {
    Key::new(Table::Session).u64(id.0).0
}

pub(crate) fn answer(session: SessionId, seq: u64) -> Vec<u8> {
    Key::new(Table::Answer).u64(session.0).u64(seq).0
}

/// Prefix of a session's kept answers.
pub(crate) fn answers(session: SessionId) -> Vec<u8> {
    Key::new(Table::Answer).u64(session.0).0
}

pub(crate) fn node(id: NodeId) -> Vec<u8> {
    Key::new(Table::Node).u64(id).0
}

pub(crate) fn placement(group: u32) -> Vec<u8> {
    Key::new(Table::Placement).bytes(&group.to_be_bytes()).0
}

pub(crate) fn token(hash: &[u8; 32]) -> Vec<u8> {
    Key::new(Table::Token).bytes(hash).0
}

/// The big-endian number at byte `at` of a key; `None` if the key is too short.
pub(crate) fn u64_at(key: &[u8], at: usize) -> Option<u64> {
    let part = key.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(part.try_into().ok()?))
}
