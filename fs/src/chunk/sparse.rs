//! Emptying sparse chunks: a chunk lives as long as any of its bytes does, so random overwriting would keep much
//! more room occupied than the files show. What is left of such chunks is moved into full ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use raftstore::kv::KvError;
use raftstore::meta::{ChunkId, ChunkUse, Ino};

use super::merger::{MergeProgress, Merger, Pick, blocking};
use super::plane::DataPlane;
use crate::backend::BackendError;

/// Chunks that are looked at together.
const PAGE_CHUNKS: usize = 1024;
/// A chunk that would set free less than this is left alone.
const DEAD_BYTES_MIN: u64 = 64 << 10;

/// A page of chunks: which are sparse, which files they are in, and the last one looked at.
#[derive(Default)]
struct Sparse {
    chunks: BTreeSet<ChunkId>,
    files: BTreeSet<Ino>,
    last: Option<ChunkId>,
}

impl Merger {
    /// Empties sparse chunks now and then while `leads` says that this node is the leader, until it is dropped.
    pub async fn run_sparse(&self, leads: impl Fn() -> bool + Send + Sync) {
        loop {
            tokio::time::sleep(self.options.sparse_every).await;
            let mut after = None;
            while leads() {
                match self.empty_sparse(after).await {
                    Ok((_, Some(last))) => after = Some(last),
                    Ok((_, None)) => break,
                    Err(error) => {
                        tracing::warn!(%error, "cannot empty sparse chunks");
                        break;
                    }
                }
            }
        }
    }

    /// Looks at a page of chunks after `after` and moves what is left of the sparse ones, if this node holds them,
    /// into full chunks. Answers also where the next page starts; `None` at the end.
    ///
    /// # Errors
    /// If the state cannot be read, or chunks cannot be written or proposed; what was moved before that stays.
    pub async fn empty_sparse(
        &self,
        after: Option<ChunkId>,
    ) -> Result<(MergeProgress, Option<ChunkId>), BackendError> {
        let plane = Arc::clone(&self.plane);
        let sparse = blocking(move || find_sparse(&plane, after)).await?;
        if sparse.chunks.is_empty() {
            return Ok((MergeProgress::default(), sparse.last));
        }
        // Less than half of each is in use, so this bounds what is read and written.
        let moved = self
            .merge_files(sparse.files, Pick::Chunks(sparse.chunks), u64::MAX)
            .await?;
        Ok((moved, sparse.last))
    }
}

fn find_sparse(plane: &DataPlane, after: Option<ChunkId>) -> Result<Sparse, KvError> {
    let page = plane.view.chunk_uses(after, PAGE_CHUNKS)?;
    let mut sparse = Sparse {
        last: page.last().map(|chunk| chunk.id),
        ..Sparse::default()
    };
    for chunk in page {
        // While ops that name the chunk may still come, it only looks sparse.
        if is_sparse(plane, &chunk) && plane.view.is_settled(chunk.id)? {
            sparse.chunks.insert(chunk.id);
            sparse.files.extend(chunk.files.iter().map(|(ino, _)| *ino));
        }
    }
    Ok(sparse)
}

/// Whether less than half of a chunk is in use. Bytes that several files share count for each: taking those out
/// would cost more than it frees.
fn is_sparse(plane: &DataPlane, chunk: &ChunkUse) -> bool {
    let live: u64 = chunk.files.iter().map(|(_, bytes)| bytes).sum();
    let len = u64::from(plane.store.len_of(chunk.id).unwrap_or(0));
    live * 2 < len && len - live >= DEAD_BYTES_MIN
}
