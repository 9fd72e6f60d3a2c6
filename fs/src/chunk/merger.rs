//! Moving payload of small writes out of old journal segments, so that the segments can go.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use raftstore::kv::KvError;
use raftstore::meta::{CHUNK_BYTES_MAX, ChunkId, Extent, Ino, Merge, MetaError, Op, Source};

use super::budget::Budget;
use super::namer::ChunkNamer;
use super::plane::DataPlane;
use crate::backend::{BackendError, Propose};
use crate::medium::Medium;

/// Live payloads that are looked at together.
const PAGE_ITEMS: usize = 4096;
/// Extents of a file that are looked at together.
const PAGE_EXTENTS: usize = 1024;
/// Extents that go into one chunk.
const RUN_EXTENTS_MAX: usize = 2048;
/// Files that are merged at a time: their chunks share the replicas' syncs.
const FILES_AT_A_TIME: usize = 8;

/// Bounds of a [`Merger`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergerOptions {
    /// Bytes that are merged per second.
    pub merge_bytes_per_s_max: u64,
    /// Bytes that are merged before it is asked again whether to go on.
    pub round_bytes_max: u64,
    /// Time between two questions whether there is anything to do.
    pub every: Duration,
    /// Time between two passes over all chunks in search of sparse ones.
    pub sparse_every: Duration,
}

impl Default for MergerOptions {
    fn default() -> Self {
        Self {
            merge_bytes_per_s_max: 8 << 20,
            round_bytes_max: 4 << 20,
            every: Duration::from_secs(2),
            sparse_every: Duration::from_secs(600),
        }
    }
}

/// Whatever the medium: so that the journal gets shorter, and the processor is left to others.
const MERGE_BYTES_PER_S: RangeInclusive<u64> = 1 << 20..=32 << 20;

impl MergerOptions {
    /// With a rate that suits `medium`: half of what it takes. Then merging keeps up with a log that takes in the other
    /// half, and never takes more than the log does.
    #[must_use]
    pub fn for_medium(medium: &Medium) -> Self {
        Self {
            merge_bytes_per_s_max: medium.share(2, MERGE_BYTES_PER_S),
            ..Self::default()
        }
    }
}

/// What [`Merger::merge_once`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MergeProgress {
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that now are in chunks.
    pub merged_bytes: u64,
    /// Payloads of which no good copy can be reached at present: they hold the journal's segments.
    pub lost: Vec<ChunkId>,
    /// Index of the oldest payload that is still in use; `None` if none is.
    pub oldest: Option<u64>,
}

/// Where a merger takes the namer of the node's present session from.
pub type NamerSource = Arc<dyn Fn() -> Arc<ChunkNamer> + Send + Sync>;

/// Merges live payload into chunks. Runs on the leader's node, but does no harm on others.
pub struct Merger {
    pub(super) plane: Arc<DataPlane>,
    propose: Arc<dyn Propose>,
    namer: NamerSource,
    pub(super) options: MergerOptions,
    budget: Budget,
}

impl Merger {
    /// `namer` gives the namer of the session that `propose` uses.
    #[must_use]
    pub fn new(
        plane: Arc<DataPlane>,
        propose: Arc<dyn Propose>,
        namer: NamerSource,
        options: MergerOptions,
    ) -> Self {
        let budget = Budget::new(options.merge_bytes_per_s_max);
        Self {
            plane,
            propose,
            namer,
            options,
            budget,
        }
    }

    /// Merges whenever `target` says so, until it is dropped: it answers the log index below which no payload
    /// should be in use, or `None` if there is nothing to do here (this node does not lead, or the journal is
    /// small).
    pub async fn run(&self, target: impl Fn() -> Option<u64> + Send + Sync) {
        loop {
            let mut idle = true;
            if let Some(target) = target() {
                match self.merge_once(target, self.options.round_bytes_max).await {
                    Ok(progress) => {
                        idle = progress.merged_bytes == 0;
                        for id in progress.lost {
                            tracing::error!(chunk = %id, "no good copy of a payload can be reached");
                        }
                    }
                    Err(error) => tracing::warn!(%error, "cannot merge payload into chunks"),
                }
            }
            if idle {
                tokio::time::sleep(self.options.every).await;
            }
        }
    }

    /// Merges payloads below `target`, oldest first, file by file, until about `bytes_max` bytes were moved. A file
    /// that is changed meanwhile keeps what was written later.
    ///
    /// # Errors
    /// If the state cannot be read, or chunks cannot be written or proposed; what was merged before that stays.
    pub async fn merge_once(&self, target: u64, bytes_max: u64) -> Result<MergeProgress, BackendError> {
        let view = Arc::clone(&self.plane.view);
        let files = blocking(move || {
            let mut files: Vec<Ino> = Vec::new();
            for item in view.live_payloads(0, PAGE_ITEMS)? {
                if item.log_index < target && !files.contains(&item.ino) {
                    files.push(item.ino);
                }
            }
            Ok(files)
        })
        .await?;
        let pick = Pick::Payloads { below: target };
        let mut progress = self.merge_files(files, pick, bytes_max).await?;
        let view = Arc::clone(&self.plane.view);
        let oldest = blocking(move || view.live_payloads(0, 1)).await?;
        progress.oldest = oldest.first().map(|item| item.log_index);
        Ok(progress)
    }

    /// Moves what `pick` says out of files and into full chunks, until about `bytes_max` bytes were moved.
    pub(super) async fn merge_files(
        &self,
        files: impl IntoIterator<Item = Ino>,
        pick: Pick,
        bytes_max: u64,
    ) -> Result<MergeProgress, BackendError> {
        let round = Round {
            pick,
            bytes_max,
            merged_bytes: AtomicU64::new(0),
        };
        let mut progress = MergeProgress::default();
        let mut merges = futures::stream::iter(files)
            .take_while(|_| std::future::ready(!round.is_over()))
            .map(|ino| self.merge_file(ino, &round))
            .buffer_unordered(FILES_AT_A_TIME);
        while let Some(lost) = merges.next().await {
            progress.files += 1;
            progress.lost.extend(lost?);
        }
        drop(merges);
        progress.merged_bytes = round.merged_bytes.into_inner();
        Ok(progress)
    }

    /// Merges what is picked of one file; answers the chunks that cannot be had.
    async fn merge_file(&self, ino: Ino, round: &Round) -> Result<Vec<ChunkId>, BackendError> {
        let mut run = Run::default();
        let mut lost = Vec::new();
        let mut offset = 0;
        while !round.is_over() {
            let view = Arc::clone(&self.plane.view);
            let page = blocking(move || view.extents(ino, offset, PAGE_EXTENTS)).await?;
            let Some(last) = page.last() else { break };
            offset = last.end();
            for extent in page {
                let Some(id) = round.pick.of(&extent) else {
                    continue;
                };
                if !run.has_room_for(&extent) {
                    self.commit(ino, std::mem::take(&mut run), round).await?;
                    if round.is_over() {
                        return Ok(lost);
                    }
                }
                match self.read(&extent).await {
                    Ok(bytes) => run.push(extent, &bytes),
                    // Written over or cut off meanwhile.
                    Err(BackendError::ChunkGone(_)) => {}
                    Err(BackendError::ChunkLost(_)) => lost.push(id),
                    Err(error) => return Err(error),
                }
            }
        }
        self.commit(ino, run, round).await?;
        Ok(lost)
    }

    async fn read(&self, extent: &Extent) -> Result<Bytes, BackendError> {
        match extent.source {
            Source::Chunk { id, offset } => self.plane.read(id, offset, extent.len as u32).await,
            Source::Zero => Ok(Bytes::new()),
        }
    }

    /// Puts a run into a chunk and the chunk into the file.
    async fn commit(&self, ino: Ino, run: Run, round: &Round) -> Result<(), BackendError> {
        let len = run.bytes.len() as u64;
        if len == 0 {
            return Ok(());
        }
        self.budget.take(len).await;
        let guard = self.plane.write(&(self.namer)(), run.bytes.freeze()).await?;
        let op = Op::Merge {
            ino,
            runs: vec![Merge {
                expected: run.extents,
                chunk: guard.id,
            }],
        };
        match self.propose.submit(op, Bytes::new()).await {
            Ok(_) => {
                round.merged_bytes.fetch_add(len, Ordering::Relaxed);
                Ok(())
            }
            // The session changed under way: the chunk is given up, and the next round has the new one.
            Err(BackendError::Meta(MetaError::SessionExpired(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What is to be moved.
pub(super) enum Pick {
    /// Payloads of log entries before this one.
    Payloads {
        /// Their index is lower.
        below: u64,
    },
    /// What these chunks still hold.
    Chunks(BTreeSet<ChunkId>),
}

impl Pick {
    /// The chunk or payload that an extent shows, if it is to be moved. An extent that no chunk has room for is not:
    /// it is whole and large already.
    fn of(&self, extent: &Extent) -> Option<ChunkId> {
        let Source::Chunk { id, .. } = extent.source else {
            return None;
        };
        let picked = match self {
            Self::Payloads { below } => id.payload_index().is_some_and(|index| index < *below),
            Self::Chunks(chunks) => chunks.contains(&id),
        };
        (picked && extent.len <= u64::from(CHUNK_BYTES_MAX)).then_some(id)
    }
}

/// A bounded piece of work, and how far it has come.
struct Round {
    pick: Pick,
    bytes_max: u64,
    merged_bytes: AtomicU64,
}

impl Round {
    fn is_over(&self) -> bool {
        self.merged_bytes.load(Ordering::Relaxed) >= self.bytes_max
    }
}

/// A run of a file's extents on its way into a chunk.
#[derive(Default)]
struct Run {
    extents: Vec<Extent>,
    bytes: BytesMut,
}

impl Run {
    fn has_room_for(&self, extent: &Extent) -> bool {
        self.extents.len() < RUN_EXTENTS_MAX
            && self.bytes.len() as u64 + extent.len <= u64::from(CHUNK_BYTES_MAX)
    }

    fn push(&mut self, extent: Extent, bytes: &Bytes) {
        self.bytes.extend_from_slice(bytes);
        self.extents.push(extent);
    }
}

/// Runs a look-up that may read the medium off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    look: impl FnOnce() -> Result<T, KvError> + Send + 'static,
) -> Result<T, KvError> {
    let done = tokio::task::spawn_blocking(look).await;
    done.unwrap_or_else(|error| Err(KvError::Io(error.to_string())))
}
