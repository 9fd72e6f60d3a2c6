//! Snapshots for an engine that has none: the values that open snapshots still need after they were changed.
//!
//! The one writer records, before it changes a key, the value that snapshots see there. A snapshot reads the engine
//! first and then looks here: if the key was changed after the snapshot was taken, the recorded value counts,
//! whatever the engine showed. So it does not matter how reads and writes interleave.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{KeyRange, KvError};

/// The number of a batch.
type Version = u64;

/// Values before they were changed. Bounded: when they take too much room, all open snapshots expire.
pub(super) struct OldValues {
    inner: Mutex<Inner>,
    bytes_max: u64,
}

#[derive(Default)]
struct Inner {
    /// The last batch that was begun.
    version: Version,
    /// The versions that open snapshots see, and how many see each.
    open: BTreeMap<Version, usize>,
    /// For each key that was changed: by which batches (ascending), and what was there before.
    changes: BTreeMap<Bytes, Vec<(Version, Option<Bytes>)>>,
    bytes: u64,
    /// Snapshots that see this version or an older one have expired.
    expired: Option<Version>,
}

/// An open snapshot's hold on the values that it needs.
pub(super) struct Hold {
    values: Arc<OldValues>,
    version: Version,
}

impl OldValues {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            inner: Mutex::default(),
            bytes_max,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a snapshot. Not while a batch is being written.
    pub(super) fn hold(self: &Arc<Self>) -> Hold {
        let mut inner = self.inner();
        let version = inner.version;
        *inner.open.entry(version).or_default() += 1;
        Hold {
            values: self.clone(),
            version,
        }
    }

    /// Begins a batch that changes `keys`; `get` reads what the engine holds now.
    pub(super) fn begin<'a>(
        &self,
        keys: impl Iterator<Item = &'a Bytes>,
        get: impl Fn(&[u8]) -> Result<Option<Bytes>, KvError>,
    ) -> Result<(), KvError> {
        let mut inner = self.inner();
        inner.version += 1;
        let version = inner.version;
        let Some(newest) = inner.open.keys().next_back().copied() else {
            return Ok(());
        };
        for key in keys {
            // All open snapshots are older than a change recorded after the newest of them was taken.
            let last = inner
                .changes
                .get(key)
                .and_then(|changes| changes.last())
                .map(|change| change.0);
            if last.is_some_and(|last| last > newest) {
                continue;
            }
            let before = get(key)?;
            inner.bytes += cost(key, before.as_ref());
            inner
                .changes
                .entry(key.clone())
                .or_default()
                .push((version, before));
        }
        if inner.bytes > self.bytes_max {
            inner.expired = Some(newest);
            inner.changes.clear();
            inner.bytes = 0;
        }
        Ok(())
    }

    /// Bytes that the recorded values take.
    pub(super) fn bytes(&self) -> u64 {
        self.inner().bytes
    }
}

/// What a recorded value takes, with a guess for the containers.
fn cost(key: &Bytes, before: Option<&Bytes>) -> u64 {
    (key.len() + before.map_or(0, Bytes::len) + 96) as u64
}

impl Inner {
    fn seen_by(&self, version: Version, changes: &[(Version, Option<Bytes>)]) -> Option<Option<Bytes>> {
        changes
            .iter()
            .find(|(change, _)| *change > version)
            .map(|(_, before)| before.clone())
    }

    fn close(&mut self, version: Version) {
        let was_oldest = self.open.keys().next() == Some(&version);
        if let Some(count) = self.open.get_mut(&version) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&version);
            }
        }
        let Some(oldest) = self.open.keys().next().copied() else {
            self.changes.clear();
            self.bytes = 0;
            return;
        };
        if was_oldest && oldest > version {
            self.forget(oldest);
        }
    }

    /// Drops what snapshots from `oldest` on do not need.
    fn forget(&mut self, oldest: Version) {
        let mut freed = 0;
        self.changes.retain(|key, changes| {
            changes.retain(|(change, before)| {
                let needed = *change > oldest;
                if !needed {
                    freed += cost(key, before.as_ref());
                }
                needed
            });
            !changes.is_empty()
        });
        self.bytes -= freed;
    }
}

impl Hold {
    /// The value under `key` as the snapshot sees it, if it was changed since; `None` if the engine has it.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Option<Bytes>>, KvError> {
        let inner = self.live()?;
        Ok(inner
            .changes
            .get(key)
            .and_then(|changes| inner.seen_by(self.version, changes)))
    }

    /// The same for a range: all keys in it that were changed since, ascending.
    pub(super) fn range(&self, range: KeyRange) -> Result<Vec<(Bytes, Option<Bytes>)>, KvError> {
        let inner = self.live()?;
        let bounds: (Bound<Bytes>, Bound<Bytes>) = (range.0.map(Bytes::from), range.1.map(Bytes::from));
        let changed = inner.changes.range::<Bytes, _>(bounds);
        Ok(changed
            .filter_map(|(key, changes)| Some((key.clone(), inner.seen_by(self.version, changes)?)))
            .collect())
    }

    fn live(&self) -> Result<MutexGuard<'_, Inner>, KvError> {
        let inner = self.values.inner();
        if inner.expired.is_some_and(|expired| self.version <= expired) {
            return Err(KvError::SnapshotExpired);
        }
        Ok(inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.values.inner().close(self.version);
    }
}
