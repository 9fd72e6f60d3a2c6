//! What this node does for others.

use std::sync::Arc;

use bytes::Bytes;
use raftstore::meta::{CHUNK_BYTES_MAX, ChunkId, NodeId};
use tokio::task::JoinSet;

use super::plane::DataPlane;
use super::store::{ReadError, StoreError};
use super::transport::{ChunkTransport, TransportError};

/// What one of the two halves of [`DataPlane::serve_put`] came to.
type Half = Result<Vec<NodeId>, TransportError>;

impl DataPlane {
    /// Stores a chunk here and, at the same time, passes it on along `chain`; a node that fails is skipped. Answers
    /// the nodes that have it on their medium, once they are `enough` (0: all), or all have been tried.
    ///
    /// # Errors
    /// Why it could not be stored here, if no node has it.
    pub async fn serve_put(
        &self,
        id: ChunkId,
        data: Bytes,
        chain: Vec<NodeId>,
        enough: u32,
    ) -> Result<Vec<NodeId>, TransportError> {
        if data.is_empty() || data.len() > CHUNK_BYTES_MAX as usize {
            let error = StoreError::BadLength(data.len());
            return Err(TransportError::Failed(self.node, error.to_string()));
        }
        let len = data.len();
        let enough = if enough == 0 {
            chain.len() + 1
        } else {
            enough as usize
        };
        let mut halves: JoinSet<Half> = JoinSet::new();
        if !chain.is_empty() {
            let transport = Arc::clone(&self.transport);
            let rest = enough.saturating_sub(1).max(1) as u32;
            halves.spawn(pass_on(transport, id, data.clone(), chain, rest));
        }
        let (node, store) = (self.node, Arc::clone(&self.store));
        halves.spawn(async move {
            match store.put(id, data).await {
                Ok(()) => Ok(vec![node]),
                Err(StoreError::NoSpace) => Err(TransportError::NoSpace(node)),
                Err(error) => Err(TransportError::Failed(node, error.to_string())),
            }
        });
        let mut durable = Vec::new();
        let mut failure = TransportError::Failed(node, "shutting down".into());
        while let Some(half) = halves.join_next().await {
            match half {
                Ok(Ok(nodes)) => durable.extend(nodes),
                Ok(Err(error)) => failure = error,
                Err(_) => {}
            }
            if durable.len() >= enough {
                self.finish_behind(halves, len);
                return Ok(durable);
            }
        }
        if durable.is_empty() {
            Err(failure)
        } else {
            Ok(durable)
        }
    }

    /// Verified bytes of a chunk or payload from this node's own media; `len` 0 means to the end.
    ///
    /// # Errors
    /// [`TransportError::NotThere`] if there is no good copy here; a damaged one is noted for repair.
    pub async fn serve_get(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, TransportError> {
        if let Some(log_index) = id.payload_index() {
            // An entry that was not applied here may be another than the one that was committed. Whether a file here
            // still refers to it does not matter: where the asker is, it may.
            if log_index > self.view.applied() {
                return Err(TransportError::NotThere(self.node, id));
            }
            if let Some(bytes) = self.read_journal(log_index, offset, len).await {
                return Ok(bytes);
            }
        }
        match self.read_local(id, offset, len).await {
            Ok(bytes) => Ok(bytes),
            Err(ReadError::Range { .. }) => Err(TransportError::Failed(
                self.node,
                format!("no such range in chunk {id}"),
            )),
            Err(ReadError::Missing(_)) => Err(TransportError::NotThere(self.node, id)),
            Err(ReadError::Bad(_)) => {
                self.suspect(id);
                Err(TransportError::NotThere(self.node, id))
            }
        }
    }

    /// Which of `ids` this node has, as far as it knows without reading them.
    ///
    /// # Errors
    /// [`TransportError::Failed`] if the metadata cannot be read.
    pub async fn serve_has(&self, ids: Vec<ChunkId>) -> Result<Vec<ChunkId>, TransportError> {
        let (node, store) = (self.node, Arc::clone(&self.store));
        let (view, payloads) = (Arc::clone(&self.view), Arc::clone(&self.payloads));
        let present = move || {
            let mut present = Vec::new();
            for id in ids {
                let here = store.is_good(id)
                    || match id.payload_index() {
                        Some(index) => view.is_live(id)? && payloads.has_payload(index).unwrap_or(false),
                        None => false,
                    };
                if here {
                    present.push(id);
                }
            }
            Ok::<_, raftstore::kv::KvError>(present)
        };
        match tokio::task::spawn_blocking(present).await {
            Ok(Ok(present)) => Ok(present),
            Ok(Err(error)) => Err(TransportError::Failed(node, error.to_string())),
            Err(_) => Err(TransportError::Failed(node, "shutting down".into())),
        }
    }
}

/// Hands a chunk to the first node of the chain that takes it, and through it to the rest.
async fn pass_on(
    transport: Arc<dyn ChunkTransport>,
    id: ChunkId,
    data: Bytes,
    chain: Vec<NodeId>,
    enough: u32,
) -> Half {
    let mut chain = chain.into_iter();
    let mut failure = None;
    while let Some(next) = chain.next() {
        match transport
            .put(next, id, data.clone(), chain.as_slice().to_vec(), enough)
            .await
        {
            Ok(durable) => return Ok(durable),
            Err(error) => {
                tracing::debug!(chunk = %id, node = next, %error, "a node of the chain is skipped");
                failure = Some(error);
            }
        }
    }
    failure.map_or(Ok(Vec::new()), Err)
}
