//! The directory that holds a node's engine: generations of it, and a file that says which one counts.
//!
//! A received snapshot becomes a new generation beside the present one and takes its place by one rename, so a crash
//! at any moment leaves one whole state. What is left of the others is removed when the directory is opened.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::current::{CURRENT, Current};
use super::{Batch, Engine, EngineKind, EngineOptions, KvError, MemoryEngine, OnFailure, Read};
use crate::disk::{Disk, Open};

/// The first byte of keys that belong to the store itself and not to the replicated state.
pub const STORE_PREFIX: u8 = 0;
/// Under this key: the generation's number, which tells an engine from an empty one.
const GENERATION_KEY: &[u8] = b"\0generation";
/// Bytes copied from one engine to another in one batch, about.
const COPY_BYTES_MAX: usize = 256 << 10;

/// Where a node keeps its metadata, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// A directory for nothing else.
    pub root: PathBuf,
    /// The engine. If the directory's is another one, it is converted at open.
    pub kind: EngineKind,
    /// The engine's limits.
    pub engine: EngineOptions,
}

impl StoreOptions {
    /// The default engine in `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            kind: EngineKind::default(),
            engine: EngineOptions::default(),
        }
    }
}

/// A directory of generations; with no place at all, generations are in memory only.
pub(crate) struct StoreDir {
    place: Option<Place>,
    /// The next generation's number.
    next: Mutex<u64>,
    failure: watch::Sender<Option<KvError>>,
}

/// The generation that counts, or how it is damaged.
pub(crate) type Present = Result<Arc<Generation>, KvError>;

struct Place {
    disk: Arc<dyn Disk>,
    options: StoreOptions,
}

/// One engine and its directory. The directory goes with the last handle if the generation does not count.
pub(crate) struct Generation {
    /// `None` only while it is dropped.
    engine: Option<Arc<dyn Engine>>,
    number: u64,
    /// Whether it is the one that counts, or may be: its failure is the node's, and its files stay.
    counts: Arc<AtomicBool>,
    dir: Arc<StoreDir>,
}

impl StoreDir {
    /// Without a place on a medium.
    pub(crate) fn in_memory() -> Arc<Self> {
        Arc::new(Self {
            place: None,
            next: Mutex::new(1),
            failure: watch::Sender::new(None),
        })
    }

    /// Opens `options.root`, or makes it. The second part is the present generation, or how it is damaged. An error
    /// means that nothing can be done here, not even a repair.
    pub(crate) fn open(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<(Arc<Self>, Present), KvError> {
        let place = Place { disk, options };
        place
            .disk
            .create_dir_all(&place.options.root)
            .map_err(|error| place.error("create", &error))?;
        let current = place.read_current();
        if let Err(error @ (KvError::Unsupported(_) | KvError::Io(_))) = current {
            return Err(error);
        }
        let next = place.clean(current.as_ref().ok().and_then(Option::as_ref))?;
        let dir = Arc::new(Self {
            place: Some(place),
            next: Mutex::new(next),
            failure: watch::Sender::new(None),
        });
        let generation = match current {
            Ok(None) => Ok(dir.create()?),
            Ok(Some(current)) => dir.reopen(&current),
            Err(damage) => Err(damage),
        };
        match generation {
            Err(KvError::Damaged(damage)) => Ok((dir, Err(KvError::Damaged(damage)))),
            Err(other) => Err(other),
            Ok(generation) => Ok((dir, Ok(generation))),
        }
    }

    /// The first failure of the generation that counts.
    pub(crate) fn failure(&self) -> watch::Receiver<Option<KvError>> {
        self.failure.subscribe()
    }

    /// An empty generation that counts.
    pub(crate) fn create(self: &Arc<Self>) -> Result<Arc<Generation>, KvError> {
        let generation = self.spool()?;
        self.switch_to(None, &generation)?;
        Ok(generation)
    }

    /// An empty generation that does not count (yet).
    pub(crate) fn spool(self: &Arc<Self>) -> Result<Arc<Generation>, KvError> {
        let number = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next - 1
        };
        if let Some(place) = &self.place {
            let path = place.path(number);
            place
                .disk
                .remove_dir_all(&path)
                .map_err(|error| place.error("clean", &error))?;
            place
                .disk
                .create_dir_all(&path)
                .map_err(|error| place.error("create", &error))?;
        }
        let kind = self
            .place
            .as_ref()
            .map_or(EngineKind::Memory, |place| place.options.kind);
        let generation = self.generation(kind, number, false)?;
        let value = Bytes::copy_from_slice(&number.to_le_bytes());
        let changes = vec![(Bytes::from_static(GENERATION_KEY), Some(value))];
        generation.engine()?.write(Batch { changes })?;
        Ok(generation)
    }

    fn generation(
        self: &Arc<Self>,
        kind: EngineKind,
        number: u64,
        counts: bool,
    ) -> Result<Arc<Generation>, KvError> {
        let counts = Arc::new(AtomicBool::new(counts));
        let engine: Arc<dyn Engine> = match &self.place {
            None => Arc::new(MemoryEngine::new()),
            Some(place) => {
                let path = place.path(number);
                let on_failure = self.on_failure(number, counts.clone());
                super::open(kind, &place.disk, &path, &place.options.engine, on_failure)?
            }
        };
        Ok(Arc::new(Generation {
            engine: Some(engine),
            number,
            counts,
            dir: self.clone(),
        }))
    }

    /// Remembers damage for the next start, and tells who watches.
    fn on_failure(self: &Arc<Self>, number: u64, counts: Arc<AtomicBool>) -> OnFailure {
        let dir = Arc::downgrade(self);
        Box::new(move |error| {
            let Some(dir) = dir.upgrade().filter(|_| counts.load(Ordering::Acquire)) else {
                return;
            };
            tracing::error!(%error, "the metadata store has failed");
            if let (Some(place), KvError::Damaged(_)) = (&dir.place, error)
                && let Err(error) = place.mark_damaged(number, &error.to_string())
            {
                tracing::error!(%error, "cannot mark the metadata store as damaged");
            }
            dir.failure.send_if_modified(|failure| {
                let first = failure.is_none();
                failure.get_or_insert_with(|| error.clone());
                first
            });
        })
    }

    fn reopen(self: &Arc<Self>, current: &Current) -> Result<Arc<Generation>, KvError> {
        let Some(place) = &self.place else {
            return self.create();
        };
        place.check_not_damaged(current.generation)?;
        let generation = self.generation(current.kind, current.generation, true)?;
        let number = generation.engine()?.get(GENERATION_KEY)?;
        if number.as_deref() != Some(&current.generation.to_le_bytes()[..]) {
            return Err(KvError::Damaged(
                "its files are gone or belong to another store".into(),
            ));
        }
        if current.kind == place.options.kind {
            return Ok(generation);
        }
        tracing::info!(from = %current.kind, to = %place.options.kind, "converting the metadata store");
        let converted = self.spool()?;
        copy(&**generation.engine()?, &**converted.engine()?)?;
        self.switch_to(Some(&generation), &converted)?;
        Ok(converted)
    }

    /// Makes everything in `new` durable, and then makes it the one that counts, in place of `old`.
    pub(crate) fn switch_to(&self, old: Option<&Generation>, new: &Generation) -> Result<(), KvError> {
        new.engine()?.flush()?;
        // From here on a crash, or an error, may leave either of them as the one that counts.
        new.counts.store(true, Ordering::Release);
        if let Some(place) = &self.place {
            let current = Current {
                kind: place.options.kind,
                generation: new.number,
            };
            place
                .write_current(&current)
                .map_err(|error| place.error("switch", &error))?;
        }
        if let Some(old) = old {
            old.counts.store(false, Ordering::Release);
        }
        Ok(())
    }
}

impl StoreDir {
    /// Removes all generations but `current`, which no one else may be making or reading.
    pub(crate) fn remove_others(&self, current: &Generation) -> Result<(), KvError> {
        let Some(place) = &self.place else { return Ok(()) };
        let current = Current {
            kind: place.options.kind,
            generation: current.number,
        };
        place.clean(Some(&current)).map(drop)
    }
}

impl Generation {
    /// Its engine.
    pub(crate) fn engine(&self) -> Result<&Arc<dyn Engine>, KvError> {
        self.engine
            .as_ref()
            .ok_or_else(|| KvError::Io("it is closed".into()))
    }

    /// The directory it is in.
    pub(crate) fn dir(&self) -> &Arc<StoreDir> {
        &self.dir
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.engine = None;
        if let Some(place) = &self.dir.place
            && !self.counts.load(Ordering::Acquire)
            && let Err(error) = place.disk.remove_dir_all(&place.path(self.number))
        {
            tracing::warn!(%error, "cannot remove an old generation of the metadata store; the next start will");
        }
    }
}

impl Place {
    fn path(&self, generation: u64) -> PathBuf {
        self.options.root.join(format!("gen-{generation}"))
    }

    fn marker(&self, generation: u64) -> PathBuf {
        self.options.root.join(format!("damaged-{generation}"))
    }

    fn error(&self, what: &str, error: &io::Error) -> KvError {
        KvError::Io(format!("cannot {what} {}: {error}", self.options.root.display()))
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let file = match self.disk.open(path, Open::Existing) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // Both files of this directory are short; more than this is garbage.
        let mut bytes = vec![0; usize::try_from(file.len()?.min(4096)).unwrap_or(4096)];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Some(bytes))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let draft = path.with_extension("tmp");
        let file = self.disk.open(&draft, Open::Any)?;
        file.set_len(0)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        self.disk.rename(&draft, path)?;
        self.disk.sync_dir(&self.options.root)
    }

    fn read_current(&self) -> Result<Option<Current>, KvError> {
        let path = self.options.root.join(CURRENT);
        let bytes = self.read(&path).map_err(|error| self.error("read", &error))?;
        bytes.map(|bytes| Current::parse(&bytes)).transpose()
    }

    fn write_current(&self, current: &Current) -> io::Result<()> {
        self.disk.sync_dir(&self.path(current.generation))?;
        self.disk.sync_dir(&self.options.root)?;
        self.write(&self.options.root.join(CURRENT), current.to_text().as_bytes())
    }

    fn mark_damaged(&self, generation: u64, why: &str) -> io::Result<()> {
        self.write(&self.marker(generation), why.as_bytes())
    }

    fn check_not_damaged(&self, generation: u64) -> Result<(), KvError> {
        let marker = self
            .read(&self.marker(generation))
            .map_err(|error| self.error("read", &error))?;
        if let Some(why) = marker {
            return Err(KvError::Damaged(format!(
                "as found earlier: {}",
                String::from_utf8_lossy(&why)
            )));
        }
        match self.disk.list(&self.path(generation)) {
            Ok(_) => Ok(()),
            Err(error) => Err(super::io_error(&error)),
        }
    }

    /// Removes what crashes have left behind, and answers the next generation's number. If it is not known which
    /// generation counts, all stay: they may help whoever looks into it.
    fn clean(&self, current: Option<&Current>) -> Result<u64, KvError> {
        let root = &self.options.root;
        let names = self.disk.list(root).map_err(|error| self.error("read", &error))?;
        let known = current.is_some() || !names.iter().any(|name| name == CURRENT);
        let mut next = current.map_or(1, |current| current.generation + 1);
        for name in names {
            if name.ends_with(".tmp") {
                self.disk
                    .remove(&root.join(&name))
                    .map_err(|error| self.error("clean", &error))?;
                continue;
            }
            let number = |prefix: &str| name.strip_prefix(prefix)?.parse::<u64>().ok();
            let generation = number("gen-");
            let Some(found) = generation.or_else(|| number("damaged-")) else {
                continue;
            };
            if current.is_some_and(|current| current.generation == found) {
                continue;
            }
            next = next.max(found.saturating_add(1));
            if !known {
                continue;
            }
            let path = root.join(&name);
            let removed = if generation.is_some() {
                self.disk.remove_dir_all(&path)
            } else {
                self.disk.remove(&path)
            };
            removed.map_err(|error| self.error("clean", &error))?;
        }
        Ok(next)
    }
}

/// Copies everything but the generation's number.
fn copy(from: &dyn Read, to: &dyn Engine) -> Result<(), KvError> {
    let mut batch = Batch::default();
    let mut bytes = 0;
    for pair in from.scan((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), false) {
        let (key, value) = pair?;
        if key == GENERATION_KEY {
            continue;
        }
        bytes += key.len() + value.len();
        batch.changes.push((key, Some(value)));
        if bytes >= COPY_BYTES_MAX {
            to.write(std::mem::take(&mut batch))?;
            bytes = 0;
        }
    }
    to.write(batch)
}
