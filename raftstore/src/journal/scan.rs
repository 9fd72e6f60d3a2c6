//! Reading segments from the medium, whatever is in them.

use std::io;

use super::format::{BLOCK_BYTES, FRAME_HEADER_BYTES, FRAMES_OFFSET, FrameHeader, FrameKind, Seed, blocks};
use super::segment::Life;
use crate::disk::DiskFile;

/// The search for frames reads pieces of this size.
const WINDOW_BYTES: u64 = 1 << 20;

/// A frame that is intact.
pub(super) struct Frame {
    pub(super) header: FrameHeader,
    /// Header, body and padding.
    bytes: Vec<u8>,
}

impl Frame {
    pub(super) fn body(&self) -> &[u8] {
        let end = FRAME_HEADER_BYTES + self.header.body_bytes as usize;
        self.bytes.get(FRAME_HEADER_BYTES..end).unwrap_or_default()
    }

    /// As it is on the medium.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The frame of this life at `offset`, if there is an intact one.
pub(super) fn frame_at(life: &Life, offset: u64) -> io::Result<Option<Frame>> {
    if offset + BLOCK_BYTES > life.capacity_bytes {
        return Ok(None);
    }
    let mut bytes = vec![0; BLOCK_BYTES as usize];
    life.file.read_exact_at(&mut bytes, offset)?;
    let Some(header) = FrameHeader::decode(&bytes, |_| life.seed) else {
        return Ok(None);
    };
    let total = header.total_bytes();
    let end = if header.kind == FrameKind::Seal {
        life.capacity_bytes
    } else {
        life.frames_end()
    };
    if header.generation != life.generation || offset + total > end {
        return Ok(None);
    }
    bytes.resize(usize::try_from(total).map_err(io::Error::other)?, 0);
    if total > BLOCK_BYTES {
        life.file
            .read_exact_at(&mut bytes[BLOCK_BYTES as usize..], offset + BLOCK_BYTES)?;
    }
    let frame = Frame { header, bytes };
    Ok((life.seed.crc(&[frame.body()]) == header.body_crc).then_some(frame))
}

/// The first block at or after `from` that begins with a frame header of this file that `wanted` accepts. `seed_of`
/// says what the checksums of a generation start from.
pub(super) fn find_header(
    file: &dyn DiskFile,
    len: u64,
    from: u64,
    seed_of: impl Fn(u64) -> Seed,
    wanted: impl Fn(&FrameHeader) -> bool,
) -> io::Result<Option<(u64, FrameHeader)>> {
    let end = len - len % BLOCK_BYTES;
    let mut offset = blocks(from.max(FRAMES_OFFSET));
    let mut window = Vec::new();
    while offset < end {
        window.resize(
            usize::try_from((end - offset).min(WINDOW_BYTES)).map_err(io::Error::other)?,
            0,
        );
        file.read_exact_at(&mut window, offset)?;
        for block in window.chunks(BLOCK_BYTES as usize) {
            if let Some(header) = FrameHeader::decode(block, &seed_of)
                && wanted(&header)
            {
                return Ok(Some((offset, header)));
            }
            offset += BLOCK_BYTES;
        }
    }
    Ok(None)
}

/// The first frame header of this very life at or after `from` with at least this number.
pub(super) fn find_later(
    life: &Life,
    from: u64,
    sequence_min: u64,
) -> io::Result<Option<(u64, FrameHeader)>> {
    find_header(
        &*life.file,
        life.capacity_bytes,
        from,
        |_| life.seed,
        |header| header.generation == life.generation && header.sequence >= sequence_min,
    )
}
