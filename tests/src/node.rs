//! One `bramble` daemon.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::run::{bramble, describe, try_run};
use crate::status::Status;
use crate::wait_for;

/// A node of a [`Cluster`](crate::Cluster): its store, its mount, and its daemon while that runs.
#[derive(Debug)]
pub struct Node {
    /// Its name in the cluster.
    pub name: String,
    /// IP:PORT.
    pub listen: String,
    /// Its store.
    pub store: PathBuf,
    /// Where it mounts the tree.
    pub mount: PathBuf,
    /// What its daemon prints, over all its runs.
    pub log: PathBuf,
    /// The network namespace it runs in, if it has one.
    pub netns: Option<String>,
    /// What its daemon logs, if not what it does by itself.
    pub filter: Option<&'static str>,
    /// Where it serves Docker's volume plugin, if it does.
    pub docker_plugin: Option<PathBuf>,
    pub(crate) daemon: Mutex<Option<Child>>,
}

/// What `/proc/PID/io` counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Io {
    /// Bytes that the process caused to be read from a medium.
    pub read_bytes: u64,
    /// Bytes that the process caused to be written to a medium.
    pub write_bytes: u64,
    /// Its calls of read(2): each of the kernel's requests takes one.
    pub read_calls: u64,
}

impl Node {
    /// `rel` on this node's mount.
    #[must_use]
    pub fn path(&self, rel: impl AsRef<Path>) -> PathBuf {
        self.mount.join(rel)
    }

    /// A command that runs `bramble` where this node runs.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match &self.netns {
            // Not `ip netns exec`: that has a mount namespace of its own, in which the mount would be hidden.
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{netns}")).arg(bramble());
                command
            }
            None => Command::new(bramble()),
        };
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs `bramble` with `args` and `--store` of this node to its end.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn cli(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        command
            .arg("--store")
            .arg(&self.store)
            .output()
            .expect("cannot run bramble")
    }

    /// As [`Node::cli`], for a command that must succeed: returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn cli_ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        assert!(
            output.status.success(),
            "bramble {args:?} on {}: {}",
            self.name,
            describe(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `bramble init` of this node, as the first of a cluster.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn init(&self) -> Output {
        let mount = self.mount.to_str().unwrap();
        self.cli(&[
            "init",
            "--listen",
            &self.listen,
            "--mount",
            mount,
            "--name",
            &self.name,
        ])
    }

    /// `bramble join` of this node to the cluster of the node that listens on `peer`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn join(&self, peer: &str, token: &str) -> Output {
        let mount = self.mount.to_str().unwrap();
        let place = ["--listen", &self.listen, "--mount", mount, "--name", &self.name];
        self.cli(&[&["join", "--peer", peer, "--token", token], &place[..]].concat())
    }

    /// Sets limits in the configuration in the node's store.
    ///
    /// # Panics
    /// If there is no configuration.
    pub fn set_limits(&self, limits: &[(&str, u64)]) {
        if limits.is_empty() {
            return;
        }
        self.edit_json("config.json", |config| {
            for (name, value) in limits {
                config["limits"][*name] = (*value).into();
            }
        });
    }

    /// Changes one of the JSON files of the node's store.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn edit_json(&self, file: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.store.join(file);
        let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, serde_json::to_vec_pretty(&json).unwrap()).unwrap();
    }

    /// A new join token, with more options of `bramble token`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn token(&self, options: &[&str]) -> String {
        let text = self.cli_ok(&[&["token"], options].concat());
        text.split_whitespace().last().expect("a token").to_owned()
    }

    /// Where the daemon tells systemd how it is: [`Listener`](crate::notify::Listener).
    #[must_use]
    pub fn notify_socket(&self) -> PathBuf {
        self.log.with_file_name("notify")
    }

    /// True after the daemon was started, until it was killed or stopped.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.lock().is_some()
    }

    /// The daemon, started but not waited for; the caller lists its pid with the janitor.
    pub(crate) fn spawn(&self) -> u32 {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let mut command = self.command(&["run", "--docker-plugin"]);
        command
            .arg(self.docker_plugin.as_deref().unwrap_or(Path::new("off")))
            .arg("--store")
            .arg(&self.store)
            // As systemd does. Nobody listens unless the test does.
            .env("NOTIFY_SOCKET", self.notify_socket())
            .env("WATCHDOG_USEC", crate::notify::WATCHDOG.as_micros().to_string())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(filter) = self.filter {
            command.env("BRAMBLE_LOG", filter);
        }
        let child = command.spawn().expect("cannot start bramble");
        let pid = child.id();
        let previous = self.lock().replace(child);
        assert!(previous.is_none(), "{} runs already", self.name);
        pid
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon's process id.
    ///
    /// # Panics
    /// If it was not started.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.lock()
            .as_ref()
            .unwrap_or_else(|| panic!("{} does not run", self.name))
            .id()
    }

    /// The daemon's exit status, if it has ended by itself.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        self.lock().as_mut().and_then(|child| child.try_wait().unwrap())
    }

    /// Kills the daemon at once, and proves that it died of that.
    ///
    /// # Panics
    /// If it had ended before.
    pub fn kill9(&self) {
        let mut child = self
            .lock()
            .take()
            .unwrap_or_else(|| panic!("{} does not run", self.name));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(libc::SIGKILL),
            "{} ended before: {status}{}",
            self.name,
            self.log_tail()
        );
    }

    /// Ends the daemon as an administrator does, and waits until it has.
    ///
    /// # Panics
    /// If it does not end cleanly within 30 s.
    pub fn stop(&self) {
        let mut child = self
            .lock()
            .take()
            .unwrap_or_else(|| panic!("{} does not run", self.name));
        let _ = try_run("kill", ["-TERM", &child.id().to_string()]);
        let what = format!("{} to end after SIGTERM", self.name);
        let status = wait_for(&what, Duration::from_secs(30), || child.try_wait().unwrap());
        assert!(
            status.success(),
            "{} ended with {status}{}",
            self.name,
            self.log_tail()
        );
        assert!(!self.is_mounted(), "{} left its mount behind", self.name);
    }

    /// True while the mount point is a mount.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == self.mount.to_str())
    }

    /// True once the daemon runs, is mounted, and calls itself healthy.
    ///
    /// # Panics
    /// If the daemon has ended.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        if let Some(status) = self.exited() {
            panic!("{} ended: {status}{}", self.name, self.log_tail());
        }
        self.is_mounted() && self.cli(&["health"]).status.success()
    }

    /// Waits for [`Node::is_healthy`].
    ///
    /// # Panics
    /// If that takes more than a minute.
    pub fn wait_healthy(&self) {
        wait_for(
            &format!("{} to be healthy", self.name),
            Duration::from_secs(60),
            || self.is_healthy().then_some(()),
        );
    }

    /// What `bramble status --json` says, if the daemon answers.
    #[must_use]
    pub fn try_status(&self) -> Option<Status> {
        let output = self.cli(&["status", "--json"]);
        let json = output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).ok())??;
        Some(Status(json))
    }

    /// What `bramble status --json` says.
    ///
    /// # Panics
    /// If the daemon does not answer.
    #[must_use]
    pub fn status(&self) -> Status {
        let text = self.cli_ok(&["status", "--json"]);
        Status(serde_json::from_str(&text).unwrap_or_else(|e| panic!("status is not JSON: {e}\n{text}")))
    }

    /// Resident memory, bytes.
    ///
    /// # Panics
    /// If the daemon does not run.
    #[must_use]
    pub fn rss_bytes(&self) -> u64 {
        proc_field(&format!("/proc/{}/status", self.pid()), "VmRSS:") * 1024
    }

    /// Largest resident memory so far, bytes.
    ///
    /// # Panics
    /// If the daemon does not run.
    #[must_use]
    pub fn rss_peak_bytes(&self) -> u64 {
        proc_field(&format!("/proc/{}/status", self.pid()), "VmHWM:") * 1024
    }

    /// Bytes that the daemon has read from and written to media.
    ///
    /// # Panics
    /// If the daemon does not run.
    #[must_use]
    pub fn io(&self) -> Io {
        let file = format!("/proc/{}/io", self.pid());
        Io {
            read_bytes: proc_field(&file, "read_bytes:"),
            write_bytes: proc_field(&file, "write_bytes:"),
            read_calls: proc_field(&file, "syscr:"),
        }
    }

    /// Processor time that the daemon has used.
    ///
    /// # Panics
    /// If the daemon does not run.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // Fields after the name, which is in brackets and may hold anything: utime and stime are the 12th and 13th.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// The end of the daemon's log, for a failure's message.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        format!(
            "\n--- log of {} ---\n{}",
            self.name,
            lines[lines.len().saturating_sub(30)..].join("\n")
        )
    }

    /// True if the daemon's log has a line that contains `text`.
    #[must_use]
    pub fn log_contains(&self, text: &str) -> bool {
        fs::read_to_string(&self.log).unwrap_or_default().contains(text)
    }

    /// Opens a file of this node's mount for reading and writing, creating it if it is missing.
    ///
    /// # Panics
    /// If that does not work.
    #[must_use]
    pub fn open(&self, rel: &str) -> File {
        let path = self.path(rel);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

fn proc_field(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{file}: {e}"));
    let line = text
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap_or_else(|| panic!("no {name} in {file}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
