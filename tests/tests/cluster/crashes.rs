//! `kill -9`, under a load that notes what it was promised.

use std::io::Write as _;
use std::time::Duration;

use bramble_tests::load::Worker;
use bramble_tests::run::try_run;
use bramble_tests::{Cluster, Own, Seed, brief_or_full, wait_for};
use rand::Rng as _;
use rand::seq::SliceRandom as _;

/// What a node's death may cost the others (issue: "the others go on within 5 s").
const INTERRUPTION_MAX: Duration = Duration::from_secs(5);
/// How long to wait for what ought to happen sooner.
const PATIENCE: Duration = Duration::from_secs(60);

/// One worker on each node.
fn workers(cluster: &Cluster) -> Vec<Worker> {
    let nodes = cluster.nodes().iter();
    let workers: Vec<_> = nodes
        .map(|node| Worker::start(&node.mount, &format!("load-{}", node.name)))
        .collect();
    workers
        .iter()
        .for_each(|worker| worker.wait_progress(20, PATIENCE));
    workers
}

/// Everything that was acknowledged to any worker is there, seen from every node that runs.
fn check_everywhere(cluster: &Cluster, workers: &[Worker]) {
    for node in cluster.nodes().iter().filter(|node| node.is_started()) {
        workers.iter().for_each(|worker| worker.check(&node.mount));
    }
}

fn kill_one_under_load(cluster: &Own, victim: usize, workers: &mut [Worker]) {
    let others: Vec<_> = (0..3).filter(|index| *index != victim).collect();
    for worker in workers.iter() {
        let _ = worker.take_longest_gap();
    }
    let before = workers[victim].errors();
    cluster.node(victim).kill9();
    for other in &others {
        workers[*other].wait_progress(50, PATIENCE);
        let gap = workers[*other].take_longest_gap();
        eprintln!("killed {victim}: the worker on node {other} waited at most {gap:?}");
        assert!(gap < INTERRUPTION_MAX, "node {other} stood still for {gap:?}");
    }
    check_everywhere(cluster, workers);
    assert!(
        workers[victim].errors() > before,
        "the killed node's mount still works"
    );
    // It comes back and catches up by itself.
    cluster.start(victim);
    cluster.node(victim).wait_healthy();
    workers[victim].wait_progress(20, PATIENCE);
    cluster.wait_caught_up(others[0]);
    check_everywhere(cluster, workers);
}

#[test]
fn a_killed_leader_is_replaced_and_comes_back() {
    let cluster = Cluster::own("kill_leader", bramble_tests::Options::default());
    let mut workers = workers(&cluster);
    for _ in 0..brief_or_full(2, 10) {
        let leader = cluster.leader();
        kill_one_under_load(&cluster, leader, &mut workers);
        assert_ne!(
            cluster.leader(),
            leader,
            "the leader was killed, so another must lead"
        );
    }
    workers.iter_mut().for_each(Worker::stop);
    check_everywhere(&cluster, &workers);
}

#[test]
fn a_killed_follower_is_missed_by_nobody_and_comes_back() {
    let cluster = Cluster::own("kill_follower", bramble_tests::Options::default());
    let mut workers = workers(&cluster);
    for _ in 0..brief_or_full(2, 10) {
        kill_one_under_load(&cluster, cluster.follower(), &mut workers);
    }
    workers.iter_mut().for_each(Worker::stop);
    check_everywhere(&cluster, &workers);
}

#[test]
fn all_nodes_killed_at_random_moments_lose_nothing_acknowledged() {
    let cluster = Cluster::own("kill_all", bramble_tests::Options::default());
    let mut seed = Seed::new();
    let mut workers = workers(&cluster);
    for round in 0..brief_or_full(8, 100) {
        std::thread::sleep(Duration::from_millis(seed.random_range(0..1500)));
        let mut order = [0, 1, 2];
        order.shuffle(&mut *seed);
        // One after the other without a pause, or with a small one: a majority may go on for a moment.
        for victim in order {
            cluster.node(victim).kill9();
            if seed.random_bool(0.3) {
                std::thread::sleep(Duration::from_millis(seed.random_range(0..50)));
            }
        }
        (0..3).for_each(|node| cluster.start(node));
        cluster.wait_healthy();
        eprintln!(
            "round {round}: {} acknowledged",
            workers.iter().map(Worker::acknowledged).sum::<u64>()
        );
        check_everywhere(&cluster, &workers);
        workers
            .iter()
            .for_each(|worker| worker.wait_progress(1, PATIENCE));
    }
    workers.iter_mut().for_each(Worker::stop);
    check_everywhere(&cluster, &workers);
}

#[test]
fn without_a_quorum_writes_wait_and_status_says_why() {
    let cluster = Cluster::own("no_quorum", bramble_tests::Options::default());
    let [left, gone, back] = [0, 1, 2];
    let mount = |node: usize| cluster.node(node).mount.display().to_string();
    std::fs::write(cluster.node(left).path("file"), "before").unwrap();
    cluster.node(gone).kill9();
    cluster.node(back).kill9();
    // An fsync waits, also of what the node could do under its leases; it can be interrupted.
    let output = try_run(
        "timeout",
        [
            "--kill-after=10",
            "5",
            "sh",
            "-c",
            &format!("cd {} && touch interrupted && sync interrupted", mount(left)),
        ],
    );
    assert_eq!(
        output.status.code(),
        Some(124),
        "a write without a quorum must wait: {output:?}"
    );
    let status = cluster.node(left).cli(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(
        text.to_lowercase().contains("quorum"),
        "status does not say why writes wait:\n{text}"
    );
    assert!(
        !cluster.node(left).cli(&["health"]).status.success(),
        "healthy without a quorum"
    );
    // One that waits goes through once there is a quorum.
    let path = cluster.node(left).path("waiting");
    let writer = std::thread::spawn(move || {
        let mut file = std::fs::File::create(path)?;
        file.write_all(b"after")?;
        file.sync_all()
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(!writer.is_finished(), "a write without a quorum must wait");
    cluster.start(back);
    wait_for("the waiting write", PATIENCE, || {
        writer.is_finished().then_some(())
    });
    writer.join().unwrap().unwrap();
    cluster.node(back).wait_healthy();
    assert_eq!(
        std::fs::read_to_string(cluster.node(back).path("waiting")).unwrap(),
        "after"
    );
    assert_eq!(
        std::fs::read_to_string(cluster.node(back).path("file")).unwrap(),
        "before"
    );
}

#[test]
fn nodes_that_are_stopped_cleanly_come_back_as_they_were() {
    let cluster = Cluster::own("stop_all", bramble_tests::Options::default());
    let mut workers = workers(&cluster);
    workers.iter_mut().for_each(Worker::stop);
    for node in cluster.nodes() {
        node.stop();
    }
    (0..3).for_each(|node| cluster.start(node));
    cluster.wait_healthy();
    check_everywhere(&cluster, &workers);
}
