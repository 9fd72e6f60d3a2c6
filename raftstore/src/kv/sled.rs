//! sled 0.34: the second engine, a log-structured B-tree. Its snapshots are made here, see [`super::old_values`].

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use sled::{Db, IVec, Mode};

use super::contain::contain;
use super::old_values::{Hold, OldValues};
use super::scan::rest_after;
use super::{Batch, Engine, EngineOptions, KeyRange, KvError, Pair, Read, Scan, is_empty_range, written};

/// Pairs that a scan fetches at once, at most.
const PAGE_PAIRS_MAX: usize = 128;
/// How long an opener waits for sled's lock.
const LOCK_POLL: Duration = Duration::from_millis(20);
const LOCK_POLLS_MAX: u32 = 250;

/// A sled database.
pub(super) struct SledEngine {
    db: Db,
    old: Arc<OldValues>,
    /// Held while a batch is written and while a snapshot is taken, so that no snapshot begins inside a batch.
    writing: Mutex<()>,
    cache_bytes_max: u64,
}

impl SledEngine {
    /// Opens or creates a database in `dir`.
    pub(super) fn open(dir: &Path, options: &EngineOptions) -> Result<Self, KvError> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(options.cache_bytes_max)
            .mode(Mode::LowSpace)
            // Idle means idle: only a flush of ours writes.
            .flush_every_ms(None);
        let db = contain(|| open_when_unlocked(&config))
            .map_err(KvError::Damaged)?
            .map_err(to_kv)?;
        Ok(Self {
            db,
            old: Arc::new(OldValues::new(options.old_values_bytes_max)),
            writing: Mutex::new(()),
            cache_bytes_max: options.cache_bytes_max,
        })
    }

    fn view(&self) -> SledSnapshot {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        SledSnapshot {
            db: self.db.clone(),
            hold: self.old.hold(),
        }
    }
}

impl Read for SledEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        get(&self.db, key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        Arc::new(self.view()).scan_owned(range, reverse)
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        Arc::new(self.view()).scan_owned(range, reverse)
    }
}

impl Engine for SledEngine {
    fn write(&self, batch: Batch) -> Result<(), KvError> {
        written::count(&batch);
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.old
            .begin(batch.changes.iter().map(|(key, _)| key), |key| get(&self.db, key))?;
        let mut writes = sled::Batch::default();
        for (key, value) in batch.changes {
            match value {
                Some(value) => writes.insert(IVec::from(&*key), IVec::from(&*value)),
                None => writes.remove(IVec::from(&*key)),
            }
        }
        self.db.apply_batch(writes).map_err(to_kv)
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>, KvError> {
        Ok(Arc::new(self.view()))
    }

    fn flush(&self) -> Result<(), KvError> {
        self.db.flush().map(drop).map_err(to_kv)
    }

    fn memory_bytes(&self) -> u64 {
        self.cache_bytes_max + self.old.bytes()
    }
}

struct SledSnapshot {
    db: Db,
    hold: Hold,
}

impl Read for SledSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        // In this order: see the module's note.
        let newest = get(&self.db, key)?;
        Ok(self.hold.get(key)?.unwrap_or(newest))
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        Box::new(Pages {
            snapshot: self,
            rest: Some(range),
            reverse,
            page: Vec::new(),
        })
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        Box::new(Pages {
            snapshot: self,
            rest: Some(range),
            reverse,
            page: Vec::new(),
        })
    }
}

impl SledSnapshot {
    /// The first pairs of `range` in scan order, and what is left of it after them.
    fn page(&self, range: KeyRange, reverse: bool) -> Result<(Vec<Pair>, Option<KeyRange>), KvError> {
        let newest = self.newest(&range, reverse)?;
        let mut covered = range.clone();
        let mut rest = None;
        if newest.len() == PAGE_PAIRS_MAX
            && let Some((last, _)) = newest.last()
        {
            rest = Some(rest_after(range, last, reverse));
            let end = Bound::Included(last.to_vec());
            if reverse { covered.0 = end } else { covered.1 = end }
        }
        let mut pairs: BTreeMap<Bytes, Bytes> = newest.into_iter().collect();
        for (key, before) in self.hold.range(covered)? {
            match before {
                Some(value) => pairs.insert(key, value),
                None => pairs.remove(&key),
            };
        }
        let mut page: Vec<Pair> = pairs.into_iter().collect();
        if reverse {
            page.reverse();
        }
        Ok((page, rest))
    }

    /// The first pairs of `range` that the engine holds now.
    fn newest(&self, range: &KeyRange, reverse: bool) -> Result<Vec<Pair>, KvError> {
        let iter = self.db.range::<Vec<u8>, _>(range.clone());
        let pair = |pair: sled::Result<(IVec, IVec)>| {
            pair.map(|(key, value)| (to_bytes(&key), to_bytes(&value)))
                .map_err(to_kv)
        };
        if reverse {
            iter.rev().take(PAGE_PAIRS_MAX).map(pair).collect()
        } else {
            iter.take(PAGE_PAIRS_MAX).map(pair).collect()
        }
    }
}

/// A scan of a snapshot.
struct Pages<S> {
    snapshot: S,
    rest: Option<KeyRange>,
    reverse: bool,
    /// Last pair first.
    page: Vec<Pair>,
}

impl<S: std::ops::Deref<Target = SledSnapshot>> Iterator for Pages<S> {
    type Item = Result<Pair, KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.page.is_empty() {
            let range = self.rest.take()?;
            if is_empty_range(&range) {
                return None;
            }
            match self.snapshot.page(range, self.reverse) {
                Ok((page, rest)) => {
                    self.page = page;
                    self.page.reverse();
                    self.rest = rest;
                }
                Err(error) => return Some(Err(error)),
            }
        }
        self.page.pop().map(Ok)
    }
}

/// sled's own threads hold its lock for a moment after the last handle is gone.
fn open_when_unlocked(config: &sled::Config) -> sled::Result<Db> {
    for _ in 0..LOCK_POLLS_MAX {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                thread::sleep(LOCK_POLL);
            }
            other => return other,
        }
    }
    config.open()
}

fn get(db: &Db, key: &[u8]) -> Result<Option<Bytes>, KvError> {
    Ok(db.get(key).map_err(to_kv)?.as_ref().map(to_bytes))
}

fn to_bytes(bytes: &IVec) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn to_kv(error: sled::Error) -> KvError {
    match error {
        sled::Error::Io(error) => super::io_error(&error),
        // This includes what it takes for another version: garbage, mostly, as there will be no later version.
        other => KvError::Damaged(other.to_string()),
    }
}
