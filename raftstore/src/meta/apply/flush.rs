//! Taking over what a node has written to a file on its own.

use crate::meta::types::*;
use crate::meta::{FLUSH_PIECES_MAX, FileState, Piece, PieceData, Reply};

use super::sessions;
use super::step::{Fail, Step, check_time, malformed};

pub(super) fn flush(
    step: &mut Step<'_, '_>,
    ino: Ino,
    cut: Option<u64>,
    pieces: &[Piece],
    state: &FileState,
) -> Result<Reply, Fail> {
    if step.context.payload_len > u64::from(CHUNK_BYTES_MAX) {
        return Err(malformed("the payload is larger than a chunk"));
    }
    // These bytes were acknowledged: the node that wrote them has looked at the quota.
    step.context.enforced = false;
    check_state(state)?;
    check_order(pieces, state.size)?;
    let old_size = step.file(ino)?.size;
    // Nothing but allocated zeros may be behind the end.
    let shrunk = (state.size < old_size).then_some(state.size);
    if let Some(start) = cut.into_iter().chain(shrunk).min() {
        step.cut(ino, start, u64::MAX)?;
    }
    for piece in pieces {
        let extent = Extent {
            offset: piece.offset,
            len: u64::from(piece.len),
            source: source_of(step, piece)?,
        };
        step.overwrite(ino, extent)?;
    }
    step.contents_flushed(ino, state)?;
    Ok(Reply::Inode(step.inode(ino)?))
}

fn check_state(state: &FileState) -> Result<(), Fail> {
    if state.size > FILE_BYTES_MAX {
        return Err(malformed("a flushed file is larger than any can be"));
    }
    if state.mode > 0o7777 {
        return Err(malformed("a flushed file has more than permission bits"));
    }
    [state.mtime, state.ctime, state.contents_time]
        .into_iter()
        .try_for_each(check_time)
}

fn check_order(pieces: &[Piece], size: u64) -> Result<(), Fail> {
    if pieces.len() > FLUSH_PIECES_MAX {
        return Err(malformed("a flush has too many pieces"));
    }
    let mut end = 0;
    for piece in pieces {
        if piece.len == 0 || piece.offset < end {
            return Err(malformed("the pieces of a flush are empty or out of order"));
        }
        let piece_end = piece.offset.checked_add(u64::from(piece.len));
        end = piece_end
            .filter(|end| *end <= size)
            .ok_or_else(|| malformed("a piece of a flush is behind the end of the file"))?;
    }
    Ok(())
}

/// Where the bytes of a piece are.
fn source_of(step: &Step<'_, '_>, piece: &Piece) -> Result<Source, Fail> {
    let (id, offset, bytes_max) = match piece.data {
        PieceData::Inline { offset } => {
            let payload = ChunkId::payload(step.context.log_index);
            (payload, offset, step.context.payload_len)
        }
        PieceData::Chunk { id, offset } => {
            sessions::check_chunk(step.txn, id)?;
            (id, offset, u64::from(CHUNK_BYTES_MAX))
        }
    };
    if u64::from(offset) + u64::from(piece.len) > bytes_max {
        return Err(malformed("a piece of a flush is not where its bytes are"));
    }
    Ok(Source::Chunk { id, offset })
}
