//! The data plane: chunks of the whole cluster, as one node reads, writes and serves them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use raftstore::kv::KvError;
use raftstore::meta::{ChunkId, NodeId};
use tokio::sync::{Semaphore, mpsc};

use super::options::PlaneOptions;
use super::payload::PayloadSource;
use super::store::{ChunkStore, ReadError};
use super::transport::ChunkTransport;
use super::view::StateView;

/// Bytes that one permit of a byte-counting semaphore stands for.
const PERMIT_BYTES: usize = 1024;

/// Damaged chunks that wait for repair; those beyond are found again by scrubbing or the next read.
const SUSPECTS_MAX: usize = 1024;

/// What a [`DataPlane`] is made of.
#[derive(Clone)]
pub struct PlaneParts {
    /// This node.
    pub node: NodeId,
    /// Its chunks.
    pub store: Arc<ChunkStore>,
    /// Its copy of the metadata.
    pub view: Arc<dyn StateView>,
    /// The other nodes.
    pub transport: Arc<dyn ChunkTransport>,
    /// Its journal.
    pub payloads: Arc<dyn PayloadSource>,
}

/// What the data plane has done since the node started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlaneStats {
    /// Bad or missing copies on this node that were fetched from a peer and written anew.
    pub repaired_chunks: u64,
    /// Reads that were answered by another node.
    pub remote_reads: u64,
    /// Copies that were given up since the node was too slow; it repairs them later.
    pub skipped_copies: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) repaired_chunks: AtomicU64,
    pub(super) remote_reads: AtomicU64,
    pub(super) skipped_copies: AtomicU64,
}

/// Reads, writes and serves chunks. Made once; shared by everything that touches file data.
pub struct DataPlane {
    pub(super) node: NodeId,
    pub(super) store: Arc<ChunkStore>,
    pub(super) view: Arc<dyn StateView>,
    pub(super) transport: Arc<dyn ChunkTransport>,
    pub(super) payloads: Arc<dyn PayloadSource>,
    pub(super) options: PlaneOptions,
    pub(super) inflight: Arc<Semaphore>,
    pub(super) laggards: Arc<Semaphore>,
    local_reads: Semaphore,
    /// One at a time fetches a chunk; the others then find it here.
    fetching: Mutex<HashMap<ChunkId, Weak<tokio::sync::Mutex<()>>>>,
    foreground: AtomicUsize,
    suspects: mpsc::Sender<ChunkId>,
    suspected: Mutex<Option<mpsc::Receiver<ChunkId>>>,
    pub(super) counters: Counters,
}

impl DataPlane {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: PlaneParts, options: PlaneOptions) -> Arc<Self> {
        let permits = |bytes: usize| Arc::new(Semaphore::new((bytes / PERMIT_BYTES).max(2048)));
        let (suspects, suspected) = mpsc::channel(SUSPECTS_MAX);
        Arc::new(Self {
            node: parts.node,
            store: parts.store,
            view: parts.view,
            transport: parts.transport,
            payloads: parts.payloads,
            inflight: permits(options.inflight_bytes_max),
            laggards: permits(options.laggard_bytes_max),
            local_reads: Semaphore::new(options.local_reads_max.max(1)),
            fetching: Mutex::default(),
            foreground: AtomicUsize::new(0),
            suspects,
            suspected: Mutex::new(Some(suspected)),
            counters: Counters::default(),
            options,
        })
    }

    /// This node's chunks.
    #[must_use]
    pub fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> PlaneStats {
        PlaneStats {
            repaired_chunks: self.counters.repaired_chunks.load(Ordering::Relaxed),
            remote_reads: self.counters.remote_reads.load(Ordering::Relaxed),
            skipped_copies: self.counters.skipped_copies.load(Ordering::Relaxed),
        }
    }

    /// Reads and writes of users that are under way: background work makes room for them.
    #[must_use]
    pub(super) fn is_busy(&self) -> bool {
        self.foreground.load(Ordering::Relaxed) > 0
    }

    pub(super) fn foreground(&self) -> Foreground<'_> {
        self.foreground.fetch_add(1, Ordering::Relaxed);
        Foreground(&self.foreground)
    }

    /// Nodes that the chunk belongs on.
    pub(super) fn homes(&self, id: ChunkId) -> Result<Vec<NodeId>, KvError> {
        self.view.group_nodes(id.placement_group())
    }

    /// Whether a copy of the chunk belongs on this node. Payloads belong on every node.
    pub(super) fn is_home(&self, id: ChunkId) -> Result<bool, KvError> {
        Ok(id.payload_index().is_some() || self.homes(id)?.contains(&self.node))
    }

    /// Notes that this node's copy of a chunk is damaged, for repair.
    pub(super) fn suspect(&self, id: ChunkId) {
        let _ = self.suspects.try_send(id);
    }

    /// Where the suspects go; for the one who repairs them.
    pub(super) fn take_suspects(&self) -> Option<mpsc::Receiver<ChunkId>> {
        self.suspected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Reads the local store, off the async threads.
    pub(super) async fn read_local(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ReadError> {
        if !self.store.contains(id) {
            return Err(ReadError::Missing(id));
        }
        let Ok(_permit) = self.local_reads.acquire().await else {
            return Err(ReadError::Missing(id));
        };
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || store.read(id, offset, len));
        read.await.unwrap_or(Err(ReadError::Missing(id)))
    }

    /// A range of a payload, from the journal.
    pub(super) async fn read_journal(&self, log_index: u64, offset: u32, len: u32) -> Option<Bytes> {
        let _permit = self.local_reads.acquire().await.ok()?;
        let payloads = Arc::clone(&self.payloads);
        match tokio::task::spawn_blocking(move || payloads.payload(log_index)).await {
            Ok(Ok(payload)) => slice(&payload?, offset, len),
            Ok(Err(error)) => {
                tracing::warn!(log_index, %error, "cannot read a payload here");
                None
            }
            Err(_) => None,
        }
    }

    /// The lock that whoever fetches this chunk holds.
    pub(super) fn fetch_lock(&self, id: ChunkId) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = fetching.get(&id).and_then(Weak::upgrade) {
            return lock;
        }
        fetching.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        fetching.insert(id, Arc::downgrade(&lock));
        lock
    }
}

/// Counts one read or write of a user while it lives.
pub(super) struct Foreground<'a>(&'a AtomicUsize);

impl Drop for Foreground<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Permits for `len` bytes.
pub(super) fn permits_for(len: usize) -> u32 {
    len.div_ceil(PERMIT_BYTES).max(1) as u32
}

/// Bytes `offset..offset + len` (to the end if `len` is 0), if there are so many.
pub(super) fn slice(bytes: &Bytes, offset: u32, len: u32) -> Option<Bytes> {
    let start = offset as usize;
    let end = if len == 0 {
        bytes.len()
    } else {
        start.checked_add(len as usize)?
    };
    (start <= end && end <= bytes.len()).then(|| bytes.slice(start..end))
}
