//! Scrubbing: reading everything now and then, so that damage is found while other nodes still have good copies.

use std::sync::Arc;

use raftstore::kv::KvError;
use raftstore::meta::ChunkId;

use super::Work;
use crate::chunk::store::ReadError;

/// Chunks that are listed together.
const PAGE_ITEMS: usize = 256;

/// What a pass over all chunks found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ScrubPass {
    /// Chunks and payloads read.
    pub(crate) read: u64,
    /// Of these, bad.
    pub(crate) bad: u64,
    /// Of the bad ones, repaired.
    pub(crate) repaired: u64,
}

impl Work {
    pub(super) async fn scrub_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.options.scrub_every).await;
            match self.scrub_pass().await {
                Ok(pass) => tracing::info!(pass.read, pass.bad, pass.repaired, "scrubbed all chunks"),
                Err(error) => tracing::warn!(%error, "scrubbing was cut short"),
            }
        }
    }

    /// Reads all chunks on this node, and all payloads in the journal that are in use; repairs what is bad.
    pub(crate) async fn scrub_pass(self: &Arc<Self>) -> Result<ScrubPass, KvError> {
        let mut pass = ScrubPass::default();
        let mut after = None;
        loop {
            let page = self.plane.store.chunks(after, PAGE_ITEMS);
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (id, len) in page {
                self.scrub_budget.take(u64::from(len)).await;
                self.make_way().await;
                pass.read += 1;
                if let Err(ReadError::Bad(_)) = self.plane.read_local(id, 0, 0).await {
                    self.scrub_found(id, &mut pass).await;
                }
            }
        }
        self.scrub_payloads(&mut pass).await?;
        Ok(pass)
    }

    async fn scrub_payloads(self: &Arc<Self>, pass: &mut ScrubPass) -> Result<(), KvError> {
        let mut from = 0;
        loop {
            let page = self
                .blocking(move |work| work.plane.view.live_payloads(from, PAGE_ITEMS))
                .await?;
            let Some(last) = page.last() else { return Ok(()) };
            let mut indexes: Vec<_> = page.iter().map(|item| item.log_index).collect();
            from = last.log_index + 1;
            indexes.dedup();
            for log_index in indexes {
                let payloads = Arc::clone(&self.plane.payloads);
                let read = self.blocking(move |_| Ok(payloads.payload(log_index))).await?;
                pass.read += 1;
                match read {
                    Ok(Some(bytes)) => self.scrub_budget.take(bytes.len() as u64).await,
                    Ok(None) => {}
                    Err(_) if self.plane.store.is_good(ChunkId::payload(log_index)) => {}
                    Err(_) => self.scrub_found(ChunkId::payload(log_index), pass).await,
                }
            }
        }
    }

    async fn scrub_found(&self, id: ChunkId, pass: &mut ScrubPass) {
        pass.bad += 1;
        pass.repaired += u64::from(self.repair_one(id).await && self.plane.store.is_good(id));
    }
}
