//! What to do next so that this machine is in the cluster's Swarm. Pure functions.

use std::collections::BTreeSet;

use super::docker::{JoinTokens, OwnSwarm, SwarmNode, SwarmState};

/// So many machines manage the Swarm; those that come later work.
pub const MANAGERS_MAX: usize = 5;

/// What the daemon of one node of the cluster says of Swarm on its machine; this node's own is among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The node's name in the cluster.
    pub node: String,
    /// What it says, or why it does not.
    pub seen: Result<Seen, String>,
}

/// What a machine is in Swarm, and sees of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Where it stands.
    pub state: SwarmState,
    /// What is wrong; empty if nothing is.
    pub trouble: String,
    /// Which Swarm it manages.
    pub swarm_id: Option<String>,
    /// IP:PORT of managers.
    pub managers: Vec<String>,
    /// Of a manager: all nodes.
    pub nodes: Vec<SwarmNode>,
    /// Of a manager: the secrets.
    pub tokens: Option<JoinTokens>,
}

impl Seen {
    /// Whether it says for certain that this machine is in no Swarm.
    fn is_out(&self) -> bool {
        self.state == SwarmState::Inactive && self.trouble.is_empty()
    }
}

/// The end: this machine is in the cluster's Swarm.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Enrolled {
    /// Which one.
    pub swarm_id: String,
    /// Whether it manages it.
    pub is_manager: bool,
    /// How many manage it.
    pub managers: usize,
    /// How many are in it.
    pub nodes: usize,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Done(Enrolled),
    /// Write down that this is the cluster's Swarm.
    Record(String),
    /// Make one.
    Make,
    /// Have this dead namesake removed by the node of this name.
    Remove {
        /// A node of the cluster whose machine manages the Swarm.
        via: String,
        /// Whom.
        dead: SwarmNode,
    },
    /// Join.
    Join {
        /// As what.
        as_manager: bool,
        /// IP:PORT.
        managers: Vec<String>,
        /// The secret.
        token: String,
    },
    /// Look again in a moment; why.
    Wait(String),
    /// Give up; why, and what to do.
    Refuse(String),
}

/// What to do next, from what Docker says here, which Swarm is written down as the cluster's, and what all nodes say.
#[must_use]
pub fn next_step(own: &OwnSwarm, recorded: Option<&str>, views: &[View]) -> Step {
    let managed: BTreeSet<&str> = seen(views)
        .filter_map(|(_, seen)| seen.swarm_id.as_deref())
        .chain(own.swarm_id.as_deref())
        .collect();
    let wanted = match recorded {
        Some(id) => Some(id),
        None if managed.len() > 1 => return Step::Refuse(two_swarms(views)),
        None => managed.first().copied(),
    };
    match own.state {
        SwarmState::Locked => Step::Refuse(
            "Swarm on this machine is locked: run `docker swarm unlock` here, then repeat this command"
                .into(),
        ),
        SwarmState::Pending => Step::Wait("this machine is joining the Swarm".into()),
        SwarmState::Error => Step::Wait(format!("Swarm on this machine has failed: {}", own.error)),
        SwarmState::Active => when_in(own, wanted, recorded.is_some(), views),
        SwarmState::Inactive => match wanted {
            Some(id) => when_out(own, id, recorded.is_some(), views),
            None => when_there_is_none(views),
        },
    }
}

fn seen(views: &[View]) -> impl Iterator<Item = (&str, &Seen)> {
    views
        .iter()
        .filter_map(|view| Some((view.node.as_str(), view.seen.as_ref().ok()?)))
}

/// Those that manage this Swarm and can say who is in it.
fn managers_of<'a>(views: &'a [View], id: &'a str) -> impl Iterator<Item = (&'a str, &'a Seen)> {
    seen(views).filter(move |(_, seen)| seen.swarm_id.as_deref() == Some(id) && !seen.nodes.is_empty())
}

fn two_swarms(views: &[View]) -> String {
    let of = seen(views).filter_map(|(node, seen)| Some(format!("{node} is in {}", seen.swarm_id.as_ref()?)));
    format!(
        "the cluster's machines are in different Swarms ({}): decide which one stays, run `docker swarm leave --force` on \
         the machines of the other, then repeat this command",
        of.collect::<Vec<_>>().join(", ")
    )
}

fn foreign(wanted: &str) -> Step {
    Step::Refuse(format!(
        "this machine is in a Swarm that is not the cluster's ({wanted}): if nothing of it is needed any more, run `docker \
         swarm leave --force` here, then repeat this command"
    ))
}

/// What is in the way of asking any manager.
fn no_manager(views: &[View], id: &str) -> Step {
    let said = views.iter().filter_map(|view| match &view.seen {
        Err(why) => Some(format!("{}: {why}", view.node)),
        Ok(seen) if !seen.trouble.is_empty() => Some(format!("{}: {}", view.node, seen.trouble)),
        Ok(_) => None,
    });
    let said: Vec<String> = said.collect();
    let said = if said.is_empty() {
        "none of the cluster's machines manages it".to_owned()
    } else {
        said.join("; ")
    };
    Step::Wait(format!(
        "the cluster's Swarm ({id}) has no manager that can be asked: {said}. If most of its managers are gone for good, \
         run `docker swarm init --force-new-cluster` on one that is left; if all are, remove .bramble/swarm.json from the \
         tree; then repeat this command"
    ))
}

fn when_in(own: &OwnSwarm, wanted: Option<&str>, is_recorded: bool, views: &[View]) -> Step {
    let Some(wanted) = wanted else {
        return Step::Wait("this machine works in a Swarm, and none of its managers can be asked".into());
    };
    if own.swarm_id.as_deref().is_some_and(|id| id != wanted) {
        return foreign(wanted);
    }
    let Some((via, seen)) = managers_of(views, wanted).next() else {
        return no_manager(views, wanted);
    };
    if !seen.nodes.iter().any(|node| node.id == own.node_id) {
        return foreign(wanted);
    }
    if !is_recorded {
        return Step::Record(wanted.to_owned());
    }
    let dead = namesakes(own, seen).find(|node| is_gone(node));
    if let Some(dead) = dead {
        return remove(via, seen, dead);
    }
    Step::Done(Enrolled {
        swarm_id: wanted.to_owned(),
        is_manager: own.swarm_id.is_some(),
        managers: seen.nodes.iter().filter(|node| node.is_manager).count(),
        nodes: seen.nodes.len(),
    })
}

fn when_out(own: &OwnSwarm, wanted: &str, is_recorded: bool, views: &[View]) -> Step {
    let Some((via, seen)) = managers_of(views, wanted).next() else {
        return no_manager(views, wanted);
    };
    if !is_recorded {
        return Step::Record(wanted.to_owned());
    }
    // Removed before this machine comes: so Swarm never counts a dead manager more than it must.
    if let Some(living) = namesakes(own, seen).find(|node| !is_gone(node)) {
        return Step::Wait(format!(
            "the Swarm still takes another machine named {} (at {}) for running: if it is the one that this machine \
             replaces, Swarm gives it up within a minute; else give this machine another host name",
            living.hostname, living.address
        ));
    }
    if let Some(dead) = namesakes(own, seen).next() {
        return remove(via, seen, dead);
    }
    let Some(tokens) = &seen.tokens else {
        return Step::Wait(format!("{via} gives no join token: {}", seen.trouble));
    };
    let managers = seen.nodes.iter().filter(|node| node.is_manager).count();
    let as_manager = managers < MANAGERS_MAX;
    Step::Join {
        as_manager,
        managers: seen.managers.clone(),
        token: if as_manager {
            &tokens.manager
        } else {
            &tokens.worker
        }
        .clone(),
    }
}

fn when_there_is_none(views: &[View]) -> Step {
    for view in views {
        match &view.seen {
            Ok(seen) if seen.is_out() => {}
            Ok(seen) if seen.state == SwarmState::Active && seen.swarm_id.is_none() => {
                return Step::Refuse(format!(
                    "{} works in a Swarm that none of the cluster's machines manages: make it a manager (`docker node \
                     promote`), or let it leave, then repeat this command",
                    view.node
                ));
            }
            // It may be in one: a second must not be made.
            Ok(seen) => {
                return Step::Wait(format!(
                    "whether {} is in a Swarm is not known: {}",
                    view.node, seen.trouble
                ));
            }
            Err(why) => {
                return Step::Wait(format!(
                    "whether {} is in a Swarm is not known, since it cannot be asked: {why}. Start it, or remove it from \
                     the cluster with `bramble node rm {0}`",
                    view.node
                ));
            }
        }
    }
    Step::Make
}

/// Others that have this machine's name.
fn namesakes<'a>(own: &'a OwnSwarm, seen: &'a Seen) -> impl Iterator<Item = &'a SwarmNode> {
    seen.nodes
        .iter()
        .filter(|node| node.hostname == own.hostname && node.id != own.node_id)
}

fn remove(via: &str, seen: &Seen, dead: &SwarmNode) -> Step {
    match may_remove(&seen.nodes, dead) {
        Ok(()) => Step::Remove {
            via: via.to_owned(),
            dead: dead.clone(),
        },
        Err(why) => Step::Refuse(why),
    }
}

fn is_gone(node: &SwarmNode) -> bool {
    node.is_down && !(node.is_manager && node.is_reachable)
}

/// Whether the Swarm of `nodes` can do without `node`: it is down, and a majority of the other managers is reachable.
///
/// # Errors
/// Why not, for the administrator.
pub fn may_remove(nodes: &[SwarmNode], node: &SwarmNode) -> Result<(), String> {
    let name = format!("{} ({}) was not removed from the Swarm", node.hostname, node.id);
    if !is_gone(node) {
        return Err(format!("{name}: it is running at {}", node.address));
    }
    if !node.is_manager {
        return Ok(());
    }
    let others: Vec<&SwarmNode> = nodes
        .iter()
        .filter(|other| other.is_manager && other.id != node.id)
        .collect();
    let reachable = others
        .iter()
        .filter(|other| other.is_reachable && !other.is_down)
        .count();
    let needed = others.len() / 2 + 1;
    if reachable < needed {
        return Err(format!(
            "{name}: without it {reachable} of {} managers would be reachable and {needed} are needed, so the Swarm would \
             stop. Bring the other managers back first",
            others.len()
        ));
    }
    Ok(())
}
