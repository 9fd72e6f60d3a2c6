//! The key-value engines behind the metadata state machine.
//!
//! An engine is never on the fsync path: it may lose its newest batches in a power cut (never the middle ones, and
//! never half a batch), since the state machine replays them from the journal.

use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

#[cfg(test)]
mod conformance;
mod contain;
mod current;
mod fjall;
mod guarded;
mod kind;
mod memory;
mod old_values;
mod scan;
mod sled;
mod store_dir;
mod written;

pub use contain::{abort_on_other_panics, panic_is_contained};
pub use guarded::OnFailure;
pub use kind::{EngineKind, EngineOptions, UnknownEngine};
pub use memory::MemoryEngine;
pub use scan::is_empty_range;
pub(crate) use scan::rest_after;
pub(crate) use store_dir::{Generation, StoreDir};
pub use store_dir::{STORE_PREFIX, StoreOptions};
pub use written::written_bytes;

use crate::disk::Disk;

/// Why an engine failed. `Damaged` and `Io` mean that the local state can no longer be trusted: the node rebuilds it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KvError {
    /// The store's files are damaged.
    #[error("the key-value store is damaged: {0}")]
    Damaged(String),
    /// The medium failed or is full.
    #[error("the key-value store cannot use its medium: {0}")]
    Io(String),
    /// The store is of a version that this program does not know: nothing is wrong with it, so it must be left alone.
    #[error("the key-value store was written by another version of this program ({0}): run that version")]
    Unsupported(String),
    /// Only from a snapshot: too much was changed since it was taken. Take another one.
    #[error("too much was changed while the snapshot was read")]
    SnapshotExpired,
}

/// One key and its value.
pub type Pair = (Bytes, Bytes);

/// Pairs in key order, or reverse key order.
pub type Scan<'a> = Box<dyn Iterator<Item = Result<Pair, KvError>> + Send + 'a>;

/// A range of keys.
pub type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Reading, from an engine's newest state or from a snapshot of it.
pub trait Read: Send + Sync {
    /// The value under `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;
    /// Pairs with keys in `range`, ascending, or descending if `reverse`. Memory stays bounded however many there are.
    /// A scan shows the state at the time of the call, whatever is written while it runs.
    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_>;
    /// As [`Read::scan`], but the scan keeps what it reads from alive by itself.
    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static>
    where
        Self: 'static,
    {
        Box::new(scan::PagedScan::new(self, range, reverse))
    }
}

/// Changes that become visible together, and survive a crash together or not at all. Of two changes to one key
/// the later counts.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order: a value to put, or `None` to delete.
    pub changes: Vec<(Bytes, Option<Bytes>)>,
}

/// A key-value engine. Only one thread writes.
pub trait Engine: Read + 'static {
    /// Applies a batch; visible to readers when it returns, durable after a later [`Engine::flush`].
    fn write(&self, batch: Batch) -> Result<(), KvError>;
    /// A consistent view that later writes do not change.
    fn snapshot(&self) -> Result<Arc<dyn Read>, KvError>;
    /// Returns once all that was written before is on the medium.
    fn flush(&self) -> Result<(), KvError>;
    /// Memory the engine holds for caches and write buffers, an estimate in bytes.
    fn memory_bytes(&self) -> u64;
}

/// Opens the engine whose files are in `dir`, or makes a new one there. After its first failure, of which
/// `on_failure` is told, it refuses everything. `fjall` and `sled` do their own I/O on the machine's filesystem,
/// whatever `disk` is.
pub fn open(
    kind: EngineKind,
    disk: &Arc<dyn Disk>,
    dir: &Path,
    options: &EngineOptions,
    on_failure: OnFailure,
) -> Result<Arc<dyn Engine>, KvError> {
    let engine: Arc<dyn Engine> = match kind {
        EngineKind::Fjall => Arc::new(fjall::FjallEngine::open(dir, options)?),
        EngineKind::Sled => Arc::new(sled::SledEngine::open(dir, options)?),
        EngineKind::Memory => Arc::new(MemoryEngine::open(disk, dir)?),
    };
    Ok(Arc::new(guarded::Guarded::new(engine, on_failure)))
}

/// Files that are missing, cut short or nonsense are damage; anything else is the medium's failure.
fn io_error(error: &io::Error) -> KvError {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::AlreadyExists => KvError::Damaged(error.to_string()),
        _ => KvError::Io(error.to_string()),
    }
}

/// The range of all keys that start with `prefix`.
#[must_use]
pub fn prefix_range(prefix: &[u8]) -> KeyRange {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (Bound::Included(prefix.to_vec()), Bound::Excluded(end));
        }
    }
    (Bound::Included(prefix.to_vec()), Bound::Unbounded)
}

/// A directory for a test, on a filesystem in memory if there is one: what is tested is not the medium's speed.
#[cfg(test)]
pub(crate) fn test_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}
