//! A cluster without Raft: the log is a list, and each node applies it when the test says so.

mod net;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use raftstore::clock::Timestamp;
use raftstore::disk::{Disk, SimDisk};
use raftstore::meta::*;
use raftstore::raft::{Entry, LogId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::backend::{BackendError, ChunkGuard, Propose};
use crate::chunk::keeper::Work;
use crate::chunk::store::{ChunkStore, StoreIdentity, StoreOptions};
use crate::chunk::*;

use net::Transport;
pub use net::{Fault, Net};

pub const DIR: &str = "/chunks";

/// Payloads by log index.
#[derive(Default)]
pub struct Journal {
    pub payloads: Mutex<BTreeMap<u64, Bytes>>,
    pub damaged: Mutex<BTreeSet<u64>>,
}

impl PayloadSource for Journal {
    fn payload(&self, log_index: u64) -> Result<Option<Bytes>, PayloadError> {
        if self.damaged.lock().unwrap().contains(&log_index) {
            return Err(PayloadError::Damaged(log_index));
        }
        Ok(self.payloads.lock().unwrap().get(&log_index).cloned())
    }
}

pub struct Node {
    pub id: NodeId,
    pub disk: SimDisk,
    pub meta: Arc<MetaStore>,
    pub journal: Arc<Journal>,
    pub plane: Arc<DataPlane>,
    pub watcher: Arc<ChunkWatcher>,
    pub work: Arc<Work>,
    pub namer: Arc<ChunkNamer>,
}

struct Log {
    entries: Vec<Entry>,
    /// Who does not apply for now.
    lagging: BTreeSet<NodeId>,
    /// Proposals of each node's session so far.
    seqs: BTreeMap<NodeId, u64>,
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub net: Arc<Net>,
    log: Mutex<Log>,
}

pub fn plane_options() -> PlaneOptions {
    PlaneOptions {
        put_timeout: Duration::from_secs(5),
        put_hedge_after: Duration::from_millis(60),
        backoff_min: Duration::from_millis(2),
        backoff_max: Duration::from_millis(10),
        read_hedge_after: Duration::from_millis(40),
        read_patience: Duration::from_millis(100),
        ..PlaneOptions::default()
    }
}

pub fn keeper_options() -> KeeperOptions {
    KeeperOptions {
        repair_bytes_per_s_max: 1 << 40,
        scrub_bytes_per_s_max: 1 << 40,
        compact_bytes_per_s_max: 1 << 40,
        missing_grace: Duration::from_millis(5),
        dead_grace: Duration::from_millis(5),
        retry_after: Duration::from_millis(20),
        ..KeeperOptions::default()
    }
}

/// Small packs.
pub fn store_options() -> StoreOptions {
    StoreOptions {
        pack_bytes: 2 << 20,
        reserve_bytes: 0,
        ..StoreOptions::default()
    }
}

/// Random bytes from a seed.
pub fn bytes(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(bytes.as_mut_slice());
    bytes.into()
}

impl Cluster {
    /// Nodes 1 to `count`, each with a session.
    pub fn new(count: u64) -> Arc<Self> {
        let net = Arc::new(Net::default());
        let nodes = (1..=count)
            .map(|id| Node::new(id, &net, 2 + count + id))
            .collect();
        let log = Log {
            entries: Vec::new(),
            lagging: BTreeSet::new(),
            seqs: BTreeMap::new(),
        };
        let cluster = Arc::new(Self {
            nodes,
            net,
            log: Mutex::new(log),
        });
        let info = ClusterInfo {
            cluster_id: "c".into(),
            replicas: 3,
        };
        // Log indexes begin at 1; the first is Raft's own in a real cluster.
        assert_eq!(cluster.system(Op::Reap { inodes: Vec::new() }).1, Ok(Reply::Done));
        assert!(cluster.system(Op::InitCluster(info)).1.is_ok());
        for id in 1..=count {
            let add = Op::AddNode {
                name: format!("n{id}"),
                listen: format!("n{id}:1"),
                token_hash: None,
            };
            assert!(matches!(cluster.system(add).1, Ok(Reply::Node(node)) if node.id == id));
        }
        for node in &cluster.nodes {
            let opened = cluster.system(Op::OpenSession { node: node.id }).1;
            assert_eq!(opened, Ok(Reply::Session(node.namer.session())));
        }
        cluster
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize - 1]
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// Commits as the cluster itself.
    pub fn system(&self, op: Op) -> (u64, Result<Reply, MetaError>) {
        let mut log = self.log();
        let proposal = Proposal {
            session: SessionId::SYSTEM,
            seq: 0,
            ack_floor: 0,
            chunk_floor: 0,
            time: Timestamp { sec: 1, nsec: 0 },
            op,
            payload: Bytes::new(),
        };
        self.commit(&mut log, proposal)
    }

    /// Commits under a node's session.
    pub fn propose(&self, node: NodeId, op: Op, payload: Bytes) -> (u64, Result<Reply, MetaError>) {
        let mut log = self.log();
        let seq = log.seqs.entry(node).or_default();
        *seq += 1;
        let namer = &self.node(node).namer;
        let proposal = Proposal {
            session: namer.session(),
            seq: *seq,
            ack_floor: *seq,
            chunk_floor: namer.floor(),
            time: Timestamp { sec: 1, nsec: 0 },
            op,
            payload,
        };
        self.commit(&mut log, proposal)
    }

    fn commit(&self, log: &mut Log, proposal: Proposal) -> (u64, Result<Reply, MetaError>) {
        let index = log.entries.len() as u64 + 1;
        let entry = Entry::new(LogId::new_term_index(1, index), EntryPayload::Normal(proposal));
        log.entries.push(entry.clone());
        let mut answer = None;
        for node in &self.nodes {
            if !log.lagging.contains(&node.id) {
                answer = node.apply(std::slice::from_ref(&entry), true).pop();
            }
        }
        (index, answer.expect("some node applies"))
    }

    /// Holds a node back, so that it misses what comes.
    pub fn hold_back(&self, node: NodeId) {
        self.log().lagging.insert(node);
    }

    /// Lets a node catch up, by the log (which fills its journal) or by a snapshot (which does not).
    pub fn catch_up(&self, node: NodeId, by_log: bool) {
        let mut log = self.log();
        log.lagging.remove(&node);
        let applied = *self.node(node).meta.applied().borrow();
        self.node(node).apply(&log.entries[applied as usize..], by_log);
        if !by_log {
            self.node(node).watcher.applied(applied, &[Event::Reset]);
        }
    }

    pub fn create(&self, node: NodeId, name: &str) -> Ino {
        let new = NewInode {
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
        };
        let name = Bytes::copy_from_slice(name.as_bytes());
        let op = Op::Create {
            parent: ROOT_INO,
            name,
            new,
            exclusive: true,
            ino: None,
        };
        match self.propose(node, op, Bytes::new()).1 {
            Ok(Reply::Inode(inode)) => inode.ino,
            other => panic!("{other:?}"),
        }
    }

    /// Removes a file that nobody has open.
    pub fn unlink(&self, node: NodeId, name: &str, ino: Ino) {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let unlinked = self
            .propose(
                node,
                Op::Unlink {
                    parent: ROOT_INO,
                    name,
                },
                Bytes::new(),
            )
            .1;
        assert!(unlinked.is_ok(), "{unlinked:?}");
        assert_eq!(self.system(Op::Reap { inodes: vec![ino] }).1, Ok(Reply::Done));
    }

    fn write_op(ino: Ino, offset: u64, data: Data) -> Op {
        Op::Write {
            ino,
            at: WriteAt::Offset(offset),
            data,
            kill_suid_sgid: false,
        }
    }

    /// A small write; answers its payload's name.
    pub fn write_inline(&self, node: NodeId, ino: Ino, offset: u64, data: &Bytes) -> ChunkId {
        let (index, reply) = self.propose(node, Self::write_op(ino, offset, Data::Inline), data.clone());
        assert!(reply.is_ok(), "{reply:?}");
        ChunkId::payload(index)
    }

    /// A write of a chunk.
    pub async fn write(
        &self,
        node: NodeId,
        ino: Ino,
        offset: u64,
        data: &Bytes,
    ) -> Result<ChunkId, BackendError> {
        let node_of = self.node(node);
        let guard: ChunkGuard = node_of.plane.write(&node_of.namer, data.clone()).await?;
        let data = Data::Chunk {
            id: guard.id,
            offset: 0,
            len: data.len() as u32,
        };
        let reply = self
            .propose(node, Self::write_op(ino, offset, data), Bytes::new())
            .1;
        assert!(reply.is_ok(), "{reply:?}");
        Ok(guard.id)
    }

    /// A whole file as a node reads it.
    pub async fn read_file(&self, node: NodeId, ino: Ino) -> Result<Bytes, BackendError> {
        let node = self.node(node);
        let reader = node.meta.reader();
        let size = reader.inode(ino)?.map_or(0, |inode| inode.size);
        let mut content = BytesMut::zeroed(size as usize);
        for extent in reader.extents(ino, 0, u64::MAX, usize::MAX)? {
            if let Source::Chunk { id, offset } = extent.source {
                let part = node.plane.read(id, offset, extent.len as u32).await?;
                content[extent.offset as usize..extent.end() as usize].copy_from_slice(&part);
            }
        }
        Ok(content.freeze())
    }

    /// The names of the chunks and payloads that a file is made of.
    pub fn sources(&self, node: NodeId, ino: Ino) -> Vec<ChunkId> {
        let reader = self.node(node).meta.reader();
        let extents = reader.extents(ino, 0, u64::MAX, usize::MAX).expect("extents");
        let id = |extent: Extent| match extent.source {
            Source::Chunk { id, .. } => Some(id),
            Source::Zero => None,
        };
        extents.into_iter().filter_map(id).collect()
    }

    pub fn merger(self: &Arc<Self>, node: NodeId) -> Merger {
        let namer = Arc::clone(&self.node(node).namer);
        let options = MergerOptions {
            merge_bytes_per_s_max: 1 << 40,
            ..MergerOptions::default()
        };
        Merger::new(
            Arc::clone(&self.node(node).plane),
            Arc::new(Proposer {
                cluster: Arc::clone(self),
                node,
            }),
            Arc::new(move || Arc::clone(&namer)),
            options,
        )
    }
}

/// Proposes for one node.
pub struct Proposer {
    pub cluster: Arc<Cluster>,
    pub node: NodeId,
}

#[async_trait]
impl Propose for Proposer {
    async fn submit(&self, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        Ok(self.cluster.propose(self.node, op, payload).1?)
    }
}

impl Node {
    fn new(id: NodeId, net: &Arc<Net>, session: u64) -> Self {
        let disk = SimDisk::new();
        let identity = StoreIdentity::of_cluster("c");
        let store = ChunkStore::open(Arc::new(disk.clone()), Path::new(DIR), identity, store_options());
        let meta = Arc::new(MetaStore::in_memory().expect("in memory"));
        let journal = Arc::new(Journal::default());
        let parts = PlaneParts {
            node: id,
            store: Arc::new(store.expect("open")),
            view: Arc::new(MetaView::new(&meta)),
            transport: Arc::new(Transport {
                node: id,
                net: Arc::clone(net),
            }),
            payloads: Arc::clone(&journal) as Arc<dyn PayloadSource>,
        };
        let plane = DataPlane::new(parts, plane_options());
        net.planes.lock().unwrap().insert(id, Arc::downgrade(&plane));
        let watcher = ChunkWatcher::new();
        meta.observe(Arc::clone(&watcher) as Arc<dyn Observer>);
        let work = Arc::new(Work::new(
            Arc::clone(&plane),
            Arc::clone(&watcher),
            keeper_options(),
        ));
        let namer = ChunkNamer::new(SessionId(session));
        Self {
            id,
            disk,
            meta,
            journal,
            plane,
            watcher,
            work,
            namer,
        }
    }

    fn apply(&self, entries: &[Entry], to_journal: bool) -> Vec<Result<Reply, MetaError>> {
        if to_journal {
            for entry in entries {
                if let EntryPayload::Normal(proposal) = &entry.payload
                    && !proposal.payload.is_empty()
                {
                    let payload = proposal.payload.clone();
                    self.journal
                        .payloads
                        .lock()
                        .unwrap()
                        .insert(entry.log_id.index, payload);
                }
            }
        }
        self.meta
            .apply(entries)
            .expect("in memory")
            .into_iter()
            .flatten()
            .collect()
    }

    pub fn has(&self, id: ChunkId) -> bool {
        self.plane.store().is_good(id)
    }

    /// All chunks on this node's medium.
    pub fn chunks(&self) -> BTreeSet<ChunkId> {
        self.plane
            .store()
            .chunks(None, usize::MAX)
            .into_iter()
            .map(|(id, _)| id)
            .collect()
    }

    /// Damages the first place on the medium that holds these bytes.
    pub fn damage(&self, content: &[u8]) {
        let (path, at) = self.find(content).expect("on the medium");
        self.disk.flip_bits(&path, at, 0x10).expect("flip");
    }

    fn find(&self, content: &[u8]) -> Option<(PathBuf, u64)> {
        for name in self.disk.list(Path::new(DIR)).expect("list") {
            let path = Path::new(DIR).join(name);
            let medium = self.disk.contents(&path).expect("contents");
            let found = (0..medium.len())
                .step_by(4096)
                .find(|at| medium[*at..].starts_with(content));
            if let Some(at) = found {
                return Some((path, at as u64));
            }
        }
        None
    }

    /// Drops everything that may go, as the reclaim loop would over time.
    pub async fn reclaim(&self) {
        let mut after = None;
        loop {
            let (garbage, next) = self.work.garbage(after).await.expect("garbage");
            self.work.drop_dead(garbage.dead).await;
            for id in garbage.surplus {
                self.plane.store().remove(id);
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
    }
}

/// Waits until something holds that other tasks bring about; fails if it takes absurdly long.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came to pass that {what}");
}
