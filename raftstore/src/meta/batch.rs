//! What a node has gathered under leases, on its way into the log: batches and flushes.

use serde::{Deserialize, Serialize};

use super::op::Op;
use super::types::*;
use crate::clock::Timestamp;

/// Most items of an [`Op::Batch`].
pub const BATCH_ITEMS_MAX: usize = 4096;
/// Most pieces of an [`Op::Flush`].
pub const FLUSH_PIECES_MAX: usize = 4096;
/// Most inode numbers that one [`Op::ReserveInodes`] takes.
pub const RESERVED_INODES_MAX: u32 = 65_536;

/// One operation of a batch, with the time at which it was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchItem {
    /// Counts in place of the proposal's time.
    pub time: Timestamp,
    /// What to do. Only what [`Op::can_be_batched`].
    pub op: Op,
}

/// Where the bytes of a [`Piece`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PieceData {
    /// In the proposal's payload.
    Inline {
        /// First byte in the payload.
        offset: u32,
    },
    /// In a chunk that a majority of its placement group's nodes has made durable.
    Chunk {
        /// Which chunk.
        id: ChunkId,
        /// First byte in the chunk.
        offset: u32,
    },
}

/// A run of bytes that was written to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// First byte's offset in the file.
    pub offset: u64,
    /// Length in bytes, not 0.
    pub len: u32,
    /// Where the bytes are.
    pub data: PieceData,
}

/// What the node that wrote a file shows of those attributes that writing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// Length in bytes.
    pub size: u64,
    /// Permission bits (0 to 0o7777).
    pub mode: u32,
    /// See [`Inode::mtime`].
    pub mtime: Timestamp,
    /// See [`Inode::ctime`].
    pub ctime: Timestamp,
    /// See [`Inode::contents_time`].
    pub contents_time: Timestamp,
    /// See [`Inode::data_version`].
    pub data_version: u64,
}

impl From<&Inode> for FileState {
    fn from(inode: &Inode) -> Self {
        Self {
            size: inode.size,
            mode: inode.mode,
            mtime: inode.mtime,
            ctime: inode.ctime,
            contents_time: inode.contents_time,
            data_version: inode.data_version,
        }
    }
}
