//! Bytes of the journal: segment header, frame header, record header (docs/FORMAT.md draws them).
//!
//! All numbers are little-endian. Nothing here does I/O, and every decoder takes any bytes.

use super::StoreIdentity;

/// Everything starts at a multiple of this: a synced block is never written again.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// The version written, and the newest one read.
pub(super) const FORMAT_VERSION: u32 = 1;
/// Bytes of the segment header: one sector, so that a power cut leaves all or nothing of it.
pub(super) const SEGMENT_HEADER_BYTES: usize = 512;
/// Where the first frame of a segment is.
pub(super) const FRAMES_OFFSET: u64 = BLOCK_BYTES;
/// Bytes of a frame header.
pub(super) const FRAME_HEADER_BYTES: usize = 64;
/// Bytes of a record header.
pub(super) const RECORD_HEADER_BYTES: usize = 32;
/// Longest cluster id.
pub(super) const CLUSTER_ID_BYTES_MAX: usize = 64;

const SEGMENT_MAGIC: [u8; 8] = *b"BRMBLJNL";
const FRAME_MAGIC: [u8; 4] = *b"BRJF";

/// `len` rounded up to whole blocks.
pub(super) fn blocks(len: u64) -> u64 {
    len.next_multiple_of(BLOCK_BYTES)
}

/// Bytes that one record takes in a frame: records start at multiples of 8.
pub(super) fn record_bytes(body: usize, payload: usize) -> usize {
    (RECORD_HEADER_BYTES + body + payload).next_multiple_of(8)
}

/// What all checksums of one life of a segment start from: bytes of another store, file or life never fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(identity: &StoreIdentity, slot: u32, generation: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(identity.cluster_id.as_bytes());
        hasher.update(&identity.node_id.to_le_bytes());
        hasher.update(&slot.to_le_bytes());
        hasher.update(&generation.to_le_bytes());
        Self(hasher.finalize())
    }

    pub(super) fn crc(self, parts: &[&[u8]]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// The first sector of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) version: u32,
    pub(super) generation: u64,
    pub(super) capacity_bytes: u64,
    pub(super) slot: u32,
    pub(super) identity: StoreIdentity,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.capacity_bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.slot.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.identity.node_id.to_le_bytes());
        let name = self.identity.cluster_id.as_bytes();
        let len = name.len().min(CLUSTER_ID_BYTES_MAX);
        bytes[48] = len as u8;
        bytes[49..49 + len].copy_from_slice(&name[..len]);
        let crc = segment_crc(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if these bytes are no segment header. The version is not judged: every version keeps magic, version,
    /// checksum and length of this sector.
    pub(super) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Option<Self> {
        if bytes[0..8] != SEGMENT_MAGIC || u32_at(bytes, 12)? != segment_crc(bytes) {
            return None;
        }
        let len = usize::from(bytes[48]);
        let name = bytes.get(49..49 + len).filter(|_| len <= CLUSTER_ID_BYTES_MAX)?;
        Some(Self {
            version: u32_at(bytes, 8)?,
            generation: u64_at(bytes, 16)?,
            capacity_bytes: u64_at(bytes, 24)?,
            slot: u32_at(bytes, 32)?,
            identity: StoreIdentity {
                cluster_id: String::from_utf8_lossy(name).into_owned(),
                node_id: u64_at(bytes, 40)?,
            },
        })
    }
}

fn segment_crc(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[16..]);
    hasher.finalize()
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// Records.
    Records,
    /// The end of a segment: the log goes on in another one, and what is there has been synced.
    Seal,
    /// The end of a run: the journal was shut down in order.
    Close,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Records => 1,
            Self::Seal => 2,
            Self::Close => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Records, Self::Seal, Self::Close]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// The head of a frame: what is written and synced as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: FrameKind,
    /// Of the segment.
    pub(super) generation: u64,
    /// Counts frames through the whole life of the journal. A seal has the number of the frame that follows it in
    /// the next segment; all other numbers are used once.
    pub(super) sequence: u64,
    /// Segments of generations below this hold nothing that is needed.
    pub(super) oldest_generation: u64,
    /// Bytes after the header, without the padding up to the next block.
    pub(super) body_bytes: u32,
    pub(super) body_crc: u32,
    pub(super) records: u32,
    /// Term and index of an entry that the cluster has committed.
    pub(super) committed: Option<(u64, u64)>,
}

impl FrameHeader {
    /// Bytes on the medium, padding included.
    pub(super) fn total_bytes(&self) -> u64 {
        blocks(FRAME_HEADER_BYTES as u64 + u64::from(self.body_bytes))
    }

    pub(super) fn encode(&self, seed: Seed) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&FRAME_MAGIC);
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.oldest_generation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.records.to_le_bytes());
        bytes[44] = self.kind.code();
        if let Some((term, index)) = self.committed {
            bytes[45] = 1;
            bytes[48..56].copy_from_slice(&term.to_le_bytes());
            bytes[56..64].copy_from_slice(&index.to_le_bytes());
        }
        let crc = seed.crc(&[&bytes[8..]]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` unless these bytes begin a frame of the segment's life that `seed_of` (given the generation in the
    /// header) stands for.
    pub(super) fn decode(bytes: &[u8], seed_of: impl FnOnce(u64) -> Seed) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER_BYTES)?;
        if bytes[0..4] != FRAME_MAGIC {
            return None;
        }
        let generation = u64_at(bytes, 8)?;
        if u32_at(bytes, 4)? != seed_of(generation).crc(&[&bytes[8..]]) {
            return None;
        }
        let committed = (u64_at(bytes, 48)?, u64_at(bytes, 56)?);
        Some(Self {
            kind: FrameKind::from_code(bytes[44])?,
            generation,
            sequence: u64_at(bytes, 16)?,
            oldest_generation: u64_at(bytes, 24)?,
            body_bytes: u32_at(bytes, 32)?,
            body_crc: u32_at(bytes, 36)?,
            records: u32_at(bytes, 40)?,
            committed: (bytes[45] == 1).then_some(committed),
        })
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// A Raft entry: body is the entry without its proposal's payload, then the payload.
    Entry,
    /// A vote.
    Vote,
    /// Entries after an index are void.
    TruncateAfter,
    /// Entries up to a log id are no longer part of the log.
    Purge,
    /// First record of a segment: all that counts of votes and bounds so far.
    State,
}

impl RecordKind {
    fn code(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Vote => 2,
            Self::TruncateAfter => 3,
            Self::Purge => 4,
            Self::State => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [
            Self::Entry,
            Self::Vote,
            Self::TruncateAfter,
            Self::Purge,
            Self::State,
        ]
        .into_iter()
        .find(|kind| kind.code() == code)
    }
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: RecordKind,
    pub(super) body_bytes: u32,
    pub(super) payload_bytes: u32,
    /// Log index of an entry, otherwise 0.
    pub(super) index: u64,
}

/// Appends a record, padded to a multiple of 8, to `out`.
pub(super) fn encode_record(
    out: &mut Vec<u8>,
    seed: Seed,
    kind: RecordKind,
    index: u64,
    body: &[u8],
    payload: &[u8],
) {
    let mut bytes = [0; RECORD_HEADER_BYTES];
    bytes[4] = kind.code();
    bytes[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    bytes[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes[16..20].copy_from_slice(&seed.crc(&[payload]).to_le_bytes());
    bytes[24..32].copy_from_slice(&index.to_le_bytes());
    let crc = seed.crc(&[&bytes[4..], body]);
    bytes[0..4].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&bytes);
    out.extend_from_slice(body);
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// A record whose checksums hold, within the bytes it was decoded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) header: RecordHeader,
    pub(super) body: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl Record<'_> {
    /// Bytes of the record with its padding.
    pub(super) fn total_bytes(&self) -> usize {
        record_bytes(self.body.len(), self.payload.len())
    }
}

/// The record that `bytes` begin with; `None` if there is none, or a checksum does not hold.
pub(super) fn decode_record(bytes: &[u8], seed: Seed) -> Option<Record<'_>> {
    let head = bytes.get(..RECORD_HEADER_BYTES)?;
    let header = RecordHeader {
        kind: RecordKind::from_code(head[4])?,
        body_bytes: u32_at(head, 8)?,
        payload_bytes: u32_at(head, 12)?,
        index: u64_at(head, 24)?,
    };
    let body_end = RECORD_HEADER_BYTES.checked_add(header.body_bytes as usize)?;
    let body = bytes.get(RECORD_HEADER_BYTES..body_end)?;
    let payload = bytes.get(body_end..body_end.checked_add(header.payload_bytes as usize)?)?;
    let intact =
        u32_at(head, 0)? == seed.crc(&[&head[4..], body]) && u32_at(head, 16)? == seed.crc(&[payload]);
    intact.then_some(Record {
        header,
        body,
        payload,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
