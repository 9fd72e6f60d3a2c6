//! Chunk traffic between nodes, as the data plane needs it.

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::meta::{ChunkId, NodeId};

/// Why another node did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// The node cannot be reached, or did not answer in time.
    #[error("node {0} cannot be reached: {1}")]
    Unreachable(NodeId, String),
    /// The node does not have the chunk, or has no good copy of it.
    #[error("node {0} has no good copy of chunk {1}")]
    NotThere(NodeId, ChunkId),
    /// The node's medium is full.
    #[error("the medium of node {0} is full")]
    NoSpace(NodeId),
    /// The node refused or failed.
    #[error("node {0}: {1}")]
    Failed(NodeId, String),
}

/// Chunk traffic between nodes; the node implements it over gRPC, tests in memory.
#[async_trait]
pub trait ChunkTransport: Send + Sync + 'static {
    /// Stores a chunk on `to`, which passes it on along `chain`. Answers the nodes that made it durable: as soon as
    /// they are `enough` (the rest of the chain is served behind the answer), or when all have succeeded or failed.
    async fn put(
        &self,
        to: NodeId,
        id: ChunkId,
        data: Bytes,
        chain: Vec<NodeId>,
        enough: u32,
    ) -> Result<Vec<NodeId>, TransportError>;
    /// Verified bytes; `len` 0 means to the end.
    async fn get(&self, from: NodeId, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, TransportError>;
    /// Which of `ids` the node has.
    async fn has(&self, on: NodeId, ids: Vec<ChunkId>) -> Result<Vec<ChunkId>, TransportError>;
    /// `nodes` without those known to be unreachable, nearest first.
    fn nearest(&self, nodes: &[NodeId]) -> Vec<NodeId>;
}
