//! The tree of fjall 3 (crate `lsm-tree`): the default engine, a log-structured merge tree.
//!
//! It is used without fjall itself, which keeps a journal of its own. That would write each change a second time, and be synced at each
//! flush while nothing can be changed, for nothing: what was flushed is in sorted files, and the rest is replayed from
//! Raft's log. A flush begins between two batches, so a power cut never leaves half a batch.

mod instants;
mod workers;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lsm_tree::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PartitioningPolicy,
    PinningPolicy, RestartIntervalPolicy,
};
use lsm_tree::{
    AbstractTree, AnyTree, Cache, CompressionType, Config, DescriptorTable, Guard, SequenceNumberCounter,
};

use self::instants::{Instant, Instants};
use self::workers::Workers;
use super::contain::contain;
use super::{Batch, Engine, EngineOptions, KeyRange, KvError, Read, Scan, is_empty_range};

/// Sorted files that are kept open.
const OPEN_FILES_MAX: usize = 64;

/// Buffers' worth of changes that may have to be done again after a crash.
const REPLAYED_BUFFERS_MAX: u64 = 4;

/// A tree, with the threads that flush and merge it.
pub(super) struct FjallEngine {
    tree: AnyTree,
    instants: Arc<Instants>,
    workers: Workers,
    cache: Arc<Cache>,
    write_buffer_bytes_max: u64,
    /// Held while a batch is written, and while the buffer is changed for a fresh one.
    buffer: Mutex<Buffer>,
}

/// What is known of the buffer in memory.
#[derive(Default)]
struct Buffer {
    /// Changes since it was fresh, also those that others have taken the place of.
    changes: usize,
}

impl FjallEngine {
    /// Opens or creates a tree in `dir`.
    pub(super) fn open(dir: &Path, options: &EngineOptions) -> Result<Self, KvError> {
        let numbers = SequenceNumberCounter::default();
        let cache = Arc::new(Cache::with_capacity_bytes(options.cache_bytes_max));
        let open = || config(dir, &numbers, &cache).open();
        let tree = contain(open).map_err(KvError::Damaged)?.map_err(to_kv)?;
        let next = tree.get_highest_seqno().map_or(0, |highest| highest + 1);
        let instants = Arc::new(Instants::new(numbers, next));
        Ok(Self {
            workers: Workers::start(tree.clone(), Arc::clone(&instants))?,
            tree,
            instants,
            cache,
            write_buffer_bytes_max: options.write_buffer_bytes_max,
            buffer: Mutex::default(),
        })
    }

    /// The state after the last whole batch.
    fn view(&self) -> FjallSnapshot {
        FjallSnapshot {
            instant: self.instants.newest(),
            tree: self.tree.clone(),
        }
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with a fresh buffer; the one so far is to be flushed.
    fn rotate(&self, buffer: &mut Buffer) {
        self.tree.rotate_memtable();
        self.instants.go_on();
        *buffer = Buffer::default();
    }

    /// Whether the buffer takes too much memory, or a start after a crash too many changes to do again.
    fn is_full(&self, buffer: &Buffer) -> bool {
        let memtable = self.tree.active_memtable();
        let changed_bytes = memtable.size();
        let left = memtable.len() as u64;
        // The tree counts each change, also those that others have taken the place of.
        let held_bytes = changed_bytes / (buffer.changes as u64).max(1) * left;
        held_bytes > self.write_buffer_bytes_max
            || changed_bytes > REPLAYED_BUFFERS_MAX * self.write_buffer_bytes_max
    }
}

/// A tree like those that fjall makes, but with compression on all levels, and with filters and indexes in parts from the second on: a whole
/// filter is read for each look at a file, and is larger than the cache likes.
fn config(dir: &Path, numbers: &SequenceNumberCounter, cache: &Arc<Cache>) -> Config {
    let seldom_wrong = FilterPolicyEntry::Bloom(BloomConstructionPolicy::FalsePositiveRate(0.0001));
    let small = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
    let in_parts = PartitioningPolicy::new([false, true]);
    Config::new(dir, numbers.clone(), SequenceNumberCounter::default())
        .use_cache(Arc::clone(cache))
        .use_descriptor_table(Some(Arc::new(DescriptorTable::new(OPEN_FILES_MAX))))
        .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        .data_block_restart_interval_policy(RestartIntervalPolicy::new([10, 16]))
        .filter_policy(FilterPolicy::new([seldom_wrong, small]))
        .filter_block_pinning_policy(PinningPolicy::new([true, false]))
        .index_block_pinning_policy(PinningPolicy::new([true, true, false]))
        .filter_block_partitioning_policy(in_parts.clone())
        .index_block_partitioning_policy(in_parts)
}

impl Read for FjallEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.view().get(key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        Arc::new(self.view()).scan_owned(range, reverse)
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        Arc::new(self.view()).scan_owned(range, reverse)
    }
}

impl Engine for FjallEngine {
    fn write(&self, batch: Batch) -> Result<(), KvError> {
        self.workers.wait_for_room()?;
        let mut buffer = self.buffer();
        buffer.changes += batch.changes.len();
        {
            let writing = self.instants.begin();
            // Of two changes to one key the later takes the place of the other.
            for (key, value) in batch.changes {
                match value {
                    Some(value) => self.tree.insert(key, value, writing.number),
                    None => self.tree.remove(key, writing.number),
                };
            }
        }
        if self.is_full(&buffer) {
            self.rotate(&mut buffer);
            self.workers.ask();
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>, KvError> {
        Ok(Arc::new(self.view()))
    }

    fn flush(&self) -> Result<(), KvError> {
        self.rotate(&mut self.buffer());
        self.workers.flush()
    }

    fn memory_bytes(&self) -> u64 {
        let sealed = self.tree.sealed_memtable_count() as u64;
        self.cache.size() + self.tree.active_memtable().size() + sealed * self.write_buffer_bytes_max
    }
}

struct FjallSnapshot {
    instant: Instant,
    tree: AnyTree,
}

impl Read for FjallSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let value = self.tree.get(key, self.instant.at).map_err(to_kv)?;
        Ok(value.map(Bytes::from))
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        pairs(&self.tree, &self.instant, range, reverse)
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        let pairs = pairs(&self.tree, &self.instant, range, reverse);
        // The state is kept for as long as it is read.
        Box::new(pairs.inspect(move |_| _ = &self))
    }
}

fn pairs(tree: &AnyTree, instant: &Instant, range: KeyRange, reverse: bool) -> Scan<'static> {
    if is_empty_range(&range) {
        return Box::new(std::iter::empty());
    }
    let pairs = tree.range(range, instant.at, None);
    let pair = |guard: lsm_tree::IterGuardImpl| {
        let (key, value) = guard.into_inner().map_err(to_kv)?;
        Ok((key.into(), value.into()))
    };
    if reverse {
        Box::new(pairs.rev().map(pair))
    } else {
        Box::new(pairs.map(pair))
    }
}

fn to_kv(error: lsm_tree::Error) -> KvError {
    match error {
        lsm_tree::Error::Io(error) => super::io_error(&error),
        lsm_tree::Error::InvalidVersion(version) => KvError::Unsupported(format!(
            "its files are of version {version} of fjall, or of its tree"
        )),
        other => KvError::Damaged(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(engine: &FjallEngine, key: &'static str, value: u32) {
        let change = (Bytes::from(key), Some(Bytes::from(value.to_string())));
        engine
            .write(Batch {
                changes: vec![change],
            })
            .unwrap();
    }

    #[test]
    fn what_nobody_reads_between_two_changes_is_not_kept() {
        let dir = crate::kv::test_dir();
        let engine = FjallEngine::open(dir.path(), &EngineOptions::default()).unwrap();
        for value in 0..1000 {
            put(&engine, "lock", value);
        }
        assert_eq!(engine.tree.active_memtable().len(), 1);
        let snapshot = engine.snapshot().unwrap();
        for value in 1000..2000 {
            put(&engine, "lock", value);
        }
        assert_eq!(snapshot.get(b"lock").unwrap().as_deref(), Some(&b"999"[..]));
        assert_eq!(engine.get(b"lock").unwrap().as_deref(), Some(&b"1999"[..]));
        drop(snapshot);
        let kept = engine.tree.active_memtable().len();
        put(&engine, "lock", 2000);
        put(&engine, "lock", 2001);
        assert_eq!(engine.tree.active_memtable().len(), kept);
        // The same key in a file and in the buffer, under numbers of their own.
        engine.flush().unwrap();
        put(&engine, "lock", 2002);
        assert_eq!(engine.get(b"lock").unwrap().as_deref(), Some(&b"2002"[..]));
        engine.flush().unwrap();
        assert_eq!(engine.get(b"lock").unwrap().as_deref(), Some(&b"2002"[..]));
    }

    #[test]
    fn a_buffer_is_full_by_what_it_holds_or_by_what_would_be_done_again() {
        let dir = crate::kv::test_dir();
        let options = EngineOptions {
            write_buffer_bytes_max: 64 << 10,
            ..EngineOptions::default()
        };
        let engine = FjallEngine::open(dir.path(), &options).unwrap();
        let mut changes = 0;
        while engine.tree.table_count() == 0 {
            put(&engine, "lock", changes);
            changes += 1;
            std::thread::yield_now();
        }
        // Each change counts some 50 bytes and more.
        assert!(changes > 64 << 10 >> 7, "{changes}");
    }
}
