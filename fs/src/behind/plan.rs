//! What of that which is pending is pushed next, and on which way.
//!
//! There are two ways to the log. Small amounts ride in it, with the queue: one batch after the other, each one sync. Larger
//! ones are stored as chunks first, which takes the medium many times as long. Meanwhile batches go on: whoever syncs a
//! little does not wait for what others have written. What is stored is committed with the next batch.

use std::collections::BTreeSet;
use std::time::Duration;

use raftstore::kv::KvError;
use raftstore::meta::{BatchItem, Ino, SessionId};

use super::core::Core;
use super::pending::{Batch, Files, Large};
use crate::backend::ChunkGuard;

/// Bytes of a batch that nobody waits for that ride in the log.
const UNASKED_INLINE_BYTES_MAX: usize = 64 << 10;

/// Bytes of files that are in chunks, and are to be committed.
pub(super) struct Stored {
    pub(super) session: SessionId,
    /// The batch that took them.
    pub(super) number: u64,
    /// What commits them.
    pub(super) flushes: Vec<BatchItem>,
    /// Keeps them until then.
    pub(super) chunks: Vec<ChunkGuard>,
}

/// What is on its way.
#[derive(Default)]
pub(super) struct Lanes {
    /// A batch is being committed.
    pub(super) committing: bool,
    /// Chunks are being stored.
    pub(super) storing: bool,
    /// Chunks are stored, and wait for a batch that they can be committed with.
    pub(super) ready: Option<Stored>,
}

/// What is to be done next.
pub(super) enum Plan {
    /// Store this as chunks, under this session.
    Store(SessionId, Large),
    /// Commit this under this session.
    Commit(SessionId, Batch, Option<Stored>),
    /// Nothing.
    Idle,
}

/// What is to be pushed.
#[derive(Default)]
struct Wanted {
    /// Files whose bytes ride in the log.
    small: BTreeSet<Ino>,
    /// Files whose bytes are stored first, those that somebody waits for before the others.
    large: Vec<Ino>,
    /// Whether somebody waits for a batch that need not wait for anything to be stored.
    commit: bool,
}

impl Core {
    /// The next step, if there is one that does not have to wait for what is on its way.
    pub(super) fn plan(&mut self, now: Duration, lanes: &mut Lanes) -> Result<Plan, KvError> {
        lanes.ready.take_if(|stored| Some(stored.session) != self.session);
        let Some(session) = self.session else {
            self.due.clear();
            return Ok(Plan::Idle);
        };
        if self.due.is_empty() && !self.queue_is_due && (self.is_due(now) || self.presses(now)?) {
            self.due = self.pending.dirty_files();
            self.queue_is_due = true;
            self.is_crowded = false;
        }
        let on_its_way = lanes.storing || lanes.ready.is_some();
        let wanted = self.wanted(on_its_way);
        let large_bytes = self.room.large_bytes(&self.options);
        if !on_its_way && let Some(large) = self.pending.take_large(wanted.large.into_iter(), large_bytes)? {
            self.took(large.files.iter().map(|file| file.ino));
            return Ok(Plan::Store(session, large));
        }
        if lanes.committing || (!wanted.commit && lanes.ready.is_none()) {
            return Ok(Plan::Idle);
        }
        let Some(batch) = self
            .pending
            .take(wanted.small.into_iter(), lanes.ready.is_some())?
        else {
            self.queue_is_due = false;
            return Ok(Plan::Idle);
        };
        self.queue_is_due &= !batch.complete;
        self.took(batch.files.iter().map(|file| file.ino));
        let mut riding = None;
        if batch.complete
            && let Some(mut stored) = lanes.ready.take()
        {
            self.pending.ride(&mut stored.flushes)?;
            riding = Some(stored);
        }
        Ok(Plan::Commit(session, batch, riding))
    }

    /// These files' bytes are on their way.
    fn took(&mut self, files: impl Iterator<Item = Ino>) {
        for ino in files {
            self.due.remove(&ino);
        }
        self.requests.see();
    }

    /// What was asked for, and what is due, while something stored is `on_its_way` or nothing is.
    fn wanted(&mut self, on_its_way: bool) -> Wanted {
        let mut wanted = Wanted::default();
        let inline_bytes_max = self.options.inline_bytes_max;
        let mut small_bytes = 0;
        let mut left: Vec<Ino> = Vec::new();
        let mut left_bytes = 0;
        for request in self.requests.iter() {
            let (files, held) = self.pending.to_push(&request.files, request.number);
            let new = files.iter().filter(|(ino, _)| !wanted.small.contains(ino));
            let bytes: usize = new.map(|(_, bytes)| bytes).sum();
            let inodes = files.iter().map(|(ino, _)| *ino);
            if bytes > inline_bytes_max {
                wanted.large.extend(inodes);
            } else if small_bytes + bytes > inline_bytes_max {
                left.extend(inodes);
                left_bytes += bytes;
            } else {
                // What waits for something stored can wait for the queue with it.
                let queued = !held && self.pending.has_queued(request.number);
                wanted.commit |= queued || !files.is_empty();
                small_bytes += bytes;
                wanted.small.extend(inodes);
            }
        }
        if left_bytes >= self.options.chunk_bytes_max {
            // Many small ones are as good as a large one; fewer are the next batch's.
            wanted.large.extend(left);
        }
        self.add_due(&mut wanted, small_bytes);
        // What nobody waits for can wait for company.
        wanted.commit |= self.queue_is_due && wanted.large.is_empty() && !on_its_way;
        let small = &wanted.small;
        wanted.large.retain(|ino| !small.contains(ino));
        wanted
    }

    /// Adds what is due, though nobody waits for it.
    fn add_due(&mut self, wanted: &mut Wanted, small_bytes: usize) {
        let (due, _) = self
            .pending
            .to_push(&Files::These(std::mem::take(&mut self.due)), u64::MAX);
        let bytes: usize = due.iter().map(|(_, bytes)| bytes).sum();
        self.due = due.into_iter().map(|(ino, _)| ino).collect();
        let inline_bytes_max = self.options.inline_bytes_max.min(UNASKED_INLINE_BYTES_MAX);
        if bytes > inline_bytes_max {
            wanted.large.extend(&self.due);
        } else if small_bytes + bytes <= self.options.inline_bytes_max {
            wanted.commit |= !self.due.is_empty();
            wanted.small.extend(&self.due);
        }
    }
}
