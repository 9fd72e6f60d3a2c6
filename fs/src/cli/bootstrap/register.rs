//! Which Swarm is the cluster's, written down in the tree: so all machines see the same, and Raft decides who is first.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cli::{text, tree};
use crate::swarm::{Hold, Register};

/// The name of the record.
const RECORD: &str = "swarm.json";
/// Locked by who enrolls. Such a lock is the cluster's: it goes with the process, and with the machine's session.
const LOCK: &str = "swarm.lock";
/// Between two attempts to lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(500);
/// So often it is tried: longer than enrolling takes.
const LOCKS_MAX: u32 = 1200;
/// More than a record has, bytes.
const RECORD_BYTES_MAX: u64 = 4096;

/// The record in the tree at a mount.
pub(super) struct TreeRegister<'a> {
    /// Where the tree is mounted.
    pub(super) mount: PathBuf,
    /// This node's name.
    pub(super) name: String,
    /// Tells the administrator.
    pub(super) say: &'a (dyn Fn(&str) + Sync),
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Swarm's own id.
    swarm_id: String,
    /// The node that wrote it down.
    by: String,
}

struct Held(#[expect(dead_code, reason = "holds the lock")] File);

impl Hold for Held {}

impl TreeRegister<'_> {
    fn path(&self) -> String {
        Path::new(tree::DIR).join(RECORD).display().to_string()
    }

    fn open(&self, name: &str, flags: OFlags) -> Result<File, Errno> {
        let root = tree::open(&self.mount).map_err(|_| Errno::NOTCONN)?;
        let path = format!("{}/{name}", tree::DIR);
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&root, path, flags, Mode::from_raw_mode(0o600)).map(File::from)
    }

    /// A file with the record in it, durable, under a name that only this node uses.
    fn draft(&self, swarm_id: &str) -> Result<String, String> {
        let record = Record {
            swarm_id: swarm_id.to_owned(),
            by: self.name.clone(),
        };
        let draft = format!("{RECORD}.{}.new", self.name);
        let mut file = self
            .open(&draft, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)
            .map_err(text)?;
        let line = serde_json::to_string(&record).map_err(text)?;
        writeln!(file, "{line}")
            .and_then(|()| file.sync_all())
            .map_err(text)?;
        Ok(draft)
    }
}

#[async_trait]
impl Register for TreeRegister<'_> {
    async fn hold(&self) -> Result<Box<dyn Hold>, String> {
        let cannot = |why: String| format!("{}/{LOCK} in the tree cannot be used: {why}", tree::DIR);
        let mut file = self
            .open(LOCK, OFlags::RDWR | OFlags::CREATE)
            .map_err(|error| cannot(text(error)))?;
        let mut told = false;
        for _ in 0..LOCKS_MAX {
            match file.try_lock() {
                Ok(()) => {
                    // For whoever waits, to name this node; it does not matter if it is not read.
                    let _ = file
                        .rewind()
                        .and_then(|()| file.set_len(0))
                        .and_then(|()| write!(file, "{}", self.name));
                    return Ok(Box::new(Held(file)));
                }
                Err(TryLockError::Error(error)) => return Err(cannot(error.to_string())),
                Err(TryLockError::WouldBlock) if told => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = (&file).take(64).read_to_string(&mut holder);
                    (self.say)(&format!("waiting: {holder} has to do with the Swarm just now"));
                    told = true;
                }
            }
            tokio::time::sleep(LOCK_INTERVAL).await;
        }
        Err("another machine has been joining the Swarm for ten minutes: see what hangs there, then repeat this command".into())
    }

    fn recorded(&self) -> Result<Option<String>, String> {
        let file = match self.open(RECORD, OFlags::RDONLY) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(format!("{} in the tree cannot be read: {error}", self.path())),
        };
        let mut bytes = Vec::new();
        let read = file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes);
        let damaged = |why: String| {
            format!(
                "{} in the tree cannot be understood ({why}): remove it; the Swarm is then looked for anew",
                self.path()
            )
        };
        read.map_err(|error| damaged(text(error)))?;
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| damaged(text(error)))?;
        if record.swarm_id.is_empty() {
            return Err(damaged("it names no Swarm".into()));
        }
        Ok(Some(record.swarm_id))
    }

    fn record(&self, swarm_id: &str) -> Result<String, String> {
        let cannot = |why: String| format!("{} cannot be written to the tree: {why}", self.path());
        let draft = self.draft(swarm_id).map_err(cannot)?;
        let root = tree::open(&self.mount).map_err(cannot)?;
        let path = |name: &str| format!("{}/{name}", tree::DIR);
        // One of all who try it succeeds, whatever has become of the lock meanwhile.
        let placed =
            rustix::fs::renameat_with(&root, path(&draft), &root, path(RECORD), RenameFlags::NOREPLACE);
        match placed {
            Ok(()) => {
                rustix::fs::fsync(&root).map_err(|error| cannot(text(error)))?;
                Ok(swarm_id.to_owned())
            }
            Err(Errno::EXIST) => {
                let _ = rustix::fs::unlinkat(&root, path(&draft), rustix::fs::AtFlags::empty());
                let recorded = self.recorded()?;
                recorded.ok_or_else(|| cannot("it has just been removed".into()))
            }
            Err(error) => Err(cannot(text(error))),
        }
    }
}
