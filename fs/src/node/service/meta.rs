//! What other nodes ask of this one as the leader, and what the leader asks of it.

use std::sync::Arc;
use std::time::Duration;

use bramble_proto::meta_server::Meta;
use bramble_proto::{
    KeepAliveRequest, KeepAliveResponse, LeaseRequest, LeaseResponse, OpenInodesRequest, OpenInodesResponse,
    ProposeRequest, ProposeResponse, ReadIndexRequest, ReadIndexResponse,
};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use raftstore::meta::{Ino, MetaStore, Op, Proposal};
use tonic::{Request, Response, Status, Streaming};

use super::auth::Caller;
use crate::node::leader::duties::Duties;
use crate::node::leader::lease_server;
use crate::node::transport::lease_wire::FromHolder;
use crate::node::transport::wire::{WireError, decode, encode};

/// The leader waits no longer for a node to apply what it asks about.
const OPEN_INODES_TIMEOUT: Duration = Duration::from_secs(2);
/// Inodes in one question.
pub const OPEN_INODES_MAX: usize = 4096;

/// Which inodes are open on this node.
pub trait OpenFiles: Send + Sync + 'static {
    /// Those of `inodes` that are.
    fn open_of(&self, inodes: &[Ino]) -> Vec<Ino>;
}

/// The Meta service.
pub struct MetaService {
    duties: Arc<Duties>,
    meta: Arc<MetaStore>,
    open_files: Arc<dyn OpenFiles>,
}

impl MetaService {
    /// Answers for this node.
    #[must_use]
    pub fn new(duties: Arc<Duties>, meta: Arc<MetaStore>, open_files: Arc<dyn OpenFiles>) -> Self {
        Self {
            duties,
            meta,
            open_files,
        }
    }
}

/// Ops that only the leader itself may propose: a node asks for them through the calls that check them.
fn is_reserved(op: &Op) -> bool {
    matches!(
        op,
        Op::InitCluster(_) | Op::AddNode { .. } | Op::RemoveNode { .. } | Op::SetPlacement { .. }
    )
}

#[tonic::async_trait]
impl Meta for MetaService {
    type LeasesStream = BoxStream<'static, Result<LeaseResponse, Status>>;

    async fn leases(
        &self,
        request: Request<Streaming<LeaseRequest>>,
    ) -> Result<Response<Self::LeasesStream>, Status> {
        let caller = request.extensions().get::<Caller>().map(|caller| caller.0);
        let caller = caller.ok_or(WireError::NotMember)?;
        let said = request.into_inner().map(|request| FromHolder::try_from(request?));
        let told = lease_server::serve(&self.duties, caller, said.boxed())?;
        let told = told.map(|order| order.map(LeaseResponse::from).map_err(Status::from));
        Ok(Response::new(told.boxed()))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        let request = request.into_inner();
        let head: Proposal = decode(&request.proposal)?;
        if is_reserved(&head.op) {
            return Err(WireError::Malformed("this op is for the leader to propose".into()).into());
        }
        let (log_index, answer) = self
            .duties
            .propose(Proposal {
                // A copy: the received bytes are part of a larger buffer, which the journal's cache would keep.
                payload: Bytes::copy_from_slice(&request.payload),
                ..head
            })
            .await?;
        // The proposal is committed: a failure from here on leaves the caller to ask again, and get the same answer.
        let reply = encode(&answer).map_err(|error| WireError::Unknown(error.to_string()))?;
        Ok(Response::new(ProposeResponse { log_index, reply }))
    }

    async fn read_index(
        &self,
        _request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        let log_index = self.duties.read_index().await?;
        Ok(Response::new(ReadIndexResponse { log_index }))
    }

    async fn keep_alive(
        &self,
        request: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveResponse>, Status> {
        let caller = request.extensions().get::<Caller>().map(|caller| caller.0);
        let request = request.into_inner();
        if caller != Some(request.node_id) {
            return Err(WireError::NotMember.into());
        }
        Ok(Response::new(self.duties.keep_alive(&request).await?))
    }

    async fn open_inodes(
        &self,
        request: Request<OpenInodesRequest>,
    ) -> Result<Response<OpenInodesResponse>, Status> {
        let request = request.into_inner();
        if request.inodes.len() > OPEN_INODES_MAX {
            return Err(WireError::Malformed("too many inodes in one question".into()).into());
        }
        let mut applied = self.meta.applied();
        let reached = applied.wait_for(|applied| *applied >= request.log_index);
        match tokio::time::timeout(OPEN_INODES_TIMEOUT, reached).await {
            Ok(Ok(_)) => {}
            _ => return Err(WireError::NotNow("this node has not applied that much yet".into()).into()),
        }
        Ok(Response::new(OpenInodesResponse {
            open: self.open_files.open_of(&request.inodes),
        }))
    }
}
