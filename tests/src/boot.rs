//! `bramble bootstrap` on the hosts of a cluster.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::Cluster;
use crate::run::try_run;

/// One run of it takes no longer.
const LIMIT: Duration = Duration::from_secs(240);

/// How a run ended.
#[derive(Debug)]
pub struct Bootstrapped {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that it printed.
    pub said: String,
    /// How long it took.
    pub took: Duration,
}

impl Bootstrapped {
    /// Of a run that must succeed; what it said.
    ///
    /// # Panics
    /// If it failed.
    pub fn ok(self) -> String {
        assert!(self.status.success(), "bootstrap: {}\n{}", self.status, self.said);
        self.said
    }

    /// Of a run that must fail with a message in which all of `words` are.
    ///
    /// # Panics
    /// If it did not.
    pub fn refused(self, words: &[&str]) {
        let code = self.status.code();
        assert!(
            code == Some(1),
            "it must be refused: {}\n{}",
            self.status,
            self.said
        );
        for word in words {
            assert!(
                self.said.contains(word),
                "it does not say {word:?}:\n{}",
                self.said
            );
        }
    }
}

/// A run that is under way.
pub struct Running<'a> {
    cluster: &'a Cluster,
    index: usize,
    child: Child,
    out: PathBuf,
    begun: Instant,
}

/// Begins `bramble bootstrap` on a host, with more options.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn begin<'a>(cluster: &'a Cluster, index: usize, options: &[impl AsRef<str>]) -> Running<'a> {
    let node = cluster.node(index);
    let out = cluster
        .local_dir("bootstrap")
        .join(format!("{}-{:?}", node.name, Instant::now()));
    let file = File::create(&out).unwrap();
    let plugin = node
        .docker_plugin
        .as_ref()
        .map_or("off".into(), |path| path.display().to_string());
    let (store, mount) = (node.store.display().to_string(), node.mount.display().to_string());
    let place = [
        "bootstrap",
        "--start",
        "other",
        "--store",
        &store,
        "--mount",
        &mount,
        "--docker-plugin",
        &plugin,
    ];
    let child = node
        .command(&place)
        .args(options.iter().map(AsRef::as_ref))
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    cluster.janitor().add_pid(child.id());
    Running {
        cluster,
        index,
        child,
        out,
        begun: Instant::now(),
    }
}

impl Running<'_> {
    /// Waits until it ends. The daemon is started once there is a store, as systemd would.
    ///
    /// # Panics
    /// If it does not end in time.
    #[must_use]
    pub fn end(mut self) -> Bootstrapped {
        let node = self.cluster.node(self.index);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if node.store.join("identity").exists() && !node.is_started() {
                self.cluster.start(self.index);
            }
            if self.begun.elapsed() > LIMIT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!(
                    "bootstrap on {} does not end:\n{}{}",
                    node.name,
                    fs::read_to_string(&self.out).unwrap(),
                    node.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        Bootstrapped {
            status,
            said: fs::read_to_string(&self.out).unwrap(),
            took: self.begun.elapsed(),
        }
    }
}

/// Runs `bramble bootstrap` on several hosts at once, each with options of its own.
///
/// # Panics
/// As [`begin`] and [`Running::end`].
#[must_use]
pub fn all(cluster: &Cluster, runs: &[(usize, Vec<String>)]) -> Vec<Bootstrapped> {
    let begun: Vec<_> = runs
        .iter()
        .map(|(index, options)| begin(cluster, *index, options))
        .collect();
    std::thread::scope(|scope| {
        let ends: Vec<_> = begun.into_iter().map(|run| scope.spawn(|| run.end())).collect();
        ends.into_iter().map(|end| end.join().unwrap()).collect()
    })
}

/// Takes a host's power away, and the disk with all that Bramble knew.
///
/// # Panics
/// If the daemon did not run.
pub fn destroy(cluster: &Cluster, index: usize) {
    cluster.node(index).kill9();
    wipe(cluster.node(index));
}

/// As [`destroy`], of a daemon that `bramble bootstrap` has started by itself.
///
/// # Panics
/// If the daemon did not run.
pub fn destroy_background(cluster: &Cluster, index: usize) {
    let node = cluster.node(index);
    let pid = fs::read_to_string(node.store.join("run.pid")).expect("the daemon runs");
    let pid = pid.trim().to_owned();
    assert!(
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .contains(node.store.to_str().unwrap())
    );
    let _ = crate::run("kill", ["-9", &pid]);
    crate::wait_for("the daemon to be gone", Duration::from_secs(10), || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat"));
        state.map_or(true, |state| state.contains(") Z ")).then_some(())
    });
    wipe(node);
}

/// The dead daemon's mount stays behind, and goes with its host.
fn wipe(node: &crate::Node) {
    while node.is_mounted() {
        let _ = try_run("umount", ["-l", node.mount.to_str().unwrap()]);
    }
    fs::remove_dir_all(&node.store).unwrap();
}
