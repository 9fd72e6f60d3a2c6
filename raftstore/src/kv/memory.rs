//! The in-memory engine, for simulation and tests: a persistent (structure-sharing) map, so a snapshot is a clone
//! of its root.

use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;

use super::{Batch, Engine, KeyRange, KvError, Read, Scan, is_empty_range};

type Map = RedBlackTreeMapSync<Bytes, Bytes>;

/// A key-value engine without a medium.
#[derive(Default)]
pub struct MemoryEngine {
    newest: RwLock<View>,
}

/// One state of the map.
#[derive(Clone, Default)]
struct View {
    map: Map,
    bytes: u64,
}

impl MemoryEngine {
    /// An empty engine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn view(&self) -> View {
        self.newest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Read for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.newest
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        Arc::new(self.view()).scan_owned(range, reverse)
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        Arc::new(self.view()).scan_owned(range, reverse)
    }
}

impl Engine for MemoryEngine {
    fn write(&self, batch: Batch) -> Result<(), KvError> {
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in batch.changes {
            if let Some(old) = newest.map.get(&key) {
                newest.bytes -= (key.len() + old.len()) as u64;
            }
            match value {
                Some(value) => {
                    newest.bytes += (key.len() + value.len()) as u64;
                    newest.map.insert_mut(key, value);
                }
                None => {
                    newest.map.remove_mut(&key);
                }
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>, KvError> {
        Ok(Arc::new(self.view()))
    }

    fn flush(&self) -> Result<(), KvError> {
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.newest.read().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

impl Read for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.map.get(key).cloned())
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        let bounds: (Bound<Bytes>, Bound<Bytes>) = (range.0.map(Bytes::from), range.1.map(Bytes::from));
        let pairs = self
            .map
            .range::<Bytes, _>(bounds)
            .map(|(key, value)| Ok((key.clone(), value.clone())));
        if reverse {
            Box::new(pairs.rev())
        } else {
            Box::new(pairs)
        }
    }
}
