//! What the leader does at the request of a node, itself included.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bramble_proto::{KeepAliveRequest, KeepAliveResponse};
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use raftstore::TypeConfig;
use raftstore::clock::Clock;
use raftstore::meta::{MetaError, MetaStore, NodeId, Op, Proposal, Reply, SessionId};

use super::lease_desk::LeaseDesk;
use super::liveness::Liveness;
use crate::node::coalesce::Coalescer;
use crate::node::raft::{self, Raft};
use crate::node::transport::directory::Directory;
use crate::node::transport::wire::WireError;

/// The answer to a proposal, and the index of the log entry that gave it.
pub type Decided = (u64, Result<Reply, MetaError>);

/// Serves nodes while this node leads, and sends them on while it does not.
pub struct Duties {
    id: NodeId,
    raft: Raft,
    meta: Arc<MetaStore>,
    directory: Arc<Directory>,
    clock: Arc<dyn Clock>,
    liveness: Arc<Liveness>,
    leases: Arc<LeaseDesk>,
    /// The term in which this node's state has caught up with what earlier leaders committed.
    ready_term: AtomicU64,
    /// Proposals that came from programs, or from what serves them.
    proposals: AtomicU64,
    reads: Coalescer<Result<u64, WireError>>,
}

impl Duties {
    /// For the node `id`.
    #[must_use]
    pub fn new(
        id: NodeId,
        raft: Raft,
        meta: Arc<MetaStore>,
        directory: Arc<Directory>,
        clock: Arc<dyn Clock>,
        liveness: Arc<Liveness>,
    ) -> Self {
        let (asked, members) = (raft.clone(), Arc::clone(&directory));
        let reads = Coalescer::spawn(move || read_index(asked.clone(), Arc::clone(&members)));
        let leases = LeaseDesk::new(Arc::clone(&meta));
        Self {
            id,
            raft,
            meta,
            directory,
            clock,
            liveness,
            leases,
            ready_term: AtomicU64::new(0),
            proposals: AtomicU64::new(0),
            reads,
        }
    }

    /// True while this node believes that it leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        raft::leader(&self.raft) == Some(self.id)
    }

    /// The present term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    /// True once [`Duties::set_ready`] was called in the present term: before that, what this node's state does not
    /// show may still have been committed by an earlier leader.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready_term.load(Ordering::Acquire) == self.term()
    }

    /// This node leads in `term`, and its state has caught up.
    pub fn set_ready(&self, term: u64) {
        self.ready_term.store(term, Ordering::Release);
    }

    /// Proposals so far, without those that only move bytes.
    #[must_use]
    pub fn proposals(&self) -> u64 {
        self.proposals.load(Ordering::Relaxed)
    }

    /// What the leader hears from the nodes.
    #[must_use]
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Who holds which leases.
    #[must_use]
    pub fn leases(&self) -> &Arc<LeaseDesk> {
        &self.leases
    }

    /// Whether this node leads, and can say what was committed before.
    ///
    /// # Errors
    /// [`WireError::NotLeader`], or [`WireError::NotNow`] if it has yet to catch up.
    pub fn in_office(&self) -> Result<(), WireError> {
        if !self.leads() {
            return Err(not_leader(&self.raft, &self.directory));
        }
        if !self.is_ready() {
            return Err(WireError::NotNow(
                "the leader is new and still catching up".into(),
            ));
        }
        Ok(())
    }

    /// Puts a proposal into the log and waits until it is committed and applied here.
    ///
    /// # Errors
    /// [`WireError::NotLeader`] and [`WireError::NotNow`] if it was not put there, [`WireError::Unknown`] if it may
    /// have been.
    pub async fn propose(&self, proposal: Proposal) -> Result<Decided, WireError> {
        if !matches!(proposal.op, Op::Merge { .. }) {
            self.proposals.fetch_add(1, Ordering::Relaxed);
        }
        match self.raft.client_write(proposal).await {
            Ok(done) => {
                let index = done.log_id.index;
                let answer = done
                    .data
                    .ok_or_else(|| WireError::Unknown("the entry has no answer".into()))?;
                Ok((index, answer))
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(elsewhere(forward, &self.directory))
            }
            Err(RaftError::APIError(error)) => Err(WireError::Unknown(error.to_string())),
            Err(RaftError::Fatal(error)) => Err(WireError::Stopped(error.to_string())),
        }
    }

    /// Proposes in the name of the cluster.
    ///
    /// # Errors
    /// As [`Duties::propose`]; a refusal of the state machine is [`WireError::Refused`].
    pub async fn propose_system(&self, op: Op) -> Result<Reply, WireError> {
        let (_, answer) = self.propose(system_proposal(op, &*self.clock)).await?;
        answer.map_err(|error| WireError::Refused(error.to_string()))
    }

    /// An index that covers everything that was answered before this call.
    ///
    /// # Errors
    /// [`WireError::NotLeader`] or [`WireError::NotNow`].
    pub async fn read_index(&self) -> Result<u64, WireError> {
        self.reads
            .ask()
            .await
            .unwrap_or_else(|| Err(WireError::Stopped("shutting down".into())))
    }

    /// Waits until this node shows everything that was answered before this call.
    ///
    /// # Errors
    /// As [`Duties::read_index`].
    pub async fn catch_up(&self) -> Result<u64, WireError> {
        let index = self.read_index().await?;
        self.wait_applied(index).await
    }

    async fn wait_applied(&self, index: u64) -> Result<u64, WireError> {
        let mut applied = self.meta.applied();
        let reached = applied
            .wait_for(|applied| *applied >= index)
            .await
            .map(|applied| *applied);
        reached.map_err(|_| WireError::Stopped("shutting down".into()))
    }

    /// A node's sign of life.
    ///
    /// # Errors
    /// [`WireError::NotLeader`], [`WireError::Removed`], [`WireError::NotNow`].
    pub async fn keep_alive(&self, request: &KeepAliveRequest) -> Result<KeepAliveResponse, WireError> {
        self.in_office()?;
        if self.directory.was_removed(request.node_id) {
            return Err(WireError::Removed);
        }
        // Before anything is waited for: what the caller may do counts from when it called.
        self.liveness.heard(request);
        let alive = request.session != SessionId::SYSTEM.0 && self.is_alive(request).await?;
        let nodes = self.liveness.report(self.directory.members().keys().copied());
        Ok(KeepAliveResponse { alive, nodes })
    }

    /// Whether the caller's session is open. The answer is that of a leader that a majority still followed after the
    /// call came: any later one counts the session's silence from later on.
    async fn is_alive(&self, request: &KeepAliveRequest) -> Result<bool, WireError> {
        let index = self.read_index().await?;
        let mut alive = self.has_session(request)?;
        if !alive {
            self.wait_applied(index).await?;
            alive = self.has_session(request)?;
        }
        if self.liveness.is_condemned(SessionId(request.session)) {
            return Err(WireError::NotNow("the session is being expired".into()));
        }
        Ok(alive)
    }

    fn has_session(&self, request: &KeepAliveRequest) -> Result<bool, WireError> {
        let session = self.meta.reader().session(SessionId(request.session));
        let session = session.map_err(|error| WireError::NotNow(error.to_string()))?;
        Ok(session.is_some_and(|session| session.node == request.node_id))
    }
}

/// A proposal that is harmless to repeat.
#[must_use]
pub fn system_proposal(op: Op, clock: &dyn Clock) -> Proposal {
    Proposal {
        session: SessionId::SYSTEM,
        seq: 0,
        ack_floor: 0,
        chunk_floor: 0,
        time: clock.wall(),
        op,
        payload: bytes::Bytes::new(),
    }
}

/// Confirms with a majority that this node leads. Not openraft's lease: a voter that restarts forgets that it has
/// granted one, so within its term another leader may be elected.
async fn read_index(raft: Raft, directory: Arc<Directory>) -> Result<u64, WireError> {
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(linearizer.read_log_id().index()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
            Err(elsewhere(forward, &directory))
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(error))) => {
            Err(WireError::NotNow(error.to_string()))
        }
        Err(RaftError::Fatal(error)) => Err(WireError::Stopped(error.to_string())),
    }
}

/// Where openraft sends a request that it did not take.
fn elsewhere(forward: ForwardToLeader<TypeConfig>, directory: &Directory) -> WireError {
    let named = forward.leader_id.and_then(|id| Some((id, directory.listen(id)?)));
    let node = forward.leader_node.map(|node| node.listen);
    WireError::NotLeader(named.or_else(|| Some((forward.leader_id?, node?))))
}

/// Sends a caller to the leader.
#[must_use]
pub fn not_leader(raft: &Raft, directory: &Directory) -> WireError {
    WireError::NotLeader(raft::leader(raft).and_then(|id| Some((id, directory.listen(id)?))))
}
