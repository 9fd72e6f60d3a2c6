//! Changes on their way into an engine, on top of what the engine holds.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;

use crate::kv::{Batch, KeyRange, KvError, Pair, Read, Scan, is_empty_range};

/// An overlay over an engine: reads see the changes made through it, the engine sees them when they are written as
/// one [`Batch`].
pub struct Txn<'a> {
    base: &'a dyn Read,
    changes: BTreeMap<Bytes, Option<Bytes>>,
    /// What `changes` held for a key before each change since the oldest savepoint, for rollback.
    undo: Vec<(Bytes, Before)>,
    bytes: usize,
}

/// What the overlay held for a key: nothing, or a change.
type Before = Option<Option<Bytes>>;

/// A point that [`Txn::rollback`] goes back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Savepoint(usize);

impl<'a> Txn<'a> {
    /// Without changes yet, over `base`.
    #[must_use]
    pub fn new(base: &'a dyn Read) -> Self {
        Self {
            base,
            changes: BTreeMap::new(),
            undo: Vec::new(),
            bytes: 0,
        }
    }

    /// The value under `key`, own changes included.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.base.get(key),
        }
    }

    /// Puts a value.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.change(key, Some(value));
    }

    /// Deletes a key, whether it is there or not.
    pub fn delete(&mut self, key: Bytes) {
        self.change(key, None);
    }

    fn change(&mut self, key: Bytes, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        let before = self.changes.insert(key.clone(), value);
        self.undo.push((key, before));
    }

    /// Pairs with keys in `range`, own changes included, in order. The engine is read as far as the scan is taken.
    #[must_use]
    pub fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (
            range.0.as_ref().map(Vec::as_slice),
            range.1.as_ref().map(Vec::as_slice),
        );
        let changes = self.changes.range::<[u8], _>(bounds);
        if changes.clone().next().is_none() {
            return self.base.scan(range, reverse);
        }
        let base = self.base.scan(range.clone(), reverse).peekable();
        if reverse {
            Box::new(Merged {
                base,
                changes: changes.rev().peekable(),
                reverse,
            })
        } else {
            Box::new(Merged {
                base,
                changes: changes.peekable(),
                reverse,
            })
        }
    }

    /// Marks the present state, to come back to.
    pub fn savepoint(&mut self) -> Savepoint {
        Savepoint(self.undo.len())
    }

    /// Takes back all changes made since `to`, and makes the savepoints taken since then void.
    pub fn rollback(&mut self, to: Savepoint) {
        while self.undo.len() > to.0 {
            let Some((key, before)) = self.undo.pop() else {
                return;
            };
            match before {
                Some(change) => self.changes.insert(key, change),
                None => self.changes.remove(&key),
            };
        }
    }

    /// Makes all savepoints void: the changes so far will not be taken back.
    pub(crate) fn seal(&mut self) {
        self.undo.clear();
    }

    /// Bytes of keys and values put in so far (those put over counted again).
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All changes, for the engine.
    #[must_use]
    pub fn into_batch(self) -> Batch {
        Batch {
            changes: self.changes.into_iter().collect(),
        }
    }
}

impl Read for Txn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Txn::get(self, key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        Txn::scan(self, range, reverse)
    }
}

/// Merges an engine's scan with the overlay's changes, both in the same order.
struct Merged<'a, C: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> {
    base: Peekable<Scan<'a>>,
    changes: Peekable<C>,
    reverse: bool,
}

impl<'a, C: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> Iterator for Merged<'a, C> {
    type Item = Result<Pair, KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.base.peek(), self.changes.peek()) {
                (_, None) | (Some(Err(_)), _) => return self.base.next(),
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(Ok((key, _))), Some((changed, _))) => {
                    let order = key.cmp(changed);
                    if self.reverse { order.reverse() } else { order }
                }
            };
            if order.is_lt() {
                return self.base.next();
            }
            if order.is_eq() {
                self.base.next();
            }
            if let (key, Some(value)) = self.changes.next()? {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    }
}
