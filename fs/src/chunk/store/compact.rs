//! Getting the room back that dead chunks take in packs that also hold chunks in use.

use std::collections::HashMap;
use std::sync::Arc;

use raftstore::meta::ChunkId;

use super::error::{ReadError, StoreError};
use super::writer::Purpose;
use super::{ChunkStore, Location};

/// Room for fewer packs than this makes compaction less choosy.
const SPARE_PACKS: u64 = 4;
/// How much of a pack may be in use for it to be compacted then.
const FULL_LIVE_PERCENT_MAX: u32 = 90;

/// What [`ChunkStore::compact_step`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CompactStep {
    /// Bytes of chunks that were copied; 0 and no damage: there is nothing to compact.
    pub copied_bytes: u64,
    /// Chunks that could not be copied since they are damaged: once repaired, they leave their pack by themselves.
    pub damaged: Vec<ChunkId>,
}

/// Packs that could not be emptied, with the blocks in use that were left: no use trying before that changes.
pub(super) type Stuck = HashMap<u32, u32>;

impl ChunkStore {
    /// Copies up to about `bytes_max` bytes of chunks out of the emptiest pack that is worth it. A pack's file goes
    /// when the last chunk has left it.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] or [`StoreError::Poisoned`]; nothing is lost then.
    pub async fn compact_step(self: &Arc<Self>, bytes_max: u64) -> Result<CompactStep, StoreError> {
        let mut stuck = self.compacting.lock().await;
        let mut step = CompactStep::default();
        let sparse = self.shared.index().sparse_packs(self.live_percent_max());
        stuck.retain(|number, _| sparse.iter().any(|(sparse, _)| sparse == number));
        let candidate = sparse
            .iter()
            .find(|(number, pack)| stuck.get(number) != Some(&pack.live_blocks));
        let Some((number, _)) = candidate else {
            return Ok(step);
        };
        let chunks = self.shared.index().in_pack(*number);
        let mut complete = true;
        for (id, location) in chunks {
            if step.copied_bytes >= bytes_max {
                complete = false;
                break;
            }
            match self.move_chunk(id, location).await {
                Ok(()) => step.copied_bytes += u64::from(location.len()),
                Err(MoveError::Store(error)) => return Err(error),
                Err(MoveError::Damaged) => step.damaged.push(id),
                Err(MoveError::Gone) => {}
            }
        }
        if complete && !step.damaged.is_empty() {
            stuck.insert(*number, self.shared.index().pack_mut(*number).live_blocks);
        }
        Ok(step)
    }

    /// How much of a pack may be in use for it to be compacted: more when the medium is nearly full.
    fn live_percent_max(&self) -> u32 {
        let options = &self.shared.options;
        let wanted = options.reserve_bytes + SPARE_PACKS * options.pack_bytes;
        match self.shared.files.available_bytes() {
            Ok(available) if available < wanted => {
                options.compact_live_percent_max.max(FULL_LIVE_PERCENT_MAX)
            }
            _ => options.compact_live_percent_max,
        }
    }

    async fn move_chunk(self: &Arc<Self>, id: ChunkId, location: Location) -> Result<(), MoveError> {
        let store = Arc::clone(self);
        let data = match tokio::task::spawn_blocking(move || store.read(id, 0, 0)).await {
            Ok(Ok(data)) => data,
            Ok(Err(ReadError::Bad(_))) => return Err(MoveError::Damaged),
            Ok(Err(ReadError::Missing(_) | ReadError::Range { .. })) => return Err(MoveError::Gone),
            Err(_) => return Err(MoveError::Store(StoreError::Closed)),
        };
        self.write(id, data, Purpose::Move(location))
            .await
            .map_err(MoveError::Store)
    }
}

enum MoveError {
    Store(StoreError),
    Damaged,
    Gone,
}
