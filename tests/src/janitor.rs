//! Cleaning up, however a test ends.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PREFIX: &str = "/tmp/bramble-test-";

/// A state directory, and a process that removes it with everything listed in it once this value is dropped or
/// this process has ended, be it by a panic, Ctrl-C or `kill -9`.
pub struct Janitor {
    dir: PathBuf,
    process: Child,
}

impl Janitor {
    /// Makes a state directory. A test that has not ended after `limit` has its daemons killed, so that it fails.
    ///
    /// # Panics
    /// If that does not work.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        static SWEEP: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("{PREFIX}{}-{count}", std::process::id()));
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let process = spawn(&dir, limit);
        Self { dir, process }
    }

    /// The state directory; it is removed with all that is in it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes a process to be killed; only if its command line names the state directory.
    pub fn add_pid(&self, pid: u32) {
        self.add("pids", &pid.to_string());
    }

    /// Notes a directory to be unmounted.
    pub fn add_mount(&self, mount: &Path) {
        self.add("mounts", mount.to_str().unwrap());
    }

    /// Notes a loop device to be detached; only if its file is in the state directory.
    pub fn add_loop(&self, device: &str) {
        self.add("loops", device);
    }

    /// Notes a network namespace to be deleted.
    pub fn add_netns(&self, name: &str) {
        self.add("netns", name);
    }

    fn add(&self, list: &str, line: &str) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join(list))
            .unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn spawn(dir: &Path, limit: Duration) -> Child {
    Command::new("/bin/sh")
        .args(["-c", include_str!("janitor.sh"), "janitor"])
        .arg(dir)
        .arg(limit.as_secs().to_string())
        .stdin(Stdio::piped())
        // A group of its own, so that Ctrl-C at the terminal does not reach it.
        .process_group(0)
        .spawn()
        .expect("cannot start the janitor")
}

/// Cleans up after tests whose janitor was ended too.
fn sweep() {
    for entry in fs::read_dir("/tmp").unwrap().flatten() {
        let path = entry.path();
        let Some(rest) = path.to_str().and_then(|path| path.strip_prefix(PREFIX)) else {
            continue;
        };
        let owner = rest.split('-').next().unwrap_or_default();
        if !owner.is_empty() && !Path::new("/proc").join(owner).exists() {
            eprintln!("removing what an earlier test left: {}", path.display());
            let mut process = spawn(&path, Duration::from_secs(60));
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }
}
