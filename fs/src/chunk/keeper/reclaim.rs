//! Reclaiming: dropping the copies that nothing will ever refer to, and those that belong on other nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use raftstore::kv::KvError;
use raftstore::meta::{ChunkId, NodeId};
use tokio::time::Instant;

use super::{Later, Work, sleep_until};
use crate::chunk::view::Fate;

/// Chunks of this node that are looked at together.
const PAGE_CHUNKS: usize = 512;

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    /// Nothing will ever refer to these.
    pub(crate) dead: Vec<ChunkId>,
    /// These are on all nodes where they belong, and this is none of them.
    pub(crate) surplus: Vec<ChunkId>,
}

impl Work {
    pub(super) async fn reclaim_loop(self: Arc<Self>) {
        let mut dead = Later::default();
        let mut walk_at = Instant::now() + self.options.dead_grace;
        loop {
            tokio::select! {
                told = self.watcher.dead() => {
                    let fits = dead.add(told.chunks, self.options.dead_grace);
                    if told.walk || !fits {
                        walk_at = walk_at.min(Instant::now() + self.options.dead_grace);
                    }
                }
                () = sleep_until(dead.next_due()) => {
                    let due = dead.take_due(PAGE_CHUNKS);
                    let open = self.drop_dead(due).await;
                    // Their session's floor has not passed them yet.
                    dead.add(open, self.options.dead_grace);
                }
                () = tokio::time::sleep_until(walk_at) => {
                    let complete = self.reclaim_walk(&mut dead).await;
                    let wait = if complete { self.options.walk_every } else { self.options.dead_grace };
                    walk_at = Instant::now() + wait;
                }
            }
        }
    }

    /// Looks at all chunks on this node. Dead ones are dropped after another grace time, surplus ones at once.
    /// False if there was more than can be remembered, or the state could not be read.
    async fn reclaim_walk(self: &Arc<Self>, dead: &mut Later) -> bool {
        let mut after = None;
        loop {
            let (mut garbage, next) = match self.garbage(after).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "cannot look for chunks to drop");
                    return false;
                }
            };
            for id in garbage.surplus.drain(..) {
                self.plane.store.remove(id);
            }
            let fits = dead.add(garbage.dead, self.options.dead_grace);
            after = next;
            if after.is_none() || !fits {
                return fits;
            }
        }
    }

    /// One page of what need not be here, and where the next page starts.
    pub(crate) async fn garbage(
        self: &Arc<Self>,
        after: Option<ChunkId>,
    ) -> Result<(Garbage, Option<ChunkId>), KvError> {
        let (dead, foreign, last) = self.blocking(move |work| work.unwanted(after)).await?;
        let mut surplus = Vec::new();
        for (homes, chunks) in foreign {
            if self.all_have(&homes, &chunks).await {
                surplus.extend(chunks);
            }
        }
        Ok((Garbage { dead, surplus }, last))
    }

    /// Of one page of this node's chunks: the dead, the live ones by the nodes where they belong if that is not
    /// here, and where the next page starts.
    #[expect(clippy::type_complexity, reason = "used once, next to its only caller")]
    fn unwanted(
        &self,
        after: Option<ChunkId>,
    ) -> Result<(Vec<ChunkId>, BTreeMap<Vec<NodeId>, Vec<ChunkId>>, Option<ChunkId>), KvError> {
        let page = self.plane.store.chunks(after, PAGE_CHUNKS);
        let last = page.last().map(|(id, _)| *id);
        let mut dead = Vec::new();
        let mut foreign: BTreeMap<Vec<NodeId>, Vec<ChunkId>> = BTreeMap::new();
        for (id, _) in page {
            match self.plane.view.fate(id)? {
                Fate::Dead => dead.push(id),
                Fate::Live if !self.plane.is_home(id)? => {
                    foreign.entry(self.plane.homes(id)?).or_default().push(id);
                }
                Fate::Live | Fate::Open => {}
            }
        }
        Ok((dead, foreign, last))
    }

    async fn all_have(&self, homes: &[NodeId], chunks: &[ChunkId]) -> bool {
        for home in homes {
            match self.plane.transport.has(*home, chunks.to_vec()).await {
                Ok(present) if chunks.iter().all(|id| present.contains(id)) => {}
                Ok(_) => return false,
                Err(error) => {
                    tracing::debug!(node = home, %error, "cannot tell whether surplus chunks may go");
                    return false;
                }
            }
        }
        !homes.is_empty()
    }

    /// Drops those that are dead for good; answers those that may yet be referred to.
    pub(crate) async fn drop_dead(self: &Arc<Self>, chunks: Vec<ChunkId>) -> Vec<ChunkId> {
        let fates = self.blocking(move |work| {
            let mut fates = Vec::with_capacity(chunks.len());
            for id in chunks {
                fates.push((id, work.plane.view.fate(id)?));
            }
            Ok(fates)
        });
        let fates = match fates.await {
            Ok(fates) => fates,
            Err(error) => {
                tracing::warn!(%error, "cannot tell whether chunks are dead");
                return Vec::new();
            }
        };
        let mut open = Vec::new();
        for (id, fate) in fates {
            match fate {
                Fate::Dead => {
                    self.plane.store.remove(id);
                }
                Fate::Open if self.plane.store.contains(id) => open.push(id),
                Fate::Open | Fate::Live => {}
            }
        }
        open
    }

    pub(super) async fn compact_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.options.compact_every).await;
            loop {
                self.make_way().await;
                match self.plane.store.compact_step(COMPACT_STEP_BYTES).await {
                    Ok(step) => {
                        for id in &step.damaged {
                            self.plane.suspect(*id);
                        }
                        if step.copied_bytes == 0 {
                            break;
                        }
                        self.compact_budget.take(step.copied_bytes).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot compact the chunk store");
                        tokio::time::sleep(COMPACT_RETRY).await;
                        break;
                    }
                }
            }
        }
    }
}

/// What compaction copies between two looks at its budget.
const COMPACT_STEP_BYTES: u64 = 1 << 20;
/// How long compaction rests after a failure.
const COMPACT_RETRY: Duration = Duration::from_secs(60);
