//! Bramble's types for openraft.

use openraft::impls::leader_id_std::LeaderId;
use serde::{Deserialize, Serialize};

use crate::meta::{MetaError, NodeId, Proposal, Reply};

/// A member, as Raft's membership entries carry it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// IP:PORT it listens on.
    pub listen: String,
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.name, self.listen)
    }
}

/// The state machine's answer as it travels through openraft; Raft's own entries get `None`.
pub type Answer = Option<Result<Reply, MetaError>>;

openraft::declare_raft_types!(
    /// Bramble's choice of openraft's types.
    pub TypeConfig:
        D = Proposal,
        R = Answer,
        NodeId = NodeId,
        Node = Member,
        Term = u64,
        LeaderId = LeaderId<u64, NodeId>,
);

/// openraft's log id.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// openraft's vote.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// openraft's log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// openraft's snapshot metadata.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// openraft's stored membership.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
