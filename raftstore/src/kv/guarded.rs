//! What every engine is wrapped in: no panic gets out, and nothing is done with an engine that has failed.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::contain::contain;
use super::{Batch, Engine, KeyRange, KvError, Pair, Read, Scan};

/// Told of the first failure of an engine.
pub type OnFailure = Box<dyn Fn(&KvError) + Send + Sync>;

/// An engine that fails once and for all: after the first failed call every call fails with the same error.
pub(super) struct Guarded {
    engine: Arc<dyn Engine>,
    poison: Arc<Poison>,
}

/// The first failure, and whom to tell.
struct Poison {
    first: OnceLock<KvError>,
    on_failure: OnFailure,
}

impl Poison {
    fn check(&self) -> Result<(), KvError> {
        self.first.get().cloned().map_or(Ok(()), Err)
    }

    /// Runs a call that is refused after a failure, and remembers its own. A snapshot that has grown too old is no
    /// failure of the engine.
    fn run<T>(&self, call: impl FnOnce() -> Result<T, KvError>) -> Result<T, KvError> {
        self.check()?;
        let outcome = contain(call).unwrap_or_else(|panic| Err(KvError::Damaged(panic)));
        if let Err(error) = &outcome
            && !matches!(error, KvError::SnapshotExpired)
            && self.first.set(error.clone()).is_ok()
        {
            (self.on_failure)(error);
        }
        outcome
    }
}

impl Guarded {
    pub(super) fn new(engine: Arc<dyn Engine>, on_failure: OnFailure) -> Self {
        Self {
            engine,
            poison: Arc::new(Poison {
                first: OnceLock::new(),
                on_failure,
            }),
        }
    }
}

impl Read for Guarded {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.poison.run(|| self.engine.get(key))
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        guarded_scan(&self.poison, || self.engine.scan(range, reverse))
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        guarded_scan(&self.poison, || self.engine.clone().scan_owned(range, reverse))
    }
}

impl Engine for Guarded {
    fn write(&self, batch: Batch) -> Result<(), KvError> {
        self.poison.run(|| self.engine.write(batch))
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>, KvError> {
        let read = self.poison.run(|| self.engine.snapshot())?;
        Ok(Arc::new(GuardedSnapshot {
            read,
            poison: self.poison.clone(),
        }))
    }

    fn flush(&self) -> Result<(), KvError> {
        self.poison.run(|| self.engine.flush())
    }

    fn memory_bytes(&self) -> u64 {
        contain(|| self.engine.memory_bytes()).unwrap_or(0)
    }
}

struct GuardedSnapshot {
    read: Arc<dyn Read>,
    poison: Arc<Poison>,
}

impl Read for GuardedSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.poison.run(|| self.read.get(key))
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        guarded_scan(&self.poison, || self.read.scan(range, reverse))
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        guarded_scan(&self.poison, || self.read.clone().scan_owned(range, reverse))
    }
}

fn guarded_scan<'a>(poison: &Arc<Poison>, start: impl FnOnce() -> Scan<'a>) -> Scan<'a> {
    match poison.run(|| Ok(start())) {
        Ok(scan) => Box::new(GuardedScan {
            scan: Some(scan),
            poison: poison.clone(),
        }),
        Err(error) => Box::new(std::iter::once(Err(error))),
    }
}

/// Ends after the first error.
struct GuardedScan<'a> {
    scan: Option<Scan<'a>>,
    poison: Arc<Poison>,
}

impl Iterator for GuardedScan<'_> {
    type Item = Result<Pair, KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        let scan = self.scan.as_mut()?;
        let next = self.poison.run(|| scan.next().transpose()).transpose();
        if !matches!(next, Some(Ok(_))) {
            self.scan = None;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::kv::{MemoryEngine, prefix_range};

    /// Fails or panics on demand.
    struct Faulty {
        inner: MemoryEngine,
        fail: AtomicBool,
        panic: AtomicBool,
    }

    impl Faulty {
        fn strike(&self) -> Result<(), KvError> {
            assert!(!self.panic.load(Ordering::Relaxed), "a library's assertion");
            if self.fail.load(Ordering::Relaxed) {
                Err(KvError::Io("no space".into()))
            } else {
                Ok(())
            }
        }
    }

    impl Read for Faulty {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
            self.strike()?;
            self.inner.get(key)
        }
        fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
            Box::new(
                self.inner
                    .scan(range, reverse)
                    .map(|pair| self.strike().and(pair)),
            )
        }
    }

    impl Engine for Faulty {
        fn write(&self, batch: Batch) -> Result<(), KvError> {
            self.strike()?;
            self.inner.write(batch)
        }
        fn snapshot(&self) -> Result<Arc<dyn Read>, KvError> {
            self.inner.snapshot()
        }
        fn flush(&self) -> Result<(), KvError> {
            self.strike()
        }
        fn memory_bytes(&self) -> u64 {
            0
        }
    }

    fn faulty() -> (Arc<Faulty>, Guarded, Arc<Mutex<Vec<String>>>) {
        let faulty = Arc::new(Faulty {
            inner: MemoryEngine::new(),
            fail: AtomicBool::new(false),
            panic: AtomicBool::new(false),
        });
        let told = Arc::new(Mutex::new(Vec::new()));
        let on_failure = {
            let told = told.clone();
            Box::new(move |error: &KvError| told.lock().unwrap().push(error.to_string()))
        };
        let guarded = Guarded::new(faulty.clone(), on_failure);
        let key = Bytes::from_static(b"k");
        guarded
            .write(Batch {
                changes: vec![(key.clone(), Some(key))],
            })
            .unwrap();
        (faulty, guarded, told)
    }

    #[test]
    fn a_failed_flush_poisons_for_good_and_is_told_once() {
        let (faulty, guarded, told) = faulty();
        let snapshot = guarded.snapshot().unwrap();
        faulty.fail.store(true, Ordering::Relaxed);
        assert!(matches!(guarded.flush(), Err(KvError::Io(_))));
        faulty.fail.store(false, Ordering::Relaxed);
        assert!(guarded.flush().is_err());
        assert!(guarded.write(Batch::default()).is_err());
        assert!(guarded.get(b"k").is_err());
        assert!(guarded.snapshot().is_err());
        assert!(snapshot.get(b"k").is_err());
        assert_eq!(guarded.scan(prefix_range(b""), false).count(), 1);
        assert!(guarded.scan(prefix_range(b""), false).all(|pair| pair.is_err()));
        assert_eq!(told.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_panic_is_damage() {
        let (faulty, guarded, told) = faulty();
        let mut scan = guarded.scan(prefix_range(b""), false);
        faulty.panic.store(true, Ordering::Relaxed);
        assert!(matches!(scan.next(), Some(Err(KvError::Damaged(text))) if text.contains("assertion")));
        assert!(scan.next().is_none());
        assert!(matches!(guarded.get(b"k"), Err(KvError::Damaged(_))));
        assert_eq!(told.lock().unwrap().len(), 1);
    }
}
