//! A file's extents: cutting, inserting, coalescing.

use crate::meta::keys;
use crate::meta::tables::{self, ExtentValue};
use crate::meta::types::*;
use crate::meta::{Refusal, value};

use super::step::{Fail, Step};

/// Extents that are looked at together; bounds the memory of a step's reads.
const PAGE_EXTENTS: usize = 256;

/// A length as a change of a count. Lengths stay below [`FILE_BYTES_MAX`].
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Step<'_, '_> {
    fn put_extent(&mut self, ino: Ino, extent: Extent) -> Result<(), Fail> {
        let Extent { len, source, .. } = extent;
        self.txn.put(
            keys::extent(ino, extent.end()).into(),
            value::encode(&ExtentValue { len, source })?,
        );
        self.count_extent(ino, extent, signed(len))
    }

    fn remove_extent(&mut self, ino: Ino, extent: Extent) -> Result<(), Fail> {
        self.txn.delete(keys::extent(ino, extent.end()).into());
        self.count_extent(ino, extent, -signed(extent.len))
    }

    fn count_extent(&mut self, ino: Ino, extent: Extent, bytes: i64) -> Result<(), Fail> {
        if let Source::Chunk { id, .. } = extent.source {
            self.refs.change(id, ino, bytes);
        }
        self.allocated(ino, bytes)
    }

    /// Makes a hole of `start..end`.
    pub(super) fn cut(&mut self, ino: Ino, mut start: u64, end: u64) -> Result<(), Fail> {
        if self.context.speculative {
            if end == u64::MAX {
                let inode = self.edit(ino)?;
                inode.allocated_bytes = inode.allocated_bytes.min(start);
            }
            return Ok(());
        }
        loop {
            let found = tables::extents(self.txn, ino, start, end, PAGE_EXTENTS)?;
            for extent in &found {
                self.cut_one(ino, *extent, start, end)?;
            }
            match found.last() {
                Some(last) if found.len() == PAGE_EXTENTS => start = last.end(),
                _ => return Ok(()),
            }
        }
    }

    fn cut_one(&mut self, ino: Ino, extent: Extent, start: u64, end: u64) -> Result<(), Fail> {
        self.remove_extent(ino, extent)?;
        for rest in [extent.clip(0, start), extent.clip(end, u64::MAX)] {
            if rest.len > 0 {
                self.put_extent(ino, rest)?;
            }
        }
        Ok(())
    }

    /// Frees up to `extents_max` extents; whether none is left, and how many were freed.
    pub(super) fn free_extents(&mut self, ino: Ino, extents_max: usize) -> Result<(bool, usize), Fail> {
        let mut freed = 0;
        while freed < extents_max {
            let page = PAGE_EXTENTS.min(extents_max - freed);
            let found = tables::extents(self.txn, ino, 0, u64::MAX, page)?;
            for extent in &found {
                self.remove_extent(ino, *extent)?;
            }
            freed += found.len();
            if found.len() < page {
                return Ok((true, freed));
            }
        }
        Ok((tables::extents(self.txn, ino, 0, u64::MAX, 1)?.is_empty(), freed))
    }

    /// Puts an extent where there is a hole, as one with its neighbours if it continues them.
    pub(super) fn insert(&mut self, ino: Ino, mut extent: Extent) -> Result<(), Fail> {
        if extent.len == 0 {
            return Ok(());
        }
        let (start, end) = (extent.offset, extent.end());
        let around = tables::extents(self.txn, ino, start.saturating_sub(1), end.saturating_add(1), 2)?;
        for neighbour in around {
            if neighbour.continues_in(&extent) {
                self.remove_extent(ino, neighbour)?;
                extent = Extent {
                    len: neighbour.len + extent.len,
                    ..neighbour
                };
            } else if extent.continues_in(&neighbour) {
                self.remove_extent(ino, neighbour)?;
                extent.len += neighbour.len;
            }
        }
        self.put_extent(ino, extent)
    }

    /// Puts an extent in place of what was there.
    pub(super) fn overwrite(&mut self, ino: Ino, extent: Extent) -> Result<(), Fail> {
        if self.context.speculative {
            let inode = self.edit(ino)?;
            let size = inode.size.max(extent.end());
            // A guess: what the bytes take the place of is not looked up.
            let more = inode.allocated_bytes.saturating_add(extent.len);
            inode.allocated_bytes = more.min(size).max(inode.allocated_bytes);
            return Ok(());
        }
        self.cut(ino, extent.offset, extent.end())?;
        self.insert(ino, extent)
    }

    /// Puts allocated zeros into all holes of `start..end`.
    pub(super) fn fill_holes(&mut self, ino: Ino, start: u64, end: u64) -> Result<(), Fail> {
        let mut at = start;
        while at < end {
            let found = tables::extents(self.txn, ino, at, end, PAGE_EXTENTS)?;
            for extent in &found {
                if extent.offset > at {
                    self.insert(
                        ino,
                        Extent {
                            offset: at,
                            len: extent.offset - at,
                            source: Source::Zero,
                        },
                    )?;
                }
                at = extent.end();
            }
            if found.len() < PAGE_EXTENTS {
                break;
            }
        }
        if at < end {
            self.insert(
                ino,
                Extent {
                    offset: at,
                    len: end - at,
                    source: Source::Zero,
                },
            )?;
        }
        Ok(())
    }

    /// Sets a file's length as truncate does: cuts, or extends with a hole.
    pub(super) fn resize(&mut self, ino: Ino, size: u64) -> Result<(), Fail> {
        if size > FILE_BYTES_MAX {
            return Err(Refusal::TooLarge.into());
        }
        if size <= self.inode(ino)?.size {
            // Also what fallocate has put behind the end.
            self.cut(ino, size, u64::MAX)?;
        }
        self.edit(ino)?.size = size;
        self.contents_changed(ino)
    }
}
