//! Frames: putting records into one, and taking them out again.

use serde::{Deserialize, Serialize};

use super::bounds::Bounds;
use super::format::{
    BLOCK_BYTES, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Record, RecordKind, Seed, decode_record,
    encode_record,
};
use crate::raft::{LogId, Vote};

/// What stands at the head of each segment, so that older ones can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct HeadState {
    pub(super) bounds: Bounds,
    pub(super) vote: Option<Vote>,
    /// Entries below this index are known to be committed.
    pub(super) committed_end: u64,
}

/// Upper bound of the bytes that a [`HeadState`] takes as a record.
pub(super) const STATE_RECORD_BYTES_MAX: usize = 256;

/// A purge's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PurgeBody {
    pub(super) upto: LogId,
    /// Payload of purged entries below this index may be kept; that of the others is void.
    pub(super) trusted_end: u64,
}

/// A seal's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SealBody {
    /// Generation of the segment in which the log goes on.
    pub(super) next_generation: u64,
}

impl SealBody {
    pub(super) fn encode(self) -> [u8; 8] {
        self.next_generation.to_le_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            next_generation: u64::from_le_bytes(bytes.try_into().ok()?),
        })
    }
}

/// What a frame's header says beside its contents.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameMeta {
    pub(super) kind: FrameKind,
    pub(super) generation: u64,
    pub(super) sequence: u64,
    pub(super) oldest_generation: u64,
    pub(super) committed: Option<LogId>,
}

/// Builds one frame.
pub(super) struct FrameBuilder {
    bytes: Vec<u8>,
    records: u32,
    seed: Seed,
}

impl FrameBuilder {
    pub(super) fn new(seed: Seed) -> Self {
        Self {
            bytes: vec![0; FRAME_HEADER_BYTES],
            records: 0,
            seed,
        }
    }

    /// Adds a record; answers its offset in the frame.
    pub(super) fn push(&mut self, kind: RecordKind, index: u64, body: &[u8], payload: &[u8]) -> usize {
        let offset = self.bytes.len();
        encode_record(&mut self.bytes, self.seed, kind, index, body, payload);
        self.records += 1;
        offset
    }

    /// Adds raw bytes: the body of a frame that holds no records.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The frame's bytes, padded to whole blocks.
    pub(super) fn finish(mut self, meta: FrameMeta) -> Vec<u8> {
        let body = &self.bytes[FRAME_HEADER_BYTES..];
        let header = FrameHeader {
            kind: meta.kind,
            generation: meta.generation,
            sequence: meta.sequence,
            oldest_generation: meta.oldest_generation,
            body_bytes: u32::try_from(body.len()).unwrap_or(u32::MAX),
            body_crc: self.seed.crc(&[body]),
            records: self.records,
            committed: meta.committed.map(|id| (id.leader_id.term, id.index)),
        };
        self.bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode(self.seed));
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        self.bytes
    }
}

/// The records of a frame's body with their offsets in it; `None` for one that makes no sense.
pub(super) fn records(
    header: FrameHeader,
    body: &[u8],
    seed: Seed,
) -> impl Iterator<Item = Option<(usize, Record<'_>)>> {
    let mut at = 0;
    let mut left = header.records;
    std::iter::from_fn(move || {
        if left == 0 {
            return (std::mem::replace(&mut at, body.len()) != body.len()).then_some(None);
        }
        left -= 1;
        let record = body.get(at..).and_then(|bytes| decode_record(bytes, seed));
        let offset = at;
        match record {
            Some(record) => at += record.total_bytes(),
            None => {
                left = 0;
                at = body.len();
            }
        }
        Some(record.map(|record| (offset, record)))
    })
}
