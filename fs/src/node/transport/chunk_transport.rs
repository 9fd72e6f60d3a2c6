//! Chunk traffic to other nodes over gRPC.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bramble_proto::chunk_client::ChunkClient;
use bramble_proto::{ChunkName, GetChunkRequest, HasChunksRequest, PutChunkRequest};
use bytes::Bytes;
use raftstore::clock::Clock;
use raftstore::meta::{ChunkId, NodeId};
use tonic::transport::Channel;

use super::directory::Directory;
use super::peers::{Lane, MESSAGE_BYTES_MAX, Peers};
use super::wire::WireError;
use crate::chunk::{ChunkTransport, TransportError};

/// A node that takes longer to store or send a chunk is given up for this time.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
/// A node that could not be reached is asked last for this long.
const SHUN: Duration = Duration::from_secs(2);

/// Chunk calls over the bulk connections.
pub struct GrpcChunkTransport {
    id: NodeId,
    peers: Arc<Peers>,
    directory: Arc<Directory>,
    clock: Arc<dyn Clock>,
    /// When a node was last found unreachable.
    unreachable: Mutex<HashMap<NodeId, Duration>>,
}

impl GrpcChunkTransport {
    /// For the node `id`.
    #[must_use]
    pub fn new(id: NodeId, peers: Arc<Peers>, directory: Arc<Directory>, clock: Arc<dyn Clock>) -> Self {
        Self {
            id,
            peers,
            directory,
            clock,
            unreachable: Mutex::default(),
        }
    }

    fn client(&self, node: NodeId) -> Result<ChunkClient<Channel>, TransportError> {
        let listen = self.directory.listen(node);
        let listen = listen.ok_or_else(|| TransportError::Unreachable(node, "it is no member".into()))?;
        let channel = self
            .peers
            .channel(&listen, Lane::Bulk)
            .map_err(|error| transport_error(node, None, error))?;
        Ok(ChunkClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    async fn call<T>(
        &self,
        node: NodeId,
        chunk: Option<ChunkId>,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, TransportError> {
        let result = match tokio::time::timeout(CHUNK_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(transport_error(node, chunk, status.into())),
            Err(_) => Err(TransportError::Unreachable(node, "no answer in time".into())),
        };
        let mut unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(result, Err(TransportError::Unreachable(..))) {
            unreachable.insert(node, self.clock.monotonic());
        } else {
            unreachable.remove(&node);
        }
        result
    }
}

fn transport_error(node: NodeId, chunk: Option<ChunkId>, error: WireError) -> TransportError {
    match (error, chunk) {
        (WireError::NotThere, Some(chunk)) => TransportError::NotThere(node, chunk),
        (WireError::NoSpace, _) => TransportError::NoSpace(node),
        (WireError::Unreachable(why) | WireError::Unknown(why), _) => TransportError::Unreachable(node, why),
        (error, _) => TransportError::Failed(node, error.to_string()),
    }
}

/// A chunk's name on the wire.
#[must_use]
pub fn name_of(id: ChunkId) -> ChunkName {
    ChunkName {
        session: id.session,
        seq: id.seq,
    }
}

/// A chunk's name from the wire.
#[must_use]
pub fn id_of(name: &ChunkName) -> ChunkId {
    ChunkId {
        session: name.session,
        seq: name.seq,
    }
}

#[async_trait]
impl ChunkTransport for GrpcChunkTransport {
    async fn put(
        &self,
        to: NodeId,
        id: ChunkId,
        data: Bytes,
        chain: Vec<NodeId>,
        enough: u32,
    ) -> Result<Vec<NodeId>, TransportError> {
        let mut client = self.client(to)?;
        let crc = crc32fast::hash(&data);
        let request = PutChunkRequest {
            name: Some(name_of(id)),
            data,
            crc,
            chain,
            enough,
        };
        Ok(self.call(to, Some(id), client.put(request)).await?.durable)
    }

    async fn get(&self, from: NodeId, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, TransportError> {
        let mut client = self.client(from)?;
        let request = GetChunkRequest {
            name: Some(name_of(id)),
            offset,
            len,
        };
        let response = self.call(from, Some(id), client.get(request)).await?;
        if crc32fast::hash(&response.data) != response.crc {
            return Err(TransportError::Failed(
                from,
                "the bytes were damaged on the way".into(),
            ));
        }
        Ok(response.data)
    }

    async fn has(&self, on: NodeId, ids: Vec<ChunkId>) -> Result<Vec<ChunkId>, TransportError> {
        let mut client = self.client(on)?;
        let request = HasChunksRequest {
            names: ids.into_iter().map(name_of).collect(),
        };
        let response = self.call(on, None, client.has(request)).await?;
        Ok(response.present.iter().map(id_of).collect())
    }

    fn nearest(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let now = self.clock.monotonic();
        let unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        let reachable = |node: &NodeId| {
            unreachable
                .get(node)
                .is_none_or(|at| now.saturating_sub(*at) >= SHUN)
        };
        let mut near: Vec<NodeId> = nodes.iter().copied().filter(reachable).collect();
        // All others are one hop away; this node itself is none.
        near.sort_by_key(|node| *node != self.id);
        near
    }
}
