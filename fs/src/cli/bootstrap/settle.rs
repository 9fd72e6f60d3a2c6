//! Waits until all is as it should be, and says meanwhile how far that is.

use std::path::Path;
use std::time::Duration;

use crate::cli::admin;
use crate::node::leader::membership::voters_wanted;
use crate::node::status::Status;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// So many looks in a row must find nothing to be done: a node that has just come is given its chunks bit by bit.
const STEADY_LOOKS: u32 = 5;
/// So long in a row another node must be silent to be left out: it may be starting.
const PATIENCE_LOOKS: u32 = 15;

/// What a status says of the way to the end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing is to be done.
    Clean,
    /// This has yet to be done, which happens by itself.
    Busy(String),
    /// All that can be done was; these nodes do not answer.
    Without(Vec<String>),
}

/// How far it is.
pub(super) fn progress(status: &Status) -> Progress {
    let cluster = &status.cluster;
    if let Some(why) = &cluster.waiting_for {
        return Progress::Busy(format!("no quorum: {why}"));
    }
    let Some(own) = cluster.nodes.iter().find(|node| node.id == status.node.id) else {
        return Progress::Busy("this node has yet to hear of the cluster".into());
    };
    if own.role == "joining" {
        return Progress::Busy("the cluster is taking this node in".into());
    }
    let copying = |own: bool| {
        let of = cluster
            .nodes
            .iter()
            .filter(move |node| (node.id == status.node.id) == own);
        of.filter(|node| node.reachable && !node.chunks_complete)
    };
    if status.chunks.pending > 0 || copying(true).next().is_some() {
        let (here, missing) = (status.chunks.count, status.chunks.pending);
        return Progress::Busy(match missing {
            0 => format!("copying: {here} chunks are here; looking for what is missing"),
            _ => format!("copying: {here} chunks are here, {missing} are missing"),
        });
    }
    let others: Vec<String> = copying(false)
        .map(|node| match node.chunks_missing {
            0 => node.name.clone(),
            missing => format!("{} ({missing} missing)", node.name),
        })
        .collect();
    if !others.is_empty() {
        return Progress::Busy(format!("copying to {}", others.join(", ")));
    }
    let silent: Vec<String> = cluster
        .nodes
        .iter()
        .filter(|node| !node.reachable)
        .map(|node| node.name.clone())
        .collect();
    let wanted = u64::try_from(voters_wanted(cluster.nodes.len())).unwrap_or(u64::MAX);
    if silent.is_empty() && status.raft.voters != wanted {
        return Progress::Busy(format!("{} nodes vote, and {wanted} are to", status.raft.voters));
    }
    if let Some(warning) = status.warnings.first() {
        return Progress::Busy(warning.clone());
    }
    if silent.is_empty() {
        Progress::Clean
    } else {
        Progress::Without(silent)
    }
}

/// Waits, for as long as it takes, and ends with the names of nodes that do not answer.
pub(super) fn wait(store: &Path, say: &dyn Fn(&str)) -> Result<Vec<String>, String> {
    let (mut told, mut steady) = (String::new(), 0);
    let (mut last, mut chunks) = (None, 0);
    let silent = loop {
        let status = admin::parsed_status(store)?;
        let now = progress(&status);
        steady = if last.as_ref() == Some(&now) {
            steady + 1
        } else {
            0
        };
        match &now {
            Progress::Busy(what) if *what != told => {
                say(what);
                told.clone_from(what);
            }
            Progress::Busy(_) => {}
            Progress::Clean if steady >= STEADY_LOOKS => break Vec::new(),
            Progress::Without(silent) if steady >= PATIENCE_LOOKS => break silent.clone(),
            Progress::Clean | Progress::Without(_) => {}
        }
        (last, chunks) = (Some(now), status.chunks.count);
        std::thread::sleep(LOOK_INTERVAL);
    };
    say(&format!("all chunks that belong on this node are here: {chunks}"));
    Ok(silent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::status::MemberStatus;

    fn status() -> Status {
        let node = |id: u64| MemberStatus {
            id,
            name: format!("pi-{id}"),
            role: "voter".into(),
            reachable: true,
            chunks_complete: true,
            ..MemberStatus::default()
        };
        let mut status = Status::default();
        status.node.id = 3;
        status.cluster.nodes = (1..=3).map(node).collect();
        status.raft.voters = 3;
        status
    }

    fn busy(change: fn(&mut Status)) -> String {
        let mut status = status();
        change(&mut status);
        match progress(&status) {
            Progress::Busy(what) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_cluster_is_clean_when_nothing_is_left_to_do() {
        assert_eq!(progress(&status()), Progress::Clean);
        assert!(busy(|s| s.cluster.waiting_for = Some("alone".into())).contains("alone"));
        assert!(busy(|s| s.cluster.nodes[2].role = "joining".into()).contains("taking"));
        assert!(busy(|s| s.cluster.nodes.clear()).contains("yet to hear"));
        assert!(busy(|s| s.raft.voters = 2).contains("3 are to"));
        assert!(busy(|s| s.warnings.push("worn out".into())).contains("worn out"));
    }

    #[test]
    fn it_says_what_is_copied_where() {
        let here = busy(|s| {
            s.cluster.nodes[2].chunks_complete = false;
            (s.chunks.count, s.chunks.pending) = (7, 5);
        });
        assert_eq!(here, "copying: 7 chunks are here, 5 are missing");
        let there = busy(|s| {
            s.cluster.nodes[0].chunks_complete = false;
            s.cluster.nodes[0].chunks_missing = 4;
        });
        assert_eq!(there, "copying to pi-1 (4 missing)");
    }

    #[test]
    fn a_node_that_is_away_is_named() {
        let mut status = status();
        status.cluster.nodes[1].reachable = false;
        status.cluster.nodes[1].chunks_complete = false;
        assert_eq!(progress(&status), Progress::Without(vec!["pi-2".into()]));
    }
}
