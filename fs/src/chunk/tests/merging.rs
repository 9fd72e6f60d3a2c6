use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::meta::{AttrChange, Op, Reply};

use super::support::*;
use crate::backend::{BackendError, Propose};
use crate::chunk::{Merger, MergerOptions};

#[tokio::test]
async fn payloads_move_into_full_chunks_and_the_floor_moves() {
    let cluster = Cluster::new(3);
    let (a, b) = (cluster.create(1, "a"), cluster.create(1, "b"));
    let mut content = vec![0; 300 * 8192];
    // Backwards and interleaved, so that file order is not log order.
    for n in (0..300_u64).rev() {
        let data = bytes(n, 8192);
        content[n as usize * 8192..][..8192].copy_from_slice(&data);
        cluster.write_inline(1, a, n * 8192, &data);
        if n % 10 == 0 {
            cluster.write_inline(2, b, n, &bytes(n, 50));
        }
    }
    let expected_b = cluster.read_file(1, b).await.expect("read");
    let young = cluster.write_inline(1, b, 0, &bytes(1000, 10));
    let target = young.seq;
    let merger = cluster.merger(1);
    let first = merger.merge_once(target, 1 << 20).await.expect("merge");
    assert!(
        first.merged_bytes >= 1 << 20 && first.oldest.is_some_and(|oldest| oldest < target),
        "{first:?}"
    );
    let mut rounds = 1;
    loop {
        let progress = merger.merge_once(target, 1 << 20).await.expect("merge");
        assert_eq!(progress.lost, []);
        rounds += 1;
        if progress.oldest == Some(target) {
            break;
        }
        assert!(progress.merged_bytes > 0 && rounds < 50, "{progress:?}");
    }
    let chunks: std::collections::BTreeSet<_> = cluster.sources(1, a).into_iter().collect();
    assert!(chunks.iter().all(|id| id.payload_index().is_none()));
    assert_eq!(chunks.len(), 3, "2.4 MB in chunks of 1 MiB");
    for node in &cluster.nodes {
        node.journal
            .payloads
            .lock()
            .unwrap()
            .retain(|index, _| *index >= target);
        assert_eq!(cluster.read_file(node.id, a).await.expect("read"), content);
    }
    assert_eq!(
        cluster.read_file(2, b).await.expect("read").slice(10..),
        expected_b.slice(10..)
    );
    let idle = merger.merge_once(target, 1 << 20).await.expect("merge");
    assert_eq!((idle.files, idle.merged_bytes), (0, 0));
}

/// Proposes, but changes the files before each merge.
struct Meddler {
    cluster: Arc<Cluster>,
    meddle: Box<dyn Fn(&Cluster) + Send + Sync>,
}

#[async_trait]
impl Propose for Meddler {
    async fn submit(&self, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        (self.meddle)(&self.cluster);
        Ok(self.cluster.propose(1, op, payload).1?)
    }
}

fn meddling_merger(cluster: &Arc<Cluster>, meddle: impl Fn(&Cluster) + Send + Sync + 'static) -> Merger {
    let node = cluster.node(1);
    let namer = Arc::clone(&node.namer);
    let propose = Meddler {
        cluster: Arc::clone(cluster),
        meddle: Box::new(meddle),
    };
    Merger::new(
        Arc::clone(&node.plane),
        Arc::new(propose),
        Arc::new(move || Arc::clone(&namer)),
        MergerOptions::default(),
    )
}

#[tokio::test]
async fn what_is_written_meanwhile_stays() {
    let cluster = Cluster::new(3);
    let ino = cluster.create(1, "f");
    let mut content = Vec::new();
    for n in 0..20 {
        let data = bytes(n, 1000);
        cluster.write_inline(1, ino, n * 1000, &data);
        content.extend_from_slice(&data);
    }
    let merger = meddling_merger(&cluster, move |cluster| {
        cluster.write_inline(2, ino, 3500, &bytes(77, 2000));
    });
    let end = cluster.write_inline(1, ino, 20_000, &bytes(20, 1000)).seq + 1;
    content.extend_from_slice(&bytes(20, 1000));
    content[3500..5500].copy_from_slice(&bytes(77, 2000));
    let progress = merger.merge_once(end, 1 << 20).await.expect("merge");
    assert!(progress.oldest >= Some(end), "{progress:?}");
    for node in 1..=3 {
        assert_eq!(cluster.read_file(node, ino).await.expect("read"), content);
    }
}

#[tokio::test]
async fn files_that_vanish_or_shrink_meanwhile_do_no_harm() {
    let cluster = Cluster::new(3);
    let (gone, cut) = (cluster.create(1, "gone"), cluster.create(1, "cut"));
    for n in 0..5 {
        cluster.write_inline(1, gone, n * 1000, &bytes(n, 1000));
        cluster.write_inline(1, cut, n * 1000, &bytes(n, 1000));
    }
    let once = std::sync::Once::new();
    let merger = meddling_merger(&cluster, move |cluster| {
        once.call_once(|| {
            cluster.unlink(2, "gone", gone);
            let change = AttrChange {
                size: Some(1500),
                ..AttrChange::default()
            };
            assert!(
                cluster
                    .propose(2, Op::SetAttr { ino: cut, change }, Bytes::new())
                    .1
                    .is_ok()
            );
        });
    });
    let progress = merger.merge_once(u64::MAX, 1 << 20).await.expect("merge");
    assert_eq!(progress.oldest, None);
    let content = cluster.read_file(3, cut).await.expect("read");
    assert_eq!((content.len(), content.slice(..1000)), (1500, bytes(0, 1000)));
    // What was written in vain is garbage, and goes.
    let live: std::collections::BTreeSet<_> = cluster.sources(1, cut).into_iter().collect();
    cluster.create(1, "next");
    for node in &cluster.nodes {
        node.reclaim().await;
    }
    eventually("all is tidy", || {
        cluster
            .nodes
            .iter()
            .take(2)
            .all(|node| node.chunks().is_subset(&live))
    })
    .await;
}

#[tokio::test]
async fn clones_are_merged_too() {
    let cluster = Cluster::new(3);
    let (a, b) = (cluster.create(1, "a"), cluster.create(1, "b"));
    let data = bytes(1, 30_000);
    cluster.write_inline(1, a, 0, &data);
    let copy = Op::CopyRange {
        source: a,
        source_offset: 0,
        target: b,
        target_offset: 7,
        len: 30_000,
    };
    assert!(cluster.propose(1, copy, Bytes::new()).1.is_ok());
    let progress = cluster
        .merger(2)
        .merge_once(u64::MAX, 1 << 20)
        .await
        .expect("merge");
    assert_eq!((progress.files, progress.oldest), (2, None));
    assert_eq!(cluster.read_file(1, a).await.expect("read"), data);
    assert_eq!(cluster.read_file(1, b).await.expect("read").slice(7..), data);
}

#[tokio::test]
async fn a_payload_that_is_lost_is_told_and_does_not_stop_the_rest() {
    let cluster = Cluster::new(3);
    let (a, b) = (cluster.create(1, "a"), cluster.create(1, "b"));
    let lost = cluster.write_inline(1, a, 0, &bytes(1, 1000));
    cluster.write_inline(1, b, 0, &bytes(2, 1000));
    for node in &cluster.nodes {
        node.journal.damaged.lock().unwrap().insert(lost.seq);
    }
    let progress = cluster
        .merger(1)
        .merge_once(u64::MAX, 1 << 20)
        .await
        .expect("merge");
    assert_eq!((progress.lost, progress.oldest), (vec![lost], Some(lost.seq)));
    assert_eq!(progress.merged_bytes, 1000);
    cluster.node(3).journal.damaged.lock().unwrap().clear();
    let progress = cluster
        .merger(1)
        .merge_once(u64::MAX, 1 << 20)
        .await
        .expect("merge");
    assert_eq!((progress.lost, progress.oldest), (vec![], None));
    assert_eq!(cluster.read_file(2, a).await.expect("read"), bytes(1, 1000));
}

#[tokio::test]
async fn sparse_chunks_are_emptied() {
    let cluster = Cluster::new(3);
    let (a, b) = (cluster.create(1, "a"), cluster.create(1, "b"));
    let mut content = Vec::new();
    for n in 0..8 {
        let data = bytes(n, 400_000);
        cluster.write(1, a, n * 400_000, &data).await.expect("write");
        content.extend_from_slice(&data);
    }
    // A clone keeps a little of one chunk.
    let copy = Op::CopyRange {
        source: a,
        source_offset: 1_200_010,
        target: b,
        target_offset: 0,
        len: 1000,
    };
    assert!(cluster.propose(1, copy, Bytes::new()).1.is_ok());
    let of_b = content[1_200_010..1_201_010].to_vec();
    // Of chunks 0 to 5 only the first tenth stays, chunks 6 and 7 stay whole.
    for n in 0..6 {
        let data = bytes(100 + n, 360_000);
        cluster
            .write(1, a, n * 400_000 + 40_000, &data)
            .await
            .expect("write");
        content[n as usize * 400_000 + 40_000..][..360_000].copy_from_slice(&data);
    }
    let guard = cluster
        .node(1)
        .plane
        .write(&cluster.node(1).namer, bytes(1, 100))
        .await
        .expect("write");
    let on_its_way = cluster
        .write(1, a, 4_000_000, &bytes(7, 200_000))
        .await
        .expect("write");
    let change = AttrChange {
        size: Some(4_001_000),
        ..AttrChange::default()
    };
    assert!(
        cluster
            .propose(1, Op::SetAttr { ino: a, change }, Bytes::new())
            .1
            .is_ok()
    );
    content.resize(4_000_000, 0);
    content.extend_from_slice(&bytes(7, 200_000)[..1000]);
    eventually("node 1 has all", || cluster.node(1).chunks().len() == 16).await;

    let merger = cluster.merger(1);
    let (progress, next) = merger.empty_sparse(None).await.expect("empty");
    assert_eq!((progress.files, progress.merged_bytes), (2, 6 * 40_000 + 1000));
    assert!(
        cluster.sources(1, a).contains(&on_its_way),
        "ops that name it may still come"
    );
    for node in 1..=3 {
        assert!(
            cluster.read_file(node, a).await.expect("read") == content,
            "node {node}"
        );
        assert_eq!(cluster.read_file(node, b).await.expect("read"), of_b);
    }
    // The next page holds only what has just been merged.
    let (progress, next) = merger.empty_sparse(next).await.expect("next page");
    assert_eq!(progress.merged_bytes, 0);
    assert_eq!(merger.empty_sparse(next).await.expect("end").1, None);
    drop(guard);
    cluster.create(1, "next");
    let (progress, _) = merger.empty_sparse(None).await.expect("again");
    assert_eq!(progress.merged_bytes, 1000, "only what was on its way");
    cluster.create(1, "last");
    cluster.node(1).reclaim().await;
    let live: u64 = cluster
        .node(1)
        .plane
        .store()
        .chunks(None, 99)
        .iter()
        .map(|(_, len)| u64::from(*len))
        .sum();
    assert!(
        live < content.len() as u64 + 10_000,
        "{live} bytes for {}",
        content.len()
    );
}
