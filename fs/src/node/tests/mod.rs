//! Three nodes in one process, over loopback TLS; and one, on a medium that loses power.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftstore::clock::SystemClock;
use raftstore::disk::RealDisk;
use raftstore::meta::{FileKind, NewInode, Op, ROOT_INO, Reply};

use crate::backend::{Backend, Look, Propose};
use crate::node::bootstrap::{self, BootstrapError};
use crate::node::config::{Config, EngineChoice, Limits, OnQuorumLoss};
use crate::node::housekeeping;
use crate::node::running::{Running, Surroundings};
use crate::node::store::Store;
use crate::node::token::JoinToken;

mod leases;
mod power_cuts;
mod recording_disk;

const PATIENCE: Duration = Duration::from_secs(30);

struct Lab {
    dir: tempfile::TempDir,
    token: Option<JoinToken>,
    configs: Vec<Config>,
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Lab {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            token: None,
            configs: Vec::new(),
        }
    }

    fn config(&self, name: &str) -> Config {
        Config {
            name: name.into(),
            listen: free_address(),
            mount: self.dir.path().join("mnt"),
            engine: EngineChoice::Fjall,
            on_quorum_loss: OnQuorumLoss::Wait,
            limits: Limits {
                journal_segment_bytes: 1 << 20,
                journal_ready_bytes: 4 << 20,
                journal_bytes_max: 8 << 20,
                ..Limits::default()
            },
        }
    }

    fn store(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("store{index}"))
    }

    fn init(&mut self) {
        let config = self.config("n0");
        let token = bootstrap::init(
            Arc::new(RealDisk),
            &self.store(0),
            &config,
            Duration::from_secs(600),
        )
        .unwrap();
        (self.token, self.configs) = (Some(token), vec![config]);
    }

    async fn join(&mut self, via: &Running) {
        let index = self.configs.len();
        let config = self.config(&format!("n{index}"));
        let token = via.inspector().create_token(60).await.unwrap();
        bootstrap::join(
            Arc::new(RealDisk),
            &self.store(index),
            &config,
            self.configs[0].listen,
            &token,
        )
        .await
        .unwrap();
        self.configs.push(config);
    }

    /// What a join that must be refused is told.
    async fn refused(&self, config: &Config, token: &JoinToken) -> String {
        let store = self.store(9);
        let error = bootstrap::join(Arc::new(RealDisk), &store, config, self.configs[0].listen, token)
            .await
            .unwrap_err();
        assert!(!store.exists(), "a refused join left something behind");
        error.to_string()
    }

    async fn start(&self, index: usize) -> Running {
        start(&self.store(index)).await
    }
}

async fn start(store: &Path) -> Running {
    let store = Store::open(Arc::new(RealDisk), store).unwrap();
    let listener = TcpListener::bind(store.config.listen).unwrap();
    let around = Surroundings {
        clock: Arc::new(SystemClock),
        housekeeping_interval: housekeeping::INTERVAL,
        docker: None,
    };
    let node = Running::start(store, listener, around).await.unwrap();
    tokio::time::timeout(PATIENCE, node.ready())
        .await
        .expect("no session in time")
        .unwrap();
    node
}

/// Makes an empty file in the root directory.
fn create_op(name: &str) -> Op {
    let new = NewInode {
        kind: FileKind::Regular,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Bytes::new(),
    };
    Op::Create {
        parent: ROOT_INO,
        name: name.to_owned().into(),
        new,
        exclusive: true,
        ino: None,
    }
}

async fn create(node: &Running, name: &str) -> u64 {
    let reply = tokio::time::timeout(PATIENCE, node.backend().submit(create_op(name), Bytes::new()));
    match reply.await.expect("no answer in time").unwrap() {
        Reply::Inode(inode) => inode.ino,
        other => panic!("{other:?}"),
    }
}

async fn sees(node: &Running, name: &str) -> bool {
    let refreshed = tokio::time::timeout(PATIENCE, node.backend().refresh(Look::whole(&[ROOT_INO])));
    refreshed.await.expect("no read index in time").unwrap();
    node.backend()
        .reader()
        .lookup(ROOT_INO, name.as_bytes())
        .unwrap()
        .is_some()
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("timed out: {what}"));
}

/// As RUST_LOG says.
fn show_log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_lose_their_leader_and_go_on() {
    show_log();
    let mut lab = Lab::new();
    lab.init();
    let first = lab.start(0).await;
    create(&first, "alone").await;
    lab.join(&first).await;
    lab.join(&first).await;
    let second = lab.start(1).await;
    let third = lab.start(2).await;
    until("three voters", async || {
        first.inspector().status().await.raft.voters == 3
    })
    .await;

    // What one node did, the others see from the moment it returned.
    assert!(sees(&third, "alone").await);
    for round in 0..20 {
        let name = format!("file{round}");
        create([&first, &second, &third][round % 3], &name).await;
        assert!(sees([&first, &second, &third][(round + 1) % 3], &name).await);
    }
    // Placement covers everyone.
    until("placement", async || {
        first.backend().reader().placement(0).unwrap().len() == 3
    })
    .await;

    // The leader dies.
    let mut nodes = vec![first, second, third];
    let leader = nodes.iter().position(Running::leads).expect("one leads");
    let dead = nodes.remove(leader);
    let dead_store = dead.store().layout.root().to_owned();
    dead.abort().await;
    create(&nodes[0], "after").await;
    assert!(sees(&nodes[1], "after").await);

    // It comes back and catches up.
    let back = start(&dead_store).await;
    assert!(sees(&back, "after").await);
    nodes.push(back);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_names_are_checked() {
    let mut lab = Lab::new();
    lab.init();
    let first = lab.start(0).await;
    let config = lab.config("n9");
    let refused = async |config: &Config, token: &JoinToken| lab.refused(config, token).await;
    let good = first.inspector().create_token(60).await.unwrap();
    let wrong = JoinToken {
        secret: "0".repeat(40),
        ..good.clone()
    };
    assert!(refused(&config, &wrong).await.contains("token"));
    let foreign = JoinToken {
        ca_fingerprint: [1; 32],
        ..good.clone()
    };
    assert!(refused(&config, &foreign).await.contains("another cluster"));
    let same_name = Config {
        name: "n0".into(),
        ..config.clone()
    };
    assert!(refused(&same_name, &good).await.contains("in use"));
    let nobody = bootstrap::join(Arc::new(RealDisk), &lab.store(9), &config, free_address(), &good)
        .await
        .unwrap_err();
    assert!(matches!(nobody, BootstrapError::Tls(_)), "{nobody}");
    // None of these used it up.
    bootstrap::join(
        Arc::new(RealDisk),
        &lab.store(8),
        &config,
        lab.configs[0].listen,
        &good,
    )
    .await
    .unwrap();
    assert!(refused(&lab.config("n10"), &good).await.contains("token"));
    // A short one expires.
    let short = first.inspector().create_token(1).await.unwrap();
    until("expiry", async || {
        !first
            .backend()
            .reader()
            .tokens()
            .unwrap()
            .iter()
            .any(|(hash, _)| *hash == short.hash())
    })
    .await;
    assert!(refused(&lab.config("n11"), &short).await.contains("token"));
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_nothing_is_told_of_the_nodes() {
    let mut lab = Lab::new();
    lab.init();
    let first = lab.start(0).await;
    lab.join(&first).await;
    let token = first.inspector().create_token(60).await.unwrap();
    let wrong = JoinToken {
        secret: "0".repeat(40),
        ..token.clone()
    };
    let (here, silent) = (lab.config("n0"), lab.configs[1].clone());
    let same_address = Config {
        name: "n9".into(),
        ..silent.clone()
    };
    for taken in [&here, &silent, &same_address] {
        let why = lab.refused(taken, &wrong).await;
        assert!(
            why.contains("token") && !why.contains("n0") && !why.contains("n1"),
            "{why}"
        );
    }
    assert!(lab.refused(&here, &token).await.contains("in use"));
    let why = lab.refused(&same_address, &token).await;
    assert!(why.contains("belongs to node n1"), "{why}");
    first.stop().await;
}
