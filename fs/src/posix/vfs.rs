//! The filesystem of one node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::clock::Clock;
use raftstore::meta::{
    Event, Ino, Inode, MetaError, NAME_BYTES_MAX, Observer, Op, ROOT_INO, Reader, Refusal, Reply, SessionId,
};

use super::lock_table::{Changer, LockTable};
use super::{FsError, Invalidations, OpenInodes};
use crate::backend::{Backend, BackendError, ClusterSpace, Loan, Look, Moment, SyncWhat};
use crate::behind::Upper;

/// How often a look-up is repeated if what it found is gone again.
const LOOKUP_TRIES: u32 = 16;
/// A name or an attribute asks for any room at all: how much it takes on the media depends on the engine.
pub(super) const ENTRY_BYTES: u64 = 1;
/// For how long the answer to "how much room is there" is good.
const SPACE_AGE_MAX: Duration = Duration::from_secs(1);

/// The only session that a change may be made under; `None` if any will do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fence(Option<SessionId>);

impl Fence {
    /// For changes that no lock protects.
    pub(super) const NONE: Self = Self(None);
}

/// What the POSIX layer may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest write that rides in the Raft log, bytes. Larger ones become chunks.
    pub inline_bytes_max: usize,
    /// Largest piece that one write op places, bytes; at most [`raftstore::meta::CHUNK_BYTES_MAX`].
    pub piece_bytes_max: usize,
    /// Chunks of one write that are on their way at the same time.
    pub chunk_writes_max: usize,
    /// Chunks of one read that are fetched at the same time.
    pub chunk_reads_max: usize,
    /// Extents of one file that are held in memory at the same time.
    pub extents_max: usize,
    /// Owners of locks on this node, counted per inode.
    pub lock_owners_max: usize,
    /// After so long, someone who waits for a lock looks again, even if nobody said that it is free.
    pub lock_poll_ms: u64,
    /// For so long, a node that has just released a lock that others want lets them go first.
    pub lock_handoff_ms: u64,
    /// Inodes of which the kernel may have pages in its cache.
    pub cached_inodes_max: usize,
}

impl Limits {
    /// For a backend that packs written bytes itself.
    #[must_use]
    pub fn behind() -> Self {
        Self {
            inline_bytes_max: raftstore::meta::CHUNK_BYTES_MAX as usize,
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inline_bytes_max: 64 << 10,
            piece_bytes_max: 1 << 20,
            chunk_writes_max: 4,
            chunk_reads_max: 8,
            extents_max: 1024,
            lock_owners_max: 65_536,
            lock_poll_ms: 5_000,
            lock_handoff_ms: 20,
            cached_inodes_max: 65_536,
        }
    }
}

/// The filesystem as one node sees it. Its methods may be called concurrently; dropping a method's future abandons
/// the wait, not what was already proposed.
pub struct Vfs {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Limits,
    pub(super) open: Arc<OpenInodes>,
    pub(super) locks: Arc<LockTable>,
    invalidations: Arc<Invalidations>,
    space: Mutex<Option<(Duration, ClusterSpace)>>,
    next_handle: AtomicU64,
}

impl Vfs {
    /// The filesystem on `backend`. The caller makes it an observer of the node's metadata store.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, clock: Arc<dyn Clock>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            locks: Arc::new(LockTable::new(limits.lock_owners_max)),
            invalidations: Arc::new(Invalidations::new(limits.cached_inodes_max)),
            open: Arc::default(),
            backend,
            clock,
            limits,
            space: Mutex::new(None),
            next_handle: AtomicU64::new(1),
        })
    }

    /// Which inodes are open on this node.
    #[must_use]
    pub fn open_inodes(&self) -> &Arc<OpenInodes> {
        &self.open
    }

    /// What the kernel's caches must forget.
    #[must_use]
    pub fn invalidations(&self) -> &Arc<Invalidations> {
        &self.invalidations
    }

    /// The inode that `name` stands for in `parent`; `.` and `..` too.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode, FsError> {
        check_name_length(name)?;
        for _ in 0..LOOKUP_TRIES {
            let known = self.named(parent, name).ok().flatten();
            // What the name most likely stands for is asked for together with it.
            self.backend
                .refresh(Look::named(&[parent], known.as_slice()))
                .await?;
            let Some(ino) = self.named(parent, name)? else {
                return Err(Refusal::NotFound.into());
            };
            if known != Some(ino) {
                self.backend.refresh(Look::attributes(&[ino])).await?;
            }
            if let Some(inode) = self.backend.reader().inode(ino)? {
                self.open.saw(inode.ino);
                return Ok(inode);
            }
            // Unlinked and freed between the two reads.
        }
        Err(Refusal::NotFound.into())
    }

    /// What `name` stands for in `parent`, as far as this node knows.
    fn named(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>, FsError> {
        let reader = self.backend.reader();
        match name {
            b"." => Ok(Some(parent)),
            b".." => Ok(Some(directory(&reader, parent)?.parent)),
            _ => match reader.lookup(parent, name)? {
                Some(entry) => Ok(Some(entry.ino)),
                None => directory(&reader, parent).map(|_| None),
            },
        }
    }

    /// The inode, also if it has no name any more.
    pub async fn getattr(&self, ino: Ino) -> Result<Inode, FsError> {
        self.backend.refresh(Look::attributes(&[ino])).await?;
        present(&self.backend.reader(), ino)
    }

    /// A symlink's target.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes, FsError> {
        let inode = self.getattr(ino).await?;
        if inode.kind != raftstore::meta::FileKind::Symlink {
            return Err(Refusal::Invalid.into());
        }
        Ok(inode.target)
    }

    /// Returns once the file's bytes, and all names and attributes changed on this node so far, are on the media of a
    /// majority. For the root directory: all bytes, too.
    ///
    /// # Errors
    /// Also what went wrong since the last fsync or close.
    pub async fn sync(&self, ino: Ino) -> Result<(), FsError> {
        let what = match ino {
            ROOT_INO => SyncWhat::Everything,
            _ => SyncWhat::Inode(ino),
        };
        self.backend.sync(what).await?;
        self.check_written(ino)
    }

    /// What went wrong with the file since the last fsync or close.
    ///
    /// # Errors
    /// That, once.
    pub fn check_written(&self, ino: Ino) -> Result<(), FsError> {
        self.backend
            .take_error(ino)
            .map_or(Ok(()), |error| Err(error.into()))
    }

    /// To be asked before what the kernel is to know is looked up.
    #[must_use]
    pub fn moment(&self) -> Moment {
        self.backend.moment()
    }

    /// How long the kernel may answer on its own for what was looked up of this since `moment`.
    #[must_use]
    pub fn lend(&self, look: Look<'_>, moment: Moment) -> Loan {
        self.backend.lend(look, moment)
    }

    /// A handle that was never given out before.
    pub(super) fn new_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// A new handle of a file that can be locked.
    pub(super) fn new_file_handle(&self, ino: Ino) -> u64 {
        let handle = self.new_handle();
        self.locks.opened(ino, handle);
        handle
    }

    /// Whether `by` may change the file's bytes, and under which session alone: locks that are held on this node
    /// protect the change, and they end with it.
    pub(super) fn fence(&self, ino: Ino, by: Changer) -> Result<Fence, FsError> {
        Ok(Fence(self.locks.check(ino, by)?))
    }

    /// Submits a change of a file's bytes.
    pub(super) async fn submit_fenced(&self, fence: Fence, op: Op, payload: Bytes) -> Result<Reply, FsError> {
        let Some(session) = fence.0 else {
            return Ok(self.backend.submit(op, payload).await?);
        };
        match self.backend.submit_within(session, op, payload).await {
            Err(BackendError::Meta(MetaError::SessionExpired(gone))) if gone == session => {
                Err(FsError::LocksLost)
            }
            answer => Ok(answer?),
        }
    }

    /// As [`Vfs::submit_fenced`], for an op that carries no bytes and whose answer is an inode.
    pub(super) async fn submit_fenced_for_inode(&self, fence: Fence, op: Op) -> Result<Inode, FsError> {
        self.inode_of(self.submit_fenced(fence, op, Bytes::new()).await?)
    }

    /// Submits an op that carries no bytes.
    pub(super) async fn submit(&self, op: Op) -> Result<Reply, FsError> {
        Ok(self.backend.submit(op, Bytes::new()).await?)
    }

    /// Submits an op whose answer is an inode.
    pub(super) async fn submit_for_inode(&self, op: Op) -> Result<Inode, FsError> {
        self.inode_of(self.submit(op).await?)
    }

    /// The inode that an answer consists of.
    pub(super) fn inode_of(&self, reply: Reply) -> Result<Inode, FsError> {
        match reply {
            Reply::Inode(inode) => {
                self.open.saw(inode.ino);
                Ok(inode)
            }
            other => Err(FsError::unexpected(&other)),
        }
    }

    /// Submits an op that has nothing to answer.
    pub(super) async fn submit_for_nothing(&self, op: Op) -> Result<(), FsError> {
        match self.submit(op).await? {
            Reply::Done => Ok(()),
            other => Err(FsError::unexpected(&other)),
        }
    }

    /// Room for file data, at most a second old.
    pub(super) async fn cluster_space(&self) -> Result<ClusterSpace, FsError> {
        let now = self.clock.monotonic();
        if let Some((at, space)) = *self.space.lock().unwrap_or_else(PoisonError::into_inner)
            && now.saturating_sub(at) < SPACE_AGE_MAX
        {
            return Ok(space);
        }
        let space = self.backend.space().await?;
        *self.space.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, space));
        Ok(space)
    }

    /// ENOSPC unless `len` more bytes fit. Names and attributes are asked for too: the reserve that is then left is for
    /// the journal and the engine, and for removing files.
    pub(super) async fn check_space(&self, len: u64) -> Result<(), FsError> {
        if self.cluster_space().await?.available_bytes < len {
            return Err(Refusal::NoSpace.into());
        }
        Ok(())
    }
}

impl Observer for Vfs {
    fn applied(&self, _index: u64, events: &[Event]) {
        let session = self.backend.session();
        for event in events {
            match event {
                Event::Data { ino, by } if *by != session => self.invalidations.push(*ino),
                Event::LockFreed { ino } => self.locks.wake(*ino),
                Event::LockWanted { ino, by } if *by != session => self.locks.wanted_elsewhere(*ino),
                Event::SessionExpired { session: expired } if *expired == session => {
                    self.locks.session_over(session);
                }
                Event::Reset => {
                    // A snapshot tells what is, not what happened. What cannot be read counts as lost.
                    if !matches!(self.backend.reader().session(session), Ok(Some(_))) {
                        self.locks.session_over(session);
                    }
                    self.invalidations.push_all();
                    self.locks.wake_all();
                }
                _ => {}
            }
        }
    }
}

#[async_trait]
impl Upper for Vfs {
    fn changed_here(&self, events: &[Event]) {
        for event in events {
            match event {
                Event::LockFreed { ino } => self.locks.wake(*ino),
                Event::Orphaned { ino } => self.forget_unreadable(*ino),
                _ => {}
            }
        }
    }

    fn may_have_pages(&self, ino: Ino) -> bool {
        self.invalidations.is_cached(ino)
    }

    fn may_be_mapped(&self, ino: Ino) -> bool {
        self.invalidations.is_cached(ino) && !self.open.open_among(&[ino]).is_empty()
    }

    async fn forget_pages(&self, ino: Ino) {
        self.invalidations.push(ino);
        self.invalidations.settled().await;
    }

    fn forget_everything(&self) {
        self.invalidations.push_all();
        self.locks.wake_all();
    }
}

/// The inode, or ESTALE if it is gone.
pub(super) fn present(reader: &Reader, ino: Ino) -> Result<Inode, FsError> {
    reader.inode(ino)?.ok_or_else(|| Refusal::Stale.into())
}

/// The inode of a directory; ESTALE if it is gone, ENOTDIR if it is something else.
pub(super) fn directory(reader: &Reader, ino: Ino) -> Result<Inode, FsError> {
    let inode = present(reader, ino)?;
    if inode.kind != raftstore::meta::FileKind::Directory {
        return Err(Refusal::NotDirectory.into());
    }
    Ok(inode)
}

/// ENAMETOOLONG if no entry can have this name.
pub(super) fn check_name_length(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Refusal::NameTooLong.into());
    }
    Ok(())
}
