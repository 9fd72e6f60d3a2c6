//! The journal's public face.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use super::batch::{PurgeBody, STATE_RECORD_BYTES_MAX};
use super::cache::{put_payload, take_payload};
use super::core::{Change, Completion, Core, Queued, QueuedRecord, Shared};
use super::format::{BLOCK_BYTES, FRAME_HEADER_BYTES, record_bytes};
use super::log::{Place, Slot};
use super::meter::Meter;
use super::recovery::{self, Recovery};
use super::segment::{Life, Workshop};
use super::stats::JournalStats;
use super::{JournalError, JournalOptions, StoreIdentity, preparer, writer};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::raft::{Entry, LogId, Vote};

/// Raft's log, votes and payload on a medium. See the [module](super).
///
/// Methods that change something are async and return once the change is durable, [`Journal::append`] excepted;
/// they need no particular runtime. Only one caller may change things at a time, as openraft does. Readers are many.
pub struct Journal {
    pub(super) shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal in `dir`, or starts one if there is none. Blocks: it reads the whole journal, and what it
    /// accepts is on the medium when it returns.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] if acknowledged records may be lost; [`JournalError::NewerVersion`] and
    /// [`JournalError::Foreign`] if the journal is not this release's or this store's; [`JournalError::Io`].
    /// Nothing was changed then.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        dir: PathBuf,
        identity: StoreIdentity,
        options: JournalOptions,
    ) -> Result<(Arc<Self>, Recovery), JournalError> {
        options.check(&identity)?;
        let meter = Arc::new(Meter::new(clock));
        let workshop = Workshop {
            disk,
            dir,
            identity,
            meter,
        };
        let recovered = recovery::recover(&workshop, &options)?;
        let report = recovered.report.clone();
        let shared = Arc::new(Shared::new(recovered.core, workshop, options));
        let journal = Self {
            shared: Arc::clone(&shared),
            threads: Mutex::new(Vec::new()),
        };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .map_err(|error| JournalError::io("start a thread", &error))
        };
        let writer = writer::Writer::new(Arc::clone(&shared), recovered.tail);
        journal.keep(spawn("journal-write", Box::new(move || writer.run()))?);
        journal.keep(spawn(
            "journal-prepare",
            Box::new(move || preparer::run(&shared)),
        )?);
        Ok((Arc::new(journal), report))
    }

    fn keep(&self, thread: JoinHandle<()>) {
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
    }

    /// Appends entries. They can be read when this returns; `done` is called (by the writer's thread, or here on an
    /// error) once they are on the medium. Waits while too much is pending.
    ///
    /// # Errors
    /// `done` has been called with the same error then, and nothing was appended.
    pub async fn append(
        &self,
        entries: impl IntoIterator<Item = Entry>,
        done: Completion,
    ) -> Result<(), JournalError> {
        let encoded: Result<Vec<_>, _> = entries.into_iter().map(|entry| self.encode(entry)).collect();
        let result = match encoded {
            Ok(encoded) => self.append_encoded(encoded).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {
                self.complete(done);
                Ok(())
            }
            Err(error) => {
                done(Err(error.clone()));
                Err(error)
            }
        }
    }

    async fn append_encoded(&self, encoded: Vec<(Entry, Vec<u8>, Bytes)>) -> Result<(), JournalError> {
        self.wait_for_room().await?;
        let mut core = self.shared.lock();
        core.check_open()?;
        let mut bounds = *core.bounds();
        for (entry, ..) in &encoded {
            bounds.push(entry.log_id.index)?;
        }
        for (entry, body, payload) in encoded {
            let (index, term) = (entry.log_id.index, entry.log_id.leader_id.term);
            let ticket = core.next_ticket;
            core.next_ticket += 1;
            let slot = Slot {
                term,
                place: Place::Pending(ticket),
                body_bytes: length(body.len())?,
                payload_bytes: length(payload.len())?,
            };
            core.log.push(index, slot)?;
            core.cache.push(entry, slot.bytes());
            core.enqueue(QueuedRecord {
                change: Change::Entry(ticket),
                index,
                body,
                payload,
            });
        }
        Ok(())
    }

    /// Encodes an entry without its payload, and checks that it fits.
    fn encode(&self, mut entry: Entry) -> Result<(Entry, Vec<u8>, Bytes), JournalError> {
        let payload = take_payload(&mut entry);
        let body = encode(&entry)?;
        put_payload(&mut entry, payload.clone());
        let bytes = record_bytes(body.len(), payload.len());
        // Every segment has room for its header, its seal, and this.
        let bytes_max = usize::try_from(self.shared.options.segment_bytes - 2 * BLOCK_BYTES)
            .unwrap_or(usize::MAX)
            - FRAME_HEADER_BYTES
            - STATE_RECORD_BYTES_MAX;
        if bytes > bytes_max {
            return Err(JournalError::TooLarge { bytes, bytes_max });
        }
        Ok((entry, body, payload))
    }

    async fn wait_for_room(&self) -> Result<(), JournalError> {
        loop {
            let mut freed = std::pin::pin!(self.shared.room.notified());
            freed.as_mut().enable();
            {
                let core = self.shared.lock();
                core.check_open()?;
                if core.pending_bytes < self.shared.options.pending_bytes_max.max(1) {
                    return Ok(());
                }
            }
            freed.await;
        }
    }

    /// Has `done` called once everything queued so far is on the medium.
    fn complete(&self, done: Completion) {
        let failure = {
            let mut core = self.shared.lock();
            match core.failure.clone() {
                None => {
                    core.queue.push_back(Queued::Done(done));
                    self.shared.work.notify_one();
                    return;
                }
                Some(failure) => failure,
            }
        };
        done(Err(failure));
    }

    /// Queues what `change` returns, and waits until it is on the medium.
    async fn submit(
        &self,
        change: impl FnOnce(&mut Core) -> Result<Option<QueuedRecord>, JournalError>,
    ) -> Result<(), JournalError> {
        {
            let mut core = self.shared.lock();
            core.check_open()?;
            if let Some(record) = change(&mut core)? {
                core.enqueue(record);
            }
        }
        self.sync().await
    }

    /// Waits until everything queued so far is on the medium.
    pub async fn sync(&self) -> Result<(), JournalError> {
        let (tx, rx) = oneshot::channel();
        self.complete(Box::new(move |result| {
            let _ = tx.send(result);
        }));
        rx.await.unwrap_or(Err(JournalError::Closed))
    }

    /// Saves a vote; durable when this returns.
    pub async fn save_vote(&self, vote: Vote) -> Result<(), JournalError> {
        let body = encode(&vote)?;
        self.submit(move |core| {
            core.vote = Some(vote);
            Ok(Some(record(Change::Vote(vote), body)))
        })
        .await
    }

    /// Drops entries after `last`, or all; durable when this returns.
    pub async fn truncate_after(&self, last: Option<u64>) -> Result<(), JournalError> {
        let body = encode(&last)?;
        self.submit(move |core| {
            core.log.truncate_after(last);
            let next = core.bounds().next;
            core.cache.truncate(next);
            Ok(Some(record(Change::TruncateAfter(last), body)))
        })
        .await
    }

    /// Drops entries up to `upto`, durable when this returns. Payload is kept from the payload floor on.
    pub async fn purge(&self, upto: LogId) -> Result<(), JournalError> {
        self.submit(move |core| {
            if core
                .bounds()
                .purged
                .is_some_and(|purged| purged.index >= upto.index)
            {
                return Ok(None);
            }
            let trusted_end = core.log.trusted_end(upto);
            let body = encode(&PurgeBody { upto, trusted_end })?;
            core.log.purge(upto, trusted_end);
            core.trim_cache(self.shared.options.cache_bytes_max);
            Ok(Some(record(Change::Purge(upto), body)))
        })
        .await
    }

    /// Notes that the cluster has committed this entry, and with it all before it. Not durable at once: it goes
    /// to the medium with whatever is written next. [`Journal::payload`] answers only for committed entries, so a
    /// node should say at its start what its state machine has applied.
    pub fn note_committed(&self, id: LogId) {
        let mut core = self.shared.lock();
        if core.log.note_committed(id) && core.committed.is_none_or(|known| known.index < id.index) {
            core.committed = Some(id);
        }
    }

    /// The last committed entry that the journal knows of.
    #[must_use]
    pub fn committed(&self) -> Option<LogId> {
        self.shared.lock().committed
    }

    /// The last saved vote.
    #[must_use]
    pub fn vote(&self) -> Option<Vote> {
        self.shared.lock().vote
    }

    /// The last purged and the last log id; the latter is the former if there are no entries.
    #[must_use]
    pub fn ends(&self) -> (Option<LogId>, Option<LogId>) {
        let core = self.shared.lock();
        (core.bounds().purged, core.log.last())
    }

    /// Payload below `index` is not needed any more. Not remembered across a restart. The floor only rises.
    pub fn set_payload_floor(&self, index: u64) {
        self.shared.lock().log.set_floor(index);
    }

    /// Becomes `Some` once this node can no longer vouch for its log: a write or sync has failed
    /// ([`JournalError::Poisoned`]; nothing more is taken then), or an entry that Raft asked for was found to be
    /// [`JournalError::Damaged`].
    #[must_use]
    pub fn poisoned(&self) -> watch::Receiver<Option<JournalError>> {
        self.shared.health.subscribe()
    }

    /// For how long appends have waited for the call of the medium that is under way; zero if none is.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.shared.workshop.meter.waited()
    }

    /// Numbers about the journal.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        let metered = self.shared.workshop.meter.read();
        let core = self.shared.lock();
        let bytes =
            |lives: &mut dyn Iterator<Item = &Arc<Life>>| lives.map(|life| life.capacity_bytes).sum::<u64>();
        let live_bytes = bytes(&mut core.live.values());
        let entries = !core.bounds().is_empty();
        let oldest = core.log.oldest_generation();
        let oldest_is_live = oldest.is_some() && oldest != core.live.keys().next_back().copied();
        JournalStats {
            live_segments: core.live.len(),
            free_segments: core.free.len() + core.prepared.len(),
            live_bytes,
            total_bytes: live_bytes + bytes(&mut core.free.iter().chain(&core.prepared)),
            oldest_retained_index: core.log.oldest_index(),
            oldest_segment_last_index: oldest_is_live
                .then(|| core.log.oldest_generation_last_index())
                .flatten(),
            first_index: entries.then_some(core.bounds().first),
            last_index: entries.then(|| core.bounds().next - 1),
            pending_bytes: core.pending_bytes,
            cache_bytes: core.cache.bytes(),
            written_bytes: metered.written_bytes,
            writes: metered.writes,
            syncs: metered.syncs,
            sync_latency: metered.sync_latency,
            damaged_reads: core.damaged_reads,
            space: core.space.clone(),
        }
    }

    /// Writes and syncs what is queued, marks the journal as closed in order, and ends its threads. Blocks. What
    /// comes later fails with [`JournalError::Closed`]. Does nothing the second time.
    pub fn shutdown(&self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        self.shared.prepare.notify_all();
        self.shared.room.notify_waiters();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the journal panicked");
            }
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, JournalError> {
    postcard::to_stdvec(value).map_err(|error| JournalError::Io {
        what: "encode a record".into(),
        error: error.to_string(),
    })
}

fn length(len: usize) -> Result<u32, JournalError> {
    u32::try_from(len).map_err(|_| JournalError::TooLarge {
        bytes: len,
        bytes_max: u32::MAX as usize,
    })
}

fn record(change: Change, body: Vec<u8>) -> QueuedRecord {
    QueuedRecord {
        change,
        index: 0,
        body,
        payload: Bytes::new(),
    }
}
