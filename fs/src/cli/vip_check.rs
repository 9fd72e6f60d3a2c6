//! `bramble health --vip`: whether this node should have the virtual address. keepalived asks every two seconds, so it
//! always ends soon, whatever hangs.

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use raftstore::clock::{Clock, SystemClock};
use raftstore::disk::RealDisk;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::{Outcome, admin, text, tree, vip};
use crate::node::config::Config;
use crate::node::store::Layout;

/// What has not answered by then has failed: the daemon and Docker, which are asked at once.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// The write, which comes after them, ends before the whole has taken this long.
const LIMIT: Duration = Duration::from_secs(4);
/// Another check may be writing at this moment. A write that takes longer hangs.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
/// Between two attempts to get its lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
/// A write that is synced reaches the cards of all nodes, so not every check makes one.
const WRITE_EVERY: Duration = Duration::from_secs(20);
/// Where Docker listens.
const DOCKER_SOCKET: &str = "/run/docker.sock";
/// Where Docker's daemon may be installed.
const DOCKER_DAEMONS: [&str; 3] = ["/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd"];
/// State of the check on this machine, until it is switched off.
const STATE_DIR: &str = "/run/bramble";

/// Whether Docker is part of the check.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
pub(super) struct DockerArgs {
    /// The socket on which Docker must answer [default: Docker's own, if Docker is installed].
    #[arg(long)]
    docker_socket: Option<PathBuf>,
    /// Docker is not asked, even if it is installed.
    #[arg(long, conflicts_with = "docker_socket")]
    no_docker: bool,
}

impl DockerArgs {
    /// Docker must answer on `socket`; without one it is not asked.
    pub(super) fn at(socket: Option<PathBuf>) -> Self {
        Self {
            no_docker: socket.is_none(),
            docker_socket: socket,
        }
    }

    /// As arguments of a command line, each with a blank before it.
    pub(super) fn to_arguments(&self) -> Result<String, String> {
        Ok(match &self.docker_socket {
            _ if self.no_docker => " --no-docker".into(),
            Some(socket) => format!(" --docker-socket {}", vip::plain_argument(socket)?),
            None => String::new(),
        })
    }

    /// The socket that must answer, if any.
    fn socket(&self) -> Option<PathBuf> {
        let installed = || DOCKER_DAEMONS.iter().any(|path| Path::new(path).exists());
        match &self.docker_socket {
            _ if self.no_docker => None,
            Some(socket) => Some(socket.clone()),
            None if installed() || Path::new(DOCKER_SOCKET).exists() => Some(DOCKER_SOCKET.into()),
            None => None,
        }
    }
}

/// Whether the node of `store` should have the address; else, why not.
pub(super) fn check(store: &Path, docker: &DockerArgs) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    let daemon = async {
        if admin::check_health(store).await? {
            return Err("this node is draining".into());
        }
        Ok(())
    };
    runtime.block_on(async {
        let begun = Instant::now();
        tokio::try_join!(
            within("the daemon", begun + ASK_LIMIT, daemon),
            within("Docker", begun + ASK_LIMIT, ask_docker(docker.socket())),
        )?;
        // Last: what is known to be unhealthy is not written to, so that hardly ever a write is left behind.
        within("a write to the tree", begun + LIMIT, write(store)).await
    })?;
    println!("healthy");
    Ok(())
}

async fn within(what: &str, end: Instant, check: impl Future<Output = Outcome>) -> Outcome {
    let limit = end.saturating_duration_since(Instant::now());
    match tokio::time::timeout_at(end, check).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("{what} does not answer within {} ms", limit.as_millis())),
    }
}

/// Docker's own question whether it is there.
async fn ask_docker(socket: Option<PathBuf>) -> Outcome {
    let Some(socket) = socket else { return Ok(()) };
    let ask = async {
        let mut stream = tokio::net::UnixStream::connect(&socket).await?;
        stream
            .write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            .await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match ask.await {
        Ok(answer) if answer.starts_with(b"HTTP/1.") && answer.ends_with(b" 200") => Ok(()),
        Ok(answer) => Err(format!(
            "Docker is not well: it answers {:?}",
            String::from_utf8_lossy(&answer)
        )),
        Err(error) => Err(format!("Docker does not answer on {}: {error}", socket.display())),
    }
}

/// A synced write through the mount, unless there was one a short while ago. Another process makes it, which is left
/// alone if it hangs: no more than one does so at a time.
async fn write(store: &Path) -> Outcome {
    let config = Config::load(&Layout::new(Arc::new(RealDisk), store)).map_err(text)?;
    let store = std::path::absolute(store).map_err(text)?;
    let state = tokio::time::timeout(LOCK_LIMIT, StateFile::locked(&store)).await;
    let state = state.map_err(|_| "the last write to the tree still hangs")??;
    if state.is_fresh() {
        return Ok(());
    }
    // It holds the lock for as long as it lives.
    let mut child = tokio::process::Command::new(std::env::current_exe().map_err(text)?)
        .args(["probe-write", "--name", &config.name, "--mount"])
        .arg(&config.mount)
        .stdin(Stdio::from(state.0))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(text)?;
    let mut why = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // Ends when the child does.
        let _ = stderr.read_to_string(&mut why).await;
    }
    let status = child.wait().await.map_err(text)?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the tree cannot be written: {}", why.trim()))
    }
}

/// When the tree was last written to, on this machine's monotonic clock; locked while someone tries.
struct StateFile(std::fs::File);

impl StateFile {
    /// The locked file for `store`, once no other process has it.
    async fn locked(store: &Path) -> Result<Self, String> {
        loop {
            if let Some(state) = Self::open(store)? {
                return Ok(state);
            }
            tokio::time::sleep(LOCK_INTERVAL).await;
        }
    }

    /// The locked file for `store`; `None` if another process has it.
    fn open(store: &Path) -> Result<Option<Self>, String> {
        let hash = Sha256::digest(store.as_os_str().as_encoded_bytes());
        let name = format!("vip-{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
        let path = Path::new(STATE_DIR).join(name);
        let cannot = |error: std::io::Error| format!("cannot use {}: {error}", path.display());
        std::fs::create_dir_all(STATE_DIR).map_err(cannot)?;
        #[expect(clippy::disallowed_methods, reason = "a hint in /run, gone at the next boot")]
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(cannot(error)),
        }
    }

    fn is_fresh(&self) -> bool {
        let mut text = String::new();
        let read = (&self.0).take(32).read_to_string(&mut text);
        let written = read
            .ok()
            .and_then(|_| text.trim().parse().ok())
            .map(Duration::from_secs);
        let now = SystemClock.monotonic();
        written.is_some_and(|written| written <= now && now - written < WRITE_EVERY)
    }
}

/// The other process: writes to the tree, syncs, and notes on standard input, which is the state's file, that it could.
pub(super) fn probe_write(mount: &Path, name: &str) -> Outcome {
    write_to(mount, name).map_err(|error| format!("{}: {error}", mount.display()))?;
    let state = std::io::stdin().as_fd().try_clone_to_owned();
    let mut state = std::fs::File::from(state.map_err(text)?);
    let now = format!("{:<20}\n", SystemClock.monotonic().as_secs());
    state
        .rewind()
        .and_then(|()| state.write_all(now.as_bytes()))
        .map_err(text)
}

fn write_to(mount: &Path, name: &str) -> Result<(), String> {
    let root = tree::open(mount)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = format!("{}/vip-{name}", tree::DIR);
    let file = rustix::fs::openat(&root, path, flags, Mode::from_raw_mode(0o600)).map_err(text)?;
    let now = format!("{:<20}\n", SystemClock.monotonic().as_secs());
    rustix::io::pwrite(&file, now.as_bytes(), 0).map_err(text)?;
    rustix::fs::fdatasync(&file).map_err(text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_the_tree_is_never_written_to() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write_to(dir.path(), "a").unwrap_err().contains("not mounted"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn docker_is_believed_only_if_it_answers_well() {
        let dir = tempfile::tempdir().unwrap();
        for (answer, well) in [
            ("HTTP/1.0 200 OK\r\n\r\nOK", true),
            ("HTTP/1.1 500 no\r\n\r\n", false),
            ("nonsense", false),
            ("", false),
        ] {
            let path = dir.path().join(format!("{}.sock", answer.len()));
            let listener = tokio::net::UnixListener::bind(&path).unwrap();
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4];
                stream.read_exact(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (outcome, ()) = tokio::join!(ask_docker(Some(path)), serve);
            assert_eq!(outcome.is_ok(), well, "{answer:?}: {outcome:?}");
        }
        assert!(ask_docker(Some(dir.path().join("none"))).await.is_err());
        assert!(ask_docker(None).await.is_ok());
    }

    #[test]
    fn the_check_repeats_what_it_was_told_of_docker() {
        let socket = DockerArgs {
            docker_socket: Some("/run/x.sock".into()),
            no_docker: false,
        };
        assert_eq!(socket.to_arguments().unwrap(), " --docker-socket /run/x.sock");
        let none = DockerArgs {
            docker_socket: None,
            no_docker: true,
        };
        assert_eq!(none.to_arguments().unwrap(), " --no-docker");
        assert_eq!(none.socket(), None);
    }
}
