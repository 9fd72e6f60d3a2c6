use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Mutex;

use bytes::Bytes;
use futures::stream;
use openraft::entry::RaftEntry;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, StorageError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::*;
use crate::clock::{SystemClock, Timestamp};
use crate::disk::{Disk, RealDisk};
use crate::journal::{Journal, JournalOptions, LogStore, StoreIdentity};
use crate::kv::{EngineKind, EngineOptions, Read, StoreOptions, test_dir};
use crate::meta::{
    ClusterInfo, Event, FileKind, NewInode, Observer, Op, OpenedStore, Proposal, ROOT_INO, Reply, SessionId,
};

fn open(kind: EngineKind, root: &Path) -> Arc<MetaStore> {
    // A small write buffer, so that sorted files are written and merged.
    let engine = EngineOptions {
        write_buffer_bytes_max: 32 << 10,
        ..EngineOptions::default()
    };
    let options = StoreOptions {
        kind,
        engine,
        ..StoreOptions::new(root)
    };
    Arc::new(MetaStore::open(Arc::new(RealDisk), options).unwrap())
}

struct Builder(EngineKind);

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = test_dir();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let identity = StoreIdentity {
            cluster_id: "test".into(),
            node_id: 1,
        };
        let options = JournalOptions {
            segment_bytes: 64 << 10,
            cache_bytes_max: 16 << 10,
            ..JournalOptions::default()
        };
        let (journal, _) = Journal::open(
            disk,
            Arc::new(SystemClock),
            dir.path().join("journal"),
            identity,
            options,
        )
        .unwrap();
        let store = open(self.0, &dir.path().join("meta"));
        Ok((dir, LogStore::new(journal), StateMachine::new(store)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_passes_with_fjall() {
    Suite::test_all(Builder(EngineKind::Fjall)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_passes_with_sled() {
    Suite::test_all(Builder(EngineKind::Sled)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_passes_in_memory() {
    Suite::test_all(Builder(EngineKind::Memory)).await.unwrap();
}

/// Entries that make a cluster, a session, and then files.
struct Log {
    entries: Vec<Entry>,
    /// A store that has applied all of them.
    store: Arc<MetaStore>,
    session: SessionId,
    seq: u64,
}

impl Log {
    fn new() -> Self {
        let store = Arc::new(MetaStore::in_memory().unwrap());
        let mut log = Self {
            entries: Vec::new(),
            store,
            session: SessionId::SYSTEM,
            seq: 0,
        };
        log.push(Op::InitCluster(ClusterInfo {
            cluster_id: "test".into(),
            replicas: 1,
        }));
        let add = Op::AddNode {
            name: "one".into(),
            listen: "127.0.0.1:1".into(),
            token_hash: None,
        };
        let Some(Ok(Reply::Node(node))) = log.push(add) else {
            panic!("no node")
        };
        let Some(Ok(Reply::Session(session))) = log.push(Op::OpenSession { node: node.id }) else {
            panic!("no session")
        };
        log.session = session;
        log
    }

    fn push(&mut self, op: Op) -> crate::raft::Answer {
        self.seq += u64::from(self.session != SessionId::SYSTEM);
        let index = self.entries.len() as u64 + 1;
        let proposal = Proposal {
            session: self.session,
            seq: self.seq,
            ack_floor: self.seq,
            chunk_floor: 0,
            time: Timestamp {
                sec: index.cast_signed(),
                nsec: 0,
            },
            op,
            payload: Bytes::new(),
        };
        let log_id = LogId::new_term_index(1, index);
        self.entries
            .push(Entry::new(log_id, EntryPayload::Normal(proposal)));
        self.store
            .apply(&self.entries[self.entries.len() - 1..])
            .unwrap()
            .remove(0)
    }

    fn create(&mut self, name: &str) -> crate::raft::Answer {
        let new = NewInode {
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
        };
        self.push(Op::Create {
            parent: ROOT_INO,
            name: Bytes::copy_from_slice(name.as_bytes()),
            new,
            exclusive: true,
            ino: None,
        })
    }
}

fn contents(read: &dyn Read) -> BTreeMap<Bytes, Bytes> {
    read.scan((Bound::Included(vec![1]), Bound::Unbounded), false)
        .map(Result::unwrap)
        .collect()
}

/// Sees in each call what the store shows at that moment.
struct Witness {
    store: Arc<MetaStore>,
    seen: Mutex<Vec<(u64, u64, usize)>>,
}

impl Observer for Witness {
    fn applied(&self, index: u64, events: &[Event]) {
        let announced = *self.store.applied().borrow();
        let files = self.store.reader().usage().unwrap().inodes;
        assert!(!events.is_empty());
        self.seen
            .lock()
            .unwrap()
            .push((index, announced, usize::try_from(files).unwrap()));
    }
}

#[tokio::test]
async fn observers_run_between_visibility_and_announcement() {
    let mut log = Log::new();
    for n in 0..600 {
        assert!(matches!(
            log.create(&format!("file{n}")),
            Some(Ok(Reply::Inode(_)))
        ));
    }
    let store = Arc::new(MetaStore::in_memory().unwrap());
    let witness = Arc::new(Witness {
        store: store.clone(),
        seen: Mutex::default(),
    });
    store.observe(witness.clone());
    let mut machine = StateMachine::new(store.clone());
    let entries = stream::iter(log.entries.clone().into_iter().map(|entry| Ok((entry, None))));
    machine.apply(entries).await.unwrap();
    assert_eq!(*store.applied().borrow(), 603);
    assert_eq!(contents(&*store.read()), contents(&*log.store.read()));
    let seen = witness.seen.lock().unwrap();
    assert!(seen.len() >= 3 && seen.len() < 100, "{} groups", seen.len());
    let mut before = 0;
    for &(index, announced, files) in seen.iter() {
        assert_eq!(announced, before);
        // All files of the group, and the root, are there. The first three entries made none.
        assert_eq!(files as u64, index - 3 + 1);
        before = index;
    }
}

#[tokio::test]
async fn a_snapshot_resets_observers_and_repeats_are_still_known() {
    let mut log = Log::new();
    log.create("a");
    let mut sender = StateMachine::new(log.store.clone());
    let snapshot = sender.build_snapshot().await.unwrap();
    log.create("b");
    assert_eq!(snapshot.meta.last_log_id.map(|id| id.index), Some(4));
    let store = Arc::new(MetaStore::in_memory().unwrap());
    struct Resets(Mutex<Vec<u64>>);
    impl Observer for Resets {
        fn applied(&self, index: u64, events: &[Event]) {
            assert_eq!(events, [Event::Reset]);
            self.0.lock().unwrap().push(index);
        }
    }
    let resets = Arc::new(Resets(Mutex::default()));
    store.observe(resets.clone());
    let reader = store.reader();
    let mut receiver = StateMachine::new(store.clone());
    receiver
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .unwrap();
    assert_eq!(*resets.0.lock().unwrap(), [4]);
    assert_eq!(
        receiver.applied_state().await.unwrap().0,
        snapshot.meta.last_log_id
    );
    // A reader from before sees the new state.
    assert!(reader.lookup(ROOT_INO, b"a").unwrap().is_some());
    assert!(reader.lookup(ROOT_INO, b"b").unwrap().is_none());
    let current = receiver.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta, snapshot.meta);
    let wrong = sender.build_snapshot().await.unwrap();
    assert!(
        receiver
            .install_snapshot(&snapshot.meta, wrong.snapshot)
            .await
            .is_err()
    );
    assert!(reader.lookup(ROOT_INO, b"b").unwrap().is_none());
}

/// What a crash leaves is a prefix that ends between two batches, and holds at least what was flushed. The crash is
/// a copy of the files of a store in use, in the middle of a flush of fjall's tree if so asked.
fn a_crash_leaves_a_prefix(kind: EngineKind, in_flush: bool, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = test_dir();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let store = open(kind, &live);
    let mut log = Log::new();
    let mut states = vec![BTreeMap::new()];
    let mut flushed = 0;
    let mut applied = 0;
    for round in 0..8 {
        for _ in 0..rng.random_range(1..60) {
            let name = format!(
                "file{}{}",
                rng.random_range(0..400),
                "x".repeat(rng.random_range(0..200))
            );
            log.create(&name);
        }
        while applied < log.entries.len() {
            let batch = rng.random_range(1..20).min(log.entries.len() - applied);
            store.apply(&log.entries[applied..applied + batch]).unwrap();
            applied += batch;
            states.resize(applied, BTreeMap::new());
            states.push(contents(&*store.read()));
        }
        if rng.random_ratio(1, 3) {
            store.flush().unwrap();
            flushed = applied;
        }
        copy_files(&live, &copy);
        if in_flush {
            leave_half_a_flush(&copy, &mut rng);
        }
        let what = format!("{kind}, seed {seed}, round {round}, flushed {flushed} of {applied}");
        let reopened = open(kind, &copy);
        let found = usize::try_from(reopened.applied_state().index()).unwrap();
        assert!(found >= flushed && found <= applied, "{what}: found {found}");
        assert!(
            contents(&*reopened.read()) == states[found],
            "{what}: found {found}"
        );
        // What is missing is replayed.
        reopened.apply(&log.entries[found..applied]).unwrap();
        assert!(
            contents(&*reopened.read()) == contents(&*log.store.read()),
            "{what}: replayed from {found}"
        );
        drop(reopened);
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

/// Copies a directory as a crash would leave it: at one moment, between two merges of the engine's own threads.
fn copy_files(from: &Path, to: &Path) {
    for _ in 0..100 {
        let before = list_files(from);
        let copied = before.iter().all(|(path, _)| {
            let target = to.join(path.strip_prefix(from).unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(path, target).is_ok()
        });
        if copied && list_files(from) == before {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
    panic!("the engine does not come to rest");
}

/// Files below a directory, and their lengths.
fn list_files(dir: &Path) -> BTreeMap<std::path::PathBuf, u64> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => dirs.push(entry.path()),
                Ok(metadata) => drop(files.insert(entry.path(), metadata.len())),
                Err(_) => {}
            }
        }
    }
    files
}

/// What a power cut leaves of a flush that had not come to its end: a sorted file and a list of such files that nothing refers to,
/// cut off anywhere.
fn leave_half_a_flush(root: &Path, rng: &mut StdRng) {
    for name in ["gen-1/tables/999999", "gen-1/v999999"] {
        let mut bytes = vec![0; rng.random_range(0..20_000)];
        rng.fill(&mut bytes[..]);
        #[expect(clippy::disallowed_methods, reason = "the test stands in for the engine")]
        std::fs::write(root.join(name), bytes).unwrap();
    }
}

#[test]
fn a_crash_leaves_a_prefix_in_fjall() {
    for seed in 0..2 {
        a_crash_leaves_a_prefix(EngineKind::Fjall, false, seed);
        a_crash_leaves_a_prefix(EngineKind::Fjall, true, seed);
    }
}

#[test]
fn a_crash_leaves_a_prefix_in_the_memory_engine() {
    a_crash_leaves_a_prefix(EngineKind::Memory, false, 1);
}

#[test]
fn a_crash_leaves_a_prefix_in_sled() {
    for seed in 0..2 {
        a_crash_leaves_a_prefix(EngineKind::Sled, false, seed);
    }
}

/// Damage that only a read finds makes the store refuse everything, and is found again at the next start.
#[test]
fn damage_found_by_a_read_is_remembered() {
    let dir = test_dir();
    let mut log = Log::new();
    for n in 0..300 {
        log.create(&format!("file{n}"));
    }
    {
        let store = open(EngineKind::Fjall, dir.path());
        store.apply(&log.entries).unwrap();
        store.flush().unwrap();
    }
    let tables = dir.path().join("gen-1/tables");
    for entry in std::fs::read_dir(&tables).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        // The data blocks are at the beginning, what open reads at the end.
        bytes[64..512].fill(0x5a);
        #[expect(clippy::disallowed_methods, reason = "the test damages the engine's file")]
        std::fs::write(&path, bytes).unwrap();
    }
    let options = || StoreOptions::new(dir.path());
    let why = match MetaStore::open_or_damaged(Arc::new(RealDisk), options()).unwrap() {
        OpenedStore::Damaged(damaged) => damaged.why().to_string(),
        OpenedStore::Ready(store) => {
            let failure = store.failure();
            assert!(failure.borrow().is_none());
            let read = store.read();
            let found = read
                .scan((Bound::Unbounded, Bound::Unbounded), false)
                .find_map(Result::err);
            assert!(matches!(found, Some(KvError::Damaged(_))), "{found:?}");
            assert!(matches!(&*failure.borrow(), Some(KvError::Damaged(_))));
            assert!(store.reader().cluster().is_err());
            found.unwrap().to_string()
        }
    };
    let reopened = MetaStore::open_or_damaged(Arc::new(RealDisk), options()).unwrap();
    let OpenedStore::Damaged(damaged) = reopened else {
        panic!("forgotten: {why}")
    };
    assert!(damaged.why().to_string().contains("damaged"), "{}", damaged.why());
}
