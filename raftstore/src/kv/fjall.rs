//! fjall 3: the default engine, a log-structured merge tree.
//!
//! fjall keeps a journal of its own, which is written but not synced with each batch. Here that journal only spares
//! replay after a crash of the process; nothing depends on it. [`Engine::flush`] puts everything into a sorted file,
//! so a journal that a power cut has torn is thrown away at open: what was flushed is in the sorted files, and the
//! rest is replayed from Raft's log.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::config::CompressionPolicy;
use fjall::{AbstractTree, CompressionType, Database, Iter, Keyspace, KeyspaceCreateOptions};
use fjall::{PersistMode, Readable, Snapshot};

use super::contain::contain;
use super::{Batch, Engine, EngineOptions, KeyRange, KvError, Read, Scan, is_empty_range};
use crate::disk::{Disk, Open};

/// The one keyspace everything is in.
const KEYSPACE: &str = "meta";
/// Size of a sorted file. Small ones keep a merge, and the room it takes, small.
const TABLE_BYTES: u64 = 8 << 20;
/// How often a flush looks whether the sorted file is written.
const FLUSH_POLL: Duration = Duration::from_millis(2);

/// A fjall database.
pub(super) struct FjallEngine {
    db: Database,
    keyspace: Keyspace,
    write_buffer_bytes_max: u64,
    /// Held for writing while a batch is committed, for reading while a snapshot is taken: fjall's background
    /// flushes move its idea of the newest visible change on, also into the middle of a batch.
    committing: RwLock<()>,
}

impl FjallEngine {
    /// Opens or creates a database in `dir`.
    pub(super) fn open(disk: &dyn Disk, dir: &Path, options: &EngineOptions) -> Result<Self, KvError> {
        match open_once(dir, options) {
            Err(KvError::Damaged(first)) => {
                tracing::warn!(error = %first, "the engine's own journal is torn: opening without it");
                discard_journals(disk, dir).map_err(|error| KvError::Io(error.to_string()))?;
                open_once(dir, options)
            }
            other => other,
        }
    }

    fn poisoned(&self) -> Result<(), KvError> {
        // Without a sync this only hands buffered bytes to the kernel, but it fails once a worker has failed.
        self.db.persist(PersistMode::Buffer).map_err(to_kv)
    }
}

fn open_once(dir: &Path, options: &EngineOptions) -> Result<FjallEngine, KvError> {
    let open = || {
        let db = Database::builder(dir)
            .cache_size(options.cache_bytes_max)
            // One flushes while the other merges.
            .worker_threads(2)
            .max_cached_files(Some(64))
            .max_journaling_size(64 << 20)
            .open()?;
        let keyspace = db.keyspace(KEYSPACE, || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(options.write_buffer_bytes_max)
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
                .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES)))
        })?;
        let write_buffer_bytes_max = options.write_buffer_bytes_max;
        Ok(FjallEngine {
            db,
            keyspace,
            write_buffer_bytes_max,
            committing: RwLock::new(()),
        })
    };
    contain(open).map_err(KvError::Damaged)?.map_err(to_kv)
}

/// Empties fjall's journal. The newest file stays, empty: without any, fjall would take the database for new.
fn discard_journals(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let mut journals: Vec<(u64, String)> = disk
        .list(dir)?
        .into_iter()
        .filter_map(|name| Some((name.strip_suffix(".jnl")?.parse().ok()?, name)))
        .collect();
    journals.sort_unstable();
    if let Some((_, newest)) = journals.pop() {
        let file = disk.open(&dir.join(newest), Open::Existing)?;
        file.set_len(0)?;
        file.sync_data()?;
    }
    for (_, name) in journals {
        disk.remove(&dir.join(name))?;
    }
    disk.sync_dir(dir)
}

impl FjallEngine {
    /// The state after the last whole batch. Reads without a snapshot could see a batch half done.
    fn view(&self) -> FjallSnapshot {
        FjallSnapshot {
            snapshot: self.instant(),
            keyspace: self.keyspace.clone(),
            _db: self.db.clone(),
        }
    }

    fn instant(&self) -> Snapshot {
        let _whole = self.committing.read().unwrap_or_else(PoisonError::into_inner);
        self.db.snapshot()
    }
}

impl Read for FjallEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self
            .instant()
            .get(&self.keyspace, key)
            .map_err(to_kv)?
            .map(Bytes::from))
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
        let mut writes = self.db.batch();
        for (key, value) in batch.changes {
            match value {
                Some(value) => writes.insert(&self.keyspace, key, value),
                None => writes.remove(&self.keyspace, key),
            }
        }
        {
            let _committing = self.committing.write().unwrap_or_else(PoisonError::into_inner);
            writes.commit().map_err(to_kv)?;
        }
        // fjall leaves this to its workers, and the buffer would grow without bound while they are busy.
        if self.keyspace.tree.active_memtable().size() > self.write_buffer_bytes_max {
            self.keyspace.rotate_memtable().map_err(to_kv)?;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>, KvError> {
        Ok(Arc::new(self.view()))
    }

    fn flush(&self) -> Result<(), KvError> {
        let newest = self.keyspace.tree.get_highest_seqno();
        self.keyspace.rotate_memtable().map_err(to_kv)?;
        // Either tells: the first need not come true if what was newest were deletions of nothing, the second if
        // others keep writing.
        while self.keyspace.tree.get_highest_persisted_seqno() < newest
            && self.keyspace.sealed_memtable_count() > 0
        {
            self.poisoned()?;
            thread::sleep(FLUSH_POLL);
        }
        self.poisoned()
    }

    fn memory_bytes(&self) -> u64 {
        self.db.cache_size() + self.db.write_buffer_size()
    }
}

struct FjallSnapshot {
    snapshot: Snapshot,
    keyspace: Keyspace,
    /// Keeps the database open for as long as the snapshot is.
    _db: Database,
}

impl Read for FjallSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self
            .snapshot
            .get(&self.keyspace, key)
            .map_err(to_kv)?
            .map(Bytes::from))
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        pairs(self.snapshot.range(&self.keyspace, range), reverse)
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        let pairs = pairs(self.snapshot.range(&self.keyspace, range), reverse);
        // The database stays open for as long as it is read.
        Box::new(pairs.inspect(move |_| _ = &self))
    }
}

fn pairs(iter: Iter, reverse: bool) -> Scan<'static> {
    let pair = |guard: fjall::Guard| {
        let (key, value) = guard.into_inner().map_err(to_kv)?;
        Ok((key.into(), value.into()))
    };
    if reverse {
        Box::new(iter.rev().map(pair))
    } else {
        Box::new(iter.map(pair))
    }
}

fn to_kv(error: fjall::Error) -> KvError {
    use fjall::{Error, LsmError};
    match error {
        Error::Io(error) | Error::Storage(LsmError::Io(error)) => super::io_error(&error),
        Error::Poisoned => KvError::Io("an earlier write to it failed".into()),
        Error::Locked => KvError::Io("another process has it open".into()),
        Error::InvalidVersion(Some(version)) => {
            KvError::Unsupported(format!("fjall's format version is {version:?}"))
        }
        other => KvError::Damaged(other.to_string()),
    }
}
