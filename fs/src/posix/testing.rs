//! A cluster in one process, for tests and trials without daemons: the real state machine in memory, chunks in a
//! hash table, no Raft, no network, no medium. Several backends on one cluster are several nodes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::clock::{Clock, SystemClock};
use raftstore::kv::KvError;
use raftstore::meta::testing::LocalMeta;
use raftstore::meta::{
    ChunkId, MetaError, MetaStore, NodeId, Observer, Op, Proposal, Reader, Reply, SessionId,
};
use tokio::sync::watch;

use super::{Limits, Vfs};
use crate::backend::{Backend, BackendError, ChunkGuard, ClusterSpace, Look, Propose, SyncWhat};

/// After so many stored chunks, those that nothing refers to are dropped.
const SWEEP_CHUNKS: usize = 1024;

/// What the nodes of a local cluster share.
pub struct LocalCluster {
    meta: LocalMeta,
    chunks: Mutex<Chunks>,
    clock: Arc<dyn Clock>,
    space: Mutex<ClusterSpace>,
    quorum: watch::Sender<bool>,
    chunks_flow: watch::Sender<bool>,
    nodes: AtomicU64,
}

#[derive(Default)]
struct Chunks {
    bytes: HashMap<ChunkId, Bytes>,
    since_sweep: usize,
    reads: u64,
    stored_bytes: u64,
}

impl LocalCluster {
    /// An empty filesystem with `capacity_bytes` of room.
    ///
    /// # Errors
    /// None that a test need expect.
    pub fn new(capacity_bytes: u64) -> Result<Arc<Self>, KvError> {
        Ok(Arc::new(Self {
            meta: LocalMeta::new()?,
            chunks: Mutex::default(),
            clock: Arc::new(SystemClock),
            space: Mutex::new(ClusterSpace {
                capacity_bytes,
                available_bytes: capacity_bytes,
            }),
            quorum: watch::Sender::new(true),
            chunks_flow: watch::Sender::new(true),
            nodes: AtomicU64::new(0),
        }))
    }

    /// One more node, with a session of its own.
    ///
    /// # Errors
    /// None that a test need expect.
    pub fn node(self: &Arc<Self>) -> Result<Arc<LocalBackend>, KvError> {
        let count = self.nodes.fetch_add(1, Ordering::Relaxed);
        let add = Op::AddNode {
            name: format!("node{count}"),
            listen: format!("127.0.0.1:{count}"),
            token_hash: None,
        };
        let node = match self.meta.system(add)?.1 {
            Ok(Reply::Node(node)) => node.id,
            other => return Err(KvError::Io(format!("{other:?}"))),
        };
        let session = self.open_session(node)?;
        Ok(Arc::new(LocalBackend {
            cluster: self.clone(),
            node,
            session: AtomicU64::new(session.0),
            seq: Mutex::new(0),
            chunk_seq: AtomicU64::new(1),
        }))
    }

    fn open_session(&self, node: NodeId) -> Result<SessionId, KvError> {
        match self.meta.system(Op::OpenSession { node })?.1 {
            Ok(Reply::Session(session)) => Ok(session),
            other => Err(KvError::Io(format!("{other:?}"))),
        }
    }

    /// A filesystem on one more node.
    ///
    /// # Errors
    /// None that a test need expect.
    pub fn vfs(self: &Arc<Self>, limits: Limits) -> Result<Arc<Vfs>, KvError> {
        let vfs = Vfs::new(self.node()?, self.clock.clone(), limits);
        self.meta.store().observe(vfs.clone() as Arc<dyn Observer>);
        Ok(vfs)
    }

    /// The store of the metadata.
    #[must_use]
    pub fn store(&self) -> Arc<MetaStore> {
        self.meta.store()
    }

    /// The newest metadata.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.meta.reader()
    }

    /// Takes the quorum away, or gives it back: without it, everything waits.
    pub fn set_quorum(&self, there: bool) {
        self.quorum.send_replace(there);
    }

    /// Lets chunks be written, or makes them wait, as on a medium that is busy.
    pub fn set_chunks_flow(&self, flow: bool) {
        self.chunks_flow.send_replace(flow);
    }

    /// What statfs is to say.
    pub fn set_space(&self, space: ClusterSpace) {
        *self.space.lock().unwrap_or_else(PoisonError::into_inner) = space;
    }

    /// Proposes as the cluster itself, as the leader does to free inodes and to expire sessions.
    ///
    /// # Errors
    /// None that a test need expect.
    pub fn system(&self, op: Op) -> Result<Reply, BackendError> {
        Ok(self.meta.system(op)?.1?)
    }

    /// How many chunks were read so far.
    #[must_use]
    pub fn chunk_reads(&self) -> u64 {
        self.chunks().reads
    }

    /// Bytes that were stored so far, in chunks and payloads.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.chunks().stored_bytes
    }

    /// How many chunks and payloads are stored.
    #[must_use]
    pub fn chunk_count(&self) -> usize {
        self.chunks().bytes.len()
    }

    fn chunks(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_for_quorum(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.quorum.subscribe().wait_for(|there| *there).await;
    }

    fn store_chunk(&self, id: ChunkId, data: Bytes) {
        let mut chunks = self.chunks();
        chunks.stored_bytes += data.len() as u64;
        chunks.bytes.insert(id, data);
        chunks.since_sweep += 1;
    }

    /// Drops payloads that nothing refers to. Chunks stay: they may be on their way to an op.
    fn sweep(&self) -> Result<(), KvError> {
        let mut chunks = self.chunks();
        if chunks.since_sweep < SWEEP_CHUNKS {
            return Ok(());
        }
        chunks.since_sweep = 0;
        let reader = self.meta.reader();
        let mut dead = Vec::new();
        for id in chunks.bytes.keys() {
            if id.payload_index().is_some() && !reader.chunk_is_live(*id)? {
                dead.push(*id);
            }
        }
        for id in dead {
            chunks.bytes.remove(&id);
        }
        Ok(())
    }
}

/// One node of a [`LocalCluster`].
pub struct LocalBackend {
    cluster: Arc<LocalCluster>,
    node: NodeId,
    session: AtomicU64,
    seq: Mutex<u64>,
    chunk_seq: AtomicU64,
}

impl LocalBackend {
    fn propose(&self, only: Option<SessionId>, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        // Held until it is applied: proposals arrive in the order of their numbers.
        let mut seq = self.seq.lock().unwrap_or_else(PoisonError::into_inner);
        let session = self.session();
        if let Some(gone) = only.filter(|only| *only != session) {
            return Err(BackendError::Meta(MetaError::SessionExpired(gone)));
        }
        *seq += 1;
        let proposal = Proposal {
            session,
            seq: *seq,
            ack_floor: *seq,
            chunk_floor: 0,
            time: self.cluster.clock.wall(),
            op,
            payload: payload.clone(),
        };
        let (log_index, answer) = self.cluster.meta.propose(proposal)?;
        if !payload.is_empty() {
            self.cluster.store_chunk(ChunkId::payload(log_index), payload);
            self.cluster.sweep()?;
        }
        Ok(answer?)
    }

    /// Opens another session if this one is still the node's.
    fn replace_session(&self, lost: SessionId) -> Result<(), KvError> {
        let mut seq = self.seq.lock().unwrap_or_else(PoisonError::into_inner);
        if self.session() == lost {
            let session = self.cluster.open_session(self.node)?;
            self.session.store(session.0, Ordering::Relaxed);
            *seq = 0;
        }
        Ok(())
    }
}

#[async_trait]
impl Propose for LocalBackend {
    async fn submit(&self, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        loop {
            self.cluster.wait_for_quorum().await;
            match self.propose(None, op.clone(), payload.clone()) {
                Err(BackendError::Meta(MetaError::SessionExpired(lost))) => self.replace_session(lost)?,
                answer => return answer,
            }
        }
    }
}

#[async_trait]
impl Backend for LocalBackend {
    async fn refresh(&self, _look: Look<'_>) -> Result<(), BackendError> {
        self.cluster.wait_for_quorum().await;
        Ok(())
    }

    fn reader(&self) -> Reader {
        self.cluster.meta.reader()
    }

    fn session(&self) -> SessionId {
        SessionId(self.session.load(Ordering::Relaxed))
    }

    async fn submit_within(&self, session: SessionId, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        self.cluster.wait_for_quorum().await;
        let answer = self.propose(Some(session), op, payload);
        if let Err(BackendError::Meta(MetaError::SessionExpired(lost))) = &answer {
            self.replace_session(*lost)?;
        }
        answer
    }

    async fn write_chunk(&self, data: Bytes) -> Result<ChunkGuard, BackendError> {
        self.cluster.wait_for_quorum().await;
        let _ = self.cluster.chunks_flow.subscribe().wait_for(|flow| *flow).await;
        let id = ChunkId {
            session: self.session().0,
            seq: self.chunk_seq.fetch_add(1, Ordering::Relaxed),
        };
        self.cluster.store_chunk(id, data);
        Ok(ChunkGuard::new(id, Box::new(|| {})))
    }

    async fn read_chunk(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, BackendError> {
        let mut chunks = self.cluster.chunks();
        chunks.reads += 1;
        let bytes = chunks.bytes.get(&id).ok_or(BackendError::ChunkGone(id))?;
        let range = offset as usize..offset as usize + len as usize;
        if range.end > bytes.len() {
            return Err(BackendError::ChunkLost(id));
        }
        Ok(bytes.slice(range))
    }

    async fn sync(&self, _what: SyncWhat) -> Result<(), BackendError> {
        Ok(())
    }

    async fn space(&self) -> Result<ClusterSpace, BackendError> {
        Ok(*self.cluster.space.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
