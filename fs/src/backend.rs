//! What the POSIX layer stands on: replicated metadata and replicated chunks.
//!
//! Two implementations lie on top of each other: the node's own commits every change before it answers;
//! [`crate::behind::LeasedBackend`] works under leases and commits in batches.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::kv::KvError;
use raftstore::meta::{ChunkId, Ino, MetaError, Op, ProjectId, Reader, Reply, SessionId, Usage};

use crate::behind::Unflushed;

/// Why the cluster could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendError {
    /// The state machine's answer.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// Nothing refers to this chunk any more: read the extents again.
    #[error("chunk {0} is gone")]
    ChunkGone(ChunkId),
    /// No node that can be reached has good bytes of this chunk.
    #[error("no good copy of chunk {0} can be reached")]
    ChunkLost(ChunkId),
    /// There is no quorum, and the administrator chose errors instead of waiting.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// The nodes' media are full.
    #[error("no space left on a majority of the chunk's nodes")]
    NoSpace,
    /// This node's own store failed.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The node is shutting down, or its journal is poisoned.
    #[error("this node has stopped: {0}")]
    Stopped(String),
}

/// What is to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncWhat {
    /// This inode, and all names and attributes that were changed on this node.
    Inode(Ino),
    /// All that was changed on this node.
    Everything,
}

/// Proposes changes.
#[async_trait]
pub trait Propose: Send + Sync + 'static {
    /// Does `op`: returns once [`Backend::reader`] shows it here, and every other node's `refresh` will. It is on the
    /// media of a majority once [`Backend::sync`] has returned. Waits as long as there is no quorum. Dropping the future
    /// abandons the wait, not the proposal.
    ///
    /// # Errors
    /// [`BackendError::Meta`] if the state machine refused; nothing was changed then.
    async fn submit(&self, op: Op, payload: Bytes) -> Result<Reply, BackendError>;
}

/// The cluster as the POSIX layer sees it.
#[async_trait]
pub trait Backend: Propose {
    /// Returns once [`Backend::reader`] shows, of this, everything that any node was told is done before this call. Waits
    /// as long as there is no quorum.
    async fn refresh(&self, look: Look<'_>) -> Result<(), BackendError>;

    /// This node's own copy of the metadata.
    fn reader(&self) -> Reader;

    /// The session that proposals run under; changes if it was expired.
    fn session(&self) -> SessionId;

    /// As [`Propose::submit`], but only under this session: what depends on its locks must not be done under another.
    ///
    /// # Errors
    /// [`MetaError::SessionExpired`] once another session is open, or if the cluster had given this one up. A repeat
    /// of the call with the same session waits until there is another.
    async fn submit_within(&self, session: SessionId, op: Op, payload: Bytes) -> Result<Reply, BackendError>;

    /// Stores up to `CHUNK_BYTES_MAX` bytes as a new chunk, durable on a majority of its nodes when this returns.
    /// The chunk is kept only if an op that refers to it is submitted before [`ChunkGuard`] is dropped.
    async fn write_chunk(&self, data: Bytes) -> Result<ChunkGuard, BackendError>;

    /// Verified bytes of a chunk or log payload, from the nearest good copy.
    async fn read_chunk(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, BackendError>;

    /// What statfs tells: room for file data, replicas counted.
    async fn space(&self) -> Result<ClusterSpace, BackendError>;

    /// Returns once all of it is on the media of a majority.
    ///
    /// # Errors
    /// If that cannot be had any more. What was lost of a single file is [`Backend::take_error`]'s to tell.
    async fn sync(&self, what: SyncWhat) -> Result<(), BackendError>;

    /// Bytes of a file that were written here and that the extents do not show yet. To be asked after the inode was
    /// read and before the extents are.
    fn unflushed(&self, _ino: Ino, _start: u64, _end: u64) -> Unflushed {
        Unflushed::default()
    }

    /// A file was closed on this node, or lost its last name: what was written to it need not reach the cluster if nobody
    /// can read it any more. `is_open` tells whether it is open on this node, or may be in a moment by a name that it had;
    /// it must not call the backend.
    fn forget_unreadable(&self, _ino: Ino, _is_open: &dyn Fn() -> bool) {}

    /// What a project will have more once all that was done here is committed, at most.
    fn pending(&self, _project: ProjectId) -> Usage {
        Usage::default()
    }

    /// Why bytes of this file, or changes that were made to it, are lost; told once.
    fn take_error(&self, _ino: Ino) -> Option<BackendError> {
        None
    }

    /// To be asked before the state is read that the kernel is to know: see [`Backend::lend`].
    fn moment(&self) -> Moment {
        Moment::default()
    }

    /// Lets the kernel answer on its own for what was read of all this since `moment`.
    fn lend(&self, _look: Look<'_>, _moment: Moment) -> Loan {
        Loan::none()
    }
}

/// What somebody looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look<'a> {
    /// Inodes with their contents and the names in them.
    pub whole: &'a [Ino],
    /// Inodes of which only the attributes count.
    pub attributes: &'a [Ino],
}

impl<'a> Look<'a> {
    /// At these inodes and all that is in them.
    #[must_use]
    pub const fn whole(inodes: &'a [Ino]) -> Self {
        Self {
            whole: inodes,
            attributes: &[],
        }
    }

    /// At the attributes of these inodes.
    #[must_use]
    pub const fn attributes(inodes: &'a [Ino]) -> Self {
        Self {
            whole: &[],
            attributes: inodes,
        }
    }

    /// At names in these directories, and the attributes of what they stand for.
    #[must_use]
    pub const fn named(directories: &'a [Ino], attributes: &'a [Ino]) -> Self {
        Self {
            whole: directories,
            attributes,
        }
    }

    /// All inodes that are looked at.
    pub fn inodes(self) -> impl Iterator<Item = Ino> + 'a {
        self.whole.iter().chain(self.attributes).copied()
    }
}

/// What this node knew and had done at some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// Leases that had come.
    pub(crate) grants: u64,
    /// Number of the last change.
    pub(crate) number: u64,
}

/// Leases that the kernel may rely on. To be dropped once the kernel has got the answer: its time begins then.
pub struct Loan {
    /// How long the kernel may answer from what it was told.
    pub time: Duration,
    /// Runs when the loan is dropped.
    told: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Loan {
    /// For so long; `told` is called when the kernel has been told.
    #[must_use]
    pub fn new(time: Duration, told: Box<dyn FnOnce() + Send + Sync>) -> Self {
        Self {
            time,
            told: Some(told),
        }
    }

    /// The kernel must ask each time.
    #[must_use]
    pub fn none() -> Self {
        Self {
            time: Duration::ZERO,
            told: None,
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            told();
        }
    }
}

/// A chunk on its way to an op that refers to it. While it lives, the session's `chunk_floor` stays at or below it.
pub struct ChunkGuard {
    /// The chunk.
    pub id: ChunkId,
    /// Runs when the guard goes.
    release: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl ChunkGuard {
    /// `release` is called when the guard is dropped.
    #[must_use]
    pub fn new(id: ChunkId, release: Box<dyn FnOnce() + Send + Sync>) -> Self {
        Self {
            id,
            release: Some(release),
        }
    }
}

impl Drop for ChunkGuard {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

/// Room for file data in the cluster: what one byte costs on every replica is counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterSpace {
    /// Bytes of file data that fit in all.
    pub capacity_bytes: u64,
    /// Bytes that still fit.
    pub available_bytes: u64,
}
