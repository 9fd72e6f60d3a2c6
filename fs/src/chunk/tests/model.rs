//! Random work with random faults: every file reads as the model says, no live chunk is ever dropped, and when all
//! is healed, every node holds exactly what it should.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftstore::disk::Disk;
use raftstore::meta::{AttrChange, Ino, Op};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::*;
use crate::backend::ChunkGuard;

/// The test's own idea of the files.
#[derive(Default)]
struct Model {
    files: BTreeMap<String, (Ino, Vec<u8>)>,
    names: u64,
}

impl Model {
    fn pick(&self, rng: &mut StdRng) -> Option<(String, Ino)> {
        let at = rng.random_range(0..self.files.len().max(1));
        self.files
            .iter()
            .nth(at)
            .map(|(name, (ino, _))| (name.clone(), *ino))
    }

    fn write(&mut self, name: &str, offset: usize, data: &[u8]) {
        let content = &mut self.files.get_mut(name).expect("known").1;
        if content.len() < offset + data.len() {
            content.resize(offset + data.len(), 0);
        }
        content[offset..offset + data.len()].copy_from_slice(data);
    }
}

struct Run {
    cluster: Arc<Cluster>,
    model: Model,
    rng: StdRng,
    /// Chunks written, whose op is yet to come.
    on_their_way: Vec<ChunkGuard>,
    /// The one node that may be out of order at a time.
    victim: Option<u64>,
    damaged: u64,
}

impl Run {
    /// A node that works.
    fn worker(&mut self) -> u64 {
        loop {
            let node = self.rng.random_range(1..=3);
            if Some(node) != self.victim {
                return node;
            }
        }
    }

    async fn step(&mut self, what: &str) {
        let node = self.worker();
        let seed = self.rng.random();
        match self.rng.random_range(0..23) {
            0..2 => {
                self.model.names += 1;
                let name = format!("f{}", self.model.names);
                let ino = self.cluster.create(node, &name);
                self.model.files.insert(name, (ino, Vec::new()));
            }
            2..10 => {
                let Some((name, ino)) = self.model.pick(&mut self.rng) else {
                    return;
                };
                let offset = self.rng.random_range(0..60_000);
                if self.rng.random_bool(0.5) {
                    let data = bytes(seed, self.rng.random_range(1..6000));
                    self.cluster.write_inline(node, ino, offset, &data);
                    self.model.write(&name, offset as usize, &data);
                } else {
                    let data = bytes(seed, self.rng.random_range(1..30_000));
                    self.cluster.write(node, ino, offset, &data).await.expect(what);
                    self.model.write(&name, offset as usize, &data);
                }
            }
            10 => {
                let Some((name, ino)) = self.model.pick(&mut self.rng) else {
                    return;
                };
                let size = self.rng.random_range(0..50_000);
                let change = AttrChange {
                    size: Some(size),
                    ..AttrChange::default()
                };
                assert!(
                    self.cluster
                        .propose(node, Op::SetAttr { ino, change }, Bytes::new())
                        .1
                        .is_ok()
                );
                self.model
                    .files
                    .get_mut(&name)
                    .expect("known")
                    .1
                    .resize(size as usize, 0);
            }
            11 => {
                let Some((name, ino)) = self.model.pick(&mut self.rng) else {
                    return;
                };
                self.cluster.unlink(node, &name, ino);
                self.model.files.remove(&name);
            }
            12 => self.clone_file(node),
            13 => {
                let from = self.cluster.node(node);
                let guard = from
                    .plane
                    .write(&from.namer, bytes(seed, 5000))
                    .await
                    .expect(what);
                self.on_their_way.push(guard);
            }
            14 => self.on_their_way.clear(),
            15 => {
                let target = if self.rng.random_bool(0.5) {
                    u64::MAX
                } else {
                    self.rng.random_range(1..500)
                };
                self.cluster
                    .merger(node)
                    .merge_once(target, 100_000)
                    .await
                    .expect(what);
            }
            16 => self.start_trouble(),
            17 => self.end_trouble(),
            18 => {
                for node in &self.cluster.nodes {
                    node.reclaim().await;
                }
            }
            19 => {
                self.cluster.node(node).work.repair_walk().await.expect(what);
            }
            20 => {
                while self
                    .cluster
                    .node(node)
                    .plane
                    .store()
                    .compact_step(1 << 20)
                    .await
                    .expect(what)
                    .copied_bytes
                    > 0
                {}
            }
            21 => {
                let merger = self.cluster.merger(node);
                merger.empty_sparse(None).await.expect(what);
            }
            _ => {
                let Some((name, ino)) = self.model.pick(&mut self.rng) else {
                    return;
                };
                self.check(node, &name, ino, what).await;
            }
        }
    }

    fn clone_file(&mut self, node: u64) {
        let Some((name, source)) = self.model.pick(&mut self.rng) else {
            return;
        };
        let content = self.model.files[&name].1.clone();
        self.model.names += 1;
        let copy = format!("f{}", self.model.names);
        let target = self.cluster.create(node, &copy);
        let len = content.len() as u64;
        let op = Op::CopyRange {
            source,
            source_offset: 0,
            target,
            target_offset: 0,
            len,
        };
        assert!(self.cluster.propose(node, op, Bytes::new()).1.is_ok());
        self.model.files.insert(copy, (target, content));
    }

    /// One node goes away, or hangs, or has damage.
    fn start_trouble(&mut self) {
        if self.victim.is_some() {
            return;
        }
        let node = self.rng.random_range(1..=3);
        self.victim = Some(node);
        match self.rng.random_range(0..3) {
            0 => {
                self.cluster.net.set(
                    node,
                    Fault {
                        down: true,
                        slow: Duration::ZERO,
                    },
                );
                self.cluster.hold_back(node);
            }
            1 => self.cluster.net.set(
                node,
                Fault {
                    down: false,
                    slow: Duration::from_millis(30),
                },
            ),
            _ => self.damage(node),
        }
    }

    fn damage(&mut self, node: u64) {
        let disk = &self.cluster.node(node).disk;
        for name in disk.list(std::path::Path::new(DIR)).expect("list") {
            let path = std::path::Path::new(DIR).join(name);
            let len = disk.contents(&path).expect("contents").len() as u64;
            for _ in 0..4 {
                disk.flip_bits(&path, self.rng.random_range(0..len), 1)
                    .expect("flip");
                self.damaged += 1;
            }
        }
    }

    fn end_trouble(&mut self) {
        if let Some(node) = self.victim.take() {
            self.cluster.net.set(node, Fault::default());
            let by_log = self.rng.random_bool(0.5);
            self.cluster.catch_up(node, by_log);
            // Damage of one node must be healed before the next one's, as in life it would be.
            self.victim = Some(node);
        }
    }

    async fn check(&self, node: u64, name: &str, ino: Ino, what: &str) {
        let read = self.cluster.read_file(node, ino).await.expect(what);
        assert!(read == self.model.files[name].1, "{what}: {name} on node {node}");
    }

    /// Everybody catches up, and all background work is done.
    async fn heal(&mut self, what: &str) {
        self.end_trouble();
        self.victim = None;
        for node in &self.cluster.nodes {
            node.work.scrub_pass().await.expect(what);
            let progress = node.work.repair_walk().await.expect(what);
            assert!(progress.is_clean(), "{what}: node {}: {progress:?}", node.id);
        }
    }
}

/// Answers how many bits were flipped and how many copies repaired.
async fn run(seed: u64) -> (u64, u64) {
    let mut run = Run {
        cluster: Cluster::new(3),
        model: Model::default(),
        rng: StdRng::seed_from_u64(seed),
        on_their_way: Vec::new(),
        victim: None,
        damaged: 0,
    };
    for step in 0..250 {
        let what = format!("seed {seed}, step {step}");
        run.step(&what).await;
        if step % 60 == 59 {
            run.heal(&what).await;
        }
    }
    let what = format!("seed {seed}, at the end");
    run.heal(&what).await;
    run.on_their_way.clear();
    for node in 1..=3 {
        run.cluster.create(node, &format!("last{node}"));
    }
    let live: BTreeSet<_> = run
        .cluster
        .node(1)
        .meta
        .reader()
        .chunks(None, usize::MAX)
        .expect("chunks")
        .into_iter()
        .collect();
    for node in &run.cluster.nodes {
        node.reclaim().await;
        let chunks = node.chunks();
        let (payloads, chunks): (BTreeSet<_>, BTreeSet<_>) =
            chunks.into_iter().partition(|id| id.payload_index().is_some());
        assert!(
            chunks == live,
            "{what}: node {} holds {chunks:?}, live are {live:?}",
            node.id
        );
        let reader = node.meta.reader();
        assert!(
            payloads
                .iter()
                .all(|id| reader.chunk_is_live(*id).expect("state")),
            "{what}"
        );
    }
    let files: Vec<_> = run
        .model
        .files
        .iter()
        .map(|(name, (ino, _))| (name.clone(), *ino))
        .collect();
    for (name, ino) in files {
        for node in 1..=3 {
            run.check(node, &name, ino, &what).await;
        }
    }
    let repaired = run
        .cluster
        .nodes
        .iter()
        .map(|node| node.plane.stats().repaired_chunks)
        .sum();
    (run.damaged, repaired)
}

#[tokio::test]
async fn nothing_live_is_lost_and_no_garbage_stays() {
    let (mut damaged, mut repaired) = (0, 0);
    for seed in 0..12 {
        let faults = run(seed).await;
        damaged += faults.0;
        repaired += faults.1;
    }
    assert!(
        damaged > 50 && repaired > 50,
        "{damaged} bits were flipped, {repaired} copies repaired"
    );
}
