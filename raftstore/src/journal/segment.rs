//! One segment file during one life: from the writing of its header until it is used again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{
    BLOCK_BYTES, FORMAT_VERSION, FRAMES_OFFSET, RECORD_HEADER_BYTES, Record, Seed, SegmentHeader,
    decode_record, record_bytes,
};
use super::log::Slot;
use super::meter::Meter;
use super::{JournalError, StoreIdentity};
use crate::disk::{Disk, DiskFile, Open};

/// Zeros go to the medium in pieces of this size: an append that comes meanwhile waits for one piece at most.
const ZEROS_BYTES: usize = 1 << 20;

/// A segment in one of its lives. Whoever reads holds on to it: a segment is used again only once nobody does.
pub(super) struct Life {
    pub(super) slot: u32,
    pub(super) generation: u64,
    pub(super) capacity_bytes: u64,
    pub(super) seed: Seed,
    pub(super) file: Arc<dyn DiskFile>,
}

impl Life {
    /// The file's name in the journal's directory.
    pub(super) fn name(&self) -> String {
        segment_name(self.slot)
    }

    /// One past the last byte that frames other than the seal may take: there is always room for a seal.
    pub(super) fn frames_end(&self) -> u64 {
        self.capacity_bytes - BLOCK_BYTES
    }

    /// The largest frame that fits.
    pub(super) fn frame_bytes_max(&self) -> u64 {
        self.frames_end() - FRAMES_OFFSET
    }

    pub(super) fn damaged(&self, offset: u64, detail: impl Into<String>) -> JournalError {
        JournalError::Damaged {
            segment: self.name(),
            offset,
            detail: detail.into(),
        }
    }

    /// Reads the record of an entry and hands it, verified, to `decode`.
    pub(super) fn read_entry<T>(
        &self,
        index: u64,
        slot: &Slot,
        offset: u32,
        decode: impl FnOnce(Record<'_>, bytes::Bytes) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let offset = u64::from(offset);
        let mut bytes = vec![0; record_bytes(slot.body_bytes as usize, slot.payload_bytes as usize)];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.damaged(offset, "the file is shorter than it was"),
                _ => JournalError::io(format!("read {}", self.name()), &error),
            })?;
        let bytes = bytes::Bytes::from(bytes);
        let record = decode_record(&bytes, self.seed)
            .filter(|record| {
                record.header.index == index
                    && record.header.body_bytes == slot.body_bytes
                    && record.header.payload_bytes == slot.payload_bytes
            })
            .ok_or_else(|| self.damaged(offset, format!("the record of entry {index} is not intact")))?;
        let payload_at = RECORD_HEADER_BYTES + slot.body_bytes as usize;
        let payload = bytes.slice(payload_at..payload_at + slot.payload_bytes as usize);
        decode(record, payload)
    }
}

/// A segment's file name.
pub(super) fn segment_name(slot: u32) -> String {
    format!("segment-{slot:08}")
}

/// The slot that a file name stands for.
pub(super) fn slot_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("segment-")?;
    (digits.len() >= 8)
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|slot| segment_name(*slot) == name)
}

/// Name of a segment that is not filled with zeros yet.
pub(super) const UNFINISHED_NAME: &str = "unfinished";

/// Makes files into segments.
pub(super) struct Workshop {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) identity: StoreIdentity,
    pub(super) meter: Arc<Meter>,
}

impl Workshop {
    /// Makes a new file of zeros, really written, under its final name; durable. `pause` is called between pieces.
    pub(super) fn create(
        &self,
        slot: u32,
        capacity_bytes: u64,
        pause: &dyn Fn(),
    ) -> io::Result<Arc<dyn DiskFile>> {
        let unfinished = self.dir.join(UNFINISHED_NAME);
        let result = self.fill(&unfinished, capacity_bytes, pause).and_then(|file| {
            self.disk
                .rename(&unfinished, &self.dir.join(segment_name(slot)))?;
            self.meter.sync(|| self.disk.sync_dir(&self.dir))?;
            Ok(file)
        });
        if result.is_err() {
            // Give the room back; the next attempt starts afresh in any case.
            let _ = self.disk.remove(&unfinished);
        }
        result
    }

    fn fill(&self, path: &Path, capacity_bytes: u64, pause: &dyn Fn()) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, Open::Any)?;
        file.set_len(0)?;
        let zeros = vec![0; ZEROS_BYTES];
        let mut offset = 0;
        while offset < capacity_bytes {
            let take = usize::try_from(capacity_bytes - offset)
                .unwrap_or(ZEROS_BYTES)
                .min(ZEROS_BYTES);
            self.meter.write(&*file, &zeros[..take], offset)?;
            // A sync of each piece would have the filesystem commit its own journal as many times.
            file.write_back(offset, take as u64)?;
            offset += take as u64;
            pause();
        }
        self.meter.sync(|| file.sync_data())?;
        Ok(file)
    }

    /// Begins a life: writes the header; durable.
    pub(super) fn begin(
        &self,
        file: Arc<dyn DiskFile>,
        slot: u32,
        capacity_bytes: u64,
        generation: u64,
    ) -> io::Result<Arc<Life>> {
        let identity = self.identity.clone();
        let header = SegmentHeader {
            version: FORMAT_VERSION,
            generation,
            capacity_bytes,
            slot,
            identity,
        };
        self.meter.write(&*file, &header.encode(), 0)?;
        self.meter.sync(|| file.sync_data())?;
        let seed = Seed::new(&self.identity, slot, generation);
        Ok(Arc::new(Life {
            slot,
            generation,
            capacity_bytes,
            seed,
            file,
        }))
    }

    /// Gives a file back to the filesystem.
    pub(super) fn discard(&self, slot: u32) -> io::Result<()> {
        self.disk.remove(&self.dir.join(segment_name(slot)))?;
        self.meter.sync(|| self.disk.sync_dir(&self.dir))
    }
}
