//! Looks into the parts of a node, for `status` and `health`, and carries out the administrator's commands.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bramble_proto::cluster_client::ClusterClient;
use bramble_proto::{MembersRequest, NodeReport, RemoveNodeRequest, RemoveNodeResponse};
use openraft::async_runtime::watch::WatchReceiver;
use raftstore::journal::Journal;
use raftstore::meta::{MetaStore, NodeId, Op};
use raftstore::raft::Member;
use tokio::task::JoinSet;

use super::config::Config;
use super::drain::Drain;
use super::leader::duties::system_proposal;
use super::lease_client::LeaseHolderSlot;
use super::mount_probe::{MountProbe, Question, Silent};
use super::process::{self, WriteRate};
use super::raft::{self, Raft};
use super::session::{SessionKeeper, SessionState};
use super::status::{
    ChunksStatus, ClusterStatus, JournalStatus, LeasesStatus, MeasuredStatus, MediumStatus, MemberStatus,
    MemoryStatus, MetadataStatus, NodeStatus, PendingStatus, RaftStatus, Status,
};
use super::token::JoinToken;
use super::transport::directory::Directory;
use super::transport::leader_client::LeaderClient;
use super::transport::peers::{Lane, Peers};
use super::transport::wire::WireError;
use crate::chunk::{DataPlane, Keeper};
use crate::lease::HolderStatus;
use crate::medium::Medium;

/// A healthy node answers each question about it within this time.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// A node that does not answer within this time is shown as unreachable.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);
/// An administrator's change is given up after this time.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);

/// What can be looked into.
pub struct InspectorParts {
    /// This node.
    pub id: NodeId,
    /// Its cluster.
    pub cluster_id: String,
    /// The cluster's authority, for tokens.
    pub ca_fingerprint: [u8; 32],
    /// Its store.
    pub store: PathBuf,
    /// Its configuration.
    pub config: Config,
    /// Its Raft.
    pub raft: Raft,
    /// Its metadata.
    pub meta: Arc<MetaStore>,
    /// Its journal.
    pub journal: Arc<Journal>,
    /// Its chunks.
    pub plane: Arc<DataPlane>,
    /// Background work on its chunks.
    pub keeper: Arc<Keeper>,
    /// The members.
    pub directory: Arc<Directory>,
    /// Connections.
    pub peers: Arc<Peers>,
    /// The way to the leader.
    pub leader: Arc<LeaderClient>,
    /// Its session.
    pub session: Arc<SessionKeeper>,
    /// Whether the tree is mounted.
    pub mounted: Arc<AtomicBool>,
    /// Who holds leases on this node.
    pub lease_holder: Arc<LeaseHolderSlot>,
    /// What its medium was found to take.
    pub medium: Option<Medium>,
    /// What it writes now.
    pub write_rate: Arc<WriteRate>,
    /// Whether it is draining.
    pub drain: Arc<Drain>,
    /// Snapshots taken in since the start.
    pub installed: Arc<AtomicU64>,
    /// Reads the clocks.
    pub clock: Arc<dyn raftstore::clock::Clock>,
    /// What went wrong at the start.
    pub warnings: Vec<String>,
}

/// See the module.
pub struct Inspector {
    parts: InspectorParts,
    probe: MountProbe,
}

impl Inspector {
    /// Looks into `parts`.
    #[must_use]
    pub fn new(parts: InspectorParts) -> Self {
        let probe = MountProbe::new(&parts.config.mount, Question::Tree);
        Self { parts, probe }
    }

    /// Everything that `status` tells.
    pub async fn status(&self) -> Status {
        let quorum = self.quorum();
        let (quorum, reachable) = tokio::join!(quorum, self.probe());
        let parts = &self.parts;
        let held = parts.lease_holder.status();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node(),
            cluster: self.cluster(quorum.err(), &reachable),
            raft: self.raft(),
            journal: self.journal(),
            metadata: self.metadata(),
            chunks: self.chunks(),
            memory: MemoryStatus {
                resident_bytes: process::memory_resident_bytes(),
            },
            medium: self.medium(&held),
            leases: LeasesStatus {
                shared: count(held.shared),
                exclusive: count(held.exclusive),
            },
            pending: PendingStatus {
                bytes: count(held.pending_bytes),
                changes: count(held.pending_changes),
                oldest_ms: held.oldest.map(millis),
            },
            warnings: self.warnings(),
            config: Some(parts.config.clone()),
        }
    }

    /// Whether a majority confirms the leader now; else, why not.
    async fn quorum(&self) -> Result<(), String> {
        if let SessionState::Removed = *self.parts.session.state().borrow() {
            return Err(WireError::Removed.to_string());
        }
        match tokio::time::timeout(HEALTH_TIMEOUT, self.parts.leader.read_index()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no majority confirms a leader".into()),
        }
    }

    /// The nodes that answer now.
    async fn probe(&self) -> Vec<NodeId> {
        let mut probes = JoinSet::new();
        for (id, member) in self
            .parts
            .directory
            .members()
            .iter()
            .filter(|(id, _)| **id != self.parts.id)
        {
            let channel = self.parts.peers.channel(&member.listen, Lane::Urgent);
            let id = *id;
            probes.spawn(async move {
                let call = async {
                    ClusterClient::new(channel.ok()?)
                        .members(MembersRequest {})
                        .await
                        .ok()
                };
                tokio::time::timeout(PROBE_TIMEOUT, call)
                    .await
                    .ok()
                    .flatten()
                    .map(|_| id)
            });
        }
        let mut reachable = vec![self.parts.id];
        while let Some(probe) = probes.join_next().await {
            reachable.extend(probe.ok().flatten());
        }
        reachable
    }

    fn node(&self) -> NodeStatus {
        let session = match *self.parts.session.state().borrow() {
            SessionState::Open(session) => session.0,
            _ => 0,
        };
        NodeStatus {
            id: self.parts.id,
            name: self.parts.config.name.clone(),
            store: self.parts.store.display().to_string(),
            session,
            mounted: self.parts.mounted.load(Ordering::Relaxed),
            draining: self.parts.drain.is_on(),
            pid: std::process::id(),
        }
    }

    fn cluster(&self, no_quorum: Option<String>, reachable: &[NodeId]) -> ClusterStatus {
        let parts = &self.parts;
        let members = parts.directory.members();
        let metrics = parts.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let learners: Vec<NodeId> = membership.learner_ids().collect();
        let view = parts.session.view().borrow().clone();
        let age_ms = view
            .at
            .map(|at| parts.clock.monotonic().saturating_sub(at).as_millis());
        let newest = view
            .nodes
            .iter()
            .map(|node| node.applied_index)
            .max()
            .unwrap_or(0);
        let member = |(id, member): (&NodeId, &Member)| {
            let report = view.nodes.iter().find(|report| report.node_id == *id);
            let role = match id {
                id if metrics.current_leader == Some(*id) => "leader",
                id if voters.contains(id) => "voter",
                id if learners.contains(id) => "learner",
                _ => "joining",
            };
            MemberStatus {
                role: role.to_owned(),
                reachable: reachable.contains(id),
                ..member_status(*id, member, report, newest, age_ms)
            }
        };
        let nodes: Vec<MemberStatus> = members.iter().map(member).collect();
        let waiting_for = no_quorum.map(|why| explain(&why, &voters, reachable, &nodes));
        let usage = parts.meta.reader().usage().unwrap_or_default();
        let leader = metrics.current_leader.and_then(|leader| members.get(&leader));
        ClusterStatus {
            id: parts.cluster_id.clone(),
            leader: leader.map(|leader| leader.name.clone()),
            quorum: waiting_for.is_none(),
            waiting_for,
            nodes,
            inodes: usage.inodes,
            data_bytes: usage.allocated_bytes,
        }
    }

    fn raft(&self) -> RaftStatus {
        let metrics = self.parts.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        RaftStatus {
            term: metrics.current_term,
            voters: count(membership.voter_ids().count()),
            learners: count(membership.learner_ids().count()),
            last_index: metrics.last_log_index.unwrap_or(0),
            first_index: self.parts.journal.stats().first_index.unwrap_or(0),
            committed_index: metrics.local_committed.map_or(0, |id| id.index),
            applied_index: *self.parts.meta.applied().borrow(),
            snapshots_installed: self.parts.installed.load(Ordering::Relaxed),
        }
    }

    fn journal(&self) -> JournalStatus {
        let stats = self.parts.journal.stats();
        JournalStatus {
            live_segments: count(stats.live_segments),
            free_segments: count(stats.free_segments),
            total_bytes: stats.total_bytes,
            sync_latency_us: micros(stats.sync_latency),
            syncs: stats.syncs,
            written_bytes: stats.written_bytes,
            damaged_reads: stats.damaged_reads,
            poisoned: self
                .parts
                .journal
                .poisoned()
                .borrow()
                .as_ref()
                .map(ToString::to_string),
        }
    }

    fn medium(&self, held: &HolderStatus) -> MediumStatus {
        let parts = &self.parts;
        let space = process::medium_space(&parts.store);
        MediumStatus {
            written_bytes: process::written_bytes(&parts.journal, parts.plane.store()),
            capacity_bytes: space.capacity_bytes,
            available_bytes: space.available_bytes,
            found: parts.medium.map(|medium| MeasuredStatus {
                sync_latency_us: micros(medium.sync_latency),
                write_bytes_per_s: medium.write_bytes_per_s,
            }),
            now: MeasuredStatus {
                sync_latency_us: micros(parts.journal.stats().sync_latency),
                write_bytes_per_s: parts.write_rate.bytes_per_s(),
            },
            batch_bytes: count(held.batch_bytes),
            inline_bytes_max: count(held.inline_bytes_max),
        }
    }

    fn metadata(&self) -> MetadataStatus {
        MetadataStatus {
            engine: format!("{:?}", self.parts.config.engine).to_lowercase(),
            flushed_index: self
                .parts
                .raft
                .metrics()
                .borrow_watched()
                .snapshot
                .map_or(0, |id| id.index),
            memory_bytes: self.parts.meta.memory_bytes(),
        }
    }

    fn chunks(&self) -> ChunksStatus {
        let (store, plane) = (self.parts.plane.store().stats(), self.parts.plane.stats());
        let repair = self.parts.keeper.repair_progress();
        ChunksStatus {
            count: store.chunks,
            live_bytes: store.live_bytes,
            dead_bytes: store.dead_bytes,
            bad: store.bad_blocks,
            damaged: store.damaged_chunks,
            repaired: plane.repaired_chunks,
            remote_reads: plane.remote_reads,
            pending: repair.missing.saturating_sub(repair.fetched),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.parts.warnings.clone();
        if let SessionState::Opening(why) = &*self.parts.session.state().borrow() {
            warnings.push(format!("no session is open: {why}"));
        }
        if let Some(error) = self.parts.journal.poisoned().borrow().as_ref() {
            warnings.push(error.to_string());
        }
        if let Some(error) = self.parts.plane.store().poisoned().borrow().as_ref() {
            warnings.push(format!("the chunk store has stopped: {error}"));
        }
        warnings
    }

    /// Whether the tree is mounted, answers, and a quorum decides.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn health(&self) -> Result<(), String> {
        if let Some(error) = self.parts.journal.poisoned().borrow().as_ref() {
            return Err(error.to_string());
        }
        if !self.parts.mounted.load(Ordering::Relaxed) {
            let warnings = self.warnings().join("; ");
            return Err(format!("the tree is not mounted yet: {warnings}"));
        }
        match self.probe.ask(HEALTH_TIMEOUT).await {
            Ok(()) => {}
            Err(Silent::Broken(why)) => return Err(why),
            Err(Silent::Late) => return Err(self.cluster_trouble().await),
        }
        self.quorum().await
    }

    /// Why the tree does not answer: most often there is no quorum.
    async fn cluster_trouble(&self) -> String {
        match self.quorum().await {
            Err(why) => why,
            Ok(()) => "the tree does not answer".to_owned(),
        }
    }

    /// Whether this node is draining.
    #[must_use]
    pub fn drain(&self) -> &Arc<Drain> {
        &self.parts.drain
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// If the cluster does not take it in time.
    pub async fn create_token(&self, valid_s: u64) -> Result<JoinToken, WireError> {
        let token = JoinToken::generate(self.parts.ca_fingerprint).map_err(|error| {
            WireError::Refused(format!("the operating system has no random numbers: {error}"))
        })?;
        let proposal = system_proposal(
            Op::AddToken {
                hash: token.hash(),
                valid_s,
            },
            &*self.parts.clock,
        );
        let propose = async {
            loop {
                match self.parts.leader.propose(&proposal).await {
                    Ok((_, answer)) => return answer.map_err(|error| WireError::Refused(error.to_string())),
                    Err(error @ (WireError::Stopped(_) | WireError::Removed)) => return Err(error),
                    Err(_) => self.parts.leader.pause().await,
                }
            }
        };
        match tokio::time::timeout(CHANGE_TIMEOUT, propose).await {
            Ok(answer) => answer.map(|_| token),
            Err(_) => Err(no_quorum()),
        }
    }

    /// Removes a node.
    ///
    /// # Errors
    /// Why it was not removed.
    pub async fn remove_node(&self, request: RemoveNodeRequest) -> Result<RemoveNodeResponse, WireError> {
        let leader = raft::leader(&self.parts.raft).and_then(|leader| self.parts.directory.listen(leader));
        let leader = leader.ok_or_else(no_quorum)?;
        // Asked over the network also if this node leads itself: one way for all.
        let mut client = ClusterClient::new(self.parts.peers.channel(&leader, Lane::Urgent)?);
        match tokio::time::timeout(CHANGE_TIMEOUT, client.remove_node(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(no_quorum()),
        }
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn no_quorum() -> WireError {
    WireError::Refused(
        "the cluster has no quorum now, so nothing can be changed; `bramble status` says why".into(),
    )
}

fn member_status(
    id: NodeId,
    member: &Member,
    report: Option<&NodeReport>,
    newest: u64,
    age_ms: Option<u128>,
) -> MemberStatus {
    let heard = report.filter(|report| report.silent_ms.is_some());
    let stats = heard.and_then(|report| report.stats).unwrap_or_default();
    let since = u64::try_from(age_ms.unwrap_or(0)).unwrap_or(u64::MAX);
    MemberStatus {
        id,
        name: member.name.clone(),
        listen: member.listen.clone(),
        lag_entries: heard.map(|report| newest.saturating_sub(report.applied_index)),
        silent_ms: heard
            .and_then(|report| report.silent_ms)
            .map(|silent| silent.saturating_add(since)),
        version: heard.map(|report| report.version.clone()).unwrap_or_default(),
        memory_resident_bytes: stats.memory_resident_bytes,
        medium_written_bytes: stats.medium_written_bytes,
        available_bytes: stats.available_bytes,
        capacity_bytes: stats.capacity_bytes,
        chunks_complete: stats.chunks_complete,
        chunks_missing: stats.chunks_missing,
        draining: stats.draining,
        ..MemberStatus::default()
    }
}

/// Says which voters are missing, if that is the reason.
fn explain(why: &str, voters: &[NodeId], reachable: &[NodeId], nodes: &[MemberStatus]) -> String {
    let needed = voters.len() / 2 + 1;
    let (up, down): (Vec<NodeId>, Vec<NodeId>) = voters.iter().partition(|voter| reachable.contains(voter));
    if voters.is_empty() || up.len() >= needed {
        return why.to_owned();
    }
    let name = |id: &NodeId| {
        let node = nodes.iter().find(|node| node.id == *id);
        node.map_or_else(
            || id.to_string(),
            |node| format!("{} ({})", node.name, node.listen),
        )
    };
    let missing: Vec<String> = down.iter().map(name).collect();
    format!(
        "{} of {} voters can be reached and {needed} are needed; unreachable: {}",
        up.len(),
        voters.len(),
        missing.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_voters_are_named() {
        let nodes = [MemberStatus {
            id: 2,
            name: "pi-2".into(),
            listen: "192.0.2.2:7400".into(),
            ..Default::default()
        }];
        let text = explain("no answer", &[1, 2, 3], &[1], &nodes);
        assert!(
            text.contains("1 of 3") && text.contains("pi-2 (192.0.2.2:7400)"),
            "{text}"
        );
        assert_eq!(explain("an election", &[1, 2, 3], &[1, 2], &nodes), "an election");
    }
}
