//! Finds the leader and asks it, itself included.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bramble_proto::meta_client::MetaClient;
use bramble_proto::{KeepAliveRequest, KeepAliveResponse, LeaseRequest, ProposeRequest, ReadIndexRequest};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use openraft::async_runtime::watch::WatchReceiver;
use raftstore::meta::{NodeId, Proposal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::directory::Directory;
use super::lease_wire::{FromHolder, ToHolder};
use super::peers::{Lane, MESSAGE_BYTES_MAX, Peers};
use super::wire::{WireError, decode, encode};
use crate::node::leader::duties::{Decided, Duties};
use crate::node::leader::lease_server;
use crate::node::raft::{self, Raft};

/// Pause before the leader is looked for again; shorter if this node learns of one.
const PAUSE: Duration = Duration::from_millis(100);
/// A question that changes nothing is asked again after this time.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);
/// A proposal waits for the media of a majority; a leader that hangs longer than this is asked again.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// Where the leader is.
enum Leader {
    Here,
    At(String),
}

/// This node's way to the leader.
pub struct LeaderClient {
    id: NodeId,
    raft: Raft,
    duties: Arc<Duties>,
    peers: Arc<Peers>,
    directory: Arc<Directory>,
    /// Where another node has sent us.
    hint: Mutex<Option<String>>,
    turn: AtomicUsize,
}

impl LeaderClient {
    /// For the node `id`.
    #[must_use]
    pub fn new(
        id: NodeId,
        raft: Raft,
        duties: Arc<Duties>,
        peers: Arc<Peers>,
        directory: Arc<Directory>,
    ) -> Self {
        Self {
            id,
            raft,
            duties,
            peers,
            directory,
            hint: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// The leader as Raft knows it here; else where others have sent us; else any member, which may know.
    fn locate(&self) -> Result<Leader, WireError> {
        if let Some(leader) = raft::leader(&self.raft) {
            if leader == self.id {
                return Ok(Leader::Here);
            }
            if let Some(listen) = self.directory.listen(leader) {
                return Ok(Leader::At(listen));
            }
        }
        if let Some(listen) = self.hint.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Ok(Leader::At(listen));
        }
        let members = self.directory.members();
        let others: Vec<_> = members.iter().filter(|(id, _)| **id != self.id).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let someone = others.get(turn.checked_rem(others.len()).unwrap_or(0));
        someone
            .map(|(_, member)| Leader::At(member.listen.clone()))
            .ok_or(WireError::NotLeader(None))
    }

    fn client(&self, listen: &str) -> Result<MetaClient<Channel>, WireError> {
        Ok(MetaClient::new(self.peers.channel(listen, Lane::Urgent)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Remembers where a node has sent us.
    ///
    /// # Errors
    /// That of `result`.
    pub fn learn<T>(&self, result: Result<T, WireError>) -> Result<T, WireError> {
        if let Err(WireError::NotLeader(Some((_, listen)))) = &result {
            *self.hint.lock().unwrap_or_else(PoisonError::into_inner) = Some(listen.clone());
        }
        result
    }

    /// One attempt to commit a proposal.
    ///
    /// # Errors
    /// [`WireError::nothing_done`] tells whether it may have been committed.
    pub async fn propose(&self, proposal: &Proposal) -> Result<Decided, WireError> {
        let result = match self.locate()? {
            Leader::Here => self.duties.propose(proposal.clone()).await,
            Leader::At(listen) => self.propose_at(&listen, proposal).await,
        };
        self.learn(result)
    }

    async fn propose_at(&self, listen: &str, proposal: &Proposal) -> Result<Decided, WireError> {
        let payload = proposal.payload.clone();
        let head = Proposal {
            payload: Bytes::new(),
            ..proposal.clone()
        };
        let request = ProposeRequest {
            proposal: encode(&head)?,
            payload,
        };
        let response = timed(PROPOSE_TIMEOUT, self.client(listen)?.propose(request)).await;
        // Another node has stopped, not this one: the next leader will tell.
        let response = response.map_err(|error| match error {
            WireError::Stopped(why) => WireError::Unknown(why),
            error => error,
        })?;
        // From here on it was committed, whatever becomes of the answer.
        let answer = decode(&response.reply).map_err(|error| WireError::Unknown(error.to_string()))?;
        Ok((response.log_index, answer))
    }

    /// One attempt to get an index that covers everything answered before this call.
    ///
    /// # Errors
    /// Any [`WireError`]; nothing was changed.
    pub async fn read_index(&self) -> Result<u64, WireError> {
        let result = match self.locate()? {
            Leader::Here => self.duties.read_index().await,
            Leader::At(listen) => {
                let response = timed(
                    QUESTION_TIMEOUT,
                    self.client(&listen)?.read_index(ReadIndexRequest {}),
                )
                .await;
                response.map(|response| response.log_index).map_err(for_now)
            }
        };
        self.learn(result)
    }

    /// One sign of life.
    ///
    /// # Errors
    /// Any [`WireError`].
    pub async fn keep_alive(&self, request: &KeepAliveRequest) -> Result<KeepAliveResponse, WireError> {
        let result = match self.locate()? {
            Leader::Here => self.duties.keep_alive(request).await,
            Leader::At(listen) => timed(
                QUESTION_TIMEOUT,
                self.client(&listen)?.keep_alive(request.clone()),
            )
            .await
            .map_err(for_now),
        };
        self.learn(result)
    }

    /// The next question goes to the leader on a new connection.
    pub fn renew_connection(&self) {
        if let Ok(Leader::At(listen)) = self.locate() {
            self.peers.renew(&listen, Lane::Urgent);
        }
    }

    /// A link for leases, on which `said` is sent. It ends when the leader ends it, or is lost.
    ///
    /// # Errors
    /// Any [`WireError`].
    pub async fn leases(
        &self,
        said: mpsc::Receiver<FromHolder>,
    ) -> Result<BoxStream<'static, Result<ToHolder, WireError>>, WireError> {
        let said = ReceiverStream::new(said);
        let result = match self.locate()? {
            Leader::Here => {
                lease_server::serve(&self.duties, self.id, said.map(Ok).boxed()).map(StreamExt::boxed)
            }
            Leader::At(listen) => {
                let mut client = self.client(&listen)?;
                let told = timed(QUESTION_TIMEOUT, client.leases(said.map(LeaseRequest::from))).await;
                told.map(|told| told.map(|order| ToHolder::try_from(order?)).boxed())
                    .map_err(for_now)
            }
        };
        self.learn(result)
    }

    /// As [`LeaderClient::pause`], for what nobody waits for at this moment.
    pub async fn long_pause(&self) {
        tokio::join!(self.pause(), tokio::time::sleep(PAUSE / 2));
    }

    /// Waits a little before the next attempt: until this node hears of a leader, or for a short pause.
    pub async fn pause(&self) {
        if self.hint.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            // Someone has just told us where to go; the yield keeps two nodes that point at each other from spinning.
            tokio::time::sleep(PAUSE / 10).await;
            return;
        }
        let mut metrics = self.raft.server_metrics();
        let before = metrics.borrow_and_update().current_leader;
        let changed = async {
            while metrics.changed().await.is_ok() {
                if metrics.borrow_and_update().current_leader != before {
                    return;
                }
            }
            std::future::pending().await
        };
        let _ = tokio::time::timeout(PAUSE, changed).await;
    }
}

/// A node that says of itself that it has stopped does not speak for this one: another will lead.
fn for_now(error: WireError) -> WireError {
    match error {
        WireError::Stopped(why) => WireError::NotNow(why),
        error => error,
    }
}

/// Awaits a call for a limited time.
async fn timed<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, WireError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(WireError::Unknown("no answer in time".into())),
    }
}
