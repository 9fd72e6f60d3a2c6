//! Writing a chunk: durable on a majority of its nodes before anything refers to it.
//!
//! The data goes to this node's own medium, if the chunk belongs here, and at the same time along a chain of the
//! other nodes, so that each link carries it once. Whoever does not answer in time is served directly.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use raftstore::meta::{CHUNK_BYTES_MAX, ChunkId, NodeId, SessionId};
use tokio::task::JoinSet;

use super::namer::ChunkNamer;
use super::plane::{DataPlane, permits_for};
use super::store::StoreError;
use super::transport::TransportError;
use crate::backend::{BackendError, ChunkGuard};

/// What came of one copy: the node asked, and the nodes that have the chunk now.
type Copied = (NodeId, Result<Vec<NodeId>, CopyError>);

/// Why a copy failed.
#[derive(Debug)]
enum CopyError {
    Full,
    /// This node's own store is out of order.
    Stopped(String),
    Other(String),
}

impl DataPlane {
    /// Stores `data` (1 to [`CHUNK_BYTES_MAX`] bytes) as a new chunk named by `namer`. When this returns `Ok`, a
    /// majority of the chunk's nodes has it on its medium. The guard is to be kept until the op that refers to the
    /// chunk was answered. Waits as long as there is no majority to be had; dropping the future gives up.
    ///
    /// # Errors
    /// [`BackendError::NoSpace`] if so many nodes are full that there can be no majority;
    /// [`BackendError::Stopped`] if this node's own store failed.
    pub async fn write(&self, namer: &Arc<ChunkNamer>, data: Bytes) -> Result<ChunkGuard, BackendError> {
        if data.is_empty() || data.len() > CHUNK_BYTES_MAX as usize {
            return Err(BackendError::Stopped(
                StoreError::BadLength(data.len()).to_string(),
            ));
        }
        if namer.session() == SessionId::SYSTEM {
            // Names of session 0 are those of log payloads.
            return Err(BackendError::Stopped("this node has no session yet".to_owned()));
        }
        let _foreground = self.foreground();
        let permits = permits_for(data.len());
        let _room = self.inflight.acquire_many(permits).await.map_err(|_| closed())?;
        let guard = namer.name();
        self.replicate(guard.id, data).await?;
        Ok(guard)
    }

    async fn replicate(&self, id: ChunkId, data: Bytes) -> Result<(), BackendError> {
        let mut state = Replication::default();
        let mut backoff = self.options.backoff_min;
        for attempt in 0_u64.. {
            let nodes = self.homes(id)?;
            let majority = nodes.len() / 2 + 1;
            if attempt == 0 {
                self.start_chain(&mut state, &nodes, majority, id, &data);
            } else {
                self.start_direct(&mut state, &nodes, id, &data);
            }
            let hedge = tokio::time::sleep(self.options.put_hedge_after);
            tokio::pin!(hedge);
            loop {
                let copied = tokio::select! {
                    copied = state.copies.join_next() => copied,
                    () = &mut hedge => break,
                };
                let Some(copied) = copied else { break };
                state.note(id, copied.ok())?;
                if state.durable_among(&nodes) >= majority && !nodes.is_empty() {
                    self.finish_behind(state.copies, data.len());
                    return Ok(());
                }
                if nodes.len() - state.full_among(&nodes) < majority {
                    return Err(BackendError::NoSpace);
                }
            }
            if state.copies.is_empty() {
                tokio::time::sleep(backoff).await;
                backoff = longer(backoff, self.options.backoff_max);
            }
        }
        Err(closed())
    }

    /// Sends the chunk to this node's medium and along the chain of the others.
    fn start_chain(
        &self,
        state: &mut Replication,
        nodes: &[NodeId],
        majority: usize,
        id: ChunkId,
        data: &Bytes,
    ) {
        let is_home = nodes.contains(&self.node);
        if is_home {
            self.start_local(state, id, data);
        }
        let others: Vec<_> = nodes.iter().copied().filter(|node| *node != self.node).collect();
        let mut chain = self.transport.nearest(&others).into_iter();
        if let Some(first) = chain.next() {
            let enough = (majority - usize::from(is_home && majority > 1)) as u32;
            self.start_remote(state, first, chain.collect(), enough, id, data);
        }
    }

    /// Sends the chunk to every node that does not have it and is not being asked.
    fn start_direct(&self, state: &mut Replication, nodes: &[NodeId], id: ChunkId, data: &Bytes) {
        let missing: Vec<_> = nodes.iter().copied().filter(|node| state.lacks(*node)).collect();
        for node in missing {
            state.full.remove(&node);
            if node == self.node {
                self.start_local(state, id, data);
            } else {
                self.start_remote(state, node, Vec::new(), 1, id, data);
            }
        }
    }

    fn start_local(&self, state: &mut Replication, id: ChunkId, data: &Bytes) {
        let (node, store, data) = (self.node, Arc::clone(&self.store), data.clone());
        state.asked.insert(node);
        state.copies.spawn(async move {
            let result = match store.put(id, data).await {
                Ok(()) => Ok(vec![node]),
                Err(StoreError::NoSpace) => Err(CopyError::Full),
                Err(error) => Err(CopyError::Stopped(error.to_string())),
            };
            (node, result)
        });
    }

    fn start_remote(
        &self,
        state: &mut Replication,
        to: NodeId,
        chain: Vec<NodeId>,
        enough: u32,
        id: ChunkId,
        data: &Bytes,
    ) {
        let (transport, data) = (Arc::clone(&self.transport), data.clone());
        let timeout = self.options.put_timeout;
        state.asked.insert(to);
        state.copies.spawn(async move {
            let put = transport.put(to, id, data, chain, enough);
            let result = match tokio::time::timeout(timeout, put).await {
                Ok(Ok(nodes)) => Ok(nodes),
                Ok(Err(TransportError::NoSpace(_))) => Err(CopyError::Full),
                Ok(Err(error)) => Err(CopyError::Other(error.to_string())),
                Err(_) => Err(CopyError::Other(format!("no answer within {timeout:?}"))),
            };
            (to, result)
        });
    }

    /// Lets the copies that are still under way finish, if there is room to remember them.
    pub(super) fn finish_behind<T: Send + 'static>(&self, mut copies: JoinSet<T>, len: usize) {
        if copies.is_empty() {
            return;
        }
        match Arc::clone(&self.laggards).try_acquire_many_owned(permits_for(len)) {
            Ok(room) => {
                tokio::spawn(async move {
                    while copies.join_next().await.is_some() {}
                    drop(room);
                });
            }
            Err(_) => {
                self.counters
                    .skipped_copies
                    .fetch_add(copies.len() as u64, Ordering::Relaxed);
            }
        }
    }
}

/// How far a chunk has got.
#[derive(Default)]
struct Replication {
    durable: BTreeSet<NodeId>,
    /// Whose medium is full.
    full: BTreeSet<NodeId>,
    /// Who has not answered yet.
    asked: BTreeSet<NodeId>,
    /// Dropping it stops them.
    copies: JoinSet<Copied>,
}

impl Replication {
    fn note(&mut self, id: ChunkId, copied: Option<Copied>) -> Result<(), BackendError> {
        let Some((node, result)) = copied else {
            return Ok(());
        };
        self.asked.remove(&node);
        match result {
            Ok(nodes) => self.durable.extend(nodes),
            Err(CopyError::Full) => {
                self.full.insert(node);
            }
            Err(CopyError::Stopped(reason)) => return Err(BackendError::Stopped(reason)),
            Err(CopyError::Other(reason)) => tracing::debug!(chunk = %id, node, reason, "a copy failed"),
        }
        Ok(())
    }

    fn lacks(&self, node: NodeId) -> bool {
        !self.durable.contains(&node) && !self.asked.contains(&node)
    }

    fn durable_among(&self, nodes: &[NodeId]) -> usize {
        nodes.iter().filter(|node| self.durable.contains(node)).count()
    }

    fn full_among(&self, nodes: &[NodeId]) -> usize {
        nodes
            .iter()
            .filter(|node| self.full.contains(node) && !self.durable.contains(node))
            .count()
    }
}

fn closed() -> BackendError {
    BackendError::Stopped("the node is shutting down".into())
}

/// Doubles a wait.
pub(super) fn longer(wait: Duration, max: Duration) -> Duration {
    (wait * 2).min(max)
}
