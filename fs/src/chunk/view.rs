//! What the data plane asks of the replicated state.

use raftstore::kv::KvError;
use raftstore::meta::{ChunkId, ChunkUse, Extent, Ino, LivePayload, MetaStore, NodeId, Reader, SessionId};
use tokio::sync::watch;

/// Replicas, until the cluster's own number is known.
const REPLICAS_DEFAULT: u32 = 3;

/// This node's copy of the metadata, as the data plane sees it. Calls are short, but may read the medium.
///
/// Each call may show a later state than the one before, never an earlier one.
pub trait StateView: Send + Sync + 'static {
    /// Index of a log entry that the other calls reflect.
    fn applied(&self) -> u64;
    /// Nodes that a placement group's chunks belong on: those chosen, else the first of all.
    fn group_nodes(&self, group: u32) -> Result<Vec<NodeId>, KvError>;
    /// All nodes.
    fn nodes(&self) -> Result<Vec<NodeId>, KvError>;
    /// Whether any file refers to the chunk or log payload.
    fn is_live(&self, id: ChunkId) -> Result<bool, KvError>;
    /// The session's `chunk_floor`; `None` if there is no such session (any more, or yet).
    fn chunk_floor(&self, session: SessionId) -> Result<Option<u64>, KvError>;
    /// Up to `chunks_max` live chunks (not log payloads) after `after`, in order.
    fn chunks(&self, after: Option<ChunkId>, chunks_max: usize) -> Result<Vec<ChunkId>, KvError>;
    /// Up to `items_max` live log payloads from index `from` on, in order of index, then inode.
    fn live_payloads(&self, from: u64, items_max: usize) -> Result<Vec<LivePayload>, KvError>;
    /// Up to `extents_max` extents of a file from `offset` on, in order.
    fn extents(&self, ino: Ino, offset: u64, extents_max: usize) -> Result<Vec<Extent>, KvError>;

    /// Up to `chunks_max` live chunks (not log payloads) after `after`, in order, with who refers to them.
    fn chunk_uses(&self, after: Option<ChunkId>, chunks_max: usize) -> Result<Vec<ChunkUse>, KvError>;

    /// Whether no op that names the chunk can come any more: it is below its session's floor, or the session has
    /// ended (a session's id is the index of the entry that opened it). The state machine refuses such ops, and only
    /// what refers to the chunk already can be copied.
    fn is_settled(&self, id: ChunkId) -> Result<bool, KvError> {
        let applied = self.applied();
        Ok(match id.payload_index() {
            Some(log_index) => log_index <= applied,
            None => match self.chunk_floor(SessionId(id.session))? {
                Some(floor) => id.seq < floor,
                None => id.session <= applied,
            },
        })
    }

    /// What may become of the chunk's bytes.
    fn fate(&self, id: ChunkId) -> Result<Fate, KvError> {
        // In this order: a settled chunk that has no reference *after* that will never have one again.
        let settled = self.is_settled(id)?;
        Ok(match (self.is_live(id)?, settled) {
            (true, _) => Fate::Live,
            (false, true) => Fate::Dead,
            (false, false) => Fate::Open,
        })
    }
}

/// What may become of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Files refer to it.
    Live,
    /// None does, but an op that does may be under way.
    Open,
    /// None does, and none ever will.
    Dead,
}

/// A node's metadata as the data plane sees it.
pub struct MetaView {
    reader: Reader,
    applied: watch::Receiver<u64>,
}

impl MetaView {
    /// Looks at `meta`, whatever becomes of it.
    #[must_use]
    pub fn new(meta: &MetaStore) -> Self {
        Self {
            reader: meta.reader(),
            applied: meta.applied(),
        }
    }
}

impl StateView for MetaView {
    fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    fn group_nodes(&self, group: u32) -> Result<Vec<NodeId>, KvError> {
        let chosen = self.reader.placement(group)?;
        if !chosen.is_empty() {
            return Ok(chosen);
        }
        let replicas = self
            .reader
            .cluster()?
            .map_or(REPLICAS_DEFAULT, |cluster| cluster.replicas);
        let mut nodes = self.nodes()?;
        nodes.truncate(replicas.max(1) as usize);
        Ok(nodes)
    }

    fn nodes(&self) -> Result<Vec<NodeId>, KvError> {
        Ok(self.reader.nodes()?.into_iter().map(|node| node.id).collect())
    }

    fn is_live(&self, id: ChunkId) -> Result<bool, KvError> {
        self.reader.chunk_is_live(id)
    }

    fn chunk_floor(&self, session: SessionId) -> Result<Option<u64>, KvError> {
        Ok(self.reader.session(session)?.map(|session| session.chunk_floor))
    }

    fn chunks(&self, after: Option<ChunkId>, chunks_max: usize) -> Result<Vec<ChunkId>, KvError> {
        self.reader.chunks(after, chunks_max)
    }

    fn chunk_uses(&self, after: Option<ChunkId>, chunks_max: usize) -> Result<Vec<ChunkUse>, KvError> {
        self.reader.chunk_uses(after, chunks_max)
    }

    fn live_payloads(&self, from: u64, items_max: usize) -> Result<Vec<LivePayload>, KvError> {
        self.reader.live_payloads(from, items_max)
    }

    fn extents(&self, ino: Ino, offset: u64, extents_max: usize) -> Result<Vec<Extent>, KvError> {
        self.reader.extents(ino, offset, u64::MAX, extents_max)
    }
}
