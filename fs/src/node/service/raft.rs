//! Raft's calls from other nodes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bramble_proto::raft_server::Raft as RaftRpc;
use bramble_proto::{Blob, FetchSnapshotRequest, RaftRequest, SnapshotFrame};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use openraft::raft::AppendEntriesRequest;
use raftstore::TypeConfig;
use raftstore::meta::{MetaStore, NodeId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};

use crate::node::raft::Raft;
use crate::node::transport::snapshot_frames;
use crate::node::transport::wire::{WireError, decode, encode};

/// Append requests that were received but are not yet on the medium, bytes: a slow card makes the leader wait, it
/// does not fill this node's memory.
const APPEND_BYTES_MAX: usize = 16 << 20;

/// The Raft service.
pub struct RaftService {
    id: NodeId,
    raft: Raft,
    meta: Arc<MetaStore>,
    /// Snapshots taken in since the start.
    installed: Arc<AtomicU64>,
    append_bytes: Arc<Semaphore>,
}

impl RaftService {
    /// Answers for the node `id`.
    #[must_use]
    pub fn new(id: NodeId, raft: Raft, meta: Arc<MetaStore>, installed: Arc<AtomicU64>) -> Self {
        Self {
            id,
            raft,
            meta,
            installed,
            append_bytes: Arc::new(Semaphore::new(APPEND_BYTES_MAX)),
        }
    }

    fn open<T: DeserializeOwned>(&self, request: Request<RaftRequest>) -> Result<T, WireError> {
        let request = request.into_inner();
        check_target(self.id, request.target)?;
        decode(&request.data)
    }
}

/// Refuses a request that was meant for another node: an address may have changed hands.
fn check_target(here: NodeId, wanted: NodeId) -> Result<(), WireError> {
    if wanted == here {
        Ok(())
    } else {
        Err(WireError::WrongTarget { wanted, here })
    }
}

fn seal<T: Serialize, E: std::fmt::Display>(result: Result<T, E>) -> Result<Response<Blob>, Status> {
    let value = result.map_err(|error| WireError::Stopped(error.to_string()))?;
    Ok(Response::new(Blob {
        data: encode(&value)?,
    }))
}

#[tonic::async_trait]
impl RaftRpc for RaftService {
    type AppendStreamStream = BoxStream<'static, Result<Blob, Status>>;
    type FetchSnapshotStream = BoxStream<'static, Result<SnapshotFrame, Status>>;

    async fn append(&self, request: Request<RaftRequest>) -> Result<Response<Blob>, Status> {
        seal(self.raft.append_entries(self.open(request)?).await)
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<RaftRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let held = Held::default();
        let intake = Intake {
            id: self.id,
            requests: request.into_inner(),
            budget: Arc::clone(&self.append_bytes),
            held: held.clone(),
        };
        let requests = stream::unfold(intake, |mut intake| async move {
            let request = intake.next().await?;
            Some((request, intake))
        });
        let answers = self.raft.stream_append(requests).map(move |result| {
            // Answers come in the order of the requests.
            held.release();
            let result = result.map_err(|error| WireError::Stopped(error.to_string()))?;
            Ok(Blob {
                data: encode(&result)?,
            })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<Blob>, Status> {
        seal(self.raft.vote(self.open(request)?).await)
    }

    async fn pre_vote(&self, request: Request<RaftRequest>) -> Result<Response<Blob>, Status> {
        seal(self.raft.pre_vote(self.open(request)?).await)
    }

    async fn transfer_leader(&self, request: Request<RaftRequest>) -> Result<Response<Blob>, Status> {
        seal(self.raft.handle_transfer_leader(self.open(request)?).await)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotFrame>>,
    ) -> Result<Response<Blob>, Status> {
        let response =
            snapshot_frames::receive(self.id, &self.raft, &self.meta, request.into_inner()).await?;
        self.installed.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(Blob {
            data: encode(&response)?,
        }))
    }

    async fn fetch_snapshot(
        &self,
        _request: Request<FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        Ok(Response::new(snapshot_frames::serve(&self.meta).await?))
    }
}

/// Room taken by the requests of one stream, in their order.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<VecDeque<OwnedSemaphorePermit>>>);

impl Held {
    fn push(&self, permit: OwnedSemaphorePermit) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(permit);
    }

    fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    }
}

/// Takes append requests off the wire as fast as there is room for them.
struct Intake {
    id: NodeId,
    requests: Streaming<RaftRequest>,
    budget: Arc<Semaphore>,
    held: Held,
}

impl Intake {
    async fn next(&mut self) -> Option<AppendEntriesRequest<TypeConfig>> {
        let request = match self.requests.message().await {
            Ok(request) => request?,
            Err(error) => {
                tracing::debug!(%error, "an append stream broke");
                return None;
            }
        };
        let bytes = u32::try_from(request.data.len().clamp(1, APPEND_BYTES_MAX)).ok()?;
        let decoded = check_target(self.id, request.target).and_then(|()| decode(&request.data));
        let decoded = decoded
            .inspect_err(|error| tracing::warn!(%error, "an append request was refused"))
            .ok()?;
        let permit = Arc::clone(&self.budget).acquire_many_owned(bytes).await.ok()?;
        self.held.push(permit);
        Some(decoded)
    }
}
