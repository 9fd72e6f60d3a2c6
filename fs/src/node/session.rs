//! This node's session: opened when the node starts, kept alive, opened again if the cluster has given it up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bramble_proto::{KeepAliveRequest, NodeReport, NodeStats};
use raftstore::clock::Clock;
use raftstore::meta::{MetaStore, NodeId, Op, Reply, SessionId};
use tokio::sync::{Notify, watch};

use super::leader::duties::system_proposal;
use super::leader::liveness::VALIDITY;
use super::numbers::Numbers;
use super::transport::leader_client::LeaderClient;
use super::transport::wire::WireError;

/// Between two signs of life.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// One that is not answered in this time is sent again.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A node that stops waits no longer for the end of its session.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the session stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionState {
    /// None is open; the text says what is being waited for.
    Opening(String),
    /// Open.
    Open(SessionId),
    /// The node was removed from the cluster; there will be no other.
    Removed,
}

/// What the leader last told about all nodes.
#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    /// One for each member.
    pub nodes: Vec<NodeReport>,
    /// When it was told, on this node's monotonic clock; `None` before the first answer.
    pub at: Option<Duration>,
}

/// What a sign of life says of this node's memory and medium.
pub trait StatsSource: Send + Sync + 'static {
    /// Reads them; may block on the medium for a moment.
    fn stats(&self) -> NodeStats;

    /// True if the medium has not answered for so long that this node should be given up.
    fn is_stalled(&self) -> bool {
        false
    }
}

/// The session of this node.
pub struct SessionKeeper {
    node: NodeId,
    listen: String,
    leader: Arc<LeaderClient>,
    meta: Arc<MetaStore>,
    clock: Arc<dyn Clock>,
    stats: Arc<dyn StatsSource>,
    numbers: Mutex<Numbers>,
    state: watch::Sender<SessionState>,
    view: watch::Sender<Arc<ClusterView>>,
    validity: watch::Sender<Option<Validity>>,
    lost: Notify,
}

/// The session that a leader last confirmed, and until when what is kept under its leases may be shown: a moment of
/// this node's monotonic clock.
pub type Validity = (SessionId, Duration);

impl SessionKeeper {
    /// For a node that listens on `listen`; [`SessionKeeper::run`] opens the session.
    #[must_use]
    pub fn new(
        node: NodeId,
        listen: String,
        leader: Arc<LeaderClient>,
        meta: Arc<MetaStore>,
        clock: Arc<dyn Clock>,
        stats: Arc<dyn StatsSource>,
    ) -> Self {
        Self {
            node,
            listen,
            leader,
            meta,
            clock,
            stats,
            numbers: Mutex::new(Numbers::new(SessionId::SYSTEM)),
            state: watch::Sender::new(SessionState::Opening("starting".into())),
            view: watch::Sender::new(Arc::default()),
            validity: watch::Sender::new(None),
            lost: Notify::new(),
        }
    }

    /// Numbers of the present session.
    pub fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the session stands, and its changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.state.subscribe()
    }

    /// What the leader last told about all nodes.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.subscribe()
    }

    /// Until when leases are valid; `None` before a leader has confirmed a session.
    #[must_use]
    pub fn validity(&self) -> watch::Receiver<Option<Validity>> {
        self.validity.subscribe()
    }

    /// Waits for an open session.
    ///
    /// # Errors
    /// If the node was removed, or is shutting down.
    pub async fn open_session(&self) -> Result<SessionId, WireError> {
        let mut state = self.state.subscribe();
        let state = state
            .wait_for(|state| !matches!(state, SessionState::Opening(_)))
            .await;
        match state.as_deref() {
            Ok(SessionState::Open(session)) => Ok(*session),
            Ok(_) => Err(WireError::Removed),
            Err(_) => Err(WireError::Stopped("shutting down".into())),
        }
    }

    /// The cluster has given `session` up.
    pub fn session_lost(&self, session: SessionId) {
        let was_open = self.state.send_if_modified(|state| {
            let lost = *state == SessionState::Open(session);
            if lost {
                *state = SessionState::Opening("the cluster has given the last session up".into());
            }
            lost
        });
        if was_open {
            tracing::warn!(
                session = session.0,
                "the session has expired: locks that were held on this node are gone"
            );
            self.lost.notify_one();
        }
    }

    /// Ends the session, so that nobody waits for what this node holds. For a node that is about to stop and serves no
    /// one any more; does its best for a moment.
    pub async fn end(&self) {
        let SessionState::Open(session) = *self.state.borrow() else {
            return;
        };
        let proposal = system_proposal(Op::ExpireSession { session }, &*self.clock);
        match tokio::time::timeout(END_TIMEOUT, self.leader.propose(&proposal)).await {
            Ok(Ok(_)) => tracing::debug!(session = session.0, "session ended"),
            Ok(Err(error)) => tracing::debug!(%error, "the session was not ended"),
            Err(_) => tracing::debug!("the session was not ended in time"),
        }
    }

    /// Keeps the session; ends only if the node is removed.
    pub async fn run(&self) {
        loop {
            let state = self.state.borrow().clone();
            let session = match state {
                SessionState::Removed => return,
                SessionState::Open(session) => session,
                SessionState::Opening(_) => SessionId::SYSTEM,
            };
            let heard = self.show_life(session).await;
            if matches!(*self.state.borrow(), SessionState::Opening(_)) {
                if !self.open().await {
                    self.leader.pause().await;
                }
                continue;
            }
            if !heard {
                // Soon: what is kept under leases is shown only as long as a leader says so.
                self.leader.long_pause().await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(KEEP_ALIVE_INTERVAL) => {}
                () = self.lost.notified() => {}
            }
        }
    }

    /// True if a leader has heard it.
    async fn show_life(&self, session: SessionId) -> bool {
        if self.stats.is_stalled() {
            // Others may be waiting for what it holds, and it cannot give that back.
            return false;
        }
        let request = KeepAliveRequest {
            node_id: self.node,
            session: session.0,
            applied_index: *self.meta.applied().borrow(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            stats: Some(self.stats.stats()),
            listen: self.listen.clone(),
        };
        let sent = self.clock.monotonic();
        let answer = tokio::time::timeout(KEEP_ALIVE_TIMEOUT, self.leader.keep_alive(&request)).await;
        let answer = answer.unwrap_or_else(|_| {
            self.leader.renew_connection();
            Err(WireError::NotNow("no answer in time".into()))
        });
        let heard = answer.is_ok();
        match answer {
            Ok(response) => {
                let view = ClusterView {
                    nodes: response.nodes,
                    at: Some(self.clock.monotonic()),
                };
                self.view.send_replace(Arc::new(view));
                if response.alive {
                    self.validity.send_replace(Some((session, sent + VALIDITY)));
                } else if session != SessionId::SYSTEM {
                    self.session_lost(session);
                }
            }
            Err(WireError::Removed) => {
                tracing::error!("{}", WireError::Removed);
                self.state.send_replace(SessionState::Removed);
            }
            Err(error) => {
                tracing::debug!(%error, "no sign of life was taken");
                if session == SessionId::SYSTEM {
                    self.wait_reason(error.to_string());
                }
            }
        }
        heard
    }

    /// Opens a session; true once one is open and applied here.
    async fn open(&self) -> bool {
        let proposal = system_proposal(Op::OpenSession { node: self.node }, &*self.clock);
        match self.leader.propose(&proposal).await {
            Ok((index, Ok(Reply::Session(session)))) => {
                if !self.wait_applied(index, session).await {
                    return false;
                }
                *self.numbers() = Numbers::new(session);
                self.state.send_replace(SessionState::Open(session));
                tracing::info!(session = session.0, "session open");
                true
            }
            Ok((_, answer)) => {
                self.wait_reason(format!("the cluster refuses a session: {answer:?}"));
                false
            }
            Err(error) => {
                self.wait_reason(error.to_string());
                false
            }
        }
    }

    /// Waits until this node shows its session. Goes on showing life meanwhile: a blank node gets the log only once
    /// the leader has heard from it, and may take long to catch up.
    async fn wait_applied(&self, index: u64, session: SessionId) -> bool {
        let mut applied = self.meta.applied();
        loop {
            let reached = async { applied.wait_for(|applied| *applied >= index).await.is_ok() };
            if let Ok(reached) = tokio::time::timeout(KEEP_ALIVE_INTERVAL, reached).await {
                return reached;
            }
            self.wait_reason("catching up with the cluster".into());
            self.show_life(session).await;
        }
    }

    fn wait_reason(&self, reason: String) {
        self.state.send_if_modified(|state| match state {
            SessionState::Opening(old) if *old != reason => {
                *old = reason;
                true
            }
            _ => false,
        });
    }
}
