//! What is written, so that it can be verified: random bytes, and in each sector a header that says which it is.
//!
//! A block is cut into sectors of 4096 bytes, or is one sector if that does not divide it. Each begins with, in little
//! endian: magic (8 bytes), offset in the file (8), write number (8), crc32 of the rest of the sector with this field
//! as zeros (4; 0 if verification is off), and 4 zeros.

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

/// The smallest block that has room for a header and some bytes.
pub const BLOCK_BYTES_MIN: u64 = 64;

const MAGIC: [u8; 8] = *b"brmbench";
const CRC: std::ops::Range<usize> = 24..28;
const HEADER_BYTES: usize = 32;
const SECTOR_BYTES: usize = 4096;

/// Makes and checks blocks.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    seed: u64,
    crc: bool,
}

impl Pattern {
    /// With `crc`, blocks are made to be verified.
    #[must_use]
    pub fn new(seed: u64, crc: bool) -> Self {
        Self { seed, crc }
    }

    /// True if blocks are made to be verified.
    #[must_use]
    pub fn verified(&self) -> bool {
        self.crc
    }

    /// Fills a buffer with random bytes, once; [`Pattern::stamp`] then makes blocks of it.
    pub fn fill(&self, buffer: &mut [u8]) {
        StdRng::seed_from_u64(self.seed).fill_bytes(buffer);
    }

    /// Makes the block the `number`th write, at `offset` in its file.
    pub fn stamp(&self, block: &mut [u8], offset: u64, number: u64) {
        let sector_bytes = sector_bytes(block.len());
        for (i, sector) in block.chunks_mut(sector_bytes).enumerate() {
            let Some(header) = sector.get_mut(..HEADER_BYTES) else {
                continue;
            };
            header.fill(0);
            header[..8].copy_from_slice(&MAGIC);
            let at = offset + (i * sector_bytes) as u64;
            header[8..16].copy_from_slice(&at.to_le_bytes());
            header[16..24].copy_from_slice(&number.to_le_bytes());
            if self.crc {
                let crc = crc32fast::hash(sector).to_le_bytes();
                sector[CRC].copy_from_slice(&crc);
            }
        }
    }

    /// Checks a block that was read at `offset`, which the `number`th write made, if that is known.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, block: &[u8], offset: u64, number: Option<u64>) -> Result<(), String> {
        let sector_bytes = sector_bytes(block.len());
        for (i, sector) in block.chunks(sector_bytes).enumerate() {
            let at = offset + (i * sector_bytes) as u64;
            check_sector(sector, at, number).map_err(|what| format!("sector at {at}: {what}"))?;
        }
        Ok(())
    }
}

fn check_sector(sector: &[u8], offset: u64, number: Option<u64>) -> Result<(), String> {
    let word = |at: usize| -> Option<u64> {
        let bytes = sector.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    if sector.len() < HEADER_BYTES {
        return Err(format!("only {} bytes", sector.len()));
    }
    if !sector.starts_with(&MAGIC) {
        return Err("no header: these bytes were not written here".to_owned());
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sector[..CRC.start]);
    hasher.update(&[0; 4]);
    hasher.update(&sector[CRC.end..]);
    if sector[CRC] != hasher.finalize().to_le_bytes() {
        return Err("its checksum is wrong".to_owned());
    }
    if word(8) != Some(offset) {
        return Err(format!("it belongs to offset {}", word(8).unwrap_or(0)));
    }
    match (number, word(16)) {
        (Some(number), Some(found)) if number != found => Err(format!(
            "it is write {found}, but write {number} was the last one here"
        )),
        _ => Ok(()),
    }
}

fn sector_bytes(block_bytes: usize) -> usize {
    if block_bytes.is_multiple_of(SECTOR_BYTES) {
        SECTOR_BYTES
    } else {
        block_bytes.max(1)
    }
}

/// A buffer at an address that O_DIRECT accepts.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + SECTOR_BYTES];
        let start = bytes.as_ptr().align_offset(SECTOR_BYTES).min(SECTOR_BYTES);
        Self { bytes, start, len }
    }

    /// Its first bytes, at most `len`.
    pub fn part(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(self.len);
        &mut self.bytes[self.start..self.start + len]
    }

    /// All of it.
    pub fn all(&mut self) -> &mut [u8] {
        self.part(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(len: usize) -> (Pattern, Vec<u8>) {
        let pattern = Pattern::new(3, true);
        let mut block = vec![0; len];
        pattern.fill(&mut block);
        pattern.stamp(&mut block, 8192, 5);
        (pattern, block)
    }

    #[test]
    fn what_was_stamped_is_accepted() {
        for len in [64, 100, 4096, 5000, 12288] {
            let (pattern, block) = block(len);
            pattern.check(&block, 8192, Some(5)).unwrap();
            pattern.check(&block, 8192, None).unwrap();
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let (pattern, mut block) = block(4096);
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(pattern.check(&block, 8192, Some(5)).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn blocks_of_another_place_or_time_are_found() {
        let (pattern, block) = block(8192);
        assert!(
            pattern
                .check(&block, 4096, Some(5))
                .unwrap_err()
                .contains("belongs")
        );
        assert!(
            pattern
                .check(&block, 8192, Some(6))
                .unwrap_err()
                .contains("write 5")
        );
        assert!(pattern.check(&[0; 4096], 0, None).is_err());
        assert!(pattern.check(&[0; 7], 0, None).is_err());
    }

    #[test]
    fn buffers_are_aligned() {
        for len in [1, 4096, 70_000] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.all().as_ptr() as usize % SECTOR_BYTES, 0);
            assert_eq!(buffer.all().len(), len);
        }
    }
}
