//! Handing leadership over, so that the others need no election.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use raftstore::meta::NodeId;

use super::duties::Duties;
use crate::node::raft::Raft;

/// How long a leader waits for another to take over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);

/// Who leads next.
#[derive(Clone)]
pub struct Succession {
    id: NodeId,
    raft: Raft,
    duties: Arc<Duties>,
}

impl Succession {
    /// For node `id`.
    #[must_use]
    pub fn new(id: NodeId, raft: Raft, duties: Arc<Duties>) -> Self {
        Self { id, raft, duties }
    }

    /// Whether this node leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.duties.leads()
    }

    /// If this node leads: of the other voters that live, the one that has most of the log; one that is draining only if
    /// there is no other.
    #[must_use]
    pub fn heir(&self) -> Option<NodeId> {
        self.undrained_heir().or_else(|| self.best(|_| true))
    }

    /// As [`Succession::heir`], but none that is draining.
    #[must_use]
    pub fn undrained_heir(&self) -> Option<NodeId> {
        let liveness = self.duties.liveness();
        self.best(|id| liveness.of(id).is_some_and(|heard| !heard.stats.draining))
    }

    fn best(&self, may: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        if !self.duties.leads() {
            return None;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters = metrics.membership_config.membership().voter_ids();
        let progress = metrics.replication.as_ref();
        let can = |id: &NodeId| *id != self.id && self.duties.liveness().is_live(*id) && may(*id);
        let matched = |id: &NodeId| {
            let matched = progress.and_then(|progress| progress.get(id).cloned().flatten());
            matched.map_or(0, |log_id| log_id.index)
        };
        voters.filter(can).max_by_key(matched)
    }

    /// Lets `heir` lead, and waits a moment until it, or anyone else, does.
    pub async fn hand_over(&self, heir: NodeId) {
        if self.raft.trigger().transfer_leader(heir).await.is_err() {
            return;
        }
        let mut metrics = self.raft.server_metrics();
        let handed_over = async {
            while metrics
                .borrow_and_update()
                .current_leader
                .is_none_or(|leader| leader == self.id)
            {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(HAND_OVER_TIMEOUT, handed_over).await;
    }
}
