//! openraft's network over gRPC.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bramble_proto::raft_client::RaftClient;
use bramble_proto::{Blob, RaftRequest};
use futures::{Stream, StreamExt, future, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RaftNetworkFactory, RaftNetworkV2};
use raftstore::TypeConfig;
use raftstore::meta::NodeId;
use raftstore::raft::{Member, Vote};
use raftstore::snapshot::SnapshotData;
use raftstore::state_machine::Snapshot;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;

use super::directory::Directory;
use super::peers::{Lane, MESSAGE_BYTES_MAX, Peers};
use super::snapshot_frames;
use super::wire::{WireError, decode, encode};

/// A vote waits for the voter's medium.
const VOTE_TIMEOUT: Duration = Duration::from_secs(3);
/// An append stream opens within this time, or the peer is taken for unreachable.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Between attempts to reach a peer that does not answer.
const RETRY_INTERVAL: Duration = Duration::from_millis(300);

/// Makes a client for each peer.
#[derive(Clone)]
pub struct Network {
    peers: Arc<Peers>,
    directory: Arc<Directory>,
}

impl Network {
    /// Over these connections.
    #[must_use]
    pub fn new(peers: Arc<Peers>, directory: Arc<Directory>) -> Self {
        Self { peers, directory }
    }

    fn client(&self, target: NodeId, node: &Member, lane: Lane) -> PeerClient {
        PeerClient {
            network: self.clone(),
            target,
            node: node.clone(),
            lane,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> PeerClient {
        self.client(target, node, Lane::Bulk)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> PeerClient {
        self.client(target, node, Lane::Urgent)
    }
}

/// Raft's calls to one peer.
pub struct PeerClient {
    network: Network,
    target: NodeId,
    node: Member,
    lane: Lane,
}

impl PeerClient {
    fn connect(&self, lane: Lane) -> Result<RaftClient<Channel>, WireError> {
        // The replicated state knows of a changed address before Raft's membership does.
        let listen = self
            .network
            .directory
            .listen(self.target)
            .unwrap_or_else(|| self.node.listen.clone());
        let channel = self.network.peers.channel(&listen, lane)?;
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn request<T: Serialize>(&self, message: &T) -> Result<RaftRequest, WireError> {
        Ok(RaftRequest {
            target: self.target,
            data: encode(message)?,
        })
    }

    /// One unary call.
    async fn call<T, R, F, Fut>(
        &self,
        message: &T,
        timeout: Duration,
        rpc: F,
    ) -> Result<R, RPCError<TypeConfig>>
    where
        T: Serialize,
        R: DeserializeOwned,
        F: FnOnce(RaftClient<Channel>, RaftRequest) -> Fut,
        Fut: Future<Output = Result<tonic::Response<Blob>, tonic::Status>>,
    {
        let client = self.connect(Lane::Urgent).map_err(rpc_error)?;
        let request = self.request(message).map_err(rpc_error)?;
        match tokio::time::timeout(timeout, rpc(client, request)).await {
            Ok(Ok(response)) => decode(&response.into_inner().data).map_err(rpc_error),
            Ok(Err(status)) => Err(rpc_error(status.into())),
            Err(_) => Err(rpc_error(WireError::Unknown("no answer in time".into()))),
        }
    }
}

fn encode_append(target: NodeId, request: &AppendEntriesRequest<TypeConfig>) -> Option<RaftRequest> {
    match encode(request) {
        Ok(data) => Some(RaftRequest { target, data }),
        Err(error) => {
            tracing::error!(%error, "an append request cannot be encoded");
            None
        }
    }
}

/// A peer that is not there is tried again after a pause, anything else at once.
fn rpc_error(error: WireError) -> RPCError<TypeConfig> {
    match error {
        WireError::Unknown(_) => RPCError::Network(NetworkError::new(&error)),
        error => RPCError::Unreachable(Unreachable::new(&error)),
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(&rpc, option.hard_ttl(), |mut client, request| async move {
            client.append(request).await
        })
        .await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        if self.lane == Lane::Urgent {
            // A heartbeat is one request: a stream would cost more than it.
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let mut client = self.connect(Lane::Bulk).map_err(rpc_error)?;
            let target = self.target;
            // openraft waits out its backoff in the input: so the first request comes before the connection.
            let mut input = input;
            let Some(first) = input.next().await else {
                return Ok(stream::empty().boxed() as BoxStream<'s, _>);
            };
            let requests = stream::once(future::ready(first)).chain(input);
            let requests = requests.filter_map(move |request| future::ready(encode_append(target, &request)));
            let opened = tokio::time::timeout(OPEN_TIMEOUT, client.append_stream(requests)).await;
            let answers = match opened {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => return Err(rpc_error(status.into())),
                Err(_) => return Err(rpc_error(WireError::Unreachable("no answer in time".into()))),
            };
            // Ends at the first answer that is not a success: what follows it in the pipe is void.
            let results = stream::unfold(Some(answers), |answers| async move {
                let mut answers = answers?;
                match answers.message().await {
                    Ok(None) => None,
                    Ok(Some(blob)) => {
                        let result: Result<StreamAppendResult<TypeConfig>, _> = decode(&blob.data);
                        let go_on = matches!(result, Ok(Ok(_)));
                        Some((result.map_err(rpc_error), go_on.then_some(answers)))
                    }
                    Err(status) => Some((Err(rpc_error(status.into())), None)),
                }
            });
            Ok(results.boxed() as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(&rpc, VOTE_TIMEOUT, |mut client, request| async move {
            client.vote(request).await
        })
        .await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(&rpc, VOTE_TIMEOUT, |mut client, request| async move {
            client.pre_vote(request).await
        })
        .await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(&rpc, VOTE_TIMEOUT, |mut client, request| async move {
            client.transfer_leader(request).await
        })
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let failed = |error: WireError| StreamingError::from(rpc_error(error));
        let mut client = self.connect(Lane::Bulk).map_err(failed)?;
        let (frames, failure) = snapshot_frames::outgoing(self.target, &vote, &snapshot).map_err(failed)?;
        let pump = async {
            let sent = client.install_snapshot(frames).await;
            match (sent, failure.get()) {
                // What went wrong while reading explains more than what the peer made of it.
                (_, Some(error)) => Err(WireError::Unknown(error.to_string())),
                (Ok(response), None) => decode(&response.into_inner().data),
                (Err(status), None) => Err(status.into()),
            }
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            result = pump => result.map_err(failed),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY_INTERVAL)))
    }
}
