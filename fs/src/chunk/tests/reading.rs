use std::time::Duration;

use raftstore::meta::ChunkId;

use super::support::*;
use crate::backend::BackendError;

const DOWN: Fault = Fault {
    down: true,
    slow: Duration::ZERO,
};

#[tokio::test]
async fn a_damaged_copy_is_never_returned_and_is_repaired_from_a_peer() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    let data = bytes(1, 100_000);
    let id = cluster.write(1, ino, 0, &data).await.expect("write");
    eventually("all have it", || cluster.nodes.iter().all(|node| node.has(id))).await;
    let node = cluster.node(1);
    node.damage(&data[8192..9000]);
    assert_eq!(
        node.plane.read(id, 8000, 1000).await.expect("read"),
        data.slice(8000..9000)
    );
    assert_eq!(
        (
            node.plane.store().stats().bad_blocks,
            node.plane.stats().repaired_chunks
        ),
        (1, 1)
    );
    assert!(node.has(id));
    let gets = cluster.net.count("get");
    assert_eq!(node.plane.read(id, 0, 0).await.expect("read"), data);
    assert_eq!(cluster.net.count("get"), gets, "from its own medium again");
}

#[tokio::test]
async fn readers_of_a_missing_chunk_fetch_it_once() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.net.set(3, DOWN);
    let data = bytes(1, 1 << 20);
    let id = cluster.write(1, ino, 0, &data).await.expect("write");
    cluster.net.puts_to(3, 1).await;
    cluster.net.set(3, Fault::default());
    let node = cluster.node(3);
    let reads = (0..16).map(|part| node.plane.read(id, part * 65_536, 65_536));
    for (part, read) in futures::future::join_all(reads).await.into_iter().enumerate() {
        assert_eq!(
            read.expect("read"),
            data.slice(part * 65_536..(part + 1) * 65_536)
        );
    }
    assert_eq!(cluster.net.count("get"), 1);
    assert!(node.has(id));
}

#[tokio::test]
async fn a_node_outside_the_group_reads_from_it_and_keeps_nothing() {
    let cluster = Cluster::new(4);
    let ino = cluster.create(4, "f");
    let data = bytes(1, 100_000);
    let id = cluster.write(4, ino, 0, &data).await.expect("write");
    assert_eq!(
        cluster.node(4).plane.read(id, 5000, 100).await.expect("read"),
        data.slice(5000..5100)
    );
    assert!(cluster.node(4).chunks().is_empty());
    assert_eq!(cluster.node(4).plane.stats().remote_reads, 1);
}

#[tokio::test]
async fn a_bad_slow_or_absent_peer_is_passed_over() {
    let cluster = Cluster::new(4);
    let ino = cluster.create(4, "f");
    let data = bytes(1, 100_000);
    let id = cluster.write(4, ino, 0, &data).await.expect("write");
    eventually("all have it", || (1..=3).all(|node| cluster.node(node).has(id))).await;
    cluster.node(1).damage(&data[..1000]);
    cluster.net.set(
        2,
        Fault {
            down: false,
            slow: Duration::from_secs(3600),
        },
    );
    let read = tokio::time::timeout(Duration::from_secs(20), cluster.node(4).plane.read(id, 0, 0));
    assert_eq!(read.await.expect("in time").expect("read"), data);
    assert_eq!(
        cluster.node(1).plane.store().stats().damaged_chunks,
        1,
        "node 1 noticed"
    );
}

#[tokio::test]
async fn what_is_gone_is_told_from_what_is_lost() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    let data = bytes(1, 5000);
    let id = cluster.write(1, ino, 0, &data).await.expect("write");
    eventually("all have it", || cluster.nodes.iter().all(|node| node.has(id))).await;
    for node in &cluster.nodes {
        node.damage(&data[..1000]);
    }
    let lost = cluster.node(1).plane.read(id, 0, 0).await;
    assert!(
        matches!(lost, Err(BackendError::ChunkLost(which)) if which == id),
        "{lost:?}"
    );
    cluster.unlink(1, "f", ino);
    let gone = cluster.node(1).plane.read(id, 0, 0).await;
    assert!(
        matches!(gone, Err(BackendError::ChunkGone(which)) if which == id),
        "{gone:?}"
    );
    let never = ChunkId { session: 1, seq: 1 };
    let gone = cluster.node(1).plane.read(never, 0, 0).await;
    assert!(matches!(gone, Err(BackendError::ChunkGone(_))), "{gone:?}");
}

#[tokio::test]
async fn an_unreachable_node_is_waited_for_a_while() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.net.set(3, DOWN);
    let data = bytes(1, 5000);
    let id = cluster.write(1, ino, 0, &data).await.expect("write");
    cluster.net.puts_to(3, 1).await;
    cluster.net.set(3, Fault::default());
    cluster.net.set(1, DOWN);
    cluster.net.set(2, DOWN);
    let lost = cluster.node(3).plane.read(id, 0, 0).await;
    assert!(matches!(lost, Err(BackendError::ChunkLost(_))), "{lost:?}");
    let asked = cluster.net.count("get");
    assert!(asked > 4, "asked {asked} times");
    let read = cluster.node(3).plane.read(id, 0, 0);
    let back = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.net.set(2, Fault::default());
    };
    assert_eq!(tokio::join!(read, back).0.expect("once node 2 is back"), data);
}

#[tokio::test]
async fn payloads_come_from_the_journal_then_from_a_copy_then_from_peers() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    let data = bytes(1, 9000);
    let id = cluster.write_inline(1, ino, 0, &data);
    let index = id.payload_index().expect("a payload");
    let node = cluster.node(2);
    assert_eq!(
        node.plane.read(id, 100, 50).await.expect("read"),
        data.slice(100..150)
    );
    assert_eq!(cluster.net.count("get"), 0);
    node.journal.damaged.lock().unwrap().insert(index);
    assert_eq!(
        node.plane.read(id, 100, 50).await.expect("read"),
        data.slice(100..150)
    );
    assert!(
        cluster.net.count("get") > 0 && node.has(id),
        "fetched whole, and kept"
    );
    let gets = cluster.net.count("get");
    assert_eq!(node.plane.read(id, 0, 0).await.expect("read"), data);
    assert_eq!(cluster.net.count("get"), gets);
}

#[tokio::test]
async fn a_payload_that_was_not_applied_is_not_served() {
    // A deposed leader's journal may hold another entry at this index than the one that was committed.
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.hold_back(2);
    cluster
        .node(2)
        .journal
        .payloads
        .lock()
        .unwrap()
        .insert(10, bytes(9, 9000));
    let data = bytes(1, 9000);
    let id = cluster.write_inline(1, ino, 0, &data);
    assert_eq!(id, ChunkId::payload(10), "the test means this entry");
    assert!(cluster.node(2).plane.serve_get(id, 0, 0).await.is_err());
    assert_eq!(cluster.node(2).plane.serve_has(vec![id]).await.expect("has"), []);
    cluster.node(3).journal.payloads.lock().unwrap().clear();
    assert_eq!(cluster.node(3).plane.read(id, 0, 0).await.expect("read"), data);
}
