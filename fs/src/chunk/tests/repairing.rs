use std::time::Duration;

use raftstore::meta::{ChunkId, Op};

use super::support::*;
use crate::chunk::Keeper;
use crate::chunk::keeper::RepairProgress;

const DOWN: Fault = Fault {
    down: true,
    slow: Duration::ZERO,
};

#[tokio::test]
async fn a_node_that_missed_writes_fetches_them() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.net.set(3, DOWN);
    cluster.hold_back(3);
    let mut expected = Vec::new();
    for n in 0..40 {
        expected.push(
            cluster
                .write(1, ino, n * 5000, &bytes(n, 5000))
                .await
                .expect("write"),
        );
        expected.push(cluster.write_inline(2, ino, 1_000_000 + n * 100, &bytes(n, 100)));
    }
    cluster.net.puts_to(3, 40).await;
    cluster.net.set(3, Fault::default());
    // By a snapshot: the journal lacks the payloads.
    cluster.catch_up(3, false);
    let node = cluster.node(3);
    assert!(node.chunks().is_empty());
    let progress = node.work.repair_walk().await.expect("walk");
    assert_eq!((progress.missing, progress.fetched, progress.failed), (80, 80, 0));
    assert!(progress.is_clean() && expected.iter().all(|id| node.has(*id)));
    cluster.net.set(1, DOWN);
    cluster.net.set(2, DOWN);
    let content = cluster.read_file(3, ino).await.expect("alone");
    assert_eq!(content.slice(5000..10_000), bytes(1, 5000));
    assert_eq!(content.slice(1_000_100..1_000_200), bytes(1, 100));
    let again = node.work.repair_walk().await.expect("walk");
    assert_eq!((again.missing, again.walks), (0, 2));
}

#[tokio::test]
async fn the_keeper_repairs_by_itself_and_tries_again() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.net.set(3, DOWN);
    let data = bytes(1, 50_000);
    let node = cluster.node(3);
    let keeper = Keeper::start(node.plane.clone(), node.watcher.clone(), keeper_options());
    eventually("the first walk is done", || keeper.is_clean()).await;
    let id = cluster.write(1, ino, 0, &data).await.expect("write");
    eventually("it was missed", || keeper.repair_progress().failed > 0).await;
    assert!(!keeper.is_clean() && !node.has(id));
    cluster.net.set(3, Fault::default());
    eventually("it was fetched", || node.has(id) && keeper.is_clean()).await;
    // A bad copy that a peer came across.
    node.damage(&data[..1000]);
    assert!(node.plane.serve_get(id, 0, 0).await.is_err());
    eventually("it was repaired", || node.has(id)).await;
    assert_eq!(node.plane.store().read(id, 0, 0), Ok(data));
}

#[tokio::test]
async fn scrubbing_finds_and_repairs_damage_in_chunks_and_journal() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    let data: Vec<_> = (0..20).map(|n| bytes(n, 20_000)).collect();
    let mut ids = Vec::new();
    for (n, data) in data.iter().enumerate() {
        ids.push(
            cluster
                .write(1, ino, n as u64 * 20_000, data)
                .await
                .expect("write"),
        );
    }
    let payload = cluster.write_inline(1, ino, 400_000, &bytes(99, 3000));
    eventually("node 2 has all", || ids.iter().all(|id| cluster.node(2).has(*id))).await;
    let node = cluster.node(2);
    for n in [3, 7, 19] {
        node.damage(&data[n][..500]);
    }
    node.journal.damaged.lock().unwrap().insert(payload.seq);
    let pass = node.work.scrub_pass().await.expect("scrub");
    assert_eq!((pass.read, pass.bad, pass.repaired), (21, 4, 4));
    assert_eq!(node.plane.stats().repaired_chunks, 4);
    assert_eq!(node.plane.store().stats().damaged_chunks, 0);
    for (id, data) in ids.iter().zip(&data) {
        assert_eq!(node.plane.store().read(*id, 0, 0).as_ref(), Ok(data));
    }
    assert_eq!(node.work.scrub_pass().await.expect("scrub").bad, 0);
}

#[tokio::test]
async fn placement_moves_chunks_and_the_old_home_lets_go_last() {
    let cluster = Cluster::new(4);
    let ino = cluster.create(1, "f");
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(
            cluster
                .write(1, ino, n * 3000, &bytes(n, 3000))
                .await
                .expect("write"),
        );
    }
    eventually("node 1 has all", || ids.iter().all(|id| cluster.node(1).has(*id))).await;
    for group in 0..raftstore::meta::PLACEMENT_GROUPS {
        let set = cluster
            .system(Op::SetPlacement {
                group,
                nodes: vec![2, 3, 4],
            })
            .1;
        assert!(set.is_ok(), "{set:?}");
    }
    cluster.node(1).reclaim().await;
    assert_eq!(
        cluster.node(1).chunks().len(),
        30,
        "node 4 does not have them yet"
    );
    for node in 2..=4 {
        let progress: RepairProgress = cluster.node(node).work.repair_walk().await.expect("walk");
        assert_eq!(progress.failed, 0);
    }
    assert!(ids.iter().all(|id: &ChunkId| cluster.node(4).has(*id)));
    cluster.node(1).reclaim().await;
    assert!(cluster.node(1).chunks().is_empty());
    assert_eq!(
        cluster.read_file(1, ino).await.expect("read").slice(3000..6000),
        bytes(1, 3000)
    );
}

#[tokio::test]
async fn repair_keeps_to_its_rate() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.net.set(3, DOWN);
    for n in 0..10 {
        cluster
            .write(1, ino, n * 100_000, &bytes(n, 100_000))
            .await
            .expect("write");
    }
    cluster.net.puts_to(3, 10).await;
    cluster.net.set(3, Fault::default());
    let node = cluster.node(3);
    let options = crate::chunk::KeeperOptions {
        repair_bytes_per_s_max: 1 << 20,
        ..keeper_options()
    };
    let work = std::sync::Arc::new(crate::chunk::keeper::Work::new(
        node.plane.clone(),
        node.watcher.clone(),
        options,
    ));
    let start = tokio::time::Instant::now();
    let progress = work.repair_walk().await.expect("walk");
    assert_eq!(progress.fetched, 10);
    // A lower bound only: 1 MB at 1 MiB/s, less the burst and what was under way at the end.
    assert!(
        start.elapsed() >= Duration::from_millis(80),
        "{:?}",
        start.elapsed()
    );
}
