//! What can go wrong in the local chunk store.

use std::io;

use raftstore::meta::{CHUNK_BYTES_MAX, ChunkId};

/// Why the store could not be opened, or could not store a chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The medium is full. What is stored stays readable; free some room and try again.
    #[error("the medium under the chunk store is full: delete files or add room")]
    NoSpace,
    /// A write or sync failed earlier: nothing more is written until the node has been started again.
    #[error(
        "the chunk store stopped writing after its medium failed ({0}): check the medium, then restart the node"
    )]
    Poisoned(String),
    /// A later version of Bramble wrote this store.
    #[error(
        "the chunk store has format {found}, this version reads up to {supported}: install a later version"
    )]
    NewerFormat {
        /// Format of the pack.
        found: u32,
        /// The newest format this build knows.
        supported: u32,
    },
    /// The packs were written by another cluster.
    #[error("pack {0} belongs to another cluster's store: point --store at this node's own directory")]
    Foreign(String),
    /// Not a length that a chunk may have.
    #[error("a chunk of {0} bytes (allowed are 1 to {CHUNK_BYTES_MAX})")]
    BadLength(usize),
    /// The medium could not be read while opening.
    #[error("the chunk store cannot read its medium: {0}")]
    Io(String),
    /// The store was closed.
    #[error("the chunk store is closed")]
    Closed,
}

/// Why a chunk could not be read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is not in this store.
    #[error("chunk {0} is not here")]
    Missing(ChunkId),
    /// The bytes asked for are damaged on the medium.
    #[error("chunk {0} is damaged here")]
    Bad(ChunkId),
    /// The range goes beyond the chunk's end.
    #[error("chunk {id} has {len} bytes, asked for byte {end}")]
    Range {
        /// The chunk.
        id: ChunkId,
        /// Its length.
        len: u32,
        /// One past the last byte asked for.
        end: u64,
    },
}

/// Whether an I/O error says that the medium is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
