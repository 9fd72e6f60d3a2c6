//! Reading a chunk: from this node if its copy is good, else from the nearest node that has one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use raftstore::kv::KvError;
use raftstore::meta::{ChunkId, NodeId};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::plane::{DataPlane, slice};
use super::store::ReadError;
use super::transport::TransportError;
use super::write::longer;
use crate::backend::BackendError;

impl DataPlane {
    /// Verified bytes of a chunk or log payload; `len` 0 means to the end. A bad or missing copy that should be on
    /// this node is fetched whole and written anew on the way.
    ///
    /// # Errors
    /// [`BackendError::ChunkGone`] if no file refers to it any more, so that the caller should read the extents
    /// again. [`BackendError::ChunkLost`] if every node was asked and none has a good copy; while some node cannot
    /// be reached, it is asked again for `read_patience` before that.
    pub async fn read(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, BackendError> {
        let _foreground = self.foreground();
        if let Some(log_index) = id.payload_index()
            && let Some(bytes) = self.read_journal(log_index, offset, len).await
        {
            return Ok(bytes);
        }
        match self.read_local(id, offset, len).await {
            Ok(bytes) => return Ok(bytes),
            Err(ReadError::Range { .. }) => return Err(self.gone_or_lost(id)?),
            Err(ReadError::Missing(_) | ReadError::Bad(_)) => {}
        }
        // A live chunk only: what is garbage by now must not come back.
        if self.is_home(id)? && self.view.is_live(id)? {
            let whole = self.restore(id, self.options.read_patience).await?;
            return slice(&whole, offset, len).ok_or(BackendError::ChunkLost(id));
        }
        let bytes = self.fetch(id, offset, len, self.options.read_patience).await?;
        self.counters.remote_reads.fetch_add(1, Ordering::Relaxed);
        Ok(bytes)
    }

    /// All bytes of a chunk, fetched from a peer and written here, unless a good copy has turned up. If there is no
    /// room here, the bytes are answered all the same.
    ///
    /// # Errors
    /// As for [`DataPlane::read`].
    pub(super) async fn restore(&self, id: ChunkId, patience: Duration) -> Result<Bytes, BackendError> {
        let lock = self.fetch_lock(id);
        let _only_one = lock.lock().await;
        if self.store.is_good(id)
            && let Ok(bytes) = self.read_local(id, 0, 0).await
        {
            return Ok(bytes);
        }
        let bytes = self.fetch(id, 0, 0, patience).await?;
        match self.store.put(id, bytes.clone()).await {
            Ok(()) => {
                tracing::info!(chunk = %id, "repaired a chunk from another node");
                self.counters.repaired_chunks.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(chunk = %id, %error, "cannot write a repaired chunk"),
        }
        Ok(bytes)
    }

    /// Bytes of a chunk from another node.
    async fn fetch(
        &self,
        id: ChunkId,
        offset: u32,
        len: u32,
        patience: Duration,
    ) -> Result<Bytes, BackendError> {
        let started = Instant::now();
        let mut backoff = self.options.backoff_min;
        loop {
            let nodes = self.sources(id)?;
            let lacking = match self.ask_around(&nodes, id, offset, len).await {
                Ok(bytes) => return Ok(bytes),
                Err(lacking) => lacking,
            };
            let verdict = self.gone_or_lost(id)?;
            let asked_all = nodes.iter().all(|node| lacking.contains(node));
            if matches!(verdict, BackendError::ChunkGone(_)) || asked_all || started.elapsed() >= patience {
                return Err(verdict);
            }
            tokio::time::sleep(backoff).await;
            backoff = longer(backoff, self.options.backoff_max);
        }
    }

    /// All other nodes: those that should have the chunk, then the rest, each nearest first, those that are known
    /// to be unreachable last.
    fn sources(&self, id: ChunkId) -> Result<Vec<NodeId>, KvError> {
        let homes = if id.payload_index().is_some() {
            Vec::new()
        } else {
            self.homes(id)?
        };
        let all = self.view.nodes()?;
        let mut ordered = Vec::with_capacity(all.len());
        let groups = [
            self.transport.nearest(&homes),
            self.transport.nearest(&all),
            homes,
            all,
        ];
        for node in groups.into_iter().flatten() {
            if node != self.node && !ordered.contains(&node) {
                ordered.push(node);
            }
        }
        Ok(ordered)
    }

    /// Asks one node after the other, without waiting long for a slow one. Fails with those that say that they do
    /// not have it.
    async fn ask_around(
        &self,
        nodes: &[NodeId],
        id: ChunkId,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, BTreeSet<NodeId>> {
        let mut asked: JoinSet<(NodeId, Result<Bytes, TransportError>)> = JoinSet::new();
        let mut lacking = BTreeSet::new();
        let mut waiting = nodes.iter().copied();
        loop {
            let next = waiting.next();
            let is_last = next.is_none();
            if let Some(node) = next {
                let transport = Arc::clone(&self.transport);
                let timeout = self.options.put_timeout;
                asked.spawn(async move {
                    let get = transport.get(node, id, offset, len);
                    let answer = tokio::time::timeout(timeout, get).await;
                    (
                        node,
                        answer.unwrap_or_else(|_| Err(TransportError::Unreachable(node, "slow".into()))),
                    )
                });
            } else if asked.is_empty() {
                return Err(lacking);
            }
            let hedge = tokio::time::sleep(self.options.read_hedge_after);
            tokio::pin!(hedge);
            loop {
                let answer = tokio::select! {
                    answer = asked.join_next() => answer,
                    () = &mut hedge, if !is_last => break,
                };
                match answer {
                    Some(Ok((_, Ok(bytes)))) if len == 0 || bytes.len() == len as usize => return Ok(bytes),
                    Some(Ok((node, Err(TransportError::NotThere(..))))) => {
                        lacking.insert(node);
                    }
                    Some(Ok((node, Err(error)))) => {
                        tracing::debug!(chunk = %id, node, %error, "cannot fetch a chunk");
                    }
                    Some(Ok((node, Ok(_)))) => tracing::warn!(chunk = %id, node, "wrong length"),
                    Some(Err(_)) => {}
                    None => break,
                }
                if !is_last {
                    break;
                }
            }
        }
    }

    fn gone_or_lost(&self, id: ChunkId) -> Result<BackendError, KvError> {
        Ok(if self.view.is_live(id)? {
            BackendError::ChunkLost(id)
        } else {
            BackendError::ChunkGone(id)
        })
    }
}
