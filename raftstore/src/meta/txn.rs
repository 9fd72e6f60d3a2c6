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
        let base = self.base.scan(range.clone(), reverse);
        let changes = changes.map(|(key, change)| (key.clone(), change.clone()));
        if reverse {
            Box::new(Merged::new(base, changes.rev(), reverse))
        } else {
            Box::new(Merged::new(base, changes, reverse))
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

/// A key, and the value that was put under it or that it was deleted.
pub(super) type KeyChange = (Bytes, Option<Bytes>);

/// Merges a scan of what is below with changes on top of it, both in the same order.
pub(super) struct Merged<'a, C: Iterator<Item = KeyChange>> {
    base: Peekable<Scan<'a>>,
    changes: Peekable<C>,
    reverse: bool,
}

impl<'a, C: Iterator<Item = KeyChange>> Merged<'a, C> {
    pub(super) fn new(base: Scan<'a>, changes: C, reverse: bool) -> Self {
        Self {
            base: base.peekable(),
            changes: changes.peekable(),
            reverse,
        }
    }
}

impl<C: Iterator<Item = KeyChange>> Iterator for Merged<'_, C> {
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
                return Some(Ok((key, value)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::kv::{Engine, MemoryEngine};

    /// Random changes, savepoints and rollbacks; each read must be what an engine with the changes written shows.
    #[test]
    fn reads_see_the_engine_with_the_changes_on_top() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let engine = MemoryEngine::new();
            engine
                .write(Batch {
                    changes: random_changes(&mut rng, 30),
                })
                .unwrap();
            let mut txn = Txn::new(&engine);
            let mut model = engine_with(&engine, &[]);
            let mut saved = Vec::new();
            for step in 0..40 {
                match rng.random_range(0..10) {
                    0 => saved.push((txn.savepoint(), model.clone())),
                    1 if !saved.is_empty() => {
                        saved.truncate(rng.random_range(1..=saved.len()));
                        let (savepoint, before) = saved.pop().unwrap();
                        txn.rollback(savepoint);
                        model = before;
                    }
                    2 => {
                        txn.seal();
                        saved.clear();
                    }
                    _ => {
                        for (key, value) in random_changes(&mut rng, 3) {
                            match value.clone() {
                                Some(value) => txn.put(key.clone(), value),
                                None => txn.delete(key.clone()),
                            }
                            model.retain(|(found, _)| *found != key);
                            model.extend(value.map(|value| (key, value)));
                            model.sort();
                        }
                    }
                }
                check(&txn, &model, &mut rng, &format!("seed {seed}, step {step}"));
            }
            let changes = txn.into_batch().changes;
            assert_eq!(engine_with(&engine, &changes), model, "seed {seed}");
        }
    }

    fn check(txn: &Txn<'_>, model: &[Pair], rng: &mut StdRng, what: &str) {
        let key = random_key(rng);
        let expected = model
            .iter()
            .find(|(found, _)| *found == key)
            .map(|(_, value)| value.clone());
        assert_eq!(txn.get(&key).unwrap(), expected, "{what}");
        let mut bound = || match rng.random_range(0..3) {
            0 => Bound::Unbounded,
            1 => Bound::Included(random_key(rng).to_vec()),
            _ => Bound::Excluded(random_key(rng).to_vec()),
        };
        let range = (bound(), bound());
        let inside = |key: &Bytes| std::ops::RangeBounds::contains(&range, &key.to_vec());
        let mut expected: Vec<Pair> = model.iter().filter(|(key, _)| inside(key)).cloned().collect();
        for reverse in [false, true] {
            let found: Vec<Pair> = txn.scan(range.clone(), reverse).map(Result::unwrap).collect();
            assert_eq!(found, expected, "{what}, {range:?}, {reverse}");
            expected.reverse();
        }
    }

    fn engine_with(engine: &MemoryEngine, changes: &[(Bytes, Option<Bytes>)]) -> Vec<Pair> {
        engine
            .write(Batch {
                changes: changes.to_vec(),
            })
            .unwrap();
        engine
            .scan((Bound::Unbounded, Bound::Unbounded), false)
            .map(Result::unwrap)
            .collect()
    }

    fn random_key(rng: &mut StdRng) -> Bytes {
        Bytes::from(vec![b'a' + rng.random_range(0..5), b'a' + rng.random_range(0..5)])
    }

    fn random_changes(rng: &mut StdRng, count: usize) -> Vec<(Bytes, Option<Bytes>)> {
        let value = |rng: &mut StdRng| {
            rng.random_ratio(2, 3)
                .then(|| Bytes::from(vec![rng.random::<u8>()]))
        };
        (0..count).map(|_| (random_key(rng), value(rng))).collect()
    }

    /// A scan of a long range reads only as far as it is taken.
    #[test]
    fn a_scan_is_lazy() {
        struct Counting(std::sync::atomic::AtomicUsize);
        impl Read for Counting {
            fn get(&self, _: &[u8]) -> Result<Option<Bytes>, KvError> {
                Ok(None)
            }
            fn scan(&self, _: KeyRange, _: bool) -> Scan<'_> {
                Box::new((0..100_000u32).map(|n| {
                    self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    Ok((Bytes::copy_from_slice(&n.to_be_bytes()), Bytes::new()))
                }))
            }
        }
        let base = Counting(0.into());
        let mut txn = Txn::new(&base);
        txn.delete(Bytes::copy_from_slice(&1u32.to_be_bytes()));
        let found: Vec<Pair> = txn
            .scan((Bound::Unbounded, Bound::Unbounded), false)
            .take(3)
            .map(Result::unwrap)
            .collect();
        assert_eq!(
            found.last().unwrap().0,
            Bytes::copy_from_slice(&3u32.to_be_bytes())
        );
        drop(txn);
        assert!(base.0.into_inner() < 10);
    }
}
