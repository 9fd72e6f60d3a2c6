//! What was done here and is not committed yet: a queue of changes in the order in which they were acknowledged,
//! what they make of the state, and the files' written bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use raftstore::kv::KvError;
use raftstore::meta::{
    AttrChange, BatchItem, Event, FileState, Ino, Inode, MetaError, NO_PROJECT, Op, Overlay, ProjectId,
    Proposal, Reader, Reply, SetTime, Usage,
};

use super::dirty::{Change, DirtyFile, Unflushed, runs};

/// Changes in one batch.
const ITEMS_MAX: usize = 1024;
/// Bytes of the changes in one batch, an estimate.
const BATCH_BYTES_MAX: usize = 512 << 10;
/// What a change takes beside names and values.
const ITEM_BYTES: usize = 64;
/// Files in one batch.
const FILES_MAX: usize = 1024;
/// Longest run of bytes in one piece: what fits into a chunk.
const RUN_BYTES_MAX: usize = 1 << 20;
/// What a queued change costs beside its own bytes, an estimate.
const QUEUED_BYTES: usize = 256;

/// A change in the queue.
#[derive(Debug)]
struct Queued {
    number: u64,
    /// The project that an inode was made in; else none.
    made_in: ProjectId,
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

/// What is to be committed together, after the batches that were taken before it.
#[derive(Debug)]
pub(super) struct Batch {
    /// Of the batches taken so far.
    pub(super) number: u64,
    /// All changes up to this number, but those of files' bytes, have been committed with it.
    pub(super) upto: u64,
    pub(super) items: Vec<BatchItem>,
    pub(super) files: Vec<FileFlush>,
    /// Whether it has all of the queue: only then may what is [`Large`] be committed with it.
    pub(super) complete: bool,
}

/// Files' bytes that are to be stored before they are committed. Meanwhile batches go on without them.
#[derive(Debug)]
pub(super) struct Large {
    /// Of the batches taken so far.
    pub(super) number: u64,
    pub(super) files: Vec<FileFlush>,
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
    /// Those of them that are on their way.
    flushing_bytes: usize,
    /// Changes at the front of the queue that are on their way.
    taken: usize,
    /// The files that are being stored: what is written to them goes on top of that, so it must come after it.
    held: BTreeSet<Ino>,
    /// Batches so far.
    batches: u64,
    /// What projects have more once all of it is committed, at most.
    projects: BTreeMap<ProjectId, Usage>,
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
            flushing_bytes: 0,
            taken: 0,
            held: BTreeSet::new(),
            batches: 0,
            projects: BTreeMap::new(),
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

    /// Memory for the files' bytes that are not on their way, an estimate.
    pub(super) fn active_bytes(&self) -> usize {
        self.dirty_bytes.saturating_sub(self.flushing_bytes)
    }

    /// Of one file.
    pub(super) fn active_bytes_of(&self, ino: Ino) -> usize {
        self.dirty.get(&ino).map_or(0, DirtyFile::active_cost_bytes)
    }

    /// Changes in the queue.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Those of them that are not on their way.
    pub(super) fn untaken(&self) -> usize {
        self.queue.len().saturating_sub(self.taken)
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

    /// When the oldest change was made that is to be pushed: what is on its way does not count.
    pub(super) fn since(&self) -> Option<Duration> {
        let queued = self.queue.get(self.taken).map(|queued| queued.at);
        let written = self.dirty.values().filter(|file| file.is_active());
        written.map(DirtyFile::since).chain(queued).min()
    }

    /// Whether an fsync of `ino` has anything to push. Locks alone are nothing that a file's durability depends on.
    pub(super) fn concerns(&self, ino: Ino) -> bool {
        let is_lock = |op: &Op| matches!(op, Op::Lock { .. } | Op::Unlock { .. });
        self.dirty.contains_key(&ino) || self.queue.iter().any(|queued| !is_lock(&queued.item.op))
    }

    /// Whether all changes up to `number` are committed, but for bytes of other files than `files`.
    pub(super) fn is_settled(&self, files: &Files, number: u64) -> bool {
        let later = |file: &DirtyFile| file.is_clean() || file.oldest_number() > number;
        let queue = self.queue.front().is_none_or(|queued| queued.number > number);
        queue
            && match files {
                Files::All => self.dirty.values().all(later),
                Files::These(files) => files.iter().all(|ino| self.dirty.get(ino).is_none_or(later)),
            }
    }

    /// Of `files`, those with changes up to `number` that are to be pushed, with the memory that their bytes take, an
    /// estimate; and whether any of them is held.
    pub(super) fn to_push(&self, files: &Files, number: u64) -> (Vec<(Ino, usize)>, bool) {
        let mut held = false;
        let mut found = Vec::new();
        let mut look = |ino: &Ino, file: &DirtyFile| {
            if self.held.contains(ino) {
                held = true;
            } else if file.is_active_upto(number) {
                found.push((*ino, file.active_cost_bytes()));
            }
        };
        match files {
            Files::All => self.dirty.iter().for_each(|(ino, file)| look(ino, file)),
            Files::These(files) => files
                .iter()
                .filter_map(|ino| Some((ino, self.dirty.get(ino)?)))
                .for_each(|(ino, file)| look(ino, file)),
        }
        (found, held)
    }

    /// Whether changes up to `number` are in the queue that are not on their way.
    pub(super) fn has_queued(&self, number: u64) -> bool {
        let next = self.queue.get(self.taken);
        next.is_some_and(|queued| queued.number <= number)
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
        let made_in = match (&proposal.op, &reply) {
            (Op::Create { .. }, Reply::Inode(inode)) => inode.project,
            _ => NO_PROJECT,
        };
        if made_in != NO_PROJECT {
            self.projects.entry(made_in).or_default().inodes += 1;
        }
        if let Some(op) = self.keep_bytes(proposal, &reply, now) {
            self.queue.push_back(Queued {
                number,
                made_in,
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
            (Op::Write { .. }, Reply::Written { offset, inode }) => {
                let data = proposal.payload.clone();
                self.edit_file(inode, now, |file, change| file.write(change, *offset, data));
                None
            }
            (Op::SetAttr { ino, change }, Reply::Inode(inode)) => {
                let Some(size) = change.size else {
                    return Some(proposal.op.clone());
                };
                self.edit_file(inode, now, |file, change| file.truncate(change, size));
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

    fn edit_file(&mut self, inode: &Inode, now: Duration, edit: impl FnOnce(&mut DirtyFile, Change)) {
        let change = Change {
            number: self.number,
            at: now,
        };
        let file = self.dirty.entry(inode.ino);
        let file = file.or_insert_with(|| DirtyFile::new(now, inode.project));
        let (cost, written) = (file.cost_bytes(), file.bytes());
        edit(file, change);
        self.dirty_bytes = self.dirty_bytes + file.cost_bytes() - cost;
        if file.project() != NO_PROJECT {
            let usage = self.projects.entry(file.project()).or_default();
            let bytes = usage.allocated_bytes + as_u64(file.bytes());
            usage.allocated_bytes = bytes.saturating_sub(as_u64(written));
        }
    }

    /// What a project has more once all is committed, at most: what takes the place of other bytes counts, too.
    pub(super) fn of_project(&self, project: ProjectId) -> Usage {
        self.projects.get(&project).copied().unwrap_or_default()
    }

    /// The projects that have anything pending, with when the oldest of it was done.
    pub(super) fn projects(&self) -> BTreeMap<ProjectId, Duration> {
        let written = self.dirty.values().filter(|file| file.is_active());
        let written = written.map(|file| (file.project(), file.since()));
        let waiting = self.queue.iter().skip(self.taken);
        let made = waiting.map(|queued| (queued.made_in, queued.at));
        let mut since: BTreeMap<ProjectId, Duration> = BTreeMap::new();
        for (project, at) in written.chain(made).filter(|(project, _)| *project != NO_PROJECT) {
            let oldest = since.entry(project).or_insert(at);
            *oldest = at.min(*oldest);
        }
        since
    }

    /// The files of a project that have bytes pending.
    pub(super) fn files_of_project(&self, project: ProjectId) -> BTreeSet<Ino> {
        let files = self.dirty.iter().filter(|(_, file)| file.project() == project);
        files.map(|(ino, _)| *ino).collect()
    }

    /// Forgets the bytes of a file that are not on their way yet.
    pub(super) fn forget_bytes(&mut self, ino: Ino) {
        let Some(file) = self.dirty.get_mut(&ino) else {
            return;
        };
        let (cost, written) = (file.cost_bytes(), file.bytes());
        file.forget();
        self.dirty_bytes = self.dirty_bytes + file.cost_bytes() - cost;
        if let Some(usage) = self.projects.get_mut(&file.project()) {
            let bytes = usage.allocated_bytes + as_u64(file.bytes());
            usage.allocated_bytes = bytes.saturating_sub(as_u64(written));
        }
        if file.is_clean() {
            self.dirty.remove(&ino);
        }
    }

    /// Whether bytes of a file are not committed.
    pub(super) fn is_dirty(&self, ino: Ino) -> bool {
        self.dirty.contains_key(&ino)
    }

    /// The files with bytes that are not on their way yet.
    pub(super) fn dirty_files(&self) -> BTreeSet<Ino> {
        let active = self.dirty.iter().filter(|(_, file)| file.is_active());
        active.map(|(ino, _)| *ino).collect()
    }

    /// Bytes of `files` that are to be stored first, at most `bytes_max` unless one file alone has more; `None` if there are
    /// none. There is one such batch at a time: until [`Pending::ride`] or [`Pending::lost`], its files are held.
    pub(super) fn take_large(
        &mut self,
        files: impl Iterator<Item = Ino>,
        bytes_max: usize,
    ) -> Result<Option<Large>, KvError> {
        let number = self.batches + 1;
        let files = self.take_files(files, number, bytes_max)?;
        if files.is_empty() {
            return Ok(None);
        }
        self.held = files.iter().map(|file| file.ino).collect();
        self.begin_batch(0);
        Ok(Some(Large { number, files }))
    }

    /// The next changes to be committed: all of the queue, as much as fits, and the bytes of `files`. `None` if there is
    /// nothing, unless something stored is to `ride` with it. To be ended by [`Pending::commit`], in the order in which they
    /// are taken.
    pub(super) fn take(
        &mut self,
        files: impl Iterator<Item = Ino>,
        ride: bool,
    ) -> Result<Option<Batch>, KvError> {
        let mut bytes = 0;
        let fits = |queued: &&Queued| {
            bytes += bytes_of(&queued.item.op);
            bytes <= BATCH_BYTES_MAX
        };
        let number = self.batches + 1;
        let next = self
            .queue
            .iter()
            .skip(self.taken)
            .take(ITEMS_MAX)
            .take_while(fits);
        let items: Vec<BatchItem> = next.map(|queued| queued.item.clone()).collect();
        if items.len() < self.untaken() {
            // Bytes wait for the names that come before them.
            self.begin_batch(items.len());
            let last = self.taken.checked_sub(1).and_then(|last| self.queue.get(last));
            return Ok(Some(Batch {
                number,
                upto: last.map_or(0, |last| last.number),
                items,
                files: Vec::new(),
                complete: false,
            }));
        }
        let files = self.take_files(files, number, usize::MAX)?;
        if items.is_empty() && files.is_empty() && !ride {
            return Ok(None);
        }
        self.begin_batch(items.len());
        Ok(Some(Batch {
            number,
            upto: self.number,
            items,
            files,
            complete: true,
        }))
    }

    /// Forgets what the committed state shows by now, before who waits for that is told: also changes of bytes that nobody needed
    /// any more.
    pub(super) fn forget_settled(&mut self) {
        let next = self.queue.front().map(|queued| queued.number);
        let upto = next.map_or(self.number, |next| next.saturating_sub(1));
        if upto > self.committed {
            self.forget_overlay(upto);
        }
    }

    /// These many more changes are on their way.
    fn begin_batch(&mut self, items: usize) {
        self.batches += 1;
        self.taken += items;
    }

    /// The bytes of files that are not held, as many as one batch may have.
    fn take_files(
        &mut self,
        files: impl Iterator<Item = Ino>,
        batch: u64,
        bytes_max: usize,
    ) -> Result<Vec<FileFlush>, KvError> {
        let (mut flushes, mut bytes) = (Vec::new(), 0);
        for ino in files {
            let more = bytes + self.active_bytes_of(ino);
            if flushes.len() >= FILES_MAX || (more > bytes_max && !flushes.is_empty()) {
                break;
            }
            if self.held.contains(&ino) {
                continue;
            }
            if let Some(flush) = self.take_file(ino, batch)? {
                bytes = more;
                flushes.push(flush);
            }
        }
        Ok(flushes)
    }

    /// What was stored is committed with the batch that was just taken, and has all of the queue. Time has passed since it was
    /// taken: names, modes and times may have changed, and files may be gone, whose operations are taken out.
    pub(super) fn ride(&mut self, flushes: &mut Vec<BatchItem>) -> Result<(), KvError> {
        self.held.clear();
        let reader = self.overlay.reader();
        let mut kept = Vec::with_capacity(flushes.len());
        for mut flush in flushes.drain(..) {
            let Op::Flush { ino, state, .. } = &mut flush.op else {
                continue;
            };
            let Some(now) = reader.inode(*ino)?.map(|inode| FileState::from(&inode)) else {
                continue;
            };
            // What was written since has a size and a version of its own, which come with it.
            let written_since = self.dirty.get(ino).is_some_and(DirtyFile::is_active);
            *state = FileState {
                size: if written_since { state.size } else { now.size },
                data_version: if written_since {
                    state.data_version
                } else {
                    now.data_version
                },
                ..now
            };
            flush.time = state.mtime.max(state.ctime);
            kept.push(flush);
        }
        *flushes = kept;
        Ok(())
    }

    /// What was to be stored cannot be: its bytes are forgotten.
    pub(super) fn lost(&mut self, large: u64) {
        self.held.clear();
        self.end_flush(large);
    }

    /// What of a file is to be committed by a batch. `None` if that is nothing: also if it was freed since, and nobody can
    /// read it.
    fn take_file(&mut self, ino: Ino, batch: u64) -> Result<Option<FileFlush>, KvError> {
        let Some(state) = self.overlay.reader().inode(ino)? else {
            self.forget_bytes(ino);
            return Ok(None);
        };
        let Some(layer) = self.dirty.get_mut(&ino).and_then(|file| file.take(batch)) else {
            return Ok(None);
        };
        self.flushing_bytes += layer.cost_bytes();
        Ok(Some(FileFlush {
            ino,
            cut: layer.cut(),
            runs: runs(layer.ranges(), RUN_BYTES_MAX),
            state: FileState::from(&state),
        }))
    }

    /// A batch that has this `upto`, and what was stored for it, are committed under these numbers, and this node's state
    /// shows it.
    pub(super) fn commit(&mut self, batches: &[u64], upto: u64) {
        while self.queue.front().is_some_and(|queued| queued.number <= upto) {
            let made_in = self.queue.pop_front().map_or(NO_PROJECT, |queued| queued.made_in);
            if let Some(usage) = self.projects.get_mut(&made_in) {
                usage.inodes = usage.inodes.saturating_sub(1);
            }
            self.taken = self.taken.saturating_sub(1);
        }
        for batch in batches {
            self.end_flush(*batch);
        }
        self.forget_overlay(upto);
    }

    /// Everything up to this number is committed, or not needed any more.
    fn forget_overlay(&mut self, upto: u64) {
        let dirty = &self.dirty;
        self.committed = self.committed.max(upto);
        self.overlay
            .committed(self.committed, |ino| dirty.contains_key(&ino));
    }

    /// Forgets the bytes that this batch had.
    fn end_flush(&mut self, batch: u64) {
        let (mut bytes, mut active) = (0, 0);
        let projects = &mut self.projects;
        projects.values_mut().for_each(|usage| usage.allocated_bytes = 0);
        self.dirty.retain(|_, file| {
            file.flushed(batch);
            bytes += file.cost_bytes();
            active += file.active_cost_bytes();
            if file.project() != NO_PROJECT {
                let usage = projects.entry(file.project()).or_default();
                usage.allocated_bytes += as_u64(file.bytes());
            }
            !file.is_clean()
        });
        projects.retain(|_, usage| *usage != Usage::default());
        self.dirty_bytes = bytes;
        self.flushing_bytes = bytes - active;
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
        self.flushing_bytes = 0;
        self.taken = 0;
        self.held.clear();
        self.projects.clear();
        self.overlay.clear();
        self.committed = self.number;
        inodes
    }
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
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
