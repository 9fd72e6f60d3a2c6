//! Changes in memory over something to read from, and reading both as one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::kv::{KeyRange, KvError, Pair, Read, Scan, is_empty_range, rest_after};
use crate::meta::txn::{KeyChange, Merged};

/// What a row takes beside the bytes of its key and value: its place in the two maps, and the two allocations.
const ROW_OVERHEAD_BYTES: usize = 192;
/// Changes that a scan copies at once.
const PAGE_ROWS: usize = 128;

/// One change.
pub(super) struct Row {
    /// Under which it was made.
    pub(super) number: u64,
    /// The value, or that there is none any more.
    pub(super) value: Option<Bytes>,
}

impl Row {
    fn bytes(&self, key: &Bytes) -> usize {
        ROW_OVERHEAD_BYTES + key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// The changes by key.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) rows: BTreeMap<Bytes, Row>,
    /// What they take, an estimate.
    pub(super) bytes: usize,
}

impl Changes {
    /// Puts a row; whether the key had none under this number before.
    pub(super) fn put(&mut self, key: Bytes, row: Row) -> bool {
        let number = row.number;
        self.bytes += row.bytes(&key);
        let Some(old) = self.rows.insert(key.clone(), row) else {
            return true;
        };
        self.bytes -= old.bytes(&key);
        old.number != number
    }

    pub(super) fn remove(&mut self, key: &Bytes) {
        if let Some(old) = self.rows.remove(key) {
            self.bytes -= old.bytes(key);
        }
    }

    /// The first `rows_max` changes in `range`.
    fn page(&self, range: &KeyRange, reverse: bool, rows_max: usize) -> Vec<KeyChange> {
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (
            range.0.as_ref().map(Vec::as_slice),
            range.1.as_ref().map(Vec::as_slice),
        );
        let rows = self.rows.range::<[u8], _>(bounds);
        let change = |(key, row): (&Bytes, &Row)| (key.clone(), row.value.clone());
        if reverse {
            rows.rev().take(rows_max).map(change).collect()
        } else {
            rows.take(rows_max).map(change).collect()
        }
    }
}

/// The base with the changes on top. Both may change while they are read. What is looked at first are always the
/// changes: what is no longer among them is in the base by then.
pub(super) struct Layers {
    base: Arc<dyn Read>,
    changes: RwLock<Changes>,
}

impl Layers {
    pub(super) fn new(base: Arc<dyn Read>) -> Self {
        Self {
            base,
            changes: RwLock::default(),
        }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Changes> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Changes> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read for Layers {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let change = self.read().rows.get(key).map(|row| row.value.clone());
        match change {
            Some(value) => Ok(value),
            None => self.base.get(key),
        }
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        Box::new(LayeredScan {
            layers: self,
            rest: Some(range),
            reverse,
            page: Box::new(std::iter::empty()),
        })
    }
}

/// A scan in pages, each of which ends with the last of the changes that were copied for it.
struct LayeredScan<'a> {
    layers: &'a Layers,
    /// What is after the page; `None` at the end.
    rest: Option<KeyRange>,
    reverse: bool,
    page: Scan<'a>,
}

impl LayeredScan<'_> {
    /// Goes on with the next page; false at the end.
    fn turn(&mut self) -> bool {
        let Some(range) = self.rest.take().filter(|range| !is_empty_range(range)) else {
            return false;
        };
        let changes = self.layers.read().page(&range, self.reverse, PAGE_ROWS);
        let page = match changes.last() {
            Some((last, _)) if changes.len() == PAGE_ROWS => {
                self.rest = Some(rest_after(range.clone(), last, self.reverse));
                range_to(range, last, self.reverse)
            }
            _ => range,
        };
        let base = self.layers.base.scan(page, self.reverse);
        self.page = if changes.is_empty() {
            base
        } else {
            Box::new(Merged::new(base, changes.into_iter(), self.reverse))
        };
        true
    }
}

impl Iterator for LayeredScan<'_> {
    type Item = Result<Pair, KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(pair) = self.page.next() {
                return Some(pair);
            }
            if !self.turn() {
                return None;
            }
        }
    }
}

/// What a scan of `range` passes up to `last`, included.
fn range_to(range: KeyRange, last: &Bytes, reverse: bool) -> KeyRange {
    let bound = Bound::Included(last.to_vec());
    if reverse {
        (bound, range.1)
    } else {
        (range.0, bound)
    }
}
