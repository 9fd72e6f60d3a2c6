//! Moving a file's bytes into fuller chunks without changing what it reads as.

use crate::meta::types::*;
use crate::meta::{Merge, Reply, tables};

use super::sessions;
use super::step::{Fail, Step, malformed};

/// Extents of one expected extent that are looked at together.
const PAGE_EXTENTS: usize = 256;

/// A file that is gone has nothing to merge, which is no error.
pub(super) fn merge(step: &mut Step<'_, '_>, ino: Ino, runs: &[Merge]) -> Result<Reply, Fail> {
    let Some(inode) = step.find(ino)? else {
        return Ok(Reply::Done);
    };
    for run in runs {
        sessions::check_chunk(step.txn, run.chunk)?;
        check_run(run)?;
        let mut offset: u32 = 0;
        for expected in &run.expected {
            replace(
                step,
                &inode,
                *expected,
                Source::Chunk {
                    id: run.chunk,
                    offset,
                },
            )?;
            // Checked above: the run fits into a chunk.
            offset = offset.saturating_add(u32::try_from(expected.len).unwrap_or(u32::MAX));
        }
    }
    Ok(Reply::Done)
}

fn check_run(run: &Merge) -> Result<(), Fail> {
    let mut end = 0;
    let mut bytes: u64 = 0;
    for extent in &run.expected {
        if extent.len == 0 || extent.offset < end || extent.offset.checked_add(extent.len).is_none() {
            return Err(malformed("the extents of a merge are out of order"));
        }
        end = extent.end();
        bytes = bytes.saturating_add(extent.len);
    }
    if bytes > u64::from(CHUNK_BYTES_MAX) {
        return Err(malformed("a merge is larger than a chunk"));
    }
    Ok(())
}

/// Points those parts of `expected` that still show the bytes they showed to `source`. Chunks are immutable, so the
/// same place in the same chunk is the same bytes, also if the extent was cut or split in the meantime. Zeros that
/// were allocated behind the end of the file stay as they are: only they may be there.
fn replace(step: &mut Step<'_, '_>, file: &Inode, expected: Extent, source: Source) -> Result<(), Fail> {
    let target = Extent { source, ..expected };
    let end = expected.end().min(file.size);
    let mut at = expected.offset;
    loop {
        let found = tables::extents(step.txn, file.ino, at, end, PAGE_EXTENTS)?;
        let (complete, last_end) = (found.len() < PAGE_EXTENTS, found.last().map(Extent::end));
        for now in found {
            let now = now.clip(expected.offset, end);
            if now == expected.clip(now.offset, now.end()) {
                step.overwrite(file.ino, target.clip(now.offset, now.end()))?;
            }
        }
        match last_end {
            Some(end) if !complete => at = end,
            _ => return Ok(()),
        }
    }
}
