//! Frames: numbered, checked pieces of a snapshot.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::SnapshotError;
use crate::kv::Pair;
use crate::raft::SnapshotMeta;

/// The largest frame, bytes, except one that holds a single pair which is larger by itself.
pub const FRAME_BYTES_MAX: usize = 256 << 10;
/// The largest frame that is taken in.
const ACCEPTED_BYTES_MAX: usize = 2 << 20;
/// "BRSN".
const MAGIC: [u8; 4] = *b"BRSN";
/// Version of the stream and of the state in it.
const VERSION: u16 = 1;

const KIND_HEADER: u8 = 1;
const KIND_PAIRS: u8 = 2;
const KIND_END: u8 = 3;

/// Kind and number before the body, checksum after it.
const OVERHEAD_BYTES: usize = 1 + 4 + 4;
/// The two lengths before each pair.
const LENGTHS_BYTES: usize = 8;

/// What a frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// Always the first.
    Header(Box<SnapshotMeta>),
    /// In ascending order, also from one frame to the next.
    Pairs(Vec<Pair>),
    /// Always the last.
    End(Totals),
}

/// What was in all the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    /// How many pairs.
    pub(super) pairs: u64,
    /// Bytes of their keys and values.
    pub(super) bytes: u64,
}

impl Totals {
    pub(super) fn add(&mut self, (key, value): &Pair) {
        self.pairs += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }
}

/// What a pair takes in a frame.
pub(super) fn pair_bytes((key, value): &Pair) -> usize {
    LENGTHS_BYTES + key.len() + value.len()
}

/// Whether pairs of `bytes` (by [`pair_bytes`]) fill a frame.
pub(super) fn fits(bytes: usize) -> bool {
    bytes + OVERHEAD_BYTES <= FRAME_BYTES_MAX
}

impl Frame {
    pub(super) fn encode(&self, number: u32) -> Result<Bytes, SnapshotError> {
        let mut frame = BytesMut::new();
        frame.put_u8(match self {
            Self::Header(_) => KIND_HEADER,
            Self::Pairs(_) => KIND_PAIRS,
            Self::End(_) => KIND_END,
        });
        frame.put_u32_le(number);
        match self {
            Self::Header(meta) => {
                frame.put_slice(&MAGIC);
                frame.put_u16_le(VERSION);
                let meta = postcard::to_stdvec(&**meta)
                    .map_err(|_| SnapshotError::Malformed("metadata that cannot be written"))?;
                frame.put_slice(&meta);
            }
            Self::Pairs(pairs) => {
                let len = |bytes: &Bytes| {
                    u32::try_from(bytes.len()).map_err(|_| SnapshotError::Malformed("a value beyond 4 GiB"))
                };
                frame.reserve(pairs.iter().map(pair_bytes).sum::<usize>() + 4);
                for (key, value) in pairs {
                    frame.put_u32_le(len(key)?);
                    frame.put_u32_le(len(value)?);
                    frame.put_slice(key);
                    frame.put_slice(value);
                }
            }
            Self::End(totals) => {
                frame.put_u64_le(totals.pairs);
                frame.put_u64_le(totals.bytes);
            }
        }
        let crc = crc32fast::hash(&frame);
        frame.put_u32_le(crc);
        Ok(frame.freeze())
    }

    /// Decodes the frame that is due as number `expected`.
    pub(super) fn decode(frame: &Bytes, expected: u32) -> Result<Self, SnapshotError> {
        if !(OVERHEAD_BYTES..=ACCEPTED_BYTES_MAX).contains(&frame.len()) {
            return Err(SnapshotError::Malformed("a frame of an impossible length"));
        }
        let mut body = frame.slice(..frame.len() - 4);
        let crc = (&frame[frame.len() - 4..]).get_u32_le();
        if crc32fast::hash(&body) != crc {
            return Err(SnapshotError::Corrupted(expected));
        }
        let kind = body.get_u8();
        let found = body.get_u32_le();
        if found != expected {
            return Err(SnapshotError::OutOfOrder { expected, found });
        }
        match kind {
            KIND_HEADER => decode_header(body),
            KIND_PAIRS => decode_pairs(body),
            KIND_END if body.len() == 16 => Ok(Self::End(Totals {
                pairs: body.get_u64_le(),
                bytes: body.get_u64_le(),
            })),
            _ => Err(SnapshotError::Malformed("a frame of an unknown kind")),
        }
    }
}

fn decode_header(mut body: Bytes) -> Result<Frame, SnapshotError> {
    if body.len() < 6 || body.split_to(4) != MAGIC[..] {
        return Err(SnapshotError::Malformed("not a snapshot at all"));
    }
    let found = body.get_u16_le();
    if found != VERSION {
        return Err(SnapshotError::Unsupported {
            found,
            known: VERSION,
        });
    }
    match postcard::take_from_bytes::<SnapshotMeta>(&body) {
        Ok((meta, [])) => Ok(Frame::Header(Box::new(meta))),
        _ => Err(SnapshotError::Malformed("unreadable metadata")),
    }
}

fn decode_pairs(mut body: Bytes) -> Result<Frame, SnapshotError> {
    const SHORT: SnapshotError = SnapshotError::Malformed("a pair longer than its frame");
    let mut pairs = Vec::new();
    while !body.is_empty() {
        if body.len() < LENGTHS_BYTES {
            return Err(SHORT);
        }
        let mut len = || usize::try_from(body.get_u32_le()).map_err(|_| SHORT);
        let (key_len, value_len) = (len()?, len()?);
        if key_len.checked_add(value_len).is_none_or(|len| len > body.len()) {
            return Err(SHORT);
        }
        pairs.push((body.split_to(key_len), body.split_to(value_len)));
    }
    Ok(Frame::Pairs(pairs))
}
