//! Cut cables: each node in a network namespace of its own.

use std::fs;
use std::time::Duration;

use bramble_tests::load::Worker;
use bramble_tests::{Cluster, Options, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_cut_off_leader_answers_nothing_and_the_others_go_on() {
    let cluster = Cluster::own(
        "cut_leader",
        Options {
            namespaces: true,
            ..Options::default()
        },
    );
    let leader = cluster.leader();
    let [one, two] = [(leader + 1) % 3, (leader + 2) % 3];
    let nodes = cluster.nodes().iter();
    let mut workers: Vec<_> = nodes
        .map(|node| Worker::start(&node.mount, &format!("load-{}", node.name)))
        .collect();
    workers
        .iter()
        .for_each(|worker| worker.wait_progress(20, PATIENCE));
    fs::write(cluster.node(one).path("value"), "old").unwrap();
    assert_eq!(
        fs::read_to_string(cluster.node(leader).path("value")).unwrap(),
        "old"
    );

    assert!(cluster.network().reaches(one, leader));
    cluster.network().cut(leader);
    assert!(!cluster.network().reaches(one, leader) && cluster.network().reaches(one, two));
    for worker in [&workers[one], &workers[two]] {
        let _ = worker.take_longest_gap();
        worker.wait_progress(50, PATIENCE);
        let gap = worker.take_longest_gap();
        eprintln!("the leader's link is cut: a worker elsewhere waited at most {gap:?}");
        assert!(gap < Duration::from_secs(6), "stood still for {gap:?}");
    }
    fs::write(cluster.node(two).path("value"), "new").unwrap();

    // The cut-off node acknowledges nothing, and returns nothing that may be stale.
    let acknowledged = workers[leader].acknowledged();
    let path = cluster.node(leader).path("value");
    let reader = std::thread::spawn(move || fs::read_to_string(path));
    std::thread::sleep(Duration::from_secs(4));
    assert!(
        !reader.is_finished(),
        "a node without a quorum answered a read: {:?}",
        reader.join()
    );
    assert_eq!(
        workers[leader].acknowledged(),
        acknowledged,
        "a node without a quorum acknowledged a write"
    );

    cluster.network().heal(leader);
    wait_for("the read that waited", PATIENCE, || {
        reader.is_finished().then_some(())
    });
    assert_eq!(reader.join().unwrap().unwrap(), "new");
    workers[leader].wait_progress(20, PATIENCE);
    cluster.wait_healthy();
    workers.iter_mut().for_each(Worker::stop);
    for node in cluster.nodes() {
        workers.iter().for_each(|worker| worker.check(&node.mount));
    }
}

#[test]
fn a_follower_whose_link_comes_and_goes_disturbs_nobody() {
    let cluster = Cluster::own(
        "flapping",
        Options {
            namespaces: true,
            ..Options::default()
        },
    );
    let leader = cluster.leader();
    let [flapping, other] = [(leader + 1) % 3, (leader + 2) % 3];
    let mut worker = Worker::start(&cluster.node(other).mount, "load");
    worker.wait_progress(20, PATIENCE);
    let _ = worker.take_longest_gap();
    for _ in 0..3 {
        cluster.network().cut(flapping);
        assert!(!cluster.network().reaches(flapping, leader));
        std::thread::sleep(Duration::from_secs(2));
        cluster.network().heal(flapping);
        wait_for("the link to be back", PATIENCE, || {
            cluster.network().reaches(flapping, leader).then_some(())
        });
        worker.wait_progress(20, PATIENCE);
    }
    let gap = worker.take_longest_gap();
    eprintln!("a follower's link came and went: the worker waited at most {gap:?}");
    assert!(gap < Duration::from_secs(5), "stood still for {gap:?}");
    worker.stop();
    cluster.wait_healthy();
    worker.check(&cluster.node(flapping).mount);
}
