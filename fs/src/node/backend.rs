//! The cluster as the POSIX layer sees it, from this node.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::clock::Clock;
use raftstore::journal::JournalError;
use raftstore::meta::{ChunkId, MetaStore, Op, Reader, Reply, SessionId};
use tokio::sync::watch;

use super::coalesce::Coalescer;
use super::config::OnQuorumLoss;
use super::proposer::{Proposer, no_quorum};
use super::session::{ClusterView, SessionKeeper, SessionState};
use super::transport::leader_client::LeaderClient;
use super::transport::wire::WireError;
use crate::backend::{Backend, BackendError, ChunkGuard, ClusterSpace, Look, Propose, SyncWhat};
use crate::chunk::DataPlane;

/// After this time without an answer, `on_quorum_loss = error` fails a read.
const PATIENCE: Duration = Duration::from_secs(8);

/// Implements [`Backend`] on Raft, the metadata store and the chunks.
pub struct NodeBackend {
    proposer: Arc<Proposer>,
    session: Arc<SessionKeeper>,
    meta: Arc<MetaStore>,
    chunks: Arc<DataPlane>,
    journal_poison: watch::Receiver<Option<JournalError>>,
    reads: Coalescer<Result<u64, WireError>>,
    on_quorum_loss: OnQuorumLoss,
    reserve_percent: u8,
    clock: Arc<dyn Clock>,
}

impl NodeBackend {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        leader: Arc<LeaderClient>,
        proposer: Arc<Proposer>,
        session: Arc<SessionKeeper>,
        meta: Arc<MetaStore>,
        (chunks, journal_poison): (Arc<DataPlane>, watch::Receiver<Option<JournalError>>),
        (on_quorum_loss, reserve_percent): (OnQuorumLoss, u8),
        clock: Arc<dyn Clock>,
    ) -> Self {
        let reads = Coalescer::spawn(move || {
            let leader = Arc::clone(&leader);
            async move { until_answered(&leader).await }
        });
        Self {
            proposer,
            session,
            meta,
            chunks,
            journal_poison,
            reads,
            on_quorum_loss,
            reserve_percent,
            clock,
        }
    }

    async fn caught_up(&self) -> Result<(), BackendError> {
        let index = self.reads.ask().await;
        let index = index.unwrap_or_else(|| Err(WireError::Stopped("the daemon is shutting down".into())));
        self.proposer
            .wait_applied(index.map_err(|error| BackendError::Stopped(error.to_string()))?)
            .await
    }

    /// When the leader last told about the nodes, and how long ago that is.
    #[must_use]
    pub fn view(&self) -> (Arc<ClusterView>, Option<Duration>) {
        let view = self.session.view().borrow().clone();
        let age = view.at.map(|at| self.clock.monotonic().saturating_sub(at));
        (view, age)
    }
}

/// Asks until a leader answers. A question that is asked again is still asked after its askers came.
async fn until_answered(leader: &LeaderClient) -> Result<u64, WireError> {
    loop {
        match leader.read_index().await {
            Err(error @ (WireError::Stopped(_) | WireError::Removed)) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "will ask for a read index again");
                leader.pause().await;
            }
            index => return index,
        }
    }
}

#[async_trait]
impl Propose for NodeBackend {
    async fn submit(&self, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        self.proposer.submit(op, payload).await
    }
}

#[async_trait]
impl Backend for NodeBackend {
    async fn refresh(&self, _look: Look<'_>) -> Result<(), BackendError> {
        match self.on_quorum_loss {
            OnQuorumLoss::Wait => self.caught_up().await,
            OnQuorumLoss::Error => tokio::time::timeout(PATIENCE, self.caught_up())
                .await
                .unwrap_or_else(|_| Err(no_quorum())),
        }
    }

    fn reader(&self) -> Reader {
        self.meta.reader()
    }

    fn session(&self) -> SessionId {
        match *self.session.state().borrow() {
            SessionState::Open(session) => session,
            _ => self.session.numbers().session(),
        }
    }

    async fn submit_within(&self, session: SessionId, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        self.proposer.submit_within(session, op, payload).await
    }

    async fn write_chunk(&self, data: Bytes) -> Result<ChunkGuard, BackendError> {
        self.session
            .open_session()
            .await
            .map_err(|error| BackendError::Stopped(error.to_string()))?;
        let namer = self.session.numbers().namer();
        self.chunks.write(&namer, data).await
    }

    async fn read_chunk(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, BackendError> {
        self.chunks.read(id, offset, len).await
    }

    async fn sync(&self, _what: SyncWhat) -> Result<(), BackendError> {
        // Whatever was answered is committed; a node that has failed must not say so, though.
        if let Some(error) = self.journal_poison.borrow().as_ref() {
            return Err(BackendError::Stopped(error.to_string()));
        }
        if let Some(error) = self.chunks.store().poisoned().borrow().as_ref() {
            return Err(BackendError::Stopped(format!(
                "the chunk store has stopped: {error}"
            )));
        }
        Ok(())
    }

    async fn space(&self) -> Result<ClusterSpace, BackendError> {
        // A node that has just started has heard of no medium yet; that is not the same as being full.
        let mut views = self.session.view();
        let heard = views.wait_for(|view| view.nodes.iter().any(|node| node.stats.is_some()));
        let view = heard.await.map(|view| Arc::clone(&view));
        let view = view.map_err(|_| BackendError::Stopped("shutting down".into()))?;
        let replicas = self
            .meta
            .reader()
            .cluster()?
            .map_or(1, |cluster| cluster.replicas);
        Ok(space_of(&view, replicas, self.reserve_percent))
    }
}

/// Room for file data: what the nodes have, less a reserve, over the number of copies.
fn space_of(view: &ClusterView, replicas: u32, reserve_percent: u8) -> ClusterSpace {
    let stats = || view.nodes.iter().filter_map(|node| node.stats.as_ref());
    let nodes = u64::try_from(stats().count()).unwrap_or(1).max(1);
    let copies = u64::from(replicas.max(1)).min(nodes);
    let reserve = |capacity: u64| capacity / 100 * u64::from(reserve_percent);
    let capacity: u64 = stats()
        .map(|s| s.capacity_bytes - reserve(s.capacity_bytes))
        .sum();
    let available: u64 = stats()
        .map(|s| s.available_bytes.saturating_sub(reserve(s.capacity_bytes)))
        .sum();
    // With as many copies as nodes, the fullest medium is the limit.
    let tightest = stats()
        .map(|s| s.available_bytes.saturating_sub(reserve(s.capacity_bytes)))
        .min()
        .unwrap_or(0);
    let available = if copies == nodes {
        tightest
    } else {
        available / copies
    };
    ClusterSpace {
        capacity_bytes: capacity / copies,
        available_bytes: available,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bramble_proto::{NodeReport, NodeStats};

    fn node(capacity_bytes: u64, available_bytes: u64) -> NodeReport {
        let stats = NodeStats {
            capacity_bytes,
            available_bytes,
            ..NodeStats::default()
        };
        NodeReport {
            stats: Some(stats),
            ..NodeReport::default()
        }
    }

    #[test]
    fn space_counts_copies_and_the_reserve() {
        let view = |nodes| ClusterView { nodes, at: None };
        let three = view(vec![node(1000, 800), node(1000, 500), node(1000, 900)]);
        assert_eq!(
            space_of(&three, 3, 3),
            ClusterSpace {
                capacity_bytes: 970,
                available_bytes: 470
            }
        );
        let one = view(vec![node(1000, 10)]);
        assert_eq!(
            space_of(&one, 3, 3),
            ClusterSpace {
                capacity_bytes: 970,
                available_bytes: 0
            }
        );
        let four = view(vec![
            node(1000, 1000),
            node(1000, 1000),
            node(1000, 1000),
            node(1000, 1000),
        ]);
        assert_eq!(
            space_of(&four, 3, 0),
            ClusterSpace {
                capacity_bytes: 1333,
                available_bytes: 1333
            }
        );
        assert_eq!(space_of(&ClusterView::default(), 3, 3), ClusterSpace::default());
    }
}
