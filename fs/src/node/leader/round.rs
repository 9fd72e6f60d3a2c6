//! What the leader does by itself, twice a second: expires what is silent or outdated, keeps the membership and the
//! placement table as they should be, frees unlinked files that nobody has open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bramble_proto::OpenInodesRequest;
use bramble_proto::meta_client::MetaClient;
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use raftstore::clock::Clock;
use raftstore::kv::KvError;
use raftstore::meta::{Ino, MetaStore, NodeId, NodeInfo, Op, PLACEMENT_GROUPS, Session, VolumeOp};
use raftstore::raft::Member;

use super::duties::Duties;
use super::liveness::{Liveness, SILENT_AFTER};
use super::membership::{self, Step, View};
use super::placement;
use crate::node::raft::Raft;
use crate::node::service::meta::OpenFiles;
use crate::node::transport::directory::Directory;
use crate::node::transport::peers::{Lane, Peers, is_refused};
use crate::node::transport::wire::WireError;

/// Between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_millis(500);
/// A learner this close to the end of the log may vote, entries.
const CAUGHT_UP_ENTRIES: u64 = 256;
/// Placement groups that change in one round.
const PLACEMENTS_PER_ROUND: usize = 16;
/// Unlinked inodes that are looked at in one round.
const ORPHANS_PER_ROUND: usize = 1024;
/// A node that does not say in this time what it has open is asked again in the next round.
const OPEN_INODES_TIMEOUT: Duration = Duration::from_secs(3);
/// Names of removed trees that are removed by one proposal, and how many such there are in one round.
const PRUNE_ENTRIES: u32 = 1024;
const PRUNES_PER_ROUND: usize = 4;

/// Between two looks whether a process is gone: one that starts again has this long to listen.
const BETWEEN_PROBES: Duration = Duration::from_millis(200);

/// Why a round ended early; the next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The cluster did not take a proposal.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// This node's state cannot be read.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// Raft refused a membership change.
    #[error("the membership cannot be changed now: {0}")]
    Membership(String),
}

/// The leader's rounds.
pub struct Rounds {
    id: NodeId,
    raft: Raft,
    duties: Arc<Duties>,
    meta: Arc<MetaStore>,
    directory: Arc<Directory>,
    peers: Arc<Peers>,
    clock: Arc<dyn Clock>,
    open_files: Arc<dyn OpenFiles>,
    /// When this leader first saw a join token. Starts again with each leader: a token lives a little longer then.
    tokens: BTreeMap<[u8; 32], Duration>,
    /// How far the orphans were looked through.
    orphans_after: Ino,
    /// What the placement table was last found right for: the applied index and the members.
    placed: Option<(u64, BTreeSet<NodeId>)>,
}

impl Rounds {
    /// For the node `id`.
    #[must_use]
    pub fn new(
        id: NodeId,
        (raft, duties, meta): (Raft, Arc<Duties>, Arc<MetaStore>),
        (directory, peers): (Arc<Directory>, Arc<Peers>),
        clock: Arc<dyn Clock>,
        open_files: Arc<dyn OpenFiles>,
    ) -> Self {
        let (tokens, orphans_after, placed) = (BTreeMap::new(), 0, None);
        Self {
            id,
            raft,
            duties,
            meta,
            directory,
            peers,
            clock,
            open_files,
            tokens,
            orphans_after,
            placed,
        }
    }

    /// Goes round as long as the node lives.
    pub async fn run(mut self) {
        let mut led = None;
        let mut looked_at = self.clock.monotonic();
        loop {
            tokio::time::sleep(ROUND_INTERVAL).await;
            let now = self.clock.monotonic();
            if now.saturating_sub(looked_at) >= SILENT_AFTER {
                // It was this node that stood still: who called meanwhile has not been heard yet.
                self.duties.liveness().restart();
            }
            looked_at = now;
            if !self.duties.leads() {
                led = None;
                continue;
            }
            let term = self.duties.term();
            if led != Some(term) {
                if let Err(error) = self.take_office(term).await {
                    tracing::debug!(%error, "not ready to lead yet");
                    continue;
                }
                led = Some(term);
            }
            if let Err(error) = self.round().await {
                tracing::debug!(%error, "a round ended early");
            }
        }
    }

    /// Sees to it that this node's state shows all that earlier leaders committed before it decides anything.
    async fn take_office(&mut self, term: u64) -> Result<(), RoundError> {
        self.duties.liveness().take_office();
        self.tokens.clear();
        self.duties.catch_up().await?;
        self.directory.update(&self.meta.reader())?;
        self.duties.leases().begin(term)?;
        self.duties.set_ready(term);
        tracing::info!(term, "this node leads the cluster");
        Ok(())
    }

    async fn round(&mut self) -> Result<(), RoundError> {
        let nodes = self.meta.reader().nodes()?;
        self.duties
            .liveness()
            .retain(|id| nodes.iter().any(|node| node.id == id));
        self.expire_sessions().await?;
        self.expire_tokens().await?;
        self.follow_addresses(&nodes).await?;
        self.change_membership(&nodes).await?;
        self.place(&nodes).await?;
        self.prune().await?;
        self.reap().await
    }

    /// Removes some of what is in trees that have lost their names: those of removed volumes and snapshots.
    async fn prune(&self) -> Result<(), RoundError> {
        for _ in 0..PRUNES_PER_ROUND {
            if !self.meta.reader().has_doomed()? {
                break;
            }
            let entries_max = PRUNE_ENTRIES;
            let op = Op::Volume(VolumeOp::Prune { entries_max });
            self.duties.propose_system(op).await?;
        }
        Ok(())
    }

    async fn expire_sessions(&self) -> Result<(), RoundError> {
        let liveness = self.duties.liveness();
        let sessions = self.meta.reader().sessions()?;
        let looks = sessions.iter().map(|session| self.is_gone(session));
        let gone = futures::future::join_all(looks).await;
        for (session, _) in sessions.iter().zip(gone).filter(|(_, gone)| *gone) {
            liveness.condemn_suspect(session.id);
        }
        let sessions: Vec<_> = sessions.into_iter().map(|session| session.id).collect();
        for session in liveness.expired(&sessions) {
            tracing::warn!(session = session.0, "no sign of life: the session is expired");
            self.duties.propose_system(Op::ExpireSession { session }).await?;
        }
        Ok(())
    }

    /// Whether the process that the session belongs to has certainly ended, so that nobody has to wait for what it
    /// holds: it is silent, has no link to this node, and its machine says twice that nobody listens there.
    async fn is_gone(&self, session: &Session) -> bool {
        let silent = || {
            session.node != self.id
                && self.duties.liveness().is_suspect(session.id)
                && !self.duties.leases().is_linked(session.id)
        };
        let Some(listen) = self.directory.listen(session.node) else {
            return false;
        };
        if !silent() || !is_refused(&listen).await {
            return false;
        }
        tokio::time::sleep(BETWEEN_PROBES).await;
        is_refused(&listen).await && silent()
    }

    async fn expire_tokens(&mut self) -> Result<(), RoundError> {
        let now = self.clock.monotonic();
        let tokens = self.meta.reader().tokens()?;
        self.tokens
            .retain(|hash, _| tokens.iter().any(|(known, _)| known == hash));
        for (hash, valid_s) in tokens {
            let since = *self.tokens.entry(hash).or_insert(now);
            if now.saturating_sub(since) >= Duration::from_secs(valid_s) {
                self.duties.propose_system(Op::ExpireToken { hash }).await?;
            }
        }
        Ok(())
    }

    /// A node that listens elsewhere than the cluster knows is believed: its certificate says who it is.
    async fn follow_addresses(&self, nodes: &[NodeInfo]) -> Result<(), RoundError> {
        for node in nodes {
            let heard = self.duties.liveness().of(node.id);
            let listen = heard
                .map(|heard| heard.listen)
                .filter(|listen| !listen.is_empty());
            if let Some(listen) = listen.filter(|listen| *listen != node.listen) {
                tracing::info!(
                    node = node.id,
                    from = node.listen,
                    to = listen,
                    "a node has another address"
                );
                let change = NodeInfo {
                    listen,
                    ..node.clone()
                };
                self.duties.propose_system(Op::UpdateNode(change)).await?;
            }
        }
        Ok(())
    }

    async fn change_membership(&self, nodes: &[NodeInfo]) -> Result<(), RoundError> {
        let view = view_of(&self.raft, &self.meta, self.duties.liveness())?;
        let Some(step) = membership::next_step(&view) else {
            return Ok(());
        };
        tracing::info!(?step, "changing the membership");
        let (change, retain) = match step {
            Step::Finish => (ChangeMembers::AddVoterIds(BTreeSet::new()), true),
            Step::HandOver(to) => {
                let done = self.raft.trigger().transfer_leader(to).await;
                return done.map_err(|error| RoundError::Membership(error.to_string()));
            }
            Step::RemoveVoters(ids) => (ChangeMembers::RemoveVoters(ids), false),
            Step::RemoveLearners(ids) => (ChangeMembers::RemoveNodes(ids), false),
            Step::AddLearner(id) => {
                let node = nodes.iter().find(|node| node.id == id);
                let node = node.ok_or_else(|| RoundError::Membership(format!("node {id} vanished")))?;
                let member = Member {
                    name: node.name.clone(),
                    listen: node.listen.clone(),
                };
                (ChangeMembers::AddNodes(BTreeMap::from([(id, member)])), true)
            }
            Step::Promote(ids) => (ChangeMembers::AddVoterIds(ids), true),
            Step::Demote(id) => (ChangeMembers::RemoveVoters(BTreeSet::from([id])), true),
        };
        let changed = self.raft.change_membership(change, retain).await;
        changed
            .map(drop)
            .map_err(|error| RoundError::Membership(error.to_string()))
    }

    /// Assigns placement groups to nodes that have taken part at least once.
    async fn place(&mut self, nodes: &[NodeInfo]) -> Result<(), RoundError> {
        let members = members_of(&self.raft);
        let looked_at = (*self.meta.applied().borrow(), members.clone());
        if self.placed.as_ref() == Some(&looked_at) {
            return Ok(());
        }
        let eligible: Vec<NodeId> = nodes
            .iter()
            .filter(|node| !node.draining && members.contains(&node.id))
            .map(|node| node.id)
            .collect();
        let reader = self.meta.reader();
        let replicas = reader.cluster()?.map_or(1, |cluster| cluster.replicas);
        let table: Vec<Vec<NodeId>> = (0..PLACEMENT_GROUPS)
            .map(|group| reader.placement(group))
            .collect::<Result<_, _>>()?;
        let changes = placement::changes(&table, &eligible, replicas as usize);
        if changes.is_empty() {
            self.placed = Some(looked_at);
        }
        // A group that nobody holds yet is served at once, moves of existing ones at leisure.
        let (empty, moves): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .partition(|(group, _)| table[*group as usize].is_empty());
        for (group, nodes) in empty
            .into_iter()
            .chain(moves.into_iter().take(PLACEMENTS_PER_ROUND))
        {
            self.duties
                .propose_system(Op::SetPlacement { group, nodes })
                .await?;
        }
        Ok(())
    }

    /// Frees unlinked inodes that no node has open. Asked after they were unlinked: no node can open them any more, so
    /// an answer stays true. A node without a session is asked too: its files are open all the same, it may just be
    /// about to open another session. One that is silent, and whose session has gone, is not waited for.
    async fn reap(&mut self) -> Result<(), RoundError> {
        let reader = self.meta.reader();
        let orphans = reader.orphans(self.orphans_after, ORPHANS_PER_ROUND)?;
        self.orphans_after = if orphans.len() < ORPHANS_PER_ROUND {
            0
        } else {
            orphans.last().copied().unwrap_or(0)
        };
        if orphans.is_empty() {
            return Ok(());
        }
        let index = *self.meta.applied().borrow();
        let mut open = BTreeSet::new();
        let mut nodes: BTreeSet<NodeId> = reader
            .sessions()?
            .into_iter()
            .map(|session| session.node)
            .collect();
        let registered = reader.nodes()?.into_iter().map(|node| node.id);
        nodes.extend(registered.filter(|node| self.duties.liveness().may_be_live(*node)));
        for node in nodes {
            open.extend(self.open_on(node, index, &orphans).await?);
        }
        let free: Vec<Ino> = orphans.into_iter().filter(|ino| !open.contains(ino)).collect();
        if !free.is_empty() {
            self.duties.propose_system(Op::Reap { inodes: free }).await?;
        }
        Ok(())
    }

    async fn open_on(&self, node: NodeId, log_index: u64, inodes: &[Ino]) -> Result<Vec<Ino>, RoundError> {
        if node == self.id {
            return Ok(self.open_files.open_of(inodes));
        }
        let listen = self
            .directory
            .listen(node)
            .ok_or_else(|| WireError::Unreachable(format!("node {node}")))?;
        let mut client = MetaClient::new(self.peers.channel(&listen, Lane::Urgent)?);
        let request = OpenInodesRequest {
            log_index,
            inodes: inodes.to_vec(),
        };
        match tokio::time::timeout(OPEN_INODES_TIMEOUT, client.open_inodes(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner().open),
            Ok(Err(status)) => Err(WireError::from(status).into()),
            Err(_) => Err(WireError::NotNow(format!("node {node} does not answer")).into()),
        }
    }
}

/// Everyone in Raft's membership.
fn members_of(raft: &Raft) -> BTreeSet<NodeId> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    metrics
        .membership_config
        .membership()
        .nodes()
        .map(|(id, _)| *id)
        .collect()
}

/// What the leader knows of the membership.
///
/// # Errors
/// If this node's state cannot be read.
pub fn view_of(raft: &Raft, meta: &MetaStore, liveness: &Liveness) -> Result<View, KvError> {
    let registered: BTreeSet<NodeId> = meta.reader().nodes()?.into_iter().map(|node| node.id).collect();
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let last = metrics.last_log_index.unwrap_or(0);
    let has_most = |id: &NodeId| {
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|progress| progress.get(id).cloned().flatten());
        matched.is_some_and(|matched| matched.index + CAUGHT_UP_ENTRIES >= last)
    };
    let learners: BTreeSet<NodeId> = membership.learner_ids().collect();
    let mut live: BTreeSet<NodeId> = registered
        .iter()
        .copied()
        .filter(|id| liveness.is_live(*id))
        .collect();
    if registered.contains(&metrics.id) {
        live.insert(metrics.id);
    }
    Ok(View {
        leader: metrics.id,
        registered,
        live,
        voters: membership.voter_ids().collect(),
        joint: membership.get_joint_config().len() > 1,
        caught_up: learners.iter().copied().filter(has_most).collect(),
        learners,
    })
}
