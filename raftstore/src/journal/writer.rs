//! The thread that writes: group commit.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};

use super::batch::{FrameBuilder, FrameMeta, HeadState, STATE_RECORD_BYTES_MAX, SealBody};
use super::core::{Change, Completion, Core, Queued, QueuedRecord, Shared};
use super::format::{FRAME_HEADER_BYTES, FRAMES_OFFSET, FrameKind, RecordKind, record_bytes};
use super::segment::Life;
use super::{JournalError, SpaceCondition};
use crate::raft::LogId;

/// Where the medium's log ends, and what it says up to there.
pub(super) struct Tail {
    /// The present segment.
    pub(super) life: Arc<Life>,
    /// Where its next frame goes.
    pub(super) offset: u64,
    /// Number of the next frame.
    pub(super) sequence: u64,
    /// What the last frame said of this.
    pub(super) oldest_generation: u64,
    /// What the last frame said of this.
    pub(super) committed: Option<LogId>,
    /// What the frames so far come to.
    pub(super) state: HeadState,
}

/// The writer.
pub(super) struct Writer {
    shared: Arc<Shared>,
    tail: Tail,
}

/// What was drained from the queue for one frame.
struct Drained {
    records: Vec<QueuedRecord>,
    done: Vec<Completion>,
    /// Bytes that the records counted as pending.
    pending_bytes: usize,
    /// The segment to go on in, if the present one is full.
    next: Option<Arc<Life>>,
    /// What the tail becomes with this frame, its place excepted.
    state: HeadState,
    oldest_generation: u64,
    committed: Option<LogId>,
}

/// A failure of the medium: what it could not do.
type Failed = String;

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, tail: Tail) -> Self {
        Self { shared, tail }
    }

    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut drained = match self.next_batch(&shared) {
                Ok(Some(drained)) => drained,
                Ok(None) => {
                    match self.close() {
                        Ok(()) => shared.stop(JournalError::Closed),
                        Err(what) => shared.poison(what),
                    }
                    return;
                }
                Err(error) => return shared.stop(error),
            };
            let done = std::mem::take(&mut drained.done);
            let result = if drained.records.is_empty() {
                Ok(())
            } else {
                self.write(drained)
            };
            if let Err(what) = result {
                shared.poison(what.clone());
                done.into_iter()
                    .for_each(|done| done(Err(JournalError::Poisoned(what.clone()))));
                return;
            }
            done.into_iter().for_each(|done| done(Ok(())));
        }
    }

    /// Waits for something to write, and takes as much of it as one frame may carry. `None`: everything is written
    /// and no more will come.
    fn next_batch(&mut self, shared: &Shared) -> Result<Option<Drained>, JournalError> {
        let mut core = shared.lock();
        while core.queue.is_empty() {
            if let Some(failure) = &core.failure {
                return Err(failure.clone());
            }
            if core.closing {
                return Ok(None);
            }
            core = wait(&shared.work, core);
        }
        let mut room = self.tail.life.frames_end() - self.tail.offset;
        let mut next = None;
        if first_record_bytes(&core.queue).is_some_and(|bytes| (FRAME_HEADER_BYTES + bytes) as u64 > room) {
            let (guard, life) = take_prepared(shared, core)?;
            core = guard;
            room = life.frame_bytes_max() - STATE_RECORD_BYTES_MAX as u64;
            next = Some(life);
        }
        let room = usize::try_from(room)
            .unwrap_or(usize::MAX)
            .saturating_sub(FRAME_HEADER_BYTES);
        self.drain(&mut core, next, room.min(shared.options.batch_bytes_max))
            .map(Some)
    }

    /// Takes records of up to `bytes_max` bytes (or one that is larger) from the queue, and the completions that
    /// follow them.
    fn drain(
        &self,
        core: &mut Core,
        next: Option<Arc<Life>>,
        bytes_max: usize,
    ) -> Result<Drained, JournalError> {
        let (mut records, mut done) = (Vec::new(), Vec::new());
        let (mut bytes, mut pending_bytes) = (0, 0);
        let mut state = self.tail.state;
        while let Some(front) = core.queue.pop_front() {
            let record = match front {
                Queued::Done(completion) => {
                    done.push(completion);
                    continue;
                }
                Queued::Record(record) => record,
            };
            let size = record_bytes(record.body.len(), record.payload.len());
            if !records.is_empty() && bytes + size > bytes_max {
                core.queue.push_front(Queued::Record(record));
                break;
            }
            state.apply(&record)?;
            core.queued_cuts -= usize::from(record.is_cut());
            pending_bytes += record.body.len() + record.payload.len();
            bytes += size;
            records.push(record);
        }
        let mut oldest_generation = self.tail.oldest_generation;
        // While cuts are queued, `core.log` has dropped what the medium still needs.
        if core.queued_cuts == 0 {
            let present = next.as_ref().unwrap_or(&self.tail.life).generation;
            oldest_generation = core.log.oldest_generation().unwrap_or(present);
            state.committed_end = core.log.committed_end().min(state.bounds.next);
        }
        let committed = core
            .committed
            .filter(|id| id.index < state.bounds.next)
            .or(self.tail.committed);
        Ok(Drained {
            records,
            done,
            pending_bytes,
            next,
            state,
            oldest_generation,
            committed,
        })
    }

    /// Writes and syncs a frame; then tells the log where its entries are.
    fn write(&mut self, drained: Drained) -> Result<(), Failed> {
        let meter = Arc::clone(&self.shared.workshop.meter);
        let life = Arc::clone(drained.next.as_ref().unwrap_or(&self.tail.life));
        let offset = if drained.next.is_some() {
            FRAMES_OFFSET
        } else {
            self.tail.offset
        };
        let mut frame = FrameBuilder::new(life.seed);
        if drained.next.is_some() {
            let head = postcard::to_stdvec(&self.tail.state).map_err(|error| format!("encode: {error}"))?;
            frame.push(RecordKind::State, 0, &head, &[]);
        }
        let mut written = Vec::new();
        for record in &drained.records {
            let at = frame.push(record.kind(), record.index, &record.body, &record.payload);
            if let Change::Entry(ticket) = record.change {
                let at = u32::try_from(offset + at as u64).map_err(|_| "address a record".to_owned())?;
                written.push((record.index, ticket, at));
            }
        }
        let meta = FrameMeta {
            kind: FrameKind::Records,
            generation: life.generation,
            sequence: self.tail.sequence,
            oldest_generation: drained.oldest_generation,
            committed: drained.committed,
        };
        let bytes = frame.finish(meta);
        let failed = |what: &str, error: &std::io::Error| format!("{what} {}: {error}", life.name());
        let waiting = meter.waiting();
        meter
            .write(&*life.file, &bytes, offset)
            .map_err(|error| failed("write", &error))?;
        meter
            .timed_sync(|| life.file.sync_data())
            .map_err(|error| failed("sync", &error))?;
        drop(waiting);
        if drained.next.is_some() {
            // After the sync: a seal vouches for what follows it.
            self.seal(life.generation)?;
        }
        self.tail = Tail {
            offset: offset + bytes.len() as u64,
            sequence: self.tail.sequence + 1,
            oldest_generation: drained.oldest_generation,
            committed: drained.committed,
            state: drained.state,
            life,
        };
        self.publish(&written, drained.pending_bytes);
        Ok(())
    }

    /// Ends the present segment.
    fn seal(&self, next_generation: u64) -> Result<(), Failed> {
        let meta = FrameMeta {
            kind: FrameKind::Seal,
            generation: self.tail.life.generation,
            sequence: self.tail.sequence,
            oldest_generation: self.tail.oldest_generation,
            committed: self.tail.committed,
        };
        self.shared
            .workshop
            .write_seal(&self.tail.life, self.tail.offset, meta, next_generation)
            .map_err(|error| format!("seal {}: {error}", self.tail.life.name()))
    }

    /// Makes a written frame count in memory.
    fn publish(&self, written: &[(u64, u64, u32)], pending_bytes: usize) {
        let life = &self.tail.life;
        let mut core = self.shared.lock();
        core.live
            .entry(life.generation)
            .or_insert_with(|| Arc::clone(life));
        for (index, ticket, offset) in written {
            core.log.place(*index, *ticket, life.generation, *offset);
        }
        core.pending_bytes = core.pending_bytes.saturating_sub(pending_bytes);
        core.trim_cache(self.shared.options.cache_bytes_max);
        while let Some(entry) = core.live.first_entry()
            && *entry.key() < self.tail.oldest_generation
        {
            let freed = entry.remove();
            core.free.push_back(freed);
            self.shared.prepare.notify_all();
        }
        drop(core);
        self.shared.room.notify_waiters();
    }

    /// Marks the end of a run in order, if there is room for it: so that what is before it cannot be taken for a
    /// torn tail.
    fn close(&self) -> Result<(), Failed> {
        let life = &self.tail.life;
        if self.tail.offset >= life.frames_end() {
            return Ok(());
        }
        let committed = self
            .shared
            .lock()
            .committed
            .filter(|id| id.index < self.tail.state.bounds.next);
        let bytes = FrameBuilder::new(life.seed).finish(FrameMeta {
            kind: FrameKind::Close,
            generation: life.generation,
            sequence: self.tail.sequence,
            oldest_generation: self.tail.oldest_generation,
            committed: committed.or(self.tail.committed),
        });
        let meter = &self.shared.workshop.meter;
        meter
            .write(&*life.file, &bytes, self.tail.offset)
            .and_then(|()| meter.sync(|| life.file.sync_data()))
            .map_err(|error| format!("write the closing mark to {}: {error}", life.name()))
    }
}

impl super::segment::Workshop {
    /// Writes a seal; durable.
    pub(super) fn write_seal(
        &self,
        life: &Life,
        offset: u64,
        meta: FrameMeta,
        next_generation: u64,
    ) -> std::io::Result<()> {
        let mut frame = FrameBuilder::new(life.seed);
        frame.raw(&SealBody { next_generation }.encode());
        self.meter.write(&*life.file, &frame.finish(meta), offset)?;
        self.meter.sync(|| life.file.sync_data())
    }
}

impl HeadState {
    /// Takes in a record, as recovery would.
    fn apply(&mut self, record: &QueuedRecord) -> Result<(), JournalError> {
        match record.change {
            Change::Entry(_) => self.bounds.push(record.index)?,
            Change::Vote(vote) => self.vote = Some(vote),
            Change::TruncateAfter(last) => self.bounds.truncate_after(last),
            Change::Purge(upto) => self.bounds.purge(upto),
        }
        Ok(())
    }
}

impl QueuedRecord {
    fn kind(&self) -> RecordKind {
        match self.change {
            Change::Entry(_) => RecordKind::Entry,
            Change::Vote(_) => RecordKind::Vote,
            Change::TruncateAfter(_) => RecordKind::TruncateAfter,
            Change::Purge(_) => RecordKind::Purge,
        }
    }
}

fn first_record_bytes(queue: &VecDeque<Queued>) -> Option<usize> {
    queue.iter().find_map(|queued| match queued {
        Queued::Record(record) => Some(record_bytes(record.body.len(), record.payload.len())),
        Queued::Done(_) => None,
    })
}

/// Waits for a prepared segment.
fn take_prepared<'a>(
    shared: &'a Shared,
    mut core: MutexGuard<'a, Core>,
) -> Result<(MutexGuard<'a, Core>, Arc<Life>), JournalError> {
    loop {
        if let Some(failure) = &core.failure {
            return Err(failure.clone());
        }
        if let Some(next) = core.prepared.pop_front() {
            shared.prepare.notify_all();
            return Ok((core, next));
        }
        if core.closing
            && let SpaceCondition::NoRoom { error } = &core.space
        {
            return Err(JournalError::Full(error.clone()));
        }
        core = wait(&shared.work, core);
    }
}

/// Waits on `condvar`, whatever happened to other threads.
pub(super) fn wait<'a>(condvar: &Condvar, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
    condvar.wait(core).unwrap_or_else(PoisonError::into_inner)
}
