//! All nodes lose their power at once, and come back in whatever order: nobody types anything.

use std::time::{Duration, Instant};

use bramble_tests::load::Worker;
use bramble_tests::notify::{Listener, WATCHDOG};
use bramble_tests::run::try_run;
use bramble_tests::sys::Frozen;
use bramble_tests::{Cluster, Options, Seed, brief_or_full, wait_for};
use rand::Rng as _;
use rand::seq::SliceRandom as _;

/// How long to wait for what ought to happen sooner.
const PATIENCE: Duration = Duration::from_secs(90);
/// A mount that is said to be ready answers within this time; nothing disturbs it then.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Between two starts, milliseconds.
const DELAY_MAX_MS: u64 = 4000;

fn check(cluster: &Cluster, workers: &[Worker], nodes: &[usize]) {
    for node in nodes {
        workers
            .iter()
            .for_each(|worker| worker.check(&cluster.node(*node).mount));
    }
}

/// Waits until each of `nodes` has said, once, that it is ready; its mount answered at that moment.
fn wait_ready(cluster: &Cluster, listeners: &[Listener], nodes: &[usize]) -> Instant {
    let ready = |node: &usize| {
        let name = &cluster.node(*node).name;
        if let Some(status) = cluster.node(*node).exited() {
            panic!(
                "{name} ended by itself: {status}{}",
                cluster.node(*node).log_tail()
            );
        }
        let first = wait_for(&format!("{name} to be ready"), PATIENCE, || {
            listeners[*node].readies().first().cloned()
        });
        match &first.mount {
            Ok(took) => assert!(
                *took < ANSWER_MAX,
                "{name} was ready, and answered after {took:?}"
            ),
            Err(why) => panic!("{name} said that it was ready, but: {why}"),
        }
        first.at
    };
    nodes.iter().map(ready).max().expect("some nodes")
}

#[test]
fn after_a_blackout_the_tree_comes_back_by_itself() {
    let cluster = Cluster::own("blackout", Options::default());
    let mut seed = Seed::new();
    let listeners: Vec<_> = cluster.nodes().iter().map(Listener::start).collect();
    let mut workers: Vec<_> = cluster
        .nodes()
        .iter()
        .map(|node| Worker::start(&node.mount, &format!("load-{}", node.name)))
        .collect();
    let (mut missing, mut slowest) = (0, Duration::ZERO);
    for round in 0..brief_or_full(4, 20) {
        workers
            .iter()
            .for_each(|worker| worker.wait_progress(5, PATIENCE));
        std::thread::sleep(Duration::from_millis(seed.random_range(0..1500)));
        let pids: Vec<_> = cluster
            .nodes()
            .iter()
            .map(|node| node.pid().to_string())
            .collect();
        let killed = try_run("kill", ["-9"].into_iter().chain(pids.iter().map(String::as_str)));
        assert!(killed.status.success(), "{killed:?}");
        cluster.nodes().iter().for_each(|node| node.kill9());
        let acknowledged: u64 = workers.iter().map(Worker::acknowledged).sum();
        listeners.iter().for_each(Listener::forget);

        let mut order = [0, 1, 2];
        order.shuffle(&mut *seed);
        let [first, second, third] = order;
        let mut pause = || std::thread::sleep(Duration::from_millis(seed.random_range(0..DELAY_MAX_MS)));
        cluster.start(first);
        pause();
        assert!(
            listeners[first].readies().is_empty(),
            "{} was ready all alone",
            cluster.node(first).name
        );
        cluster.start(second);
        let two = Instant::now();
        // The brief test has rounds of both kinds.
        let one_is_missing = round % 2 == 1;
        if one_is_missing {
            missing += 1;
            let ready = wait_ready(&cluster, &listeners, &order[..2]) - two;
            slowest = slowest.max(ready);
            eprintln!(
                "round {round}: {order:?}, two of three were ready {ready:?} after the second was started"
            );
            check(&cluster, &workers, &order[..2]);
            workers[first].wait_progress(1, PATIENCE);
            workers[second].wait_progress(1, PATIENCE);
            assert!(listeners[third].readies().is_empty());
        } else {
            pause();
        }
        cluster.start(third);
        let three = Instant::now();
        let ready = wait_ready(&cluster, &listeners, &order).saturating_duration_since(three);
        eprintln!(
            "round {round}: {order:?}, {acknowledged} records before, all were ready {ready:?} after the third was started"
        );
        check(&cluster, &workers, &order);
    }
    assert!(missing > 0);
    eprintln!("two of three were ready within {slowest:?}");
    workers.iter_mut().for_each(Worker::stop);
    check(&cluster, &workers, &[0, 1, 2]);
    // Nothing has been written under the mounts while they were away.
    for node in cluster.nodes() {
        node.stop();
        assert_eq!(std::fs::read_dir(&node.mount).unwrap().count(), 0);
    }
}

#[test]
fn the_watchdog_hears_of_a_daemon_unless_it_is_stuck() {
    let cluster = Cluster::own("watchdog", Options::default());
    let listener = Listener::start(cluster.node(0));
    let heard_within = |limit: Duration| {
        let before = listener.signs();
        std::thread::sleep(limit);
        listener.signs() - before
    };
    assert!(heard_within(WATCHDOG) >= 2, "no signs of life");

    // Without a quorum a program that uses the tree hangs, and the daemon is well.
    cluster.node(1).kill9();
    cluster.node(2).kill9();
    let path = cluster.node(0).path("waiting");
    let writer = std::thread::spawn(move || std::fs::write(path, "x").is_ok());
    std::thread::sleep(Duration::from_secs(6));
    assert!(!cluster.node(0).cli(&["health"]).status.success());
    assert!(
        heard_within(WATCHDOG) >= 2,
        "without a quorum the watchdog would end the daemon"
    );

    for prefix in ["fuser", "tokio"] {
        let frozen = Frozen::threads(cluster.node(0).pid(), prefix).unwrap();
        std::thread::sleep(WATCHDOG * 3 / 4);
        assert_eq!(heard_within(WATCHDOG), 0, "{prefix} threads are stuck, unnoticed");
        drop(frozen);
        wait_for("signs of life again", PATIENCE, || {
            (heard_within(WATCHDOG) >= 2).then_some(())
        });
    }
    cluster.start(1);
    cluster.start(2);
    cluster.wait_healthy();
    assert!(writer.join().unwrap(), "the write that waited has failed");
}
