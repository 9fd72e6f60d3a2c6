//! What the data plane asks of the replicated state.

use raftstore::kv::KvError;
use raftstore::meta::{ChunkId, Extent, Ino, LivePayload, NodeId, Reader, SessionId};

/// Replicas, until the cluster's own number is known.
const REPLICAS_DEFAULT: u32 = 3;

/// This node's copy of the metadata, as the data plane sees it. Calls are short, but may read the medium.
pub trait StateView: Send + Sync + 'static {
    /// Nodes that a placement group's chunks belong on: those chosen, else the first of all.
    fn group_nodes(&self, group: u32) -> Result<Vec<NodeId>, KvError>;
    /// All nodes.
    fn nodes(&self) -> Result<Vec<NodeId>, KvError>;
    /// Whether any file refers to the chunk or log payload.
    fn is_live(&self, id: ChunkId) -> Result<bool, KvError>;
    /// The session's `chunk_floor`; `None` if there is no such session (any more).
    fn chunk_floor(&self, session: SessionId) -> Result<Option<u64>, KvError>;
    /// Up to `chunks_max` live chunks (not log payloads) after `after`, in order.
    fn chunks(&self, after: Option<ChunkId>, chunks_max: usize) -> Result<Vec<ChunkId>, KvError>;
    /// Up to `items_max` live log payloads from index `from` on, in order of index, then inode.
    fn live_payloads(&self, from: u64, items_max: usize) -> Result<Vec<LivePayload>, KvError>;
    /// Up to `extents_max` extents of a file from `offset` on, in order.
    fn extents(&self, ino: Ino, offset: u64, extents_max: usize) -> Result<Vec<Extent>, KvError>;
}

impl StateView for Reader {
    fn group_nodes(&self, group: u32) -> Result<Vec<NodeId>, KvError> {
        let chosen = self.placement(group)?;
        if !chosen.is_empty() {
            return Ok(chosen);
        }
        let replicas = self
            .cluster()?
            .map_or(REPLICAS_DEFAULT, |cluster| cluster.replicas);
        let nodes = self.nodes()?.into_iter().map(|node| node.id);
        Ok(nodes.take(replicas.max(1) as usize).collect())
    }

    fn nodes(&self) -> Result<Vec<NodeId>, KvError> {
        Ok(Self::nodes(self)?.into_iter().map(|node| node.id).collect())
    }

    fn is_live(&self, id: ChunkId) -> Result<bool, KvError> {
        self.chunk_is_live(id)
    }

    fn chunk_floor(&self, session: SessionId) -> Result<Option<u64>, KvError> {
        Ok(self.session(session)?.map(|session| session.chunk_floor))
    }

    fn chunks(&self, after: Option<ChunkId>, chunks_max: usize) -> Result<Vec<ChunkId>, KvError> {
        Self::chunks(self, after, chunks_max)
    }

    fn live_payloads(&self, from: u64, items_max: usize) -> Result<Vec<LivePayload>, KvError> {
        Self::live_payloads(self, from, items_max)
    }

    fn extents(&self, ino: Ino, offset: u64, extents_max: usize) -> Result<Vec<Extent>, KvError> {
        Self::extents(self, ino, offset, u64::MAX, extents_max)
    }
}
