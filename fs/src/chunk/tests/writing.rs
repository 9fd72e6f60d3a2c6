use std::time::Duration;

use super::support::*;
use crate::backend::BackendError;

const DOWN: Fault = Fault {
    down: true,
    slow: Duration::ZERO,
};

#[tokio::test]
async fn a_chunk_reaches_all_nodes_and_each_link_carries_it_once() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    let data = bytes(1, 300_000);
    let id = cluster.write(1, ino, 0, &data).await.expect("write");
    eventually("all have it", || cluster.nodes.iter().all(|node| node.has(id))).await;
    assert_eq!(*cluster.net.calls.lock().unwrap(), [("put", 1, 2), ("put", 2, 3)]);
    for node in 1..=3 {
        assert_eq!(cluster.read_file(node, ino).await.expect("read"), data);
    }
}

#[tokio::test]
async fn a_majority_is_enough_and_less_is_waited_for() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.net.set(3, DOWN);
    let id = cluster
        .write(1, ino, 0, &bytes(1, 1000))
        .await
        .expect("two of three");
    assert!(cluster.node(1).has(id) && cluster.node(2).has(id) && !cluster.node(3).has(id));

    cluster.net.set(2, DOWN);
    let before = cluster.net.count("put");
    let data = bytes(2, 1000);
    let write = cluster.write(1, ino, 0, &data);
    tokio::pin!(write);
    let early = tokio::time::timeout(Duration::from_millis(150), &mut write).await;
    assert!(early.is_err(), "one of three is no majority");
    assert!(cluster.net.count("put") > before + 2, "it goes on trying");
    cluster.net.set(3, Fault::default());
    let id = write.await.expect("once node 3 is back");
    assert!(cluster.node(1).has(id) && cluster.node(3).has(id));
}

#[tokio::test]
async fn the_chain_skips_a_node_that_fails() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.net.set(2, DOWN);
    let id = cluster.write(1, ino, 0, &bytes(1, 1000)).await.expect("write");
    assert!(cluster.node(3).has(id));

    // In the middle of a chain: from outside the group, over 1 to 3.
    let cluster = Cluster::new(4);
    let ino = cluster.create(4, "f");
    cluster.net.set(2, DOWN);
    let id = cluster.write(4, ino, 0, &bytes(1, 1000)).await.expect("write");
    assert!(cluster.node(1).has(id) && cluster.node(3).has(id) && !cluster.node(4).has(id));
    let calls = cluster.net.calls.lock().unwrap().clone();
    assert_eq!(calls, [("put", 4, 1), ("put", 1, 2), ("put", 1, 3)]);
}

#[tokio::test]
async fn a_slow_or_hanging_node_does_not_hold_up_the_writer() {
    for slow in [2, 3] {
        let cluster = Cluster::new(3);
        let ino = cluster.create(1, "f");
        cluster.net.set(
            slow,
            Fault {
                down: false,
                slow: Duration::from_secs(3600),
            },
        );
        let data = bytes(1, 1000);
        let write = cluster.write(1, ino, 0, &data);
        let id = tokio::time::timeout(Duration::from_secs(20), write)
            .await
            .expect("in time")
            .expect("write");
        assert!(
            cluster.node(1).has(id) && cluster.node(5 - slow).has(id),
            "node {slow} hangs"
        );
    }
}

#[tokio::test]
async fn the_writers_own_full_medium_does_not_stop_it_and_a_majority_of_full_ones_does() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.node(1).disk.set_capacity_bytes(0);
    let data = bytes(1, 10_000);
    let id = cluster
        .write(1, ino, 0, &data)
        .await
        .expect("two of three have room");
    assert!(!cluster.node(1).has(id) && cluster.node(2).has(id) && cluster.node(3).has(id));
    assert_eq!(cluster.read_file(1, ino).await.expect("read"), data);

    cluster.node(3).disk.set_capacity_bytes(0);
    let full = cluster.write(1, ino, 0, &data).await;
    assert!(matches!(full, Err(BackendError::NoSpace)), "{full:?}");
    assert_eq!(cluster.read_file(2, ino).await.expect("read"), data);
}

#[tokio::test]
async fn a_write_that_is_given_up_releases_its_name() {
    let cluster = Cluster::new(3);
    cluster.net.set(2, DOWN);
    cluster.net.set(3, DOWN);
    let node = cluster.node(1);
    let write = node.plane.write(&node.namer, bytes(1, 1000));
    assert!(
        tokio::time::timeout(Duration::from_millis(50), write)
            .await
            .is_err()
    );
    assert_eq!(node.namer.floor(), 2);
}

#[tokio::test]
async fn a_poisoned_store_stops_the_writer() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.node(1).disk.fail_sync_at(1);
    cluster.net.set(
        2,
        Fault {
            down: false,
            slow: Duration::from_secs(3600),
        },
    );
    let stopped = cluster.write(1, ino, 0, &bytes(1, 1000)).await;
    assert!(matches!(stopped, Err(BackendError::Stopped(_))), "{stopped:?}");
}

#[tokio::test]
async fn one_node_alone_and_two_work_too() {
    for count in [1, 2] {
        let cluster = Cluster::new(count);
        let ino = cluster.create(1, "f");
        let data = bytes(1, 70_000);
        let id = cluster.write(1, ino, 0, &data).await.expect("write");
        assert!(cluster.nodes.iter().all(|node| node.has(id)), "all of {count}");
        assert_eq!(cluster.read_file(1, ino).await.expect("read"), data);
    }
}
