//! Who votes and who learns. Decided by a pure function; the leader carries out one step at a time.

use std::collections::BTreeSet;

use raftstore::meta::NodeId;

/// What the leader knows when it decides.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// This node, which leads.
    pub leader: NodeId,
    /// Nodes of the replicated state.
    pub registered: BTreeSet<NodeId>,
    /// Of those, the ones that were heard of recently.
    pub live: BTreeSet<NodeId>,
    /// Raft's voters; while the configuration is joint, those of both halves.
    pub voters: BTreeSet<NodeId>,
    /// A change of the voters was left half done: a majority of the old ones *and* one of the new ones decide.
    pub joint: bool,
    /// Raft's learners.
    pub learners: BTreeSet<NodeId>,
    /// Learners that have nearly all of the log.
    pub caught_up: BTreeSet<NodeId>,
}

/// One change of Raft's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Finish a change that another leader began: its second half is an entry of its own, and who began may have died
    /// in between.
    Finish,
    /// The leader itself was removed: another voter must lead and remove it.
    HandOver(NodeId),
    /// Remove from the voters (not left as learners).
    RemoveVoters(BTreeSet<NodeId>),
    /// Remove learners.
    RemoveLearners(BTreeSet<NodeId>),
    /// Add as learner.
    AddLearner(NodeId),
    /// Make voters of learners.
    Promote(BTreeSet<NodeId>),
    /// Make a learner of a voter.
    Demote(NodeId),
}

/// How many of `nodes` members vote: an even number beyond two would only make the quorum larger, more than five
/// would only make it slower.
#[must_use]
pub fn voters_wanted(nodes: usize) -> usize {
    match nodes {
        0..=2 => nodes,
        3 | 4 => 3,
        _ => 5,
    }
}

/// The next step towards the wanted membership, if any. A silent member is never replaced: that is for an
/// administrator, who knows whether it comes back.
#[must_use]
pub fn next_step(view: &View) -> Option<Step> {
    if view.joint {
        return Some(Step::Finish);
    }
    let gone = |members: &BTreeSet<NodeId>| -> BTreeSet<NodeId> { members - &view.registered };
    if !view.registered.contains(&view.leader) {
        let heir = view
            .voters
            .iter()
            .find(|v| view.registered.contains(v) && view.live.contains(v));
        return heir.copied().map(Step::HandOver);
    }
    let gone_voters = gone(&view.voters);
    if !gone_voters.is_empty() {
        return Some(Step::RemoveVoters(gone_voters));
    }
    let gone_learners = gone(&view.learners);
    if !gone_learners.is_empty() {
        return Some(Step::RemoveLearners(gone_learners));
    }
    let members: BTreeSet<NodeId> = &view.voters | &view.learners;
    if let Some(newcomer) = view
        .live
        .iter()
        .find(|n| view.registered.contains(n) && !members.contains(n))
    {
        return Some(Step::AddLearner(*newcomer));
    }
    let wanted = voters_wanted(members.len());
    if view.voters.len() > wanted {
        let candidates = || view.voters.iter().rev().filter(|v| **v != view.leader);
        let silent = candidates().find(|v| !view.live.contains(v));
        return silent.or_else(|| candidates().next()).copied().map(Step::Demote);
    }
    let ready: BTreeSet<NodeId> = (&view.learners & &view.caught_up)
        .intersection(&view.live)
        .copied()
        .collect();
    let missing = wanted.saturating_sub(view.voters.len());
    // From three voters straight to five: four would bear no more losses than three.
    let step = if view.voters.len() >= 3 {
        missing
    } else {
        missing.min(1)
    };
    if step > 0 && ready.len() >= step {
        return Some(Step::Promote(ready.into_iter().take(step).collect()));
    }
    None
}

/// Whether the cluster can still decide after `node` is gone: a majority of the other voters must be live.
///
/// # Errors
/// The reason, for the administrator.
pub fn may_remove(view: &View, node: NodeId) -> Result<(), String> {
    if view.registered.len() <= 1 {
        return Err("it is the only node of the cluster: to give the cluster up, stop the daemon and delete its store"
            .to_owned());
    }
    if !view.voters.contains(&node) {
        return Ok(());
    }
    let rest: BTreeSet<NodeId> = view
        .voters
        .iter()
        .copied()
        .filter(|voter| *voter != node)
        .collect();
    let live = rest.iter().filter(|voter| view.live.contains(voter)).count();
    let needed = rest.len() / 2 + 1;
    if live < needed {
        return Err(format!(
            "without it {live} of {} voters would be reachable and {needed} are needed: the cluster would stop. Bring \
             the other nodes back first, or add --force if they are gone for good",
            rest.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: impl IntoIterator<Item = NodeId>) -> BTreeSet<NodeId> {
        ids.into_iter().collect()
    }

    /// Carries out steps until there are none; returns how many.
    fn settle(view: &mut View) -> usize {
        for count in 0..64 {
            let Some(step) = next_step(view) else { return count };
            match step {
                Step::Finish => view.joint = false,
                Step::HandOver(to) => view.leader = to,
                Step::RemoveVoters(nodes) => view.voters = &view.voters - &nodes,
                Step::RemoveLearners(nodes) => view.learners = &view.learners - &nodes,
                Step::AddLearner(node) => {
                    assert!(view.learners.insert(node));
                    view.caught_up.insert(node);
                }
                Step::Promote(nodes) => {
                    assert!(nodes.is_subset(&view.learners));
                    view.learners = &view.learners - &nodes;
                    view.voters = &view.voters | &nodes;
                }
                Step::Demote(node) => {
                    assert!(view.voters.remove(&node) && node != view.leader);
                    view.learners.insert(node);
                }
            }
        }
        panic!("membership does not settle: {view:?}");
    }

    #[test]
    fn voters_follow_the_number_of_nodes() {
        let mut view = View {
            leader: 1,
            voters: set([1]),
            registered: set([1]),
            live: set([1]),
            ..View::default()
        };
        for (nodes, voters) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (6, 5), (7, 5)] {
            view.registered = set(1..=nodes);
            view.live = view.registered.clone();
            settle(&mut view);
            assert_eq!(
                (view.voters.len(), view.learners.len() as u64),
                (voters, nodes - voters as u64)
            );
        }
        for (nodes, voters) in [(6, 5), (5, 5), (4, 3), (3, 3), (2, 2), (1, 1)] {
            view.registered = set(1..=nodes);
            view.live = view.registered.clone();
            settle(&mut view);
            assert_eq!(view.voters.len(), voters, "{nodes} nodes");
        }
    }

    #[test]
    fn a_removed_leader_hands_over_first() {
        let mut view = View {
            leader: 1,
            registered: set([2, 3]),
            live: set([2, 3]),
            voters: set([1, 2, 3]),
            ..View::default()
        };
        assert_eq!(next_step(&view), Some(Step::HandOver(2)));
        settle(&mut view);
        assert_eq!(view.voters, set([2, 3]));
    }

    #[test]
    fn a_change_that_was_left_half_done_is_finished_first() {
        let mut view = View {
            leader: 1,
            joint: true,
            registered: set(1..=3),
            live: set(1..=3),
            voters: set(1..=3),
            ..View::default()
        };
        assert_eq!(next_step(&view), Some(Step::Finish));
        // Also when there is something else to do.
        view.registered = set(1..=2);
        assert_eq!(next_step(&view), Some(Step::Finish));
        settle(&mut view);
        assert!(!view.joint && view.voters == set(1..=2));
    }

    #[test]
    fn silent_members_stay() {
        let view = View {
            leader: 1,
            joint: false,
            registered: set(1..=4),
            live: set([1, 2, 4]),
            voters: set(1..=3),
            learners: set([4]),
            caught_up: set([4]),
        };
        assert_eq!(next_step(&view), None);
    }

    #[test]
    fn laggards_are_not_promoted() {
        let mut view = View {
            leader: 1,
            registered: set(1..=3),
            live: set(1..=3),
            voters: set([1, 2]),
            learners: set([3]),
            ..View::default()
        };
        assert_eq!(next_step(&view), None);
        view.caught_up = set([3]);
        assert_eq!(next_step(&view), Some(Step::Promote(set([3]))));
    }

    #[test]
    fn removal_that_would_stop_the_cluster_is_refused() {
        let mut view = View {
            leader: 1,
            registered: set(1..=3),
            live: set(1..=3),
            voters: set(1..=3),
            ..View::default()
        };
        assert!(may_remove(&view, 3).is_ok());
        view.live = set([1, 2]);
        assert!(
            may_remove(&view, 3).is_ok(),
            "removing the dead one is what it is for"
        );
        assert!(may_remove(&view, 2).unwrap_err().contains("--force"));
        view.registered = set([1]);
        assert!(may_remove(&view, 1).is_err());
    }
}
