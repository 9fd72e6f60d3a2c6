//! The key-value engines behind the metadata state machine.
//!
//! An engine is never on the fsync path: it may lose its newest batches in a power cut (never the middle ones, and
//! never half a batch), since the state machine replays them from the journal.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

mod memory;
mod scan;

pub use memory::MemoryEngine;
pub use scan::is_empty_range;

/// Why an engine failed. Any of these means that the local state can no longer be trusted: the node rebuilds it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KvError {
    /// The store's files are damaged.
    #[error("the key-value store is damaged: {0}")]
    Damaged(String),
    /// The medium failed or is full.
    #[error("the key-value store cannot use its medium: {0}")]
    Io(String),
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
