//! Clusters of real daemons.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::janitor::Janitor;
use crate::net::Network;
use crate::node::Node;
use crate::run::{bramble, describe, run, try_run};
use crate::wait_for;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of nodes.
    pub nodes: usize,
    /// Each node in a network namespace of its own, so that links can be cut.
    pub namespaces: bool,
    /// Each node's store on a filesystem of its own of so many MiB, on a loop device.
    pub medium_mib: Option<u64>,
    /// After so long the test is taken for hanging, and ended.
    pub limit: Duration,
    /// Limits to be set in the nodes' configuration, as their names and values.
    pub limits: Vec<(&'static str, u64)>,
    /// Each node on a [`DockerHost`](crate::docker::DockerHost), whose Docker it serves; needs `namespaces`.
    pub docker: bool,
    /// Only the hosts are there, and blank: the test makes nodes of them.
    pub blank: bool,
    /// What the daemons are to log, instead of what they log by themselves.
    pub log: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        let limit = Duration::from_secs(crate::brief_or_full(400, 7200));
        Self {
            nodes: 3,
            namespaces: false,
            medium_mib: None,
            limit,
            limits: Vec::new(),
            docker: false,
            blank: false,
            log: None,
        }
    }
}

/// A running cluster; gone without a trace when it is dropped.
pub struct Cluster {
    test: String,
    nodes: Vec<Node>,
    network: Network,
    options: Options,
    janitor: Janitor,
}

/// One test at a time has the machine; what stays running between tests is the shared cluster.
static MACHINE: Mutex<Option<Cluster>> = Mutex::new(None);

/// A cluster that a test shares with those before and after it, which it must leave as healthy as it found it.
pub struct Shared {
    guard: MutexGuard<'static, Option<Cluster>>,
    dir: String,
    /// Ends the watch when it is dropped.
    _watch: Sender<()>,
}

/// A cluster that a test has for itself.
pub struct Own {
    cluster: Cluster,
    _machine: MutexGuard<'static, Option<Cluster>>,
}

impl Cluster {
    /// The three-node cluster that tests share, with a new directory named `test` in it for this one.
    ///
    /// # Panics
    /// If the cluster does not come up.
    #[must_use]
    pub fn shared(test: &str) -> Shared {
        let mut guard = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            let limit = Duration::from_secs(7200);
            *guard = Some(Self::build(
                "shared",
                Options {
                    limit,
                    ..Options::default()
                },
            ));
        }
        let cluster = guard.as_ref().unwrap();
        cluster.wait_healthy();
        fs::create_dir(cluster.node(0).path(test)).unwrap();
        let watch = cluster.watch();
        Shared {
            guard,
            dir: test.to_owned(),
            _watch: watch,
        }
    }

    /// Kills the daemons, so that calls which hang fail, unless the returned value is dropped before the limit for a
    /// test.
    fn watch(&self) -> Sender<()> {
        let running = self.nodes.iter().filter(|node| node.is_started());
        let pids: Vec<_> = running.map(|node| node.pid().to_string()).collect();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            if receiver.recv_timeout(Options::default().limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test takes too long: ending its daemons");
                let _ = try_run("kill", ["-9"].into_iter().chain(pids.iter().map(String::as_str)));
            }
        });
        sender
    }

    /// A cluster for the test named `test` alone.
    ///
    /// # Panics
    /// If the cluster does not come up.
    #[must_use]
    pub fn own(test: &str, options: Options) -> Own {
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        Own {
            cluster: Self::build(test, options),
            _machine: machine,
        }
    }

    fn build(test: &str, options: Options) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "cluster tests mount filesystems: run them as root"
        );
        let janitor = Janitor::new(options.limit);
        let network = if options.namespaces {
            Network::namespaces(&janitor, options.nodes)
        } else {
            Network::loopback()
        };
        let mut cluster = Self {
            test: test.to_owned(),
            nodes: Vec::new(),
            network,
            options,
            janitor,
        };
        if let Some(reference) = crate::reference() {
            cluster.bind_reference(&reference);
            return cluster;
        }
        if cluster.options.blank {
            for _ in 0..cluster.options.nodes {
                let node = cluster.prepare();
                cluster.nodes.push(node);
            }
            return cluster;
        }
        for _ in 0..cluster.options.nodes {
            cluster.grow();
        }
        cluster.wait_healthy();
        cluster.wait_voters();
        cluster
    }

    /// "Nodes" that are no more than directories mounted elsewhere.
    fn bind_reference(&mut self, dirs: &[PathBuf]) {
        for dir in dirs.iter().cycle().take(self.options.nodes) {
            let node = self.prepare();
            run("mount", [Path::new("--bind"), dir, &node.mount]);
            self.nodes.push(node);
        }
    }

    /// Adds one node to the cluster, and waits until it serves.
    ///
    /// # Panics
    /// If that does not work.
    pub fn grow(&mut self) {
        let node = self.prepare();
        match self.nodes.first() {
            None => self.init(&node),
            Some(first) => {
                let token = first.token(&[]);
                let output = node.join(&first.listen, &token);
                assert!(output.status.success(), "join: {}", describe(&output));
            }
        }
        node.set_limits(&self.options.limits);
        self.nodes.push(node);
        self.start(self.nodes.len() - 1);
        self.nodes.last().unwrap().wait_healthy();
    }

    /// A node that is in no cluster yet: its directories and its place in the network.
    ///
    /// # Panics
    /// If that does not work.
    #[must_use]
    pub fn prepare(&self) -> Node {
        let index = self.nodes.len();
        let base = self.janitor.dir().join(format!("node{}", index + 1));
        fs::create_dir_all(base.join("mnt")).unwrap();
        fs::create_dir_all(base.join("medium")).unwrap();
        self.janitor.add_mount(&base.join("mnt"));
        if let Some(mib) = self.options.medium_mib {
            self.add_medium(&base, mib);
        }
        if self.options.docker {
            crate::docker::prepare(&self.janitor, &base);
        }
        Node {
            name: format!("node{}", index + 1),
            listen: self.network.listen(index),
            store: base.join("medium/store"),
            mount: base.join("mnt"),
            log: base.join("log"),
            netns: self.network.netns(index),
            filter: self.options.log,
            docker_plugin: self.options.docker.then(|| crate::docker::plugin_socket(&base)),
            daemon: Mutex::new(None),
        }
    }

    /// Mounts a new ext4 of its own at `base/medium`.
    fn add_medium(&self, base: &Path, mib: u64) {
        let (image, medium) = (base.join("image"), base.join("medium"));
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run("mkfs.ext4", ["-q", "-F", image.to_str().unwrap()]);
        let device = run("losetup", ["-f", "--show", image.to_str().unwrap()]);
        self.janitor.add_loop(device.trim());
        self.janitor.add_mount(&medium);
        run("mount", [device.trim(), medium.to_str().unwrap()]);
    }

    fn init(&self, node: &Node) {
        let output = node.init();
        assert!(output.status.success(), "init: {}", describe(&output));
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node, counted from 0.
    #[must_use]
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The network between the nodes.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// A directory outside the cluster, on this machine's own disk.
    #[must_use]
    pub fn local_dir(&self, name: &str) -> PathBuf {
        let dir = self.janitor.dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// What removes what this cluster made; tests add what they make.
    #[must_use]
    pub fn janitor(&self) -> &Janitor {
        &self.janitor
    }

    /// Starts a node's daemon that does not run; does not wait.
    ///
    /// # Panics
    /// If it runs.
    pub fn start(&self, index: usize) {
        let pid = self.nodes[index].spawn();
        self.janitor.add_pid(pid);
    }

    /// Waits until all nodes whose daemons run are healthy.
    ///
    /// # Panics
    /// If that takes more than a minute, or a daemon has ended.
    pub fn wait_healthy(&self) {
        for node in self.nodes.iter().filter(|node| node.is_started()) {
            node.wait_healthy();
        }
    }

    /// Waits until all nodes that are to vote do, so that the cluster survives the loss of one.
    ///
    /// # Panics
    /// If that takes more than a minute.
    pub fn wait_voters(&self) {
        let wanted = match self.nodes.len() {
            few @ 0..=2 => few,
            3 | 4 => 3,
            _ => 5,
        };
        let Some(first) = self.nodes.iter().find(|node| node.is_started()) else {
            return;
        };
        wait_for(&format!("{wanted} voters"), Duration::from_secs(60), || {
            (first.try_status()?.voters() >= wanted as u64).then_some(())
        });
    }

    /// The index of the node that leads, as the nodes that run agree.
    ///
    /// # Panics
    /// If they do not agree within 30 s.
    #[must_use]
    pub fn leader(&self) -> usize {
        wait_for("the nodes to agree on a leader", Duration::from_secs(30), || {
            let mut running = self.nodes.iter().filter(|node| node.is_started());
            let leader = running.next()?.try_status()?.leader()?;
            let agreed = running
                .all(|node| node.try_status().and_then(|status| status.leader()) == Some(leader.clone()));
            agreed.then(|| self.nodes.iter().position(|node| node.name == leader))?
        })
    }

    /// A node that does not lead.
    #[must_use]
    pub fn follower(&self) -> usize {
        (self.leader() + 1) % self.nodes.len()
    }

    /// Waits until every node that runs has applied what `index` has applied by now.
    ///
    /// # Panics
    /// If that takes more than two minutes.
    pub fn wait_caught_up(&self, index: usize) {
        let goal = self.nodes[index].status().applied_index();
        for node in self.nodes.iter().filter(|node| node.is_started()) {
            wait_for(
                &format!("{} to apply entry {goal}", node.name),
                Duration::from_secs(120),
                || (node.try_status()?.applied_index() >= goal).then_some(()),
            );
        }
    }

    fn keep_logs(&self) {
        let Some(logs) = std::env::var_os("BRAMBLE_TEST_LOGS") else {
            self.nodes
                .iter()
                .for_each(|node| eprintln!("{}", node.log_tail()));
            return;
        };
        let dir = Path::new(&logs).join(&self.test);
        let _ = fs::create_dir_all(&dir);
        for node in &self.nodes {
            let _ = fs::copy(&node.log, dir.join(format!("{}.log", node.name)));
            for log in ["keepalived.log", "check.log"] {
                let _ = fs::copy(
                    node.log.with_file_name(log),
                    dir.join(format!("{}.{log}", node.name)),
                );
            }
            let status = node.cli(&["status", "--json"]);
            let status = [status.stdout, status.stderr].concat();
            let _ = fs::write(dir.join(format!("{}.status", node.name)), status);
        }
        eprintln!("logs: {}", dir.display());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
        // What still runs is killed by the janitor, which is dropped next; its children are ours to wait for.
        for node in &mut self.nodes {
            if let Some(child) = node.daemon.get_mut().unwrap_or_else(PoisonError::into_inner) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

impl Shared {
    /// This test's directory as node `index` mounts it.
    #[must_use]
    pub fn dir(&self, index: usize) -> PathBuf {
        self.node(index).path(&self.dir)
    }
}

impl Deref for Shared {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        self.guard.as_ref().expect("there while the guard lives")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The next test gets a new one.
            drop(self.guard.take());
        }
    }
}

impl Deref for Own {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for Own {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

/// A second cluster in a test that has one already.
///
/// # Panics
/// If there is no `bramble`.
#[must_use]
pub fn second(test: &str, options: Options) -> Cluster {
    assert!(bramble().exists());
    Cluster::build(test, options)
}
