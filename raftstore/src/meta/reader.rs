//! Questions to the state.

use std::sync::Arc;

use bytes::Bytes;

use super::types::*;
use super::volume::*;
use super::{keys, tables, volume_tables};
use crate::kv::{KvError, Read};

/// A name in a directory listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// Its name.
    pub name: Bytes,
    /// What it stands for.
    pub entry: Dirent,
}

/// A log payload that files still need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivePayload {
    /// Index of the log entry.
    pub log_index: u64,
    /// A file that refers to it.
    pub ino: Ino,
    /// How many of its bytes that file still shows.
    pub live_bytes: u64,
}

/// A chunk and the files that refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkUse {
    /// The chunk.
    pub id: ChunkId,
    /// Each file with the bytes of the chunk that it shows; the same bytes may count for several files.
    pub files: Vec<(Ino, u64)>,
}

/// Reads the state: the newest, or a consistent snapshot, depending on where it was taken from. Calls are short
/// (an engine look-up each) but may read the medium.
#[derive(Clone)]
pub struct Reader {
    kv: Arc<dyn Read>,
}

impl Reader {
    /// Reads through `kv`.
    #[must_use]
    pub fn new(kv: Arc<dyn Read>) -> Self {
        Self { kv }
    }

    /// What is read from, to keep.
    pub(super) fn shared_kv(&self) -> Arc<dyn Read> {
        self.kv.clone()
    }

    /// What is read from.
    pub(crate) fn kv(&self) -> &dyn Read {
        self.kv.as_ref()
    }

    /// The inode, also if it is unlinked but not yet reaped.
    pub fn inode(&self, ino: Ino) -> Result<Option<Inode>, KvError> {
        tables::inode(self.kv.as_ref(), ino)
    }

    /// The entry `name` of directory `parent`; `None` also if there is no such directory.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Dirent>, KvError> {
        tables::entry(self.kv.as_ref(), parent, name)
    }

    /// Up to `items_max` entries of `parent` with cookies above `after`, in cookie order (without `.` and `..`).
    pub fn list(&self, parent: Ino, after: u64, items_max: usize) -> Result<Vec<DirItem>, KvError> {
        tables::list(self.kv.as_ref(), parent, after, items_max)
    }

    /// An extended attribute's value.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Bytes>, KvError> {
        tables::xattr(self.kv.as_ref(), ino, name)
    }

    /// Names of all extended attributes, sorted.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Bytes>, KvError> {
        tables::xattr_names(self.kv.as_ref(), ino)
    }

    /// Up to `extents_max` extents that intersect `offset..end`, whole, in order.
    pub fn extents(
        &self,
        ino: Ino,
        offset: u64,
        end: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, KvError> {
        tables::extents(self.kv.as_ref(), ino, offset, end, extents_max)
    }

    /// All locks on an inode.
    pub fn locks(&self, ino: Ino) -> Result<Vec<Lock>, KvError> {
        tables::locks_with(self.kv.as_ref(), &keys::locks(ino))
    }

    /// Totals.
    pub fn usage(&self) -> Result<Usage, KvError> {
        tables::usage(self.kv.as_ref())
    }

    /// What was fixed at `init`; `None` before that was applied.
    pub fn cluster(&self) -> Result<Option<ClusterInfo>, KvError> {
        tables::cluster(self.kv.as_ref())
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> Result<Vec<NodeInfo>, KvError> {
        tables::nodes(self.kv.as_ref())
    }

    /// The id that the next node to join will get: every lower one was given out.
    pub fn next_node_id(&self) -> Result<NodeId, KvError> {
        Ok(tables::counter(self.kv.as_ref(), keys::Counter::NextNode)?.unwrap_or(1))
    }

    /// Nodes of a placement group; empty if none were chosen yet.
    pub fn placement(&self, group: u32) -> Result<Vec<NodeId>, KvError> {
        tables::placement(self.kv.as_ref(), group)
    }

    /// A session, if it is alive.
    pub fn session(&self, id: SessionId) -> Result<Option<Session>, KvError> {
        tables::session(self.kv.as_ref(), id)
    }

    /// All live sessions.
    pub fn sessions(&self) -> Result<Vec<Session>, KvError> {
        tables::sessions(self.kv.as_ref())
    }

    /// Whether anything refers to the chunk or log payload.
    pub fn chunk_is_live(&self, id: ChunkId) -> Result<bool, KvError> {
        tables::chunk_is_live(self.kv.as_ref(), id)
    }

    /// Up to `chunks_max` referenced chunks (not log payloads) after `after`, in id order, each once.
    pub fn chunks(&self, after: Option<ChunkId>, chunks_max: usize) -> Result<Vec<ChunkId>, KvError> {
        tables::chunks(self.kv.as_ref(), after, chunks_max)
    }

    /// Up to `chunks_max` referenced chunks (not log payloads) after `after`, in id order, with who refers to them.
    pub fn chunk_uses(&self, after: Option<ChunkId>, chunks_max: usize) -> Result<Vec<ChunkUse>, KvError> {
        tables::chunk_uses(self.kv.as_ref(), after, chunks_max)
    }

    /// Up to `items_max` log payloads with an index of at least `from` that files refer to, oldest first.
    pub fn live_payloads(&self, from: u64, items_max: usize) -> Result<Vec<LivePayload>, KvError> {
        tables::live_payloads(self.kv.as_ref(), from, items_max)
    }

    /// Up to `inodes_max` unlinked inodes above `after`.
    pub fn orphans(&self, after: Ino, inodes_max: usize) -> Result<Vec<Ino>, KvError> {
        tables::orphans(self.kv.as_ref(), after, inodes_max)
    }

    /// A project, with what it uses.
    pub fn project(&self, id: ProjectId) -> Result<Option<Project>, KvError> {
        volume_tables::project(self.kv.as_ref(), id)
    }

    /// All projects.
    pub fn projects(&self) -> Result<Vec<Project>, KvError> {
        volume_tables::projects(self.kv.as_ref())
    }

    /// A volume.
    pub fn volume(&self, name: &str) -> Result<Option<Volume>, KvError> {
        volume_tables::volume(self.kv.as_ref(), name)
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Result<Vec<Volume>, KvError> {
        volume_tables::volumes(self.kv.as_ref())
    }

    /// A snapshot of a volume.
    pub fn snapshot(&self, volume: &str, name: &str) -> Result<Option<Snapshot>, KvError> {
        volume_tables::snapshot(self.kv.as_ref(), volume, name)
    }

    /// The snapshots of a volume, or of all volumes, also of those that are gone; by name.
    pub fn snapshots(&self, volume: Option<&str>) -> Result<Vec<Snapshot>, KvError> {
        volume_tables::snapshots(self.kv.as_ref(), volume)
    }

    /// Who uses a volume.
    pub fn holds(&self, volume: &str) -> Result<Vec<Hold>, KvError> {
        volume_tables::holds(self.kv.as_ref(), volume)
    }

    /// Whether trees are being removed.
    pub fn has_doomed(&self) -> Result<bool, KvError> {
        Ok(!volume_tables::doomed(self.kv.as_ref(), 0, 1)?.is_empty())
    }

    /// Hashes of valid join tokens and how long they were to be valid, in seconds.
    pub fn tokens(&self) -> Result<Vec<([u8; 32], u64)>, KvError> {
        tables::tokens(self.kv.as_ref())
    }
}
