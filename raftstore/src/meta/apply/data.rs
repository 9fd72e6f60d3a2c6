//! Contents of files: writing, allocating, punching, sharing.

use crate::meta::types::*;
use crate::meta::{Data, Fallocate, Refusal, Reply, WriteAt, tables};

use super::sessions;
use super::step::{Fail, Step, malformed};

/// Extents that one [`crate::meta::Op::CopyRange`] shares at most; it then says that it copied less.
const COPY_EXTENTS_MAX: usize = 4096;

/// The end of `offset..offset + len`; EFBIG if no file can be that long.
fn end_of(offset: u64, len: u64) -> Result<u64, Fail> {
    let end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX);
    end.ok_or_else(|| Refusal::TooLarge.into())
}

pub(super) fn write(
    step: &mut Step<'_, '_>,
    ino: Ino,
    at: WriteAt,
    data: Data,
    kill_suid_sgid: bool,
) -> Result<Reply, Fail> {
    let (source, len) = source_of(step, data)?;
    let inode = step.file(ino)?;
    step.check_writable(&inode)?;
    let size = inode.size;
    let offset = match at {
        WriteAt::Offset(offset) => offset,
        WriteAt::Append => size,
    };
    if len > 0 {
        let end = end_of(offset, len)?;
        step.overwrite(ino, Extent { offset, len, source })?;
        step.contents_changed(ino)?;
        let inode = step.edit(ino)?;
        inode.size = inode.size.max(end);
        if kill_suid_sgid {
            step.kill_suid_sgid(ino)?;
        }
    }
    Ok(Reply::Written {
        offset,
        inode: step.inode(ino)?,
    })
}

/// Where the bytes of a write are, and how many there are.
fn source_of(step: &Step<'_, '_>, data: Data) -> Result<(Source, u64), Fail> {
    let payload_len = step.context.payload_len;
    match data {
        Data::Inline if payload_len > u64::from(CHUNK_BYTES_MAX) => {
            Err(malformed("the payload is larger than a chunk"))
        }
        Data::Inline => Ok((
            Source::Chunk {
                id: ChunkId::payload(step.context.log_index),
                offset: 0,
            },
            payload_len,
        )),
        Data::Chunk { .. } if payload_len > 0 => Err(malformed("a write has a payload and a chunk")),
        Data::Chunk { id, offset, len } => {
            if offset.checked_add(len).is_none_or(|end| end > CHUNK_BYTES_MAX) {
                return Err(malformed("a write's bytes lie outside of any chunk"));
            }
            sessions::check_chunk(step.txn, id)?;
            Ok((Source::Chunk { id, offset }, u64::from(len)))
        }
    }
}

pub(super) fn fallocate(
    step: &mut Step<'_, '_>,
    ino: Ino,
    what: Fallocate,
    offset: u64,
    len: u64,
) -> Result<Reply, Fail> {
    if len == 0 {
        return Err(Refusal::Invalid.into());
    }
    let inode = step.file(ino)?;
    step.check_writable(&inode)?;
    let size = inode.size;
    let end = end_of(offset, len)?;
    let size = match what {
        Fallocate::Allocate | Fallocate::ZeroRange => size.max(end),
        Fallocate::AllocateKeepSize | Fallocate::PunchHole | Fallocate::ZeroRangeKeepSize => size,
    };
    match what {
        Fallocate::Allocate | Fallocate::AllocateKeepSize => step.fill_holes(ino, offset, end)?,
        Fallocate::PunchHole => step.cut(ino, offset, end)?,
        Fallocate::ZeroRange | Fallocate::ZeroRangeKeepSize => {
            step.overwrite(
                ino,
                Extent {
                    offset,
                    len,
                    source: Source::Zero,
                },
            )?;
        }
    }
    let reads_the_same = matches!(what, Fallocate::Allocate | Fallocate::AllocateKeepSize);
    if reads_the_same && step.inode(ino)?.size == size {
        step.attributes_changed(ino)?;
    } else {
        step.edit(ino)?.size = size;
        step.contents_changed(ino)?;
    }
    Ok(Reply::Inode(step.inode(ino)?))
}

pub(super) fn copy_range(
    step: &mut Step<'_, '_>,
    (source, source_offset): (Ino, u64),
    (target, target_offset): (Ino, u64),
    len: u64,
) -> Result<Reply, Fail> {
    let source_size = step.file(source)?.size;
    let target_inode = step.file(target)?;
    step.check_writable(&target_inode)?;
    let len = len.min(source_size.saturating_sub(source_offset));
    if len == 0 {
        return Ok(Reply::Copied {
            len,
            inode: target_inode,
        });
    }
    end_of(target_offset, len)?;
    if source == target && source_offset.abs_diff(target_offset) < len {
        return Err(Refusal::Invalid.into());
    }
    let source_end = source_offset + len;
    let shared = tables::extents(step.txn, source, source_offset, source_end, COPY_EXTENTS_MAX)?;
    let copied_end = match shared.last() {
        Some(last) if shared.len() == COPY_EXTENTS_MAX => last.end().min(source_end),
        _ => source_end,
    };
    let len = copied_end - source_offset;
    step.cut(target, target_offset, target_offset + len)?;
    for extent in shared {
        let extent = extent.clip(source_offset, source_end);
        let offset = target_offset + (extent.offset - source_offset);
        step.insert(target, Extent { offset, ..extent })?;
    }
    step.contents_changed(target)?;
    let inode = step.edit(target)?;
    inode.size = inode.size.max(target_offset + len);
    Ok(Reply::Copied {
        len,
        inode: step.inode(target)?,
    })
}
