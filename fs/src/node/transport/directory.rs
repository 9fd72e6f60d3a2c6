//! Who the members are and where they listen, for whoever needs to find one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use raftstore::meta::{NodeId, Reader};
use raftstore::raft::Member;

/// The members as last known. At first those written down at the last run, then those of the replicated state.
#[derive(Debug, Default)]
pub struct Directory {
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    members: Arc<BTreeMap<NodeId, Member>>,
    /// Ids below this were given out. 0 until the replicated state was read.
    given_below: NodeId,
    /// Members of Raft, as far as this node knows.
    in_raft: BTreeSet<NodeId>,
}

impl Directory {
    /// Starts with members from an earlier run.
    #[must_use]
    pub fn new(hints: impl IntoIterator<Item = (NodeId, Member)>) -> Self {
        let members = Arc::new(hints.into_iter().collect());
        Self {
            known: RwLock::new(Known {
                members,
                ..Known::default()
            }),
        }
    }

    /// Takes over what the replicated state says. Returns true if that changed anything. A state without nodes (a
    /// blank one) does not count.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn update(&self, reader: &Reader) -> Result<bool, raftstore::kv::KvError> {
        let nodes = reader.nodes()?;
        if nodes.is_empty() {
            return Ok(false);
        }
        let given_below = reader.next_node_id()?;
        let members: BTreeMap<_, _> = nodes
            .into_iter()
            .map(|node| {
                (
                    node.id,
                    Member {
                        name: node.name,
                        listen: node.listen,
                    },
                )
            })
            .collect();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *known.members != members || known.given_below != given_below;
        *known = Known {
            members: Arc::new(members),
            given_below,
            in_raft: std::mem::take(&mut known.in_raft),
        };
        Ok(changed)
    }

    /// Everyone.
    #[must_use]
    pub fn members(&self) -> Arc<BTreeMap<NodeId, Member>> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner).members)
    }

    /// Where a node listens.
    #[must_use]
    pub fn listen(&self, node: NodeId) -> Option<String> {
        self.members().get(&node).map(|member| member.listen.clone())
    }

    /// Takes over who is in Raft's membership.
    pub fn set_in_raft(&self, nodes: BTreeSet<NodeId>) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).in_raft = nodes;
    }

    /// True if `node` is known to have been removed. Ids are never used again, so one that was given out and is not
    /// a member's was. A higher one may be of a node that joined just now. One that Raft still counts with stays until
    /// Raft does not: of two voters, the one that goes is needed to decide that it goes.
    #[must_use]
    pub fn was_removed(&self, node: NodeId) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        node < known.given_below && !known.members.contains_key(&node) && !known.in_raft.contains(&node)
    }
}
