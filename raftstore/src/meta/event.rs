//! What `apply` tells the node it runs on.

use bytes::Bytes;

use super::types::*;

/// Something changed. Sent in log order, after readers can see the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Contents of a file changed, and attributes with them (`by` is the session that proposed it).
    Data {
        /// Which file.
        ino: Ino,
        /// Whose doing.
        by: SessionId,
    },
    /// Attributes (also extended ones) changed.
    Attr {
        /// Which inode.
        ino: Ino,
        /// Whose doing.
        by: SessionId,
    },
    /// A name appeared, vanished, or stands for something else.
    Entry {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Bytes,
        /// Whose doing.
        by: SessionId,
    },
    /// A lock was given up or lost: whoever waits for this inode may try again.
    LockFreed {
        /// Which inode.
        ino: Ino,
    },
    /// Someone was refused a lock on this inode because of another one's: whoever holds it may be fair when it is
    /// given up.
    LockWanted {
        /// Which inode.
        ino: Ino,
        /// Who was refused.
        by: SessionId,
    },
    /// An inode lost its last name.
    Orphaned {
        /// Which inode.
        ino: Ino,
    },
    /// A chunk (not a log payload) got its first reference.
    ChunkAdded {
        /// Which chunk.
        id: ChunkId,
    },
    /// A chunk (not a log payload) lost its last reference. It may get one again as long as its session lives and
    /// the session's `chunk_floor` is not above it; its bytes may go once neither can happen any more.
    ChunkDead {
        /// Which chunk.
        id: ChunkId,
    },
    /// A session ended.
    SessionExpired {
        /// Which.
        session: SessionId,
    },
    /// Nodes were added, changed or removed.
    Nodes,
    /// The placement table changed.
    Placement,
    /// The whole state was replaced by a snapshot: all that was cached is void.
    Reset,
}

/// Called by the thread that applies, in log order, once readers see the changes and before the new applied index
/// is announced. Must not block.
pub trait Observer: Send + Sync + 'static {
    /// `index` is the log index of the last entry that these events come from.
    fn applied(&self, index: u64, events: &[Event]);
}
