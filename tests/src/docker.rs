//! Docker's daemon on the hosts of a cluster's nodes.
//!
//! A host has network, mount, UTS and process namespaces of its own, its own `/run`, data root and containerd. The node's
//! daemon runs outside of the mount namespace, so that tests see its mount, too; the host sees it since it is a slave of
//! the node's directory, which is a shared mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::cluster::{Cluster, Options, Own};
use crate::images;
use crate::janitor::Janitor;
use crate::run::{describe, run, sh, try_run, try_sh};
use crate::wait_for;

/// The image that hosts have from the start.
pub const IMAGE: &str = images::BUSYBOX;

/// A cluster whose nodes have hosts that Docker can run on.
pub fn cluster(test: &str, nodes: usize) -> Own {
    let options = Options {
        nodes,
        namespaces: true,
        docker: true,
        ..Options::default()
    };
    Cluster::own(test, options)
}

/// Docker on the host of one node; killed when it is dropped.
pub struct DockerHost {
    base: PathBuf,
    process: Mutex<Option<Child>>,
}

/// Makes the parts of a host that its node needs, too, in the node's directory.
pub(crate) fn prepare(janitor: &Janitor, base: &Path) {
    let run_dir = base.join("run");
    fs::create_dir_all(&run_dir).unwrap();
    // What is mounted below here later is to be seen by the host.
    janitor.add_mount(base);
    run("mount", [Path::new("--bind"), base, base]);
    run("mount", [Path::new("--make-shared"), base]);
    janitor.add_mount(&run_dir);
    run(
        "mount",
        [Path::new("-t"), Path::new("tmpfs"), Path::new("tmpfs"), &run_dir],
    );
}

/// Where the node in this directory serves its plugin.
pub(crate) fn plugin_socket(base: &Path) -> PathBuf {
    base.join("run/docker/plugins/bramble.sock")
}

impl DockerHost {
    /// Starts Docker on the host of a cluster's node, and gives it [`IMAGE`].
    ///
    /// # Panics
    /// If it does not come up within a minute.
    #[must_use]
    pub fn start(cluster: &Cluster, index: usize) -> Self {
        let host = Self::boot(cluster, index);
        host.import(IMAGE);
        host
    }

    /// Starts Docker on the host of a cluster's node, with what it had before.
    ///
    /// # Panics
    /// If it does not come up within a minute.
    #[must_use]
    pub fn boot(cluster: &Cluster, index: usize) -> Self {
        let node = cluster.node(index);
        let base = node.mount.parent().unwrap().to_owned();
        let netns = node.netns.as_deref().expect("hosts have networks of their own");
        let state = cluster.janitor().dir().file_name().unwrap().to_str().unwrap();
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{netns}"))
            .args(["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"])
            .args(["--propagation", "slave", "/bin/sh", "-c"])
            .args([include_str!("docker-host.sh"), "docker-host"])
            .arg(&base)
            .args([&node.name, &format!("{state}-{}", node.name)])
            .stdin(Stdio::null())
            .spawn()
            .expect("cannot start a host");
        cluster.janitor().add_pid(child.id());
        let host = Self {
            base,
            process: Mutex::new(Some(child)),
        };
        wait_for("Docker to answer", Duration::from_secs(60), || {
            host.try_docker(&["version"]).status.success().then_some(())
        });
        host
    }

    /// Forgets what a machine's `/run` held, as a power cut does; neither Docker nor the node may run.
    pub fn clear_run(&self) {
        sh(&self.base.join("run"), "rm -rf -- *");
    }

    /// Runs `docker` for this host.
    ///
    /// # Panics
    /// If there is no `docker`.
    #[must_use]
    pub fn try_docker(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("cannot run docker")
    }

    /// As [`DockerHost::try_docker`], not yet run.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_CONFIG", self.base.join("docker-config"))
            .env_remove("DOCKER_HOST")
            .arg("--host")
            .arg(format!("unix://{}/run/docker.sock", self.base.display()))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// As [`DockerHost::try_docker`], for a command that must succeed; returns what it printed, without the last newline.
    ///
    /// # Panics
    /// If it fails.
    pub fn docker(&self, args: &[&str]) -> String {
        let output = self.try_docker(args);
        assert!(
            output.status.success(),
            "docker {args:?}: {}{}",
            describe(&output),
            self.log_tail()
        );
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// As [`DockerHost::try_docker`], for a command that must fail; returns why it did.
    ///
    /// # Panics
    /// If it succeeds.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.try_docker(args);
        assert!(!output.status.success(), "docker {args:?}: {}", describe(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs a shell script in a new container with a volume at `/data`; returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn sh(&self, volume: &str, script: &str) -> String {
        let volume = format!("{volume}:/data");
        self.docker(&[
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            &volume,
            IMAGE,
            "sh",
            "-euc",
            script,
        ])
    }

    /// Runs a shell script in `dir` in which `docker` is this host's, and asks no registry for images; returns what it
    /// printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn shell(&self, dir: &Path, script: &str) -> String {
        let output = self.try_shell(dir, script);
        assert!(output.status.success(), "`{script}`: {}", describe(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As [`DockerHost::shell`], whatever the script's exit status.
    ///
    /// # Panics
    /// If there is no shell.
    #[must_use]
    pub fn try_shell(&self, dir: &Path, script: &str) -> Output {
        let script = format!(
            "docker() {{
                 if [ \"$1 $2\" = 'stack deploy' ]; then
                     shift 2
                     set -- stack deploy --resolve-image never \"$@\"
                 fi
                 command docker --host 'unix://{0}/run/docker.sock' \"$@\"
             }}
             export DOCKER_CONFIG='{0}/docker-config'
             {script}",
            self.base.display()
        );
        try_sh(dir, &script)
    }

    /// Waits until Docker knows the plugin, without asking for it.
    ///
    /// # Panics
    /// If it does not within a minute.
    pub fn wait_primed(&self) {
        wait_for("Docker to know the plugin", Duration::from_secs(60), || {
            let known = self.docker(&["info", "--format", "{{json .Plugins.Volume}}"]);
            known.contains("\"bramble\"").then_some(())
        });
    }

    /// Kills Docker, containerd and all containers at once, as a power cut does, and proves that they are gone.
    ///
    /// # Panics
    /// If they were gone before.
    pub fn kill9(&self) {
        let mut child = self.lock().take().expect("Docker runs");
        assert!(
            child.try_wait().unwrap().is_none(),
            "Docker ended before{}",
            self.log_tail()
        );
        child.kill().unwrap();
        child.wait().unwrap();
        wait_for("Docker to be gone", Duration::from_secs(30), || {
            (!self.try_docker(&["version"]).status.success()).then_some(())
        });
    }

    /// Removes all that Docker, killed before, knew: the host's disk was replaced.
    ///
    /// # Panics
    /// If that does not work.
    pub fn forget(self) {
        let base = self.base.clone();
        drop(self);
        let script = "rm -rf docker containerd docker-config image image.tar docker.log
                      find run -mindepth 1 -depth -delete";
        crate::sh(&base, script);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives this host one of the [`images`].
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn import(&self, image: &str) {
        // Made once for all hosts of the cluster.
        let tree = self.base.with_file_name(format!("image-{image}"));
        let archive = tree.with_extension("tar");
        let (tree_arg, archive_arg) = (tree.to_str().unwrap(), archive.to_str().unwrap());
        if !archive.exists() {
            fs::create_dir_all(&tree).unwrap();
            images::fill(image, &tree);
            run("tar", ["-C", tree_arg, "-cf", archive_arg, "."]);
        }
        self.docker(&["import", archive_arg, image]);
    }

    /// The end of Docker's log, for a failure's message.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.base.join("docker.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("\n--- log of Docker in {} ---\n{tail}", self.base.display())
    }
}

impl Drop for DockerHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if let Some(mut child) = self.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Makes one Swarm of the hosts of a cluster's nodes, of which all are managers.
///
/// # Panics
/// If that does not work.
pub fn make_swarm(cluster: &Cluster, hosts: &[DockerHost]) {
    let ip = |index: usize| cluster.node(index).listen.split(':').next().unwrap().to_owned();
    // Before Swarm asks what the nodes can.
    hosts.iter().for_each(DockerHost::wait_primed);
    hosts[0].docker(&["swarm", "init", "--advertise-addr", &ip(0)]);
    let token = hosts[0].docker(&["swarm", "join-token", "-q", "manager"]);
    let peer = format!("{}:2377", ip(0));
    for (index, host) in hosts.iter().enumerate().skip(1) {
        let place = ["swarm", "join", "--advertise-addr", &ip(index)];
        host.docker(&[&place[..], &["--token", &token, &peer]].concat());
    }
}

/// What a web server answers that is asked from a network namespace; `None` if it does not.
#[must_use]
pub fn fetch(netns: &str, url: &str) -> Option<String> {
    let net = format!("--net=/run/netns/{netns}");
    // Busybox's wget may know no time limit of its own.
    let args = [&net, "timeout", "3", "busybox", "wget", "-q", "-O", "-", url];
    let output = try_run("nsenter", args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}
