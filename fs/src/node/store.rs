//! The store directory of a node: its layout, its identity, and its lock.
//!
//! ```text
//! STORE/
//!   lock          flock: one daemon at a time
//!   config.json   what the administrator chose
//!   identity      which node of which cluster this is, and the store's format version (JSON)
//!   members       the members last known, for finding the others at start (JSON)
//!   medium        what the medium takes, as it was found at the first start
//!   tls/          ca.pem, ca.key (0600), node.pem, node.key (0600)
//!   journal/      Raft's log and votes, payload of small writes
//!   meta/         the key-value engine
//!   spool/        snapshots on their way
//!   chunks/       chunk packs
//!   control.sock  what the command line talks to
//!   run.pid       the daemon's process id, while it runs
//!   draining      there while the node is draining
//!   vip.json      what `bramble vip` was last asked for
//!   damaged-*/    what a repair moved aside
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftstore::disk::Disk;
use raftstore::meta::NodeId;
use raftstore::raft::Member;
use serde::{Deserialize, Serialize};

use super::config::{Config, ConfigError};
use super::files;

/// The version of the store's format that this program writes; it reads no newer one.
pub const FORMAT_VERSION: u32 = 1;

/// Where a store is: its medium, and the paths on it. (Lock, socket and process id are on the machine's filesystem in
/// any case: they mean nothing after a restart.)
#[derive(Clone)]
pub struct Layout {
    disk: Arc<dyn Disk>,
    root: PathBuf,
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Layout").field(&self.root).finish()
    }
}

impl Layout {
    /// The layout under `root` on `disk`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, root: &Path) -> Self {
        Self {
            disk,
            root: root.to_owned(),
        }
    }
    /// The medium.
    #[must_use]
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }
    /// The store itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// `config.json`
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config.json")
    }
    /// `identity`
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }
    /// `members`
    #[must_use]
    pub fn members(&self) -> PathBuf {
        self.root.join("members")
    }
    /// `medium`
    #[must_use]
    pub fn medium(&self) -> PathBuf {
        self.root.join("medium")
    }
    /// `medium.trial`, while the medium is being measured.
    #[must_use]
    pub fn medium_trial(&self) -> PathBuf {
        self.root.join("medium.trial")
    }
    /// `tls/`
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }
    /// `journal/`
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }
    /// `meta/`
    #[must_use]
    pub fn meta(&self) -> PathBuf {
        self.root.join("meta")
    }
    /// `spool/`
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }
    /// `chunks/`
    #[must_use]
    pub fn chunks(&self) -> PathBuf {
        self.root.join("chunks")
    }
    /// `control.sock`
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }
    /// `draining`
    #[must_use]
    pub fn draining(&self) -> PathBuf {
        self.root.join("draining")
    }
    /// `vip.json`
    #[must_use]
    pub fn vip(&self) -> PathBuf {
        self.root.join("vip.json")
    }
    /// `run.pid`
    #[must_use]
    pub fn pid(&self) -> PathBuf {
        self.root.join("run.pid")
    }
    /// `lock`
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
}

/// A join token that `init` printed, until the cluster's log knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstToken {
    /// SHA-256 of its secret.
    pub hash: [u8; 32],
    /// How long it is to be valid, in seconds of the leader's monotonic clock.
    pub valid_s: u64,
}

/// Which node of which cluster a store belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the store's format.
    pub format_version: u32,
    /// The cluster; random, made by `init`.
    pub cluster_id: String,
    /// The node.
    pub node_id: NodeId,
    /// True until this node has founded its cluster's log (`init` wrote the store, `run` has not yet started it).
    pub founder: bool,
    /// The founder's token, until it is in the log.
    pub first_token: Option<FirstToken>,
    /// True once the journal has held anything: from then on a blank journal means that it was lost.
    pub started: bool,
}

/// Why a store cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is something already.
    #[error(
        "{0} exists already and is not empty: choose another --store, or remove it if you no longer need what it holds"
    )]
    Exists(PathBuf),
    /// There is nothing.
    #[error("there is no store at {0}: make one with `bramble init` or `bramble join`, or check --store")]
    Missing(PathBuf),
    /// Written by a newer program.
    #[error(
        "the store {path} has format version {found}, this program knows versions up to {FORMAT_VERSION}: run the \
         bramble version that wrote it, or a newer one"
    )]
    Newer {
        /// Which store.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// Another daemon runs on it.
    #[error("another bramble daemon is running on the store {0}: stop that one first")]
    Locked(PathBuf),
    /// Identity unreadable.
    #[error(
        "the identity file {path} is damaged ({reason}): restore it from a backup, or remove the node from the \
         cluster, delete the store and join again"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The medium is full.
    #[error("the medium that holds {0} is full: make room and try again")]
    Full(PathBuf),
    /// Anything else the file system says.
    #[error("cannot use the store {path}: {source}")]
    Io {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    /// Names the path in an I/O error.
    #[must_use]
    pub fn io(path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull {
            Self::Full(path.to_owned())
        } else {
            Self::Io {
                path: path.to_owned(),
                source,
            }
        }
    }
}

impl Identity {
    /// Reads the identity; a newer format is told from damage.
    ///
    /// # Errors
    /// [`StoreError`] says what to do.
    pub fn load(layout: &Layout) -> Result<Self, StoreError> {
        let path = layout.identity();
        let bytes = match files::read(&*layout.disk, &path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing(layout.root().to_owned()));
            }
            Err(error) => return Err(StoreError::io(&path, error)),
        };
        let damaged = |reason: String| StoreError::Damaged {
            path: path.clone(),
            reason,
        };
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let version = value.get("format_version").and_then(serde_json::Value::as_u64);
        let version = version.ok_or_else(|| damaged("it names no format version".into()))?;
        if version > u64::from(FORMAT_VERSION) {
            return Err(StoreError::Newer {
                path: layout.root().to_owned(),
                found: version,
            });
        }
        serde_json::from_value(value).map_err(|e| damaged(e.to_string()))
    }

    /// Writes the identity durably.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, layout: &Layout) -> Result<(), StoreError> {
        save_json(layout, &layout.identity(), self)
    }
}

/// Writes the members that this node knows of: with them it finds the others at its next start.
///
/// # Errors
/// Those of the file system.
pub fn save_members(layout: &Layout, members: &[(NodeId, Member)]) -> Result<(), StoreError> {
    save_json(layout, &layout.members(), &members)
}

/// The members known at the last run; empty if there is no such file or it is damaged (it is only a hint).
#[must_use]
pub fn load_members(layout: &Layout) -> Vec<(NodeId, Member)> {
    files::read(&*layout.disk, &layout.members())
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

fn save_json<T: Serialize>(layout: &Layout, path: &Path, value: &T) -> Result<(), StoreError> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| StoreError::io(path, io::Error::other(error)))?;
    files::replace_file(&*layout.disk, path, format!("{text}\n").as_bytes(), 0o600)
        .map_err(|error| StoreError::io(path, error))
}

/// An open store; the lock is held as long as this lives.
#[derive(Debug)]
pub struct Store {
    /// Its paths.
    pub layout: Layout,
    /// Its identity.
    pub identity: Identity,
    /// Its configuration.
    pub config: Config,
    _lock: fs::File,
}

impl Store {
    /// Opens and locks a store on `disk`.
    ///
    /// # Errors
    /// [`StoreError`] says what to do.
    pub fn open(disk: Arc<dyn Disk>, root: &Path) -> Result<Self, StoreError> {
        let layout = Layout::new(disk, root);
        let identity = Identity::load(&layout)?;
        let config = Config::load(&layout)?;
        let path = layout.lock();
        #[expect(clippy::disallowed_methods, reason = "a lock file holds no data")]
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let lock = lock.map_err(|error| StoreError::io(&path, error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                layout,
                identity,
                config,
                _lock: lock,
            }),
            Err(fs::TryLockError::WouldBlock) => Err(StoreError::Locked(root.to_owned())),
            Err(fs::TryLockError::Error(error)) => Err(StoreError::io(&path, error)),
        }
    }
}

/// A store that is being made beside its final place, so that a failure leaves nothing behind.
#[derive(Debug)]
pub struct NewStore {
    target: PathBuf,
    layout: Layout,
    committed: bool,
}

impl NewStore {
    /// Starts to make the store that will be `target` on `disk`.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is one.
    pub fn prepare(disk: Arc<dyn Disk>, target: &Path) -> Result<Self, StoreError> {
        match disk.list(target) {
            Ok(names) if names.is_empty() => {}
            Ok(_) => return Err(StoreError::Exists(target.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(StoreError::Exists(target.to_owned()));
            }
            Err(error) => return Err(StoreError::io(target, error)),
        }
        let name = target.file_name().map(|n| n.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| {
            StoreError::io(
                target,
                io::Error::new(io::ErrorKind::InvalidInput, "this is no name for a directory"),
            )
        })?;
        let temporary = target.with_file_name(format!(".{name}.{}.new", std::process::id()));
        if disk.list(files::parent(target)).is_err() {
            let missing = io::Error::new(
                io::ErrorKind::NotFound,
                "its parent directory does not exist: create it",
            );
            return Err(StoreError::io(target, missing));
        }
        // One that a power cut left, by the same process id.
        let made = disk
            .remove_dir_all(&temporary)
            .and_then(|()| files::create_private_dir(&*disk, &temporary));
        made.map_err(|error| StoreError::io(&temporary, error))?;
        Ok(Self {
            target: target.to_owned(),
            layout: Layout::new(disk, &temporary),
            committed: false,
        })
    }

    /// Where to write to.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Fills the store and puts it into its place.
    ///
    /// # Errors
    /// Those of the file system; nothing is left then.
    pub fn commit(
        mut self,
        config: &Config,
        identity: &Identity,
        members: &[(NodeId, Member)],
    ) -> Result<(), StoreError> {
        let layout = &self.layout;
        config
            .save(layout)
            .map_err(|error| StoreError::io(&layout.config(), error))?;
        save_members(layout, members)?;
        identity.save(layout)?;
        for dir in [layout.journal(), layout.meta(), layout.spool(), layout.chunks()] {
            files::create_private_dir(&*layout.disk, &dir).map_err(|error| StoreError::io(&dir, error))?;
        }
        let disk = &*layout.disk;
        disk.sync_dir(layout.root())
            .map_err(|error| StoreError::io(layout.root(), error))?;
        disk.rename(layout.root(), &self.target)
            .map_err(|error| StoreError::io(&self.target, error))?;
        self.committed = true;
        files::sync_parent(disk, &self.target).map_err(|error| StoreError::io(&self.target, error))
    }
}

impl Drop for NewStore {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = self.layout.disk.remove_dir_all(self.layout.root())
        {
            tracing::warn!(path = %self.layout.root().display(), %error, "cannot remove an unfinished store");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftstore::disk::RealDisk;

    use crate::node::config::{EngineChoice, Limits, OnQuorumLoss};

    fn disk() -> Arc<dyn Disk> {
        Arc::new(RealDisk)
    }

    fn open(root: &Path) -> Result<Store, StoreError> {
        Store::open(disk(), root)
    }

    fn config() -> Config {
        Config {
            name: "a".into(),
            listen: "192.0.2.1:7400".parse().unwrap(),
            mount: "/mnt".into(),
            engine: EngineChoice::Fjall,
            on_quorum_loss: OnQuorumLoss::Wait,
            limits: Limits::default(),
        }
    }

    fn identity() -> Identity {
        Identity {
            format_version: FORMAT_VERSION,
            cluster_id: "c".into(),
            node_id: 3,
            founder: false,
            first_token: None,
            started: false,
        }
    }

    fn made(dir: &Path) -> PathBuf {
        let root = dir.join("store");
        NewStore::prepare(disk(), &root)
            .unwrap()
            .commit(&config(), &identity(), &[])
            .unwrap();
        root
    }

    #[test]
    fn a_new_store_opens_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let root = made(dir.path());
        let first = open(&root).unwrap();
        assert_eq!(first.identity, identity());
        assert!(matches!(open(&root), Err(StoreError::Locked(_))));
        drop(first);
        assert!(open(&root).is_ok());
    }

    #[test]
    fn an_abandoned_store_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(NewStore::prepare(disk(), &dir.path().join("store")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_exists_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let root = made(dir.path());
        assert!(matches!(
            NewStore::prepare(disk(), &root),
            Err(StoreError::Exists(_))
        ));
        assert!(open(&root).is_ok());
        assert!(matches!(
            open(&dir.path().join("none")),
            Err(StoreError::Missing(_))
        ));
    }

    #[test]
    fn newer_and_damaged_identities_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let root = made(dir.path());
        let layout = Layout::new(disk(), &root);
        let newer = Identity {
            format_version: FORMAT_VERSION + 1,
            ..identity()
        };
        newer.save(&layout).unwrap();
        assert!(matches!(open(&root), Err(StoreError::Newer { found: 2, .. })));
        files::replace_file(&RealDisk, &layout.identity(), b"\xff\x00garbage", 0o600).unwrap();
        assert!(matches!(open(&root), Err(StoreError::Damaged { .. })));
    }
}
