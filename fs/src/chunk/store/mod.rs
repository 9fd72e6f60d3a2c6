//! The chunks of one node: immutable, checksummed, appended to large pack files.
//!
//! Nothing in a pack is ever overwritten, and deletion is not written down: which chunks are in use is for the
//! replicated metadata to say, and a chunk that a crash brings back is dropped again by reclaiming. Space returns
//! when a pack holds nothing in use (its file is removed), and by copying what is in use out of sparse packs
//! ([`ChunkStore::compact_step`]); holes are not punched, since a card's own flash layer gains nothing from them.

mod buffers;
mod compact;
mod error;
mod files;
mod format;
mod index;
mod recover;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use raftstore::disk::Disk;
use raftstore::meta::{CHUNK_BYTES_MAX, ChunkId};
use tokio::sync::{Semaphore, oneshot, watch};

use buffers::Buffers;
pub use compact::CompactStep;
pub use error::{ReadError, StoreError};
use files::{PackFiles, at_block};
use format::{BLOCK_BYTES, Place, decode_chunk_header};
pub use format::{FORMAT_VERSION, StoreIdentity};
use index::{Index, Location};
use writer::{Job, Purpose, Queue, Writer};

/// Bytes that one permit of the pending semaphore stands for.
const PENDING_UNIT_BYTES: usize = 4096;
/// How often a read looks a chunk up again because it moved meanwhile.
const READ_TRIES: usize = 4;

/// Bounds of a [`ChunkStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// A pack is sealed before it grows beyond this.
    pub pack_bytes: u64,
    /// Chunks that wait to be written take at most this much memory; more puts wait.
    pub pending_bytes_max: usize,
    /// New chunks are refused when less than this would be left on the medium: the journal needs room too, and
    /// deleting must stay possible.
    pub reserve_bytes: u64,
    /// A sealed pack with at most this much in use is compacted.
    pub compact_live_percent_max: u32,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            pack_bytes: 64 << 20,
            pending_bytes_max: 8 << 20,
            reserve_bytes: 64 << 20,
            compact_live_percent_max: 50,
        }
    }
}

impl StoreOptions {
    fn pack_blocks(&self) -> u32 {
        u32::try_from(self.pack_bytes / BLOCK_BYTES as u64)
            .unwrap_or(u32::MAX / 2)
            .min(u32::MAX / 2)
    }
}

/// What a [`ChunkStore`] holds and has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Number of chunks.
    pub chunks: u64,
    /// Chunks whose copy here is known to be damaged and not yet repaired.
    pub damaged_chunks: u64,
    /// Bytes in use on the medium, headers included.
    pub live_bytes: u64,
    /// Bytes on the medium that hold nothing in use.
    pub dead_bytes: u64,
    /// Number of pack files.
    pub packs: u64,
    /// Bytes written since the store was opened.
    pub written_bytes: u64,
    /// Damaged blocks found since the store was opened, at opening included.
    pub bad_blocks: u64,
}

/// What the handle, the readers and the writer thread share.
struct Shared {
    identity: StoreIdentity,
    options: StoreOptions,
    files: PackFiles,
    buffers: Buffers,
    index: Mutex<Index>,
    queue: Queue,
    poison: watch::Sender<Option<String>>,
    written_bytes: AtomicU64,
    bad_blocks: AtomicU64,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poison(&self, error: &io::Error) {
        tracing::error!(%error, "the chunk store's medium failed; it stops writing");
        self.poison.send_if_modified(|poison| {
            let first = poison.is_none();
            if first {
                *poison = Some(error.to_string());
            }
            first
        });
    }

    fn is_poisoned(&self) -> bool {
        self.poison.borrow().is_some()
    }

    fn poison_error(&self) -> StoreError {
        StoreError::Poisoned(self.poison.borrow().clone().unwrap_or_default())
    }

    fn count_written(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A node's chunks. Dropping it finishes what is pending.
pub struct ChunkStore {
    shared: Arc<Shared>,
    pending: Arc<Semaphore>,
    compacting: tokio::sync::Mutex<compact::Stuck>,
    writer: Option<JoinHandle<()>>,
}

impl ChunkStore {
    /// Opens the store in `dir`, making it if there is none. Blocks while it reads the packs' directories.
    ///
    /// # Errors
    /// [`StoreError::NewerFormat`], [`StoreError::Foreign`], or [`StoreError::Io`] if the medium cannot be read.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: StoreIdentity,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let files = PackFiles::new(Arc::clone(&disk), dir.to_owned());
        let recovered = recover::recover(&disk, dir, &files, identity)?;
        let pending = options.pending_bytes_max.max(2 * CHUNK_BYTES_MAX as usize) / PENDING_UNIT_BYTES;
        let shared = Arc::new(Shared {
            identity,
            options,
            files,
            buffers: Buffers::default(),
            index: Mutex::new(recovered.index),
            queue: Queue::default(),
            poison: watch::Sender::new(None),
            written_bytes: AtomicU64::new(0),
            bad_blocks: AtomicU64::new(recovered.bad_blocks),
        });
        let dead = shared.index().take_dead_packs();
        shared.queue.remove_packs(dead);
        let writer = Writer::new(Arc::clone(&shared), recovered.active, recovered.next_pack);
        let thread = std::thread::Builder::new()
            .name("chunk-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| StoreError::Io(error.to_string()))?;
        Ok(Self {
            shared,
            pending: Arc::new(Semaphore::new(pending)),
            compacting: tokio::sync::Mutex::default(),
            writer: Some(thread),
        })
    }

    /// Stores a chunk: durable when this returns `Ok`. No effect if a good copy is here already; a copy known to be
    /// damaged is replaced. Waits while `pending_bytes_max` is used up; if the future is dropped, the chunk may be
    /// stored or not.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::Poisoned`], [`StoreError::BadLength`].
    pub async fn put(&self, id: ChunkId, data: Bytes) -> Result<(), StoreError> {
        if self.is_good(id) {
            return Ok(());
        }
        self.write(id, data, Purpose::Store).await
    }

    async fn write(&self, id: ChunkId, data: Bytes, purpose: Purpose) -> Result<(), StoreError> {
        if data.is_empty() || data.len() > CHUNK_BYTES_MAX as usize {
            return Err(StoreError::BadLength(data.len()));
        }
        if self.shared.is_poisoned() {
            return Err(self.shared.poison_error());
        }
        let units = data.len().div_ceil(PENDING_UNIT_BYTES) as u32;
        let room = Arc::clone(&self.pending)
            .acquire_many_owned(units)
            .await
            .map_err(|_| StoreError::Closed)?;
        let (done, answer) = oneshot::channel();
        self.shared.queue.push(Job {
            id,
            data,
            purpose,
            done,
            room,
        })?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Verified bytes of a chunk; `len` 0 means to the end. Blocks while it reads the medium.
    ///
    /// # Errors
    /// [`ReadError`]; after `Bad` the copy counts as damaged until the chunk is put again.
    pub fn read(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ReadError> {
        let mut location = self.shared.index().get(id).ok_or(ReadError::Missing(id))?;
        for _ in 0..READ_TRIES {
            let end = if len == 0 {
                u64::from(location.len())
            } else {
                u64::from(offset) + u64::from(len)
            };
            if end > u64::from(location.len()) || u64::from(offset) > end {
                return Err(ReadError::Range {
                    id,
                    len: location.len(),
                    end: end.max(u64::from(offset)),
                });
            }
            let bad_blocks = match self.read_record(id, location, offset, end as u32) {
                Ok(bytes) => return Ok(bytes),
                Err(bad_blocks) => bad_blocks,
            };
            // It may have moved, and its pack be gone: that is no damage.
            let now = self.shared.index().get(id).ok_or(ReadError::Missing(id))?;
            if now.same_record(location) {
                if self.shared.index().mark_damaged(id, location) {
                    tracing::warn!(chunk = %id, pack = location.pack, bad_blocks, "found damage in a chunk");
                    self.shared.bad_blocks.fetch_add(bad_blocks, Ordering::Relaxed);
                }
                return Err(ReadError::Bad(id));
            }
            location = now;
        }
        Err(ReadError::Missing(id))
    }

    /// Bytes `offset..end` from a record, or the number of bad blocks that were in the way.
    fn read_record(&self, id: ChunkId, location: Location, offset: u32, end: u32) -> Result<Bytes, u64> {
        let file = self.shared.files.get(location.pack).map_err(|_| 1_u64)?;
        let mut block = vec![0; BLOCK_BYTES];
        file.read_exact_at(&mut block, at_block(location.block))
            .map_err(|_| 1_u64)?;
        let place = Place {
            identity: self.shared.identity,
            pack: location.pack,
            block: location.block,
        };
        let header = decode_chunk_header(&block, &place)
            .filter(|header| (header.id, header.len) == (id, location.len()))
            .ok_or(1_u64)?;
        let unit = BLOCK_BYTES as u32;
        let first = offset / unit;
        let past = end.next_multiple_of(unit).min(location.len());
        let start = first * unit;
        let mut bytes = self.shared.buffers.take(past.saturating_sub(start) as usize);
        file.read_exact_at(bytes.as_mut(), at_block(location.block + 1 + first))
            .map_err(|_| 1_u64)?;
        match header.bad_blocks(first as usize, bytes.as_ref()) {
            0 => Ok(bytes
                .freeze()
                .slice((offset - start) as usize..(end - start) as usize)),
            bad => Err(bad),
        }
    }

    /// Whether a copy is here that is not known to be damaged. Reads nothing.
    #[must_use]
    pub fn is_good(&self, id: ChunkId) -> bool {
        self.shared.index().is_good(id)
    }

    /// Whether a copy is here, damaged or not.
    #[must_use]
    pub fn contains(&self, id: ChunkId) -> bool {
        self.shared.index().get(id).is_some()
    }

    /// Length of a chunk that is here, damaged or not.
    #[must_use]
    pub fn len_of(&self, id: ChunkId) -> Option<u32> {
        self.shared.index().get(id).map(Location::len)
    }

    /// Up to `chunks_max` chunks after `after`, in order, with their lengths in bytes.
    #[must_use]
    pub fn chunks(&self, after: Option<ChunkId>, chunks_max: usize) -> Vec<(ChunkId, u32)> {
        self.shared.index().after(after, chunks_max)
    }

    /// Drops a chunk; true if it was here. Not written down: a crash may bring it back.
    pub fn remove(&self, id: ChunkId) -> bool {
        let mut index = self.shared.index();
        let removed = index.remove(id);
        let dead = index.take_dead_packs();
        drop(index);
        self.shared.queue.remove_packs(dead);
        removed
    }

    /// Becomes `Some(reason)` when the store was poisoned: the node should stop, loudly.
    #[must_use]
    pub fn poisoned(&self) -> watch::Receiver<Option<String>> {
        self.shared.poison.subscribe()
    }

    /// Totals.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let totals = self.shared.index().totals();
        StoreStats {
            chunks: totals.chunks,
            damaged_chunks: totals.damaged_chunks,
            live_bytes: totals.live_bytes,
            dead_bytes: totals.dead_bytes,
            packs: totals.packs,
            written_bytes: self.shared.written_bytes.load(Ordering::Relaxed),
            bad_blocks: self.shared.bad_blocks.load(Ordering::Relaxed),
        }
    }
}

impl Drop for ChunkStore {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
