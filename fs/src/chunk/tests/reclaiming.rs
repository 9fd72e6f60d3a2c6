use std::collections::BTreeSet;
use std::time::Duration;

use raftstore::meta::{Op, Reply, SessionId};

use super::support::*;
use crate::chunk::{Fate, Keeper, MetaView, StateView};

#[tokio::test]
async fn deleted_chunks_go_on_every_node() {
    let cluster = Cluster::new(3);
    let keepers: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| Keeper::start(node.plane.clone(), node.watcher.clone(), keeper_options()))
        .collect();
    let (kept, doomed) = (cluster.create(1, "kept"), cluster.create(1, "doomed"));
    let mut live = BTreeSet::new();
    for n in 0..10 {
        live.insert(
            cluster
                .write(1, kept, n * 5000, &bytes(n, 5000))
                .await
                .expect("write"),
        );
        cluster
            .write(2, doomed, n * 5000, &bytes(n, 5000))
            .await
            .expect("write");
    }
    // A copy that comes after its chunk was dropped stays until the next walk.
    eventually("all copies are made", || {
        cluster.nodes.iter().all(|node| node.chunks().len() == 20)
    })
    .await;
    cluster.unlink(1, "doomed", doomed);
    // Node 2's session says with its next proposal that none of its chunks is under way.
    cluster.create(2, "another");
    eventually("only the live ones are left", || {
        cluster.nodes.iter().all(|node| node.chunks() == live)
    })
    .await;
    drop(keepers);
}

#[tokio::test]
async fn a_chunk_whose_op_is_under_way_is_kept() {
    let cluster = Cluster::new(3);
    let node = cluster.node(1);
    let guard = node
        .plane
        .write(&node.namer, bytes(1, 1000))
        .await
        .expect("write");
    let given_up = node
        .plane
        .write(&node.namer, bytes(2, 1000))
        .await
        .expect("write")
        .id;
    eventually("node 3 has both", || {
        cluster.node(3).has(guard.id) && cluster.node(3).has(given_up)
    })
    .await;
    cluster.create(1, "f");
    for node in &cluster.nodes {
        node.reclaim().await;
        assert!(node.has(guard.id));
    }
    assert!(
        cluster.node(3).has(given_up),
        "the guard before it holds the floor"
    );
    let id = guard.id;
    drop(guard);
    for node in &cluster.nodes {
        node.reclaim().await;
        assert!(node.has(id), "nothing was proposed since");
    }
    cluster.create(1, "g");
    for node in &cluster.nodes {
        node.reclaim().await;
        assert!(node.chunks().is_empty());
    }
}

#[tokio::test]
async fn a_node_that_lags_does_not_drop_what_it_does_not_know_yet() {
    let cluster = Cluster::new(3);
    cluster.hold_back(3);
    // A session that node 3 has not heard of.
    let (index, opened) = cluster.system(Op::OpenSession { node: 1 });
    assert_eq!(opened, Ok(Reply::Session(SessionId(index))));
    let namer = crate::chunk::ChunkNamer::new(SessionId(index));
    let guard = cluster
        .node(1)
        .plane
        .write(&namer, bytes(1, 1000))
        .await
        .expect("write");
    eventually("node 3 has it", || cluster.node(3).has(guard.id)).await;
    let view = MetaView::new(&cluster.node(3).meta);
    assert_eq!(view.fate(guard.id).expect("fate"), Fate::Open);
    cluster.node(3).reclaim().await;
    assert!(cluster.node(3).has(guard.id));
    cluster.catch_up(3, true);
    assert_eq!(view.fate(guard.id).expect("fate"), Fate::Open);
    let expired = cluster
        .system(Op::ExpireSession {
            session: SessionId(index),
        })
        .1;
    assert_eq!(expired, Ok(Reply::Done));
    assert_eq!(view.fate(guard.id).expect("fate"), Fate::Dead);
    cluster.node(3).reclaim().await;
    assert!(!cluster.node(3).has(guard.id));
}

#[tokio::test]
async fn copies_of_payloads_go_with_their_last_reference() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    cluster.hold_back(3);
    let id = cluster.write_inline(1, ino, 0, &bytes(1, 1000));
    cluster.catch_up(3, false);
    let node = cluster.node(3);
    node.work.repair_walk().await.expect("walk");
    node.reclaim().await;
    assert!(node.has(id));
    cluster.unlink(1, "f", ino);
    node.reclaim().await;
    assert!(node.chunks().is_empty());
}

#[tokio::test]
async fn the_expiry_of_a_session_frees_what_it_left_behind() {
    let cluster = Cluster::new(3);
    let node = cluster.node(2);
    let guard = node
        .plane
        .write(&node.namer, bytes(1, 1000))
        .await
        .expect("write");
    eventually("node 3 has it", || cluster.node(3).has(guard.id)).await;
    let keeper = Keeper::start(
        cluster.node(3).plane.clone(),
        cluster.node(3).watcher.clone(),
        keeper_options(),
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(cluster.node(3).has(guard.id));
    assert_eq!(
        cluster
            .system(Op::ExpireSession {
                session: node.namer.session()
            })
            .1,
        Ok(Reply::Done)
    );
    eventually("it is gone", || !cluster.node(3).has(guard.id)).await;
    drop(keeper);
}
