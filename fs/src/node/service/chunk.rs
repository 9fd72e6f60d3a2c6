//! Chunks for other nodes.

use std::sync::Arc;

use bramble_proto::chunk_server::Chunk;
use bramble_proto::{
    ChunkName, GetChunkRequest, GetChunkResponse, HasChunksRequest, HasChunksResponse, PutChunkRequest,
    PutChunkResponse,
};
use raftstore::meta::{CHUNK_BYTES_MAX, ChunkId};
use tonic::{Request, Response, Status};

use crate::chunk::{DataPlane, TransportError};
use crate::node::transport::chunk_transport::{id_of, name_of};
use crate::node::transport::wire::WireError;

/// Names in one question.
const NAMES_MAX: usize = 65_536;

/// The Chunk service.
pub struct ChunkService {
    chunks: Arc<DataPlane>,
}

impl ChunkService {
    /// Serves this node's chunks.
    #[must_use]
    pub fn new(chunks: Arc<DataPlane>) -> Self {
        Self { chunks }
    }
}

fn name(name: Option<&ChunkName>) -> Result<ChunkId, WireError> {
    name.map(id_of)
        .ok_or_else(|| WireError::Malformed("the chunk has no name".into()))
}

fn wire_error(error: TransportError) -> WireError {
    match error {
        TransportError::NotThere(..) => WireError::NotThere,
        TransportError::NoSpace(_) => WireError::NoSpace,
        error => WireError::NotNow(error.to_string()),
    }
}

#[tonic::async_trait]
impl Chunk for ChunkService {
    async fn put(&self, request: Request<PutChunkRequest>) -> Result<Response<PutChunkResponse>, Status> {
        let request = request.into_inner();
        let id = name(request.name.as_ref())?;
        if request.data.len() > CHUNK_BYTES_MAX as usize {
            return Err(WireError::Malformed("the chunk is too large".into()).into());
        }
        if crc32fast::hash(&request.data) != request.crc {
            return Err(WireError::NotNow("the bytes were damaged on the way".into()).into());
        }
        let durable = self
            .chunks
            .serve_put(id, request.data, request.chain, request.enough)
            .await;
        Ok(Response::new(PutChunkResponse {
            durable: durable.map_err(wire_error)?,
        }))
    }

    async fn get(&self, request: Request<GetChunkRequest>) -> Result<Response<GetChunkResponse>, Status> {
        let request = request.into_inner();
        let id = name(request.name.as_ref())?;
        let data = self
            .chunks
            .serve_get(id, request.offset, request.len)
            .await
            .map_err(wire_error)?;
        let crc = crc32fast::hash(&data);
        Ok(Response::new(GetChunkResponse { data, crc }))
    }

    async fn has(&self, request: Request<HasChunksRequest>) -> Result<Response<HasChunksResponse>, Status> {
        let names = request.into_inner().names;
        if names.len() > NAMES_MAX {
            return Err(WireError::Malformed("too many names in one question".into()).into());
        }
        let present = self
            .chunks
            .serve_has(names.iter().map(id_of).collect())
            .await
            .map_err(wire_error)?;
        Ok(Response::new(HasChunksResponse {
            present: present.into_iter().map(name_of).collect(),
        }))
    }
}
