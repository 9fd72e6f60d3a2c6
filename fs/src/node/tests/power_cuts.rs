//! Power cuts in the whole life of a node: `init`, founding, work, restarts. The code is that of a single-node
//! cluster, down to the medium, which is simulated: it drops, tears and reorders what was not synced. (The key-value
//! engine is the one in memory, since the others do their own I/O; they lose their newest batches just as it does.)
//!
//! One life is recorded: for each sync, the medium just before and just after it. Each of these is crashed, and a
//! node started on it; the syncs of that start are recorded too, and crashed in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use raftstore::clock::SystemClock;
use raftstore::disk::{Disk, SimDisk};
use raftstore::meta::{Data, Ino, Op, ROOT_INO, RenameMode, Reply, Source, WriteAt};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::create_op;
use super::recording_disk::{Cut, Known, Phase, RecordingDisk};
use super::{PATIENCE, free_address, until};
use crate::backend::{Backend, BackendError, Look, Propose};
use crate::node::bootstrap;
use crate::node::config::{Config, EngineChoice, Limits, OnQuorumLoss};
use crate::node::housekeeping;
use crate::node::running::{Running, Surroundings};
use crate::node::store::{Store, StoreError};

/// Recoveries that run at a time: each waits for its threads most of the time.
const AT_A_TIME: usize = 4;
/// Of the cuts while the node works, one in so many is tried by default. All others are always tried.
const SAMPLE: usize = 12;
/// Of the cuts during the start that follows a cut, so many are tried in the long version, and one by default. (A start
/// has some forty, and differs little from the next.)
const SECOND_FULL: usize = 4;
/// The log is cut beyond this, entries.
const JOURNAL_ENTRIES_MAX: u64 = 120;

/// Contents by name.
type Tree = BTreeMap<String, Bytes>;

/// A change of the tree.
#[derive(Debug, Clone)]
enum Change {
    Create(String),
    /// From offset 0, as payload of the log entry.
    Write(String, Bytes),
    /// From offset 0, as chunk.
    WriteChunk(String, Bytes),
    Append(String, Bytes),
    Rename(String, String),
    Remove(String),
}

impl Change {
    fn apply(&self, tree: &mut Tree) {
        match self {
            Self::Create(name) => drop(tree.insert(name.clone(), Bytes::new())),
            Self::Write(name, data) | Self::WriteChunk(name, data) => {
                let old = tree.get(name).unwrap();
                let rest = old.get(data.len()..).unwrap_or_default();
                let new = [&data[..], rest].concat();
                tree.insert(name.clone(), new.into());
            }
            Self::Append(name, data) => {
                let new = [&tree.get(name).unwrap()[..], data].concat();
                tree.insert(name.clone(), new.into());
            }
            Self::Rename(from, to) => {
                let moved = tree.remove(from).unwrap();
                tree.insert(to.clone(), moved);
            }
            Self::Remove(name) => drop(tree.remove(name).unwrap()),
        }
    }
}

/// What was done, in the order of the log.
#[derive(Default)]
struct History {
    changes: Vec<Change>,
    steps: Vec<Step>,
}

/// Changes that were under way at the same time.
struct Step {
    first: usize,
    /// The place of each in the log's order.
    places: Vec<usize>,
}

impl History {
    fn push(&mut self, changes: &[Change], places: Vec<usize>) {
        let first = self.changes.len();
        let mut ordered: Vec<_> = places.iter().zip(changes).collect();
        ordered.sort_by_key(|(place, _)| **place);
        self.changes
            .extend(ordered.into_iter().map(|(_, change)| change.clone()));
        self.steps.push(Step { first, places });
    }

    fn start(&self, step: usize) -> usize {
        self.steps.get(step).map_or(self.changes.len(), |step| step.first)
    }

    /// The trees that may be there after a cut: all that was acknowledged, and of the rest the first so many.
    fn allowed(&self, known: &Known) -> Vec<Tree> {
        let acked = known
            .acked
            .iter()
            .map(|change| self.steps[known.done].places[*change] + 1);
        let least = self.start(known.done) + acked.max().unwrap_or(0);
        let most = self.start(known.begun);
        let mut tree = Tree::new();
        let mut allowed = Vec::new();
        for count in 0..=most {
            if count >= least {
                allowed.push(tree.clone());
            }
            if count < most {
                self.changes[count].apply(&mut tree);
            }
        }
        allowed
    }
}

/// Where the nodes of this test are started.
struct Place {
    listener: TcpListener,
    seed: u64,
}

impl Place {
    fn config(&self) -> Config {
        Config {
            name: "alone".into(),
            listen: free_address(),
            mount: "/mnt".into(),
            engine: EngineChoice::Memory,
            on_quorum_loss: OnQuorumLoss::Wait,
            limits: Limits {
                journal_segment_bytes: 1 << 20,
                // Made when time allows, so not at the same sync each time.
                journal_ready_bytes: 0,
                journal_bytes_max: 4 << 20,
                journal_entries_max: JOURNAL_ENTRIES_MAX,
                ..Limits::default()
            },
        }
    }

    fn init(&self, disk: &Arc<RecordingDisk>, store: &Path) {
        disk.tell(|known| known.phase = Phase::Making);
        let valid = Duration::from_secs(3600);
        let token = bootstrap::init(Arc::clone(disk) as Arc<dyn Disk>, store, &self.config(), valid).unwrap();
        disk.tell(|known| known.token = Some(token.hash()));
    }

    /// Starts the node, and waits until it serves.
    async fn start(&self, disk: &Arc<RecordingDisk>, store: &Path, interval: Duration) -> Running {
        disk.tell(|known| known.phase = Phase::Starting);
        let store = Store::open(Arc::clone(disk) as Arc<dyn Disk>, store).unwrap();
        let around = Surroundings {
            clock: Arc::new(SystemClock),
            housekeeping_interval: interval,
            docker: None,
        };
        let listener = self.listener.try_clone().unwrap();
        let node = Running::start(store, listener, around).await.unwrap();
        tokio::time::timeout(PATIENCE, node.ready())
            .await
            .expect("no session in time")
            .unwrap();
        disk.tell(|known| known.phase = Phase::Working);
        node
    }
}

fn ino_of(node: &Running, name: &str) -> Ino {
    let entry = node.backend().reader().lookup(ROOT_INO, name.as_bytes()).unwrap();
    entry.unwrap().ino
}

/// Makes a change, and answers the number that orders it among others of its kind.
async fn make(node: &Running, change: &Change) -> u64 {
    let inline = |ino, at| Op::Write {
        ino,
        at,
        data: Data::Inline,
        kill_suid_sgid: false,
    };
    let (op, payload, _guard) = match change {
        Change::Create(name) => (create_op(name), Bytes::new(), None),
        Change::Write(name, data) => {
            let op = inline(ino_of(node, name), WriteAt::Offset(0));
            (op, data.clone(), None)
        }
        Change::Append(name, data) => (inline(ino_of(node, name), WriteAt::Append), data.clone(), None),
        Change::WriteChunk(name, data) => {
            let guard = node.backend().write_chunk(data.clone()).await.unwrap();
            let op = Op::Write {
                ino: ino_of(node, name),
                at: WriteAt::Offset(0),
                data: Data::Chunk {
                    id: guard.id,
                    offset: 0,
                    len: data.len() as u32,
                },
                kill_suid_sgid: false,
            };
            (op, Bytes::new(), Some(guard))
        }
        Change::Rename(from, to) => {
            let op = Op::Rename {
                parent: ROOT_INO,
                name: from.clone().into(),
                new_parent: ROOT_INO,
                new_name: to.clone().into(),
                mode: RenameMode::Replace,
            };
            (op, Bytes::new(), None)
        }
        Change::Remove(name) => {
            let op = Op::Unlink {
                parent: ROOT_INO,
                name: name.clone().into(),
            };
            (op, Bytes::new(), None)
        }
    };
    match node.backend().submit(op, payload).await.unwrap() {
        Reply::Inode(inode) => inode.ino,
        Reply::Written { offset, .. } => offset,
        _ => 0,
    }
}

/// The whole tree with its bytes, read back through their checksums.
async fn tree_of(node: &Running) -> Tree {
    let reader = node.backend().reader();
    let mut tree = Tree::new();
    for item in reader.list(ROOT_INO, 0, 1000).unwrap() {
        let bytes = loop {
            // What the merger moves meanwhile is looked up again.
            match contents(node, item.entry.ino).await {
                Err(BackendError::ChunkGone(_)) => {}
                bytes => break bytes.unwrap(),
            }
        };
        tree.insert(String::from_utf8(item.name.to_vec()).unwrap(), bytes);
    }
    tree
}

async fn contents(node: &Running, ino: Ino) -> Result<Bytes, BackendError> {
    let reader = node.backend().reader();
    let len = reader.inode(ino).unwrap().unwrap().size as usize;
    let mut bytes = vec![0; len];
    for extent in reader.extents(ino, 0, u64::MAX, 10_000).unwrap() {
        if let Source::Chunk { id, offset } = extent.source {
            let piece = node.backend().read_chunk(id, offset, extent.len as u32).await?;
            bytes[extent.offset as usize..][..piece.len()].copy_from_slice(&piece);
        }
    }
    Ok(bytes.into())
}

/// Names and lengths, for a message that can be read.
fn outline(tree: &Tree) -> Vec<(&str, usize, u32)> {
    let line = |(name, bytes): (&'_ String, &Bytes)| (name.len(), bytes.len(), crc32fast::hash(bytes));
    tree.iter()
        .map(|item| (item.0.as_str(), line(item).1, line(item).2))
        .collect()
}

/// Runs a workload and notes what was acknowledged when.
struct Worker {
    rng: StdRng,
    disk: Arc<RecordingDisk>,
    history: History,
    names: BTreeSet<String>,
    next: u32,
}

impl Worker {
    fn data(&mut self, len: std::ops::Range<usize>) -> Bytes {
        let mut bytes = vec![0; self.rng.random_range(len)];
        self.rng.fill_bytes(&mut bytes);
        bytes.into()
    }

    fn new_name(&mut self) -> String {
        self.next += 1;
        format!("file{}", self.next)
    }

    fn some_name(&mut self) -> String {
        let at = self.rng.random_range(0..self.names.len());
        self.names.iter().nth(at).unwrap().clone()
    }

    /// Makes changes, all at the same time.
    async fn step(&mut self, node: &Running, changes: Vec<Change>) {
        self.disk.tell(|known| known.begun += 1);
        let calls = changes.iter().enumerate().map(async |(number, change)| {
            let order = make(node, change).await;
            self.disk.tell(|known| known.acked.insert(number));
            order
        });
        let orders = join_all(calls).await;
        let place = |order: &u64| orders.iter().filter(|other| *other < order).count();
        self.history.push(&changes, orders.iter().map(place).collect());
        self.disk.tell(|known| {
            known.done += 1;
            known.acked.clear();
        });
    }

    /// A part of a life: a few files more, changed in all ways.
    async fn work(&mut self, node: &Running, acts: usize) {
        let made: Vec<String> = (0..4).map(|_| self.new_name()).collect();
        self.step(node, made.iter().cloned().map(Change::Create).collect())
            .await;
        self.names.extend(made);
        for _ in 0..acts {
            let name = self.some_name();
            let changes = match self.rng.random_range(0..10) {
                0..4 => vec![Change::Write(name, self.data(1..60_000))],
                4..6 => vec![Change::WriteChunk(name, self.data(1..150_000))],
                6..8 => {
                    let count = self.rng.random_range(2..6);
                    let append = |_| Change::Append(name.clone(), self.data(1..5000));
                    (0..count).map(append).collect()
                }
                8 => {
                    let new = self.new_name();
                    self.names.remove(&name);
                    self.names.insert(new.clone());
                    vec![Change::Rename(name, new)]
                }
                _ if self.names.len() > 3 => {
                    self.names.remove(&name);
                    vec![Change::Remove(name)]
                }
                _ => vec![Change::Write(name, self.data(1..100))],
            };
            self.step(node, changes).await;
        }
    }
}

/// Records a life: made, founded, killed, stopped, and started again each time.
async fn record(place: &Place) -> (Vec<Cut>, History) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let sim = SimDisk::new();
    sim.create_dir_all(dir.path()).unwrap();
    let known = Known {
        phase: Phase::Making,
        token: None,
        done: 0,
        begun: 0,
        acked: BTreeSet::new(),
    };
    let disk = RecordingDisk::new(sim, dir.path(), known);
    place.init(&disk, &store);
    let mut worker = Worker {
        rng: StdRng::seed_from_u64(place.seed),
        disk: Arc::clone(&disk),
        history: History::default(),
        names: BTreeSet::new(),
        next: 0,
    };
    let (mut begins, mut journal_bytes) = (0, 0);
    for life in 0..4 {
        let node = place.start(&disk, &store, Duration::from_millis(50)).await;
        worker.work(&node, 12).await;
        if life % 2 == 0 {
            // Payload becomes chunks, the engine is flushed, the log is cut, and segments are used again.
            while node.inspector().status().await.raft.last_index < begins + JOURNAL_ENTRIES_MAX + 10 {
                worker.work(&node, 4).await;
            }
            let before = begins;
            until("the log is cut", async || {
                node.inspector().status().await.raft.first_index > before + 60
            })
            .await;
            begins = node.inspector().status().await.raft.first_index;
            worker.work(&node, 6).await;
        }
        journal_bytes += node.inspector().status().await.journal.written_bytes;
        if life < 2 {
            node.abort().await;
        } else {
            node.stop().await;
        }
    }
    let files = disk.list(&store.join("journal")).unwrap().len() as u64;
    assert!(journal_bytes > files << 20, "segments are used again");
    (disk.take(), worker.history)
}

/// What became of the power cuts.
#[derive(Debug, Default)]
struct Tally {
    cuts: usize,
    /// Those that took bytes.
    lost_bytes: usize,
    /// Those that took names.
    lost_names: usize,
    during_init: usize,
    during_start: usize,
    /// Those during a start that followed another.
    second: usize,
}

/// Crashes the medium of `cut` and starts a node on it; answers the cuts of that start.
async fn survive(place: &Place, history: &History, cut: &Cut, tally: &Mutex<Tally>, what: &str) -> Vec<Cut> {
    let mut rng = StdRng::seed_from_u64(place.seed ^ ((cut.sync as u64) << 8) ^ cut.mode as u64);
    let sim = cut.disk.crash(rng.random());
    let lost = sim.counters();
    {
        let mut tally = tally.lock().unwrap();
        tally.cuts += 1;
        tally.lost_bytes += usize::from(lost.lost_bytes > 0);
        tally.lost_names += usize::from(lost.lost_names > 0);
        tally.during_init += usize::from(cut.known.phase == Phase::Making);
        tally.during_start += usize::from(cut.known.phase == Phase::Starting);
    }
    // Its lock and its socket are in a directory of its own.
    let dir = tempfile::tempdir().unwrap();
    let (root, store) = (dir.path(), dir.path().join("store"));
    std::fs::create_dir(&store).unwrap();
    sim.rename(&cut.root, root).unwrap();
    sim.sync_dir(root.parent().unwrap()).unwrap();
    let disk = RecordingDisk::new(sim, root, cut.known.clone());
    match Store::open(Arc::clone(&disk) as Arc<dyn Disk>, &store) {
        Ok(_) => {}
        Err(StoreError::Missing(_)) if cut.known.token.is_none() => place.init(&disk, &store),
        Err(error) => panic!("{what}: {error}"),
    }
    let node = place.start(&disk, &store, housekeeping::INTERVAL).await;
    let cuts = disk.take();
    node.backend().refresh(Look::whole(&[ROOT_INO])).await.unwrap();
    check(&node, history, &cut.known, what).await;
    assert!(
        disk.tell(|known| known.token).is_none_or(|token| {
            let tokens = node.backend().reader().tokens().unwrap();
            tokens.iter().any(|(hash, _)| *hash == token)
        }),
        "{what}: the token that init printed is good"
    );
    // It has a quorum, and goes on.
    let mut fresh = Tree::new();
    for (name, len) in [("fresh-payload", 3000), ("fresh-chunk", 70_000)] {
        let data = Bytes::from(vec![7; len]);
        let write = if len < 65_536 {
            Change::Write
        } else {
            Change::WriteChunk
        };
        for change in [Change::Create(name.into()), write(name.into(), data)] {
            change.apply(&mut fresh);
            make(&node, &change).await;
        }
    }
    let tree = tree_of(&node).await;
    assert!(
        fresh.iter().all(|(name, bytes)| tree.get(name) == Some(bytes)),
        "{what}"
    );
    assert_eq!(node.inspector().status().await.journal.poisoned, None, "{what}");
    node.abort().await;
    cuts
}

async fn check(node: &Running, history: &History, known: &Known, what: &str) {
    let reader = node.backend().reader();
    assert!(
        reader.cluster().unwrap().is_some(),
        "{what}: the cluster is founded"
    );
    assert_eq!(reader.nodes().unwrap().len(), 1, "{what}");
    let found = tree_of(node).await;
    let allowed = history.allowed(known);
    assert!(
        allowed.contains(&found),
        "{what}: {known:?}\nfound {:?}\nexpected one of {:?}",
        outline(&found),
        allowed.iter().map(outline).collect::<Vec<_>>()
    );
    let status = node.inspector().status().await;
    assert!(status.cluster.quorum && status.raft.voters == 1, "{what}");
    assert_eq!(
        (status.warnings, status.chunks.bad),
        (vec![], 0),
        "{what}: nothing was damaged"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_sync_of_a_nodes_life_loses_nothing_acknowledged() {
    let full = std::env::var_os("BRAMBLE_TEST_FULL").is_some_and(|value| value != "0");
    let given = std::env::var("BRAMBLE_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(1);
    println!("BRAMBLE_TEST_SEED={seed}");
    let place = Arc::new(Place {
        listener: TcpListener::bind("127.0.0.1:0").unwrap(),
        seed,
    });
    let (cuts, history) = record(&place).await;
    let (recorded, history) = (cuts.len(), Arc::new(history));
    let mut rng = StdRng::seed_from_u64(seed);
    let tally = Arc::new(Mutex::new(Tally::default()));
    let turns = Arc::new(Semaphore::new(AT_A_TIME));
    let mut trials = JoinSet::new();
    for cut in cuts {
        let tried = full || cut.known.phase != Phase::Working || rng.random_range(0..SAMPLE) == 0;
        if !tried {
            continue;
        }
        let (place, history, tally) = (Arc::clone(&place), Arc::clone(&history), Arc::clone(&tally));
        let (turns, mut rng) = (Arc::clone(&turns), StdRng::seed_from_u64(rng.random()));
        trials.spawn(async move {
            let _turn = turns.acquire_owned().await.unwrap();
            let what = format!(
                "seed {seed}, {:?} sync {} ({:?})",
                cut.mode, cut.sync, cut.known.phase
            );
            let mut again = survive(&place, &history, &cut, &tally, &what).await;
            again.shuffle(&mut rng);
            again.truncate(if full { SECOND_FULL } else { 1 });
            for cut in again {
                let what = format!("{what}, then {:?} sync {} of the next start", cut.mode, cut.sync);
                survive(&place, &history, &cut, &tally, &what).await;
                tally.lock().unwrap().second += 1;
            }
        });
    }
    while let Some(trial) = trials.join_next().await {
        trial.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let tally = tally.lock().unwrap();
    println!("seed {seed}: {recorded} cuts recorded, {tally:?}");
    assert!(
        tally.during_init > 20 && tally.during_start > 60 && tally.second > 60,
        "{tally:?}"
    );
    assert!(
        tally.lost_bytes > 20 && tally.lost_names > 5,
        "the cuts took something: {tally:?}"
    );
}
