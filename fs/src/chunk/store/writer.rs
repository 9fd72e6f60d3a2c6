//! The thread that writes: everything that is pending goes to the medium back to back, with one fdatasync.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raftstore::disk::DiskFile;
use raftstore::meta::ChunkId;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Shared;
use super::error::{StoreError, is_full};
use super::files::at_block;
use super::format::{
    BLOCK_BYTES, DirectoryEntry, PACK_CHUNKS_MAX, Place, body_blocks, encode_chunk_header, encode_directory,
    encode_pack_header, record_blocks,
};
use super::index::Location;
use super::recover::Active;

/// Why a chunk is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is to be here; nothing to do if it is.
    Store,
    /// It moves out of a sparse pack; void if it is not at this place any more.
    Move(Location),
}

/// A batch with so many bytes takes no more: those who wait for it have waited long enough.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// A pack's room is found ahead if the medium has so many times as much left.
const RESERVE_PARTS: u64 = 16;

/// A chunk that waits for the medium.
pub(super) struct Job {
    pub(super) id: ChunkId,
    pub(super) data: Bytes,
    pub(super) purpose: Purpose,
    pub(super) done: oneshot::Sender<Result<(), StoreError>>,
    /// Its share of `pending_bytes_max`.
    pub(super) room: OwnedSemaphorePermit,
}

/// What the writer is to do next.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

#[derive(Default)]
struct QueueState {
    jobs: Vec<Job>,
    dead_packs: Vec<u32>,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job; hands it back if the store was closed.
    pub(super) fn push(&self, job: Job) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.closed {
            return Err(StoreError::Closed);
        }
        state.jobs.push(job);
        self.wake.notify_one();
        Ok(())
    }

    /// Has pack files removed.
    pub(super) fn remove_packs(&self, packs: Vec<u32>) {
        if !packs.is_empty() {
            let mut state = self.state();
            state.dead_packs.extend(packs);
            self.wake.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.state().closed = true;
        self.wake.notify_one();
    }

    /// The chunks that are pending by now.
    fn jobs(&self) -> Vec<Job> {
        std::mem::take(&mut self.state().jobs)
    }

    /// How many chunks are pending.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state().jobs.len()
    }

    /// All that is pending; `None` once closed and drained.
    fn next(&self) -> Option<(Vec<Job>, Vec<u32>)> {
        let mut state = self.state();
        loop {
            if !state.jobs.is_empty() || !state.dead_packs.is_empty() {
                return Some((
                    std::mem::take(&mut state.jobs),
                    std::mem::take(&mut state.dead_packs),
                ));
            }
            if state.closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Why a chunk could not be appended.
enum AppendError {
    /// No room; the pack is as it was.
    Full,
    /// The medium failed.
    Broken(io::Error),
}

impl From<io::Error> for AppendError {
    fn from(error: io::Error) -> Self {
        if is_full(&error) {
            Self::Full
        } else {
            Self::Broken(error)
        }
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    active: Option<Active>,
    next_pack: u32,
    /// Sealed by the batch that is being written.
    sealed: Vec<Sealed>,
}

/// What becomes durable together.
#[derive(Default)]
struct Batch {
    written: Vec<(ChunkId, Location, Purpose)>,
    bytes: usize,
    answers: Vec<(Job, Outcome)>,
    /// Answers of later jobs for a chunk that the batch writes already.
    slots: HashMap<ChunkId, usize>,
}

/// A pack that has got its directory.
struct Sealed {
    pack: u32,
    blocks: u32,
    record_blocks: u32,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, active: Option<Active>, next_pack: u32) -> Self {
        Self {
            shared,
            active,
            next_pack,
            sealed: Vec::new(),
        }
    }

    pub(super) fn run(mut self) {
        while let Some((jobs, dead_packs)) = self.shared.queue.next() {
            self.commit(jobs);
            for pack in dead_packs {
                if let Err(error) = self.shared.files.remove(pack) {
                    tracing::warn!(pack, %error, "cannot remove a pack that holds nothing in use");
                }
            }
        }
    }

    /// Writes a batch, makes it durable, publishes it, and answers. What arrives while the medium takes it shares its sync.
    fn commit(&mut self, jobs: Vec<Job>) {
        let mut batch = Batch::default();
        let mut more = jobs;
        while !more.is_empty() {
            let before = batch.bytes;
            self.write_all(more, &mut batch);
            let goes_on = batch.bytes > before && batch.bytes < BATCH_BYTES_MAX && self.write_back();
            more = if goes_on {
                self.shared.queue.jobs()
            } else {
                Vec::new()
            };
        }
        if !batch.written.is_empty() && !self.shared.is_poisoned() {
            self.sync();
        }
        let poisoned = self.shared.is_poisoned();
        if !poisoned {
            self.publish(batch.written);
        }
        let mut results: Vec<Result<(), StoreError>> = Vec::with_capacity(batch.answers.len());
        for (job, outcome) in batch.answers {
            let result = match outcome {
                Outcome::Written if poisoned => Err(self.shared.poison_error()),
                Outcome::Written | Outcome::Done => Ok(()),
                Outcome::Failed(error) => Err(error),
                Outcome::SameAs(slot) => results[slot].clone(),
            };
            results.push(result.clone());
            let Job { data, done, room, .. } = job;
            drop(data);
            drop(room);
            let _ = done.send(result);
        }
    }

    /// Writes these chunks, not yet durable, unless they are there.
    fn write_all(&mut self, jobs: Vec<Job>, batch: &mut Batch) {
        let full = self.is_below_reserve(&jobs);
        for job in jobs {
            let stores = job.purpose == Purpose::Store;
            let outcome = if let Some(slot) = batch.slots.get(&job.id).filter(|_| stores) {
                Outcome::SameAs(*slot)
            } else if self.shared.is_poisoned() {
                Outcome::Failed(self.shared.poison_error())
            } else if stores && self.shared.index().is_good(job.id) {
                Outcome::Done
            } else if stores && full {
                Outcome::Failed(StoreError::NoSpace)
            } else {
                self.write(&job, &mut batch.written)
            };
            if matches!(outcome, Outcome::Written) {
                batch.bytes += job.data.len();
            }
            if stores {
                batch.slots.entry(job.id).or_insert(batch.answers.len());
            }
            batch.answers.push((job, outcome));
        }
    }

    /// Has the medium take what is not durable yet. False if it failed.
    fn write_back(&mut self) -> bool {
        let Some(active) = &self.active else {
            return true;
        };
        let (from, to) = (at_block(active.durable_to), at_block(active.end));
        let done = active.file.write_back(from, to.saturating_sub(from));
        if let Err(error) = &done {
            self.shared.poison(error);
        }
        done.is_ok()
    }

    /// Whether this batch would take room that is kept for everything else on the medium.
    fn is_below_reserve(&self, jobs: &[Job]) -> bool {
        let need: u64 = jobs
            .iter()
            .map(|job| at_block(record_blocks(job.data.len() as u32)))
            .sum();
        match self.shared.files.available_bytes() {
            Ok(available) => !jobs.is_empty() && available < need + self.shared.options.reserve_bytes,
            Err(error) => {
                tracing::warn!(%error, "cannot tell how much room the medium has");
                false
            }
        }
    }

    fn write(&mut self, job: &Job, written: &mut Vec<(ChunkId, Location, Purpose)>) -> Outcome {
        match self.append(job.id, &job.data) {
            Ok(location) => {
                written.push((job.id, location, job.purpose));
                Outcome::Written
            }
            Err(AppendError::Full) => Outcome::Failed(StoreError::NoSpace),
            Err(AppendError::Broken(error)) => {
                self.shared.poison(&error);
                Outcome::Failed(self.shared.poison_error())
            }
        }
    }

    /// Writes one record, not yet durable.
    fn append(&mut self, id: ChunkId, data: &Bytes) -> Result<Location, AppendError> {
        let len = data.len() as u32;
        let blocks = record_blocks(len);
        let limit = self.shared.options.pack_blocks();
        if let Some(active) = &self.active
            && active.end > 1
            && (active.end + blocks > limit || active.entries.len() >= PACK_CHUNKS_MAX)
        {
            self.seal()?;
        }
        let identity = self.shared.identity;
        let mut active = match self.active.take() {
            Some(active) => active,
            None => self.create()?,
        };
        let place = Place {
            identity,
            pack: active.pack,
            block: active.end,
        };
        let mut result = active
            .file
            .write_all_at(
                &encode_chunk_header(&place, id, data, active.durable_to),
                at_block(place.block),
            )
            .and_then(|()| active.file.write_all_at(data, at_block(place.block + 1)));
        let padding = body_blocks(len) as usize * BLOCK_BYTES - data.len();
        if padding > 0 {
            let at = at_block(place.block + 1) + u64::from(len);
            result = result.and_then(|()| active.file.write_all_at(&vec![0; padding], at));
        }
        if let Err(error) = result {
            // Readers must not find half a record behind the pack's end.
            active
                .file
                .set_len(at_block(active.end))
                .map_err(AppendError::Broken)?;
            self.active = Some(active);
            return Err(error.into());
        }
        active.end += blocks;
        active.entries.push(DirectoryEntry {
            id,
            block: place.block,
            len,
        });
        self.active = Some(active);
        self.shared.count_written(at_block(blocks));
        Ok(Location::new(place.pack, place.block, len))
    }

    fn create(&mut self) -> Result<Active, AppendError> {
        let pack = self.next_pack;
        self.next_pack = pack.saturating_add(1);
        let file = match self.shared.files.create(pack) {
            Ok(file) => file,
            Err(error) if is_full(&error) => {
                let _ = self.shared.files.remove(pack);
                return Err(AppendError::Full);
            }
            Err(error) => return Err(AppendError::Broken(error)),
        };
        if let Err(error) = file.write_all_at(&encode_pack_header(&self.shared.identity, pack), 0) {
            let _ = self.shared.files.remove(pack);
            return Err(error.into());
        }
        self.shared.count_written(BLOCK_BYTES as u64);
        self.reserve(file.as_ref());
        self.shared.index().pack_mut(pack).blocks = 1;
        Ok(Active {
            pack,
            file,
            end: 1,
            durable_to: 0,
            entries: Vec::new(),
        })
    }

    /// Finds the pack's room once, so that the filesystem's own journal has less to say at each sync.
    fn reserve(&self, file: &dyn DiskFile) {
        let bytes = self.shared.options.pack_bytes;
        let available = self.shared.files.available_bytes().unwrap_or(0);
        if available / RESERVE_PARTS >= bytes {
            file.reserve(bytes);
        }
    }

    /// Ends the active pack with its directory and makes all of it durable, so that at any time only the newest
    /// pack can hold anything that is not.
    fn seal(&mut self) -> Result<(), AppendError> {
        let Some(active) = self.active.take() else {
            return Ok(());
        };
        let directory = encode_directory(
            self.shared.identity,
            active.pack,
            active.end,
            &active.entries,
            active.durable_to,
        );
        let mut blocks = active.end;
        match active.file.write_all_at(&directory, at_block(active.end)) {
            Ok(()) => {
                blocks += (directory.len() / BLOCK_BYTES) as u32;
                self.shared.count_written(directory.len() as u64);
            }
            // Its records can be found without the directory.
            Err(error) if is_full(&error) => {
                active
                    .file
                    .set_len(at_block(active.end))
                    .map_err(AppendError::Broken)?;
            }
            Err(error) => return Err(AppendError::Broken(error)),
        }
        // What was reserved beyond.
        active
            .file
            .set_len(at_block(blocks))
            .map_err(AppendError::Broken)?;
        active.file.sync_data().map_err(AppendError::Broken)?;
        self.sealed.push(Sealed {
            pack: active.pack,
            blocks,
            record_blocks: active.end - 1,
        });
        Ok(())
    }

    fn sync(&mut self) {
        if let Some(active) = &mut self.active {
            match active.file.sync_data() {
                Ok(()) => active.durable_to = active.end,
                Err(error) => self.shared.poison(&error),
            }
        }
    }

    /// Lets readers see a durable batch.
    fn publish(&mut self, written: Vec<(ChunkId, Location, Purpose)>) {
        let mut index = self.shared.index();
        for (id, location, purpose) in written {
            let wanted = match purpose {
                Purpose::Store => !index.is_good(id),
                Purpose::Move(from) => index.get(id).is_some_and(|now| now.same_record(from)),
            };
            if wanted {
                index.insert(id, location);
            }
        }
        // Not before its last chunks are in the index: a sealed pack without any is removed.
        for sealed in self.sealed.drain(..) {
            let pack = index.pack_mut(sealed.pack);
            pack.blocks = sealed.blocks;
            pack.record_blocks = sealed.record_blocks;
            pack.sealed = true;
        }
        if let Some(active) = &self.active {
            let pack = index.pack_mut(active.pack);
            pack.blocks = active.end;
            pack.record_blocks = active.end - 1;
        }
        let dead = index.take_dead_packs();
        drop(index);
        self.shared.queue.remove_packs(dead);
    }
}

/// What became of a job.
enum Outcome {
    /// Good if the sync succeeds.
    Written,
    /// Was there already.
    Done,
    /// As an earlier job of the batch.
    SameAs(usize),
    Failed(StoreError),
}
