//! What was done here and is not committed yet: a queue of changes in the order in which they were acknowledged,
//! what they make of the state, and the files' written bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use raftstore::kv::KvError;
use raftstore::meta::{
    AttrChange, BatchItem, Event, FileState, Ino, MetaError, Op, Overlay, Proposal, Reader, Reply, SetTime,
};

use super::dirty::{DirtyFile, Unflushed, runs};

/// Changes in one batch.
const ITEMS_MAX: usize = 1024;
/// Bytes of the changes in one batch, an estimate.
const BATCH_BYTES_MAX: usize = 512 << 10;
/// What a change takes beside names and values.
const ITEM_BYTES: usize = 64;
/// Files in one batch.
const FILES_MAX: usize = 1024;
/// A batch with so many bytes of files takes no more files.
const WRITTEN_BYTES_MAX: usize = 2 << 20;
/// Longest run of bytes in one piece: what fits into a chunk.
const RUN_BYTES_MAX: usize = 1 << 20;
/// What a queued change costs beside its own bytes, an estimate.
const QUEUED_BYTES: usize = 256;

/// A change in the queue.
#[derive(Debug)]
struct Queued {
    number: u64,
    /// When it was made, on the monotonic clock.
    at: Duration,
    item: BatchItem,
}

/// What of a file is to be committed.
#[derive(Debug)]
pub(super) struct FileFlush {
    pub(super) ino: Ino,
    /// Where it was cut before it was written.
    pub(super) cut: Option<u64>,
    /// Written bytes by offset, in order.
    pub(super) runs: Vec<(u64, Bytes)>,
    /// What the file is then.
    pub(super) state: FileState,
}

/// What is to be committed together. Until it is, there is no other.
#[derive(Debug)]
pub(super) struct Batch {
    /// All changes up to this number, but those of files' bytes, have been committed with it.
    pub(super) upto: u64,
    pub(super) items: Vec<BatchItem>,
    pub(super) files: Vec<FileFlush>,
    /// Whether it has all that was asked for.
    pub(super) complete: bool,
}

/// Which files' bytes a flush is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Files {
    All,
    These(BTreeSet<Ino>),
}

/// Changes that are not committed yet.
pub(super) struct Pending {
    overlay: Overlay,
    queue: VecDeque<Queued>,
    dirty: BTreeMap<Ino, DirtyFile>,
    dirty_bytes: usize,
    /// Of the newest change.
    number: u64,
    /// Everything up to here is committed, but for the bytes of files.
    committed: u64,
}

impl Pending {
    pub(super) fn new(base: &Reader) -> Self {
        Self {
            overlay: Overlay::new(base),
            queue: VecDeque::new(),
            dirty: BTreeMap::new(),
            dirty_bytes: 0,
            number: 0,
            committed: 0,
        }
    }

    /// The state with the pending changes.
    pub(super) fn reader(&self) -> Reader {
        self.overlay.reader()
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Memory for the files' bytes, an estimate.
    pub(super) fn dirty_bytes(&self) -> usize {
        self.dirty_bytes
    }

    /// The files' bytes themselves.
    pub(super) fn written_bytes(&self) -> usize {
        self.dirty.values().map(DirtyFile::bytes).sum()
    }

    /// Memory for the queue and what it makes of the state, an estimate.
    pub(super) fn queue_bytes(&self) -> usize {
        self.overlay.bytes() + self.queue.len() * QUEUED_BYTES
    }

    /// Changes in the queue.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether anything of an inode is not committed that was last changed under the number `touched`.
    pub(super) fn has_any_of(&self, ino: Ino, touched: u64) -> bool {
        touched > self.committed || self.dirty.contains_key(&ino)
    }

    /// When the oldest change was made that is not committed.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let queued = self.queue.front().map(|queued| queued.at);
        self.dirty.values().map(DirtyFile::oldest).chain(queued).min()
    }

    /// When the oldest change was made that is to be pushed: bytes of files that are on their way do not count.
    pub(super) fn since(&self) -> Option<Duration> {
        let queued = self.queue.front().map(|queued| queued.at);
        let written = self.dirty.values().filter(|file| file.is_active());
        written.map(DirtyFile::since).chain(queued).min()
    }

    /// Whether an fsync of `ino` has anything to push. Locks alone are nothing that a file's durability depends on.
    pub(super) fn concerns(&self, ino: Ino) -> bool {
        let is_lock = |op: &Op| matches!(op, Op::Lock { .. } | Op::Unlock { .. });
        self.dirty.contains_key(&ino) || self.queue.iter().any(|queued| !is_lock(&queued.item.op))
    }

    /// Bytes of `ino` that are not committed, in `start..end`.
    pub(super) fn unflushed(&self, ino: Ino, start: u64, end: u64) -> Unflushed {
        let file = self.dirty.get(&ino);
        file.map(|file| file.view(start, end)).unwrap_or_default()
    }

    /// Does a change here, in the name of its proposal, to be pushed later. What is refused changes nothing.
    pub(super) fn change(
        &mut self,
        proposal: &Proposal,
        now: Duration,
    ) -> Result<Result<(Reply, Vec<Event>), MetaError>, KvError> {
        let number = self.number + 1;
        let (reply, events) = match self.overlay.apply(number, proposal)? {
            Ok(done) => done,
            Err(error) => return Ok(Err(error)),
        };
        self.number = number;
        if let Some(op) = self.keep_bytes(proposal, &reply, now) {
            self.queue.push_back(Queued {
                number,
                at: now,
                item: BatchItem {
                    time: proposal.time,
                    op,
                },
            });
        }
        Ok(Ok((reply, events)))
    }

    /// Takes in what the change does to a file's bytes; what of it remains for the queue.
    fn keep_bytes(&mut self, proposal: &Proposal, reply: &Reply, now: Duration) -> Option<Op> {
        match (&proposal.op, reply) {
            (Op::Write { ino, .. }, Reply::Written { offset, .. }) => {
                let data = proposal.payload.clone();
                self.edit_file(*ino, now, |file| file.write(now, *offset, data));
                None
            }
            (Op::SetAttr { ino, change }, _) => {
                let Some(size) = change.size else {
                    return Some(proposal.op.clone());
                };
                self.edit_file(*ino, now, |file| file.truncate(now, size));
                // Its bytes carry the size, the times and the mode with them. Times that were asked for are kept here.
                let mut rest = AttrChange {
                    size: None,
                    ..*change
                };
                if rest.mtime == Some(SetTime::Now) {
                    rest.mtime = None;
                }
                (rest != AttrChange::default()).then_some(Op::SetAttr {
                    ino: *ino,
                    change: rest,
                })
            }
            // Another owner on this node has it: nothing came of it. (flock gives up what was held first.)
            (Op::Lock { lock, .. }, Reply::Blocked(_))
                if lock.owner.kind == raftstore::meta::LockKind::Posix =>
            {
                None
            }
            (op, _) => Some(op.clone()),
        }
    }

    fn edit_file(&mut self, ino: Ino, now: Duration, edit: impl FnOnce(&mut DirtyFile)) {
        let file = self.dirty.entry(ino).or_insert_with(|| DirtyFile::new(now));
        let before = file.cost_bytes();
        edit(file);
        self.dirty_bytes = self.dirty_bytes + file.cost_bytes() - before;
    }

    /// Forgets the bytes of a file that are not on their way yet.
    pub(super) fn forget_bytes(&mut self, ino: Ino) {
        let Some(file) = self.dirty.get_mut(&ino) else {
            return;
        };
        let before = file.cost_bytes();
        file.forget();
        self.dirty_bytes = self.dirty_bytes + file.cost_bytes() - before;
        if file.is_clean() {
            self.dirty.remove(&ino);
        }
    }

    /// Whether bytes of a file are not committed.
    pub(super) fn is_dirty(&self, ino: Ino) -> bool {
        self.dirty.contains_key(&ino)
    }

    /// The files with bytes that are not on their way yet.
    pub(super) fn dirty_files(&self) -> VecDeque<Ino> {
        let active = self.dirty.iter().filter(|(_, file)| file.is_active());
        active.map(|(ino, _)| *ino).collect()
    }

    /// The next changes to be committed: all of the queue, and the bytes of the first of `files`, which are taken from
    /// there; as much as fits. `None` if there is nothing. To be ended by [`Pending::commit`] before the next is taken.
    pub(super) fn take(&mut self, files: &mut VecDeque<Ino>) -> Result<Option<Batch>, KvError> {
        let mut bytes = 0;
        let fits = |queued: &&Queued| {
            bytes += bytes_of(&queued.item.op);
            bytes <= BATCH_BYTES_MAX
        };
        let next = self.queue.iter().take(ITEMS_MAX).take_while(fits);
        let items: Vec<BatchItem> = next.map(|queued| queued.item.clone()).collect();
        if items.len() < self.queue.len() {
            // Bytes wait for the names that come before them.
            let upto = self.queue.get(items.len() - 1).map_or(0, |last| last.number);
            return Ok(Some(Batch {
                upto,
                items,
                files: Vec::new(),
                complete: false,
            }));
        }
        let mut flushes = Vec::new();
        let mut written = 0;
        while flushes.len() < FILES_MAX && written < WRITTEN_BYTES_MAX {
            let Some(ino) = files.pop_front() else { break };
            if let Some(flush) = self.take_file(ino)? {
                written += flush.runs.iter().map(|(_, run)| run.len()).sum::<usize>();
                flushes.push(flush);
            }
        }
        if items.is_empty() && flushes.is_empty() {
            // Changes of bytes that are not needed any more were changes, too.
            self.commit(self.number);
            return Ok(None);
        }
        Ok(Some(Batch {
            upto: self.number,
            items,
            files: flushes,
            complete: files.is_empty(),
        }))
    }

    /// What of a file is to be committed. `None` if that is nothing: also if it was freed since, and nobody can read it.
    fn take_file(&mut self, ino: Ino) -> Result<Option<FileFlush>, KvError> {
        let state = self.overlay.reader().inode(ino)?;
        let Some(layer) = self.dirty.get_mut(&ino).and_then(DirtyFile::take) else {
            return Ok(None);
        };
        Ok(state.map(|state| FileFlush {
            ino,
            cut: layer.cut(),
            runs: runs(layer.ranges(), RUN_BYTES_MAX),
            state: FileState::from(&state),
        }))
    }

    /// The batch whose `upto` this is has been committed, and this node's state shows it.
    pub(super) fn commit(&mut self, upto: u64) {
        while self.queue.front().is_some_and(|queued| queued.number <= upto) {
            self.queue.pop_front();
        }
        self.end_flush();
        let dirty = &self.dirty;
        self.overlay.committed(upto, |ino| dirty.contains_key(&ino));
        self.committed = upto;
    }

    /// Forgets the bytes that were on their way.
    fn end_flush(&mut self) {
        let mut bytes = 0;
        self.dirty.retain(|_, file| {
            file.flushed();
            bytes += file.cost_bytes();
            file.is_active()
        });
        self.dirty_bytes = bytes;
    }

    /// Everything is lost. The inodes that it was about.
    pub(super) fn clear(&mut self) -> BTreeSet<Ino> {
        let mut inodes: BTreeSet<Ino> = self.dirty.keys().copied().collect();
        for queued in &self.queue {
            inodes.extend(inodes_of(&queued.item.op));
        }
        self.queue.clear();
        self.dirty.clear();
        self.dirty_bytes = 0;
        self.overlay.clear();
        self.committed = self.number;
        inodes
    }
}

/// What a change takes in a batch, an estimate. Less than a batch may have, also for the largest attribute.
fn bytes_of(op: &Op) -> usize {
    let own = match op {
        Op::Create { name, new, .. } => name.len() + new.target.len(),
        Op::Link { name, .. }
        | Op::Unlink { name, .. }
        | Op::Rmdir { name, .. }
        | Op::RemoveXattr { name, .. } => name.len(),
        Op::Rename { name, new_name, .. } => name.len() + new_name.len(),
        Op::SetXattr { name, value, .. } => name.len() + value.len(),
        _ => 0,
    };
    own + ITEM_BYTES
}

/// The inodes that a queued change names.
fn inodes_of(op: &Op) -> Vec<Ino> {
    match op {
        Op::Create { parent, ino, .. } => ino.iter().copied().chain([*parent]).collect(),
        Op::Link { ino, parent, .. } => vec![*ino, *parent],
        Op::Unlink { parent, .. } | Op::Rmdir { parent, .. } => vec![*parent],
        Op::Rename {
            parent, new_parent, ..
        } => vec![*parent, *new_parent],
        Op::SetAttr { ino, .. } | Op::SetXattr { ino, .. } | Op::RemoveXattr { ino, .. } => vec![*ino],
        _ => Vec::new(),
    }
}
