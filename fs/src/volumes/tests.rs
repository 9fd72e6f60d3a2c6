//! Volumes on an in-process cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::clock::SystemClock;
use raftstore::meta::{FileKind, Ino, NewInode, NodeId, Op, ROOT_INO, TreeSource, VolumeChange, VolumeOp};

use super::*;
use crate::backend::Backend;
use crate::posix::testing::LocalCluster;
use crate::posix::{Limits, Vfs, WriteRequest};

const CAPACITY_BYTES: u64 = 1 << 30;

/// What the nodes are to say.
#[derive(Default)]
struct Around {
    problems: Mutex<Vec<String>>,
    open: Mutex<Vec<Ino>>,
}

impl Nodes for Around {
    fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap().clone()
    }
}

#[async_trait]
impl OpenSomewhere for Around {
    async fn open_on(&self, inodes: &[Ino]) -> Option<NodeId> {
        let open = self.open.lock().unwrap();
        inodes.iter().any(|ino| open.contains(ino)).then_some(2)
    }
}

struct Bench {
    cluster: Arc<LocalCluster>,
    vfs: Arc<Vfs>,
    around: Arc<Around>,
    volumes: Volumes,
}

impl Bench {
    fn new() -> Self {
        let cluster = LocalCluster::new(CAPACITY_BYTES).unwrap();
        let backend: Arc<dyn Backend> = cluster.node().unwrap();
        let vfs = Vfs::new(backend.clone(), Arc::new(SystemClock), Limits::default());
        let around = Arc::new(Around::default());
        let volumes = Volumes::new(VolumesParts {
            node: 2,
            cluster: backend.clone(),
            tree: backend,
            vfs: vfs.clone(),
            nodes: around.clone(),
            open: around.clone(),
        });
        Self {
            cluster,
            vfs,
            around,
            volumes,
        }
    }

    async fn create(&self, name: &str, options: &[(&str, &str)]) -> Result<VolumeStatus, VolumesError> {
        let options = options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let options = parse_options(&options).unwrap();
        self.volumes.create(name, options, BTreeMap::new()).await
    }

    async fn ino(&self, path: &str) -> Option<Ino> {
        let mut at = ROOT_INO;
        for name in path.split('/') {
            at = self.vfs.lookup(at, name.as_bytes()).await.ok()?.ino;
        }
        Some(at)
    }

    /// Makes a file of `len` bytes.
    async fn write(&self, directory: &str, name: &str, len: usize) -> Ino {
        let new = NewInode {
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
        };
        let directory = self.ino(directory).await.unwrap();
        let ino = self.vfs.make(directory, name.as_bytes(), new).await.unwrap().ino;
        let request = WriteRequest {
            ino,
            handle: 0,
            owner: None,
            offset: 0,
            data: vec![1; len].into(),
            append: false,
            from_mapping: false,
            kill_suid_sgid: false,
        };
        self.vfs.write(request).await.unwrap();
        ino
    }
}

#[tokio::test]
async fn volumes_are_made_where_they_belong_and_listed() {
    let bench = Bench::new();
    let options = [("size", "10M"), ("uid", "33"), ("mode", "0700")];
    let made = bench.create("web", &options).await.unwrap();
    assert_eq!(made.path.as_deref(), Some("volumes/web"));
    assert_eq!(
        (made.size_bytes, made.used_bytes, made.inodes),
        (Some(10 << 20), 0, 1)
    );
    assert_eq!((made.health.as_str(), made.replicas), ("ok", 1));
    let root = bench
        .vfs
        .getattr(bench.ino("volumes/web").await.unwrap())
        .await
        .unwrap();
    assert_eq!((root.uid, root.mode), (33, 0o700));
    assert_eq!(bench.create("web", &options).await.unwrap(), made);
    let differs = bench.create("web", &[("size", "11M")]).await.unwrap_err();
    assert!(differs.to_string().contains("another size"), "{differs}");
    let placed = bench.create("db", &[("path", "data/mysql/db")]).await.unwrap();
    assert_eq!(placed.path.as_deref(), Some("data/mysql/db"));
    let large = bench.create("large", &[("size", "2G")]).await.unwrap_err();
    assert!(
        large.to_string().contains("more than the cluster holds"),
        "{large}"
    );
    let bad = bench.create("../x", &[]).await.unwrap_err();
    assert!(bad.to_string().contains("cannot be the name"), "{bad}");
    bench.write("volumes/web", "file", 5000).await;
    let change = VolumeChange {
        bytes: Some(20 << 20),
        ..VolumeChange::default()
    };
    bench.volumes.set("web", change).await.unwrap();
    bench.around.problems.lock().unwrap().push("node3 is down".into());
    let list = bench.volumes.list().await.unwrap();
    let text = list.to_text();
    let line = text.lines().find(|line| line.starts_with("web")).unwrap();
    for part in ["4.8 KiB", "20.0 MiB", "node3 is down", "volumes/web"] {
        assert!(line.contains(part), "{text}");
    }
    assert_eq!(list.volumes.len(), 2);
    let unknown = bench.volumes.get("other").await.unwrap_err();
    assert!(unknown.is_unknown(), "{unknown}");
}

#[tokio::test]
async fn snapshots_clones_and_restores_follow_each_other() {
    let bench = Bench::new();
    bench.create("v", &[]).await.unwrap();
    bench.write("volumes/v", "first", 1000).await;
    let taken = bench.volumes.snapshot("v", "s1").await.unwrap();
    assert_eq!(
        (taken.path.as_str(), taken.bytes, taken.inodes),
        (".snapshots/v/s1", 1000, 2)
    );
    bench.write("volumes/v", "second", 10).await;
    let source = TreeSource::Snapshot {
        volume: "v".into(),
        name: "s1".into(),
    };
    let clone = bench
        .volumes
        .clone_of(
            source,
            "c",
            parse_options(&BTreeMap::new()).unwrap(),
            BTreeMap::new(),
        )
        .await
        .unwrap();
    assert_eq!((clone.used_bytes, clone.inodes), (1000, 2));
    bench.write("volumes/c", "third", 10).await;
    let restored = bench.volumes.restore("v", "s1", false).await.unwrap();
    assert_eq!(restored.snapshots, [taken]);
    assert!(bench.ino("volumes/v/first").await.is_some());
    assert!(bench.ino("volumes/v/second").await.is_none());
    bench.volumes.remove("v", None, false).await.unwrap();
    let list = bench.volumes.list().await.unwrap();
    assert_eq!((list.volumes.len(), list.left_over.len()), (1, 1));
    assert!(list.to_text().contains("v@s1"));
    bench.volumes.remove_snapshot("v", "s1").await.unwrap();
    let prune = Op::Volume(VolumeOp::Prune { entries_max: 1000 });
    while bench.cluster.reader().has_doomed().unwrap() {
        bench.cluster.system(prune.clone()).unwrap();
    }
    let inodes = bench.cluster.reader().orphans(0, 1000).unwrap();
    bench.cluster.system(Op::Reap { inodes }).unwrap();
    // The root, volumes, .snapshots, the clone and its two files.
    assert_eq!(bench.cluster.reader().usage().unwrap().inodes, 6);
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let bench = Bench::new();
    bench.create("v", &[]).await.unwrap();
    let file = bench.write("volumes/v", "file", 10).await;
    bench.volumes.snapshot("v", "s").await.unwrap();
    bench.around.open.lock().unwrap().push(file);
    for refused in [
        bench.volumes.remove("v", None, false).await,
        bench.volumes.restore("v", "s", false).await.map(drop),
    ] {
        assert!(refused.unwrap_err().to_string().contains("are open on node"));
    }
    bench.around.open.lock().unwrap().clear();
    let held = bench.volumes.hold("v", "container").await.unwrap();
    assert_eq!(held.users[0].id, "container");
    bench.volumes.hold("v", "container").await.unwrap();
    bench.volumes.release("v", "container").await.unwrap();
    let in_use = bench.volumes.remove("v", None, false).await.unwrap_err();
    assert!(in_use.to_string().contains("in use on node"), "{in_use}");
    bench.volumes.release_all().await.unwrap();
    bench.volumes.remove("v", None, false).await.unwrap();
}

#[tokio::test]
async fn volumes_can_keep_their_directories() {
    let bench = Bench::new();
    bench.create("v", &[("keep", "true")]).await.unwrap();
    bench.write("volumes/v", "file", 10).await;
    bench.volumes.remove("v", None, false).await.unwrap();
    assert!(bench.ino("volumes/v/file").await.is_some());
    let again = bench.create("v", &[]).await.unwrap();
    assert_eq!((again.used_bytes, again.inodes), (10, 2));
    bench.volumes.remove("v", Some(true), false).await.unwrap();
    assert!(bench.ino("volumes/v/file").await.is_some());
    let limits = raftstore::meta::ProjectLimits {
        bytes: 100,
        inodes: 0,
    };
    bench.volumes.set_quota("/volumes/v", limits).await.unwrap();
    bench.create("v", &[]).await.unwrap();
    bench.volumes.remove("v", None, false).await.unwrap();
    assert!(bench.ino("volumes/v").await.is_none());
}
