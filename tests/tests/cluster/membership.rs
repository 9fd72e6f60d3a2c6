//! Nodes that come, lag, and go.

use std::fs;
use std::time::Duration;

use bramble_tests::load::Worker;
use bramble_tests::{Cluster, Options, sh, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);

/// A log so short that a node which was away needs a snapshot.
fn short_log() -> Vec<(&'static str, u64)> {
    vec![
        ("journal_entries_max", 200),
        ("journal_bytes_max", 8 << 20),
        ("journal_segment_bytes", 1 << 20),
    ]
}

#[test]
fn one_node_grows_to_three_and_to_five_under_load() {
    let mut cluster = Cluster::own(
        "grow",
        Options {
            nodes: 1,
            limits: short_log(),
            ..Options::default()
        },
    );
    sh(
        &cluster.node(0).mount,
        "mkdir data; cd data; for i in $(seq 500); do echo $i >file$i; done; sha256sum * >../sums",
    );
    let mut worker = Worker::start(&cluster.node(0).mount, "load");
    worker.wait_progress(300, PATIENCE);
    for nodes in 2..=5 {
        cluster.grow();
        worker.wait_progress(50, PATIENCE);
        assert_eq!(cluster.nodes().len(), nodes);
        let newest = &cluster.nodes()[nodes - 1];
        sh(&newest.mount, "cd data; sha256sum --quiet -c ../sums");
        worker.check(&newest.mount);
    }
    wait_for("five voters", PATIENCE, || {
        (cluster.node(0).status().voters() == 5).then_some(())
    });
    worker.stop();
    // The first is not needed any more.
    cluster.node(0).kill9();
    cluster.node(4).wait_healthy();
    worker.check(&cluster.node(4).mount);
    sh(
        &cluster.node(3).mount,
        "cd data; sha256sum --quiet -c ../sums; echo more >../more",
    );
}

#[test]
fn a_node_that_was_away_takes_a_snapshot_while_the_others_work() {
    let cluster = Cluster::own(
        "lagging",
        Options {
            limits: short_log(),
            ..Options::default()
        },
    );
    let away = cluster.follower();
    let other = (away + 1) % 3;
    let mut worker = Worker::start(&cluster.node(other).mount, "load");
    worker.wait_progress(20, PATIENCE);
    cluster.node(away).kill9();
    let applied = cluster.node(other).status().applied_index();
    sh(
        &cluster.node(other).mount,
        "for i in $(seq 600); do echo $i >file$i; done",
    );
    worker.wait_progress(200, PATIENCE);
    wait_for("both logs to be cut beyond what the node knows", PATIENCE, || {
        let mut running = cluster.nodes().iter().filter(|node| node.is_started());
        running
            .all(|node| node.status().log_first_index() > applied)
            .then_some(())
    });
    cluster.start(away);
    cluster.node(away).wait_healthy();
    worker.wait_progress(50, PATIENCE);
    cluster.wait_caught_up(other);
    assert!(
        cluster.node(away).status().snapshots_installed() > 0,
        "it caught up without a snapshot"
    );
    worker.stop();
    worker.check(&cluster.node(away).mount);
    assert_eq!(
        fs::read_to_string(cluster.node(away).path("file600")).unwrap(),
        "600\n"
    );
}

#[test]
fn a_removed_node_is_replaced_by_a_new_one() {
    let mut cluster = Cluster::own("remove", Options::default());
    sh(
        &cluster.node(0).mount,
        "head -c 5000000 /dev/urandom >large; sha256sum large >sums",
    );
    cluster.node(2).kill9();
    let refused = cluster.node(0).cli(&["node", "rm", "node9"]);
    assert!(!refused.status.success());
    // The others may still be copying what has just been written.
    wait_for("node3 to be removed", PATIENCE, || {
        let removed = cluster.node(0).cli(&["node", "rm", "node3"]);
        removed.status.success().then_some(())
    });
    let list = cluster.node(1).cli_ok(&["node", "ls"]);
    assert!(list.contains("node2") && !list.contains("node3"), "{list}");
    cluster.grow();
    let list = cluster.node(1).cli_ok(&["node", "ls"]);
    assert!(list.contains("node4"), "{list}");
    sh(&cluster.node(3).mount, "sha256sum --quiet -c sums");
    // With the new one, once it votes, the loss of another is survived.
    cluster.wait_voters();
    cluster.node(1).kill9();
    sh(
        &cluster.node(3).mount,
        "sha256sum --quiet -c sums; echo more >more",
    );
}

#[test]
fn a_node_that_may_have_the_only_copies_is_not_removed() {
    let one = Options {
        nodes: 1,
        ..Options::default()
    };
    let mut cluster = Cluster::own("remove_last_copy", one);
    sh(
        &cluster.node(0).mount,
        "head -c 250000000 /dev/urandom >large; sha256sum large >sums",
    );
    cluster.grow();
    wait_for("two voters", PATIENCE, || {
        (cluster.node(1).status().voters() == 2).then_some(())
    });
    // The new node copies at a bounded rate (32 MiB/s at most), and has not got everything yet.
    let refused = cluster.node(1).cli(&["node", "rm", "node1"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && text.contains("node2 has not got all its chunks yet"),
        "{text}"
    );
    wait_for("node1 to be removed", PATIENCE, || {
        let removed = cluster.node(1).cli(&["node", "rm", "node1"]);
        removed.status.success().then_some(())
    });
    // Its daemon ends by itself, once the other has decided without it that it is gone.
    wait_for("node1 to end", PATIENCE, || {
        let output = cluster.node(0).cli(&["status"]);
        String::from_utf8_lossy(&output.stderr)
            .contains("no daemon is running")
            .then_some(())
    });
    wait_for("node2 to go on alone", PATIENCE, || {
        let status = cluster.node(1).try_status()?;
        (status.leader()? == "node2" && status.voters() == 1).then_some(())
    });
    sh(&cluster.node(1).mount, "sha256sum --quiet -c sums");
}
