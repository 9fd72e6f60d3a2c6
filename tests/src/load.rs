//! Work that notes what it was promised, to be checked after a fault.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Length of a record, bytes.
const RECORD_BYTES: usize = 64;

/// Fills files of a directory with numbered records, syncing each, and makes numbered names in order; goes on
/// through errors, as an application does that reopens its files. Remembers what was acknowledged.
pub struct Worker {
    rel: PathBuf,
    promised: Arc<Promised>,
    thread: Option<JoinHandle<()>>,
}

/// What a worker was told is safe.
#[derive(Debug, Default)]
struct Promised {
    /// Records 0 to this, exclusive, are synced.
    records: AtomicU64,
    /// Names 0 to this, exclusive, are made and synced.
    names: AtomicU64,
    /// Names that were tried at all.
    names_tried: AtomicU64,
    /// Errors met on the way.
    errors: AtomicU64,
    /// Longest time between two acknowledged records, milliseconds.
    gap_ms: AtomicU64,
    stop: AtomicBool,
}

impl Worker {
    /// Starts to work in the new directory `rel` of the tree mounted at `mount`.
    ///
    /// # Panics
    /// If the directory cannot be made.
    #[must_use]
    pub fn start(mount: &Path, rel: &str) -> Self {
        let dir = mount.join(rel);
        fs::create_dir_all(dir.join("names")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let promised = Arc::new(Promised::default());
        let shared = promised.clone();
        let thread = std::thread::spawn(move || work(&dir, &shared));
        Self {
            rel: rel.into(),
            promised,
            thread: Some(thread),
        }
    }

    /// Number of records that were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.promised.records.load(Ordering::Acquire)
    }

    /// Number of errors so far.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.promised.errors.load(Ordering::Acquire)
    }

    /// The longest that the worker waited for a record since this was called last; includes a wait that lasts.
    #[must_use]
    pub fn take_longest_gap(&self) -> Duration {
        Duration::from_millis(self.promised.gap_ms.swap(0, Ordering::AcqRel))
    }

    /// Waits until `more` records more are acknowledged.
    ///
    /// # Panics
    /// If that takes more than `limit`.
    pub fn wait_progress(&self, more: u64, limit: Duration) {
        let goal = self.acknowledged() + more;
        crate::wait_for(
            &format!("{more} more records in {}", self.rel.display()),
            limit,
            || (self.acknowledged() >= goal).then_some(()),
        );
    }

    /// Ends the work; what was in flight then may or may not have happened.
    pub fn stop(&mut self) {
        self.promised.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Checks from another mount, or after a restart, that everything acknowledged is there, and that the names are
    /// a prefix of those that were tried, in their order.
    ///
    /// # Panics
    /// If something is missing or out of order.
    pub fn check(&self, mount: &Path) {
        let dir = mount.join(&self.rel);
        let records = self.acknowledged();
        let bytes = fs::read(dir.join("records")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let expected: Vec<u8> = (0..records).flat_map(record).collect();
        let same = bytes
            .iter()
            .zip(&expected)
            .take_while(|(found, expected)| found == expected)
            .count();
        assert!(
            same == expected.len(),
            "{}: record {} of {records} was synced, but is not there; the file has {} bytes",
            dir.display(),
            same / RECORD_BYTES,
            bytes.len()
        );
        let mut names: Vec<u64> = fs::read_dir(dir.join("names"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        names.sort_unstable();
        let made = names.len() as u64;
        assert!(
            names.iter().copied().eq(0..made),
            "{}: names are no prefix: {names:?}",
            dir.display()
        );
        let promised = self.promised.names.load(Ordering::Acquire);
        assert!(
            made >= promised,
            "{}: {made} names are left of {promised} synced ones",
            dir.display()
        );
        assert!(made <= self.promised.names_tried.load(Ordering::Acquire));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.promised.stop.store(true, Ordering::Release);
    }
}

fn record(number: u64) -> [u8; RECORD_BYTES] {
    let mut record = [b'.'; RECORD_BYTES];
    let text = format!("{number:020} {:020}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    record[..text.len()].copy_from_slice(text.as_bytes());
    record[RECORD_BYTES - 1] = b'\n';
    record
}

fn work(dir: &Path, promised: &Promised) {
    let mut last = Instant::now();
    while !promised.stop.load(Ordering::Acquire) {
        if work_until_error(dir, promised, &mut last).is_err() {
            promised.errors.fetch_add(1, Ordering::AcqRel);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn work_until_error(dir: &Path, promised: &Promised, last: &mut Instant) -> io::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("records"))?;
    let names = dir.join("names");
    while !promised.stop.load(Ordering::Acquire) {
        let number = promised.records.load(Ordering::Acquire);
        file.write_all_at(&record(number), number * RECORD_BYTES as u64)?;
        file.sync_data()?;
        promised.records.store(number + 1, Ordering::Release);
        let gap = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
        *last = Instant::now();
        promised.gap_ms.fetch_max(gap, Ordering::AcqRel);
        if number.is_multiple_of(4) {
            make_name(&names, promised)?;
        }
    }
    Ok(())
}

fn make_name(names: &Path, promised: &Promised) -> io::Result<()> {
    let number = promised.names.load(Ordering::Acquire);
    promised.names_tried.fetch_max(number + 1, Ordering::AcqRel);
    // After an error the name may have been made already.
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o644)
        .open(names.join(number.to_string()))?;
    file.sync_all()?;
    promised.names.store(number + 1, Ordering::Release);
    Ok(())
}
