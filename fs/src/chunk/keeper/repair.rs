//! Repair: fetching the chunks that belong on this node and are missing or bad here.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use raftstore::kv::KvError;
use raftstore::meta::ChunkId;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Later, Work, sleep_until};
use crate::backend::BackendError;

/// Entries of the state that are looked at together.
const PAGE_ITEMS: usize = 512;
/// Chunks that are fetched at a time.
const FETCHES_MAX: usize = 4;
/// How long repair makes way for users' reads and writes before it goes on with one chunk all the same.
const WAY_MAX: Duration = Duration::from_millis(250);
/// How often it looks whether they are done.
const WAY_STEP: Duration = Duration::from_millis(10);

/// How far repair has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RepairProgress {
    /// Chunks that this walk, or the last one, found missing or bad here.
    pub missing: u64,
    /// Of these, fetched and written.
    pub fetched: u64,
    /// Of these, not to be had from any node that could be reached; they are tried again.
    pub failed: u64,
    /// A walk is under way, or none has been finished yet.
    pub walking: bool,
    /// Walks that were finished.
    pub walks: u64,
}

impl RepairProgress {
    /// Whether the last walk left nothing missing.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.walking && self.walks > 0 && self.failed == 0
    }
}

impl Work {
    pub(super) async fn repair_loop(self: Arc<Self>, suspects: Option<mpsc::Receiver<ChunkId>>) {
        let mut suspects = suspects;
        let mut added = Later::default();
        let mut walk_at = Some(Instant::now());
        loop {
            tokio::select! {
                told = self.watcher.added() => {
                    let fits = added.add(told.chunks, self.options.missing_grace);
                    if told.walk || !fits {
                        walk_at = Some(Instant::now());
                    }
                }
                Some(id) = next(&mut suspects) => {
                    if self.repair_all(vec![id]).await > 0 {
                        walk_at = soonest(walk_at, self.options.retry_after);
                    }
                }
                () = sleep_until(added.next_due()) => {
                    let due = added.take_due(PAGE_ITEMS);
                    if self.repair_all(due).await > 0 {
                        walk_at = soonest(walk_at, self.options.retry_after);
                    }
                }
                () = sleep_until(walk_at) => {
                    let clean = match self.repair_walk().await {
                        Ok(progress) => progress.failed == 0,
                        Err(error) => {
                            tracing::warn!(%error, "cannot look for missing chunks");
                            false
                        }
                    };
                    let wait = if clean { self.options.walk_every } else { self.options.retry_after };
                    walk_at = Some(Instant::now() + wait);
                }
            }
        }
    }

    /// Looks at all chunks and payloads that belong here, and fetches what is missing.
    pub(crate) async fn repair_walk(self: &Arc<Self>) -> Result<RepairProgress, KvError> {
        self.note(|progress| {
            *progress = RepairProgress {
                walking: true,
                walks: progress.walks,
                ..RepairProgress::default()
            };
        });
        let mut after = None;
        loop {
            let (missing, last) = self.blocking(move |work| work.missing_chunks(after)).await?;
            self.repair_all(missing).await;
            if last.is_none() {
                break;
            }
            after = last;
        }
        let mut from = 0;
        loop {
            let (missing, next) = self.blocking(move |work| work.missing_payloads(from)).await?;
            self.repair_all(missing).await;
            let Some(next) = next else { break };
            from = next;
        }
        Ok(self.note(|progress| {
            progress.walking = false;
            progress.walks += 1;
        }))
    }

    /// One page of the chunks that belong here and are not, and where the next page starts.
    fn missing_chunks(&self, after: Option<ChunkId>) -> Result<(Vec<ChunkId>, Option<ChunkId>), KvError> {
        let page = self.plane.view.chunks(after, PAGE_ITEMS)?;
        let last = page.last().copied();
        let mut missing = Vec::new();
        for id in page {
            if !self.plane.store.is_good(id) && self.plane.is_home(id)? {
                missing.push(id);
            }
        }
        Ok((missing, last))
    }

    /// One page of the payloads that neither the journal nor the chunk store has, and where the next page starts.
    fn missing_payloads(&self, from: u64) -> Result<(Vec<ChunkId>, Option<u64>), KvError> {
        let page = self.plane.view.live_payloads(from, PAGE_ITEMS)?;
        let next = page.last().map(|item| item.log_index + 1);
        let mut missing = Vec::new();
        for item in page {
            let id = ChunkId::payload(item.log_index);
            let known = missing.last() == Some(&id) || self.plane.store.is_good(id);
            if !known && !self.plane.payloads.has_payload(item.log_index).unwrap_or(false) {
                missing.push(id);
            }
        }
        Ok((missing, next))
    }

    /// Fetches chunks; answers how many could not be had.
    async fn repair_all(&self, chunks: Vec<ChunkId>) -> u64 {
        let failed = futures::stream::iter(chunks)
            .map(|id| self.repair_one(id))
            .buffer_unordered(FETCHES_MAX)
            .filter(|repaired| std::future::ready(!repaired))
            .count();
        failed.await as u64
    }

    /// Fetches a chunk if it is needed here; false if it could not be had.
    pub(super) async fn repair_one(&self, id: ChunkId) -> bool {
        match self.is_wanted(id) {
            Ok(true) => {}
            Ok(false) => return true,
            Err(error) => {
                tracing::warn!(chunk = %id, %error, "cannot tell whether a chunk belongs here");
                return false;
            }
        }
        self.note(|progress| progress.missing += 1);
        self.make_way().await;
        // What it weighs is known afterwards: the next one waits for it.
        self.repair_budget.take(0).await;
        let fetched = self.plane.restore(id, Duration::ZERO).await;
        let good = match fetched {
            Ok(bytes) => {
                self.repair_budget.take(bytes.len() as u64).await;
                self.plane.store.is_good(id)
            }
            Err(BackendError::ChunkGone(_)) => true,
            Err(error) => {
                tracing::warn!(chunk = %id, %error, "cannot repair a chunk yet");
                false
            }
        };
        self.note(|progress| {
            progress.fetched += u64::from(good);
            progress.failed += u64::from(!good);
        });
        good
    }

    /// Whether a chunk should be here, and is not, or is bad.
    fn is_wanted(&self, id: ChunkId) -> Result<bool, KvError> {
        Ok(!self.plane.store.is_good(id) && self.plane.is_home(id)? && self.plane.view.is_live(id)?)
    }

    /// Waits a little while users read or write.
    pub(super) async fn make_way(&self) {
        let start = Instant::now();
        while self.plane.is_busy() && start.elapsed() < WAY_MAX {
            tokio::time::sleep(WAY_STEP).await;
        }
    }

    fn note(&self, change: impl FnOnce(&mut RepairProgress)) -> RepairProgress {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut progress);
        *progress
    }

    /// Runs a look-up that may read the medium off the async threads.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&Self) -> Result<T, KvError> + Send + 'static,
    ) -> Result<T, KvError> {
        let work = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || look(&work)).await;
        done.unwrap_or_else(|error| Err(KvError::Io(error.to_string())))
    }
}

fn soonest(at: Option<Instant>, wait: Duration) -> Option<Instant> {
    let due = Instant::now() + wait;
    Some(at.map_or(due, |at| at.min(due)))
}

async fn next(suspects: &mut Option<mpsc::Receiver<ChunkId>>) -> Option<ChunkId> {
    match suspects {
        Some(suspects) => suspects.recv().await,
        None => std::future::pending().await,
    }
}
