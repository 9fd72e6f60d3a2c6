//! The in-memory engine, for simulation and tests: a persistent (structure-sharing) map, so a snapshot is a clone
//! of its root.

use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;

use super::{Batch, Engine, KeyRange, KvError, Pair, Read, Scan, is_empty_range, written};
use crate::disk::{Disk, Open};

type Map = RedBlackTreeMapSync<Bytes, Bytes>;

/// The file that a flush writes, and the name it is written under.
const IMAGE: &str = "image";
const IMAGE_DRAFT: &str = "image.tmp";

/// A key-value engine in memory. With a directory, a flush writes all of it to a file there.
#[derive(Default)]
pub struct MemoryEngine {
    newest: RwLock<View>,
    image: Option<Mutex<Image>>,
}

/// One state of the map.
#[derive(Clone, Default)]
struct View {
    map: Map,
    bytes: u64,
}

/// Where flushes go.
struct Image {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl MemoryEngine {
    /// An empty engine without a directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the last flush left in `dir`, or an empty engine.
    pub(super) fn open(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Self, KvError> {
        let io = |error: io::Error| KvError::Io(error.to_string());
        disk.create_dir_all(dir).map_err(io)?;
        let mut view = View::default();
        match disk.open(&dir.join(IMAGE), Open::Existing) {
            Ok(file) => {
                let mut image = vec![0; usize::try_from(file.len().map_err(io)?).unwrap_or(0)];
                file.read_exact_at(&mut image, 0).map_err(io)?;
                for (key, value) in decode(&image)? {
                    view.put(key, value);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let image = Mutex::new(Image {
            disk: disk.clone(),
            dir: dir.to_owned(),
        });
        Ok(Self {
            newest: RwLock::new(view),
            image: Some(image),
        })
    }

    fn view(&self) -> View {
        self.newest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Read for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.newest
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        Arc::new(self.view()).scan_owned(range, reverse)
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        Arc::new(self.view()).scan_owned(range, reverse)
    }
}

impl Engine for MemoryEngine {
    fn write(&self, batch: Batch) -> Result<(), KvError> {
        written::count(&batch);
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in batch.changes {
            match value {
                Some(value) => newest.put(key, value),
                None => newest.delete(&key),
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>, KvError> {
        Ok(Arc::new(self.view()))
    }

    fn flush(&self) -> Result<(), KvError> {
        let Some(image) = &self.image else { return Ok(()) };
        // The lock comes first, so that the newest image is also the last one written.
        let image = image.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = encode(&self.view().map);
        image
            .write(&bytes)
            .map_err(|error| KvError::Io(error.to_string()))
    }

    fn memory_bytes(&self) -> u64 {
        self.newest.read().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

impl View {
    fn put(&mut self, key: Bytes, value: Bytes) {
        self.delete(&key);
        self.bytes += (key.len() + value.len()) as u64;
        self.map.insert_mut(key, value);
    }

    fn delete(&mut self, key: &Bytes) {
        if let Some(old) = self.map.get(key) {
            self.bytes -= (key.len() + old.len()) as u64;
            self.map.remove_mut(key);
        }
    }
}

impl Read for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.map.get(key).cloned())
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        let bounds: (Bound<Bytes>, Bound<Bytes>) = (range.0.map(Bytes::from), range.1.map(Bytes::from));
        let pairs = self
            .map
            .range::<Bytes, _>(bounds)
            .map(|(key, value)| Ok((key.clone(), value.clone())));
        if reverse {
            Box::new(pairs.rev())
        } else {
            Box::new(pairs)
        }
    }
}

impl Image {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let draft = self.dir.join(IMAGE_DRAFT);
        let file = self.disk.open(&draft, Open::Any)?;
        file.set_len(0)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        self.disk.rename(&draft, &self.dir.join(IMAGE))?;
        self.disk.sync_dir(&self.dir)
    }
}

/// The pairs, each as lengths (u32, little-endian) and bytes, and the crc32 of all that.
fn encode(map: &Map) -> Vec<u8> {
    let mut image = Vec::new();
    for (key, value) in map {
        for part in [key, value] {
            image.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
        image.extend_from_slice(key);
        image.extend_from_slice(value);
    }
    let crc = crc32fast::hash(&image);
    image.extend_from_slice(&crc.to_le_bytes());
    image
}

fn decode(image: &[u8]) -> Result<Vec<Pair>, KvError> {
    let damaged = || KvError::Damaged("the memory engine's image fails its checksum".into());
    let (mut rest, crc) = image.split_last_chunk::<4>().ok_or_else(damaged)?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*crc) {
        return Err(damaged());
    }
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let (key_len, value_len, after) = split_lengths(rest).ok_or_else(damaged)?;
        let (key, after) = after.split_at_checked(key_len).ok_or_else(damaged)?;
        let (value, after) = after.split_at_checked(value_len).ok_or_else(damaged)?;
        pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        rest = after;
    }
    Ok(pairs)
}

fn split_lengths(bytes: &[u8]) -> Option<(usize, usize, &[u8])> {
    let (key_len, rest) = bytes.split_first_chunk::<4>()?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let len = |bytes: &[u8; 4]| usize::try_from(u32::from_le_bytes(*bytes)).ok();
    Some((len(key_len)?, len(value_len)?, rest))
}
