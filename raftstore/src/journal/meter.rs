//! Counts what reaches the medium.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::disk::DiskFile;

/// Counters of writes and syncs since the journal was opened.
pub(super) struct Meter {
    clock: Arc<dyn Clock>,
    written_bytes: AtomicU64,
    writes: AtomicU64,
    syncs: AtomicU64,
    /// Smoothed, nanoseconds; 0 before the first sync.
    sync_ns: AtomicU64,
    /// Since then appends wait for a call of the medium, nanoseconds of the monotonic clock and one more; 0 if none does.
    waits_since: AtomicU64,
}

/// Appends wait for the medium as long as this lives.
pub(super) struct Waiting<'a>(&'a Meter);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waits_since.store(0, Ordering::Relaxed);
    }
}

/// A snapshot of a [`Meter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Metered {
    pub(super) written_bytes: u64,
    pub(super) writes: u64,
    pub(super) syncs: u64,
    pub(super) sync_latency: Duration,
}

impl Meter {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            written_bytes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            sync_ns: AtomicU64::new(0),
            waits_since: AtomicU64::new(0),
        }
    }

    /// From now on appends wait for the medium.
    pub(super) fn waiting(&self) -> Waiting<'_> {
        let now = u64::try_from(self.clock.monotonic().as_nanos()).unwrap_or(u64::MAX);
        self.waits_since.store(now.saturating_add(1), Ordering::Relaxed);
        Waiting(self)
    }

    /// For how long they have waited.
    pub(super) fn waited(&self) -> Duration {
        match self.waits_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => (self.clock.monotonic()).saturating_sub(Duration::from_nanos(since - 1)),
        }
    }

    /// Writes and counts.
    pub(super) fn write(&self, file: &dyn DiskFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        file.write_all_at(bytes, offset)?;
        self.written_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Runs a sync and counts it.
    pub(super) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        sync()
    }

    /// Runs a sync that appends wait for: counts and times it.
    pub(super) fn timed_sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let start = self.clock.monotonic();
        let result = self.sync(sync);
        let took = self.clock.monotonic().saturating_sub(start).as_nanos();
        let took = u64::try_from(took).unwrap_or(u64::MAX).max(1);
        let old = self.sync_ns.load(Ordering::Relaxed);
        // An eighth of the new value: about the last ten syncs count.
        let new = if old == 0 { took } else { old - old / 8 + took / 8 };
        self.sync_ns.store(new, Ordering::Relaxed);
        result
    }

    pub(super) fn read(&self) -> Metered {
        Metered {
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            syncs: self.syncs.load(Ordering::Relaxed),
            sync_latency: Duration::from_nanos(self.sync_ns.load(Ordering::Relaxed)),
        }
    }
}
