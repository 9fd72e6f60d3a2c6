//! Reading: extents put together, holes as zeros.

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use raftstore::meta::{ChunkId, Extent, Ino, Inode, Reader, Source};

use super::vfs::present;
use super::{FsError, Vfs};
use crate::backend::{BackendError, Look};

/// How often a read begins anew because the file changed under it.
const READ_TRIES: u32 = 64;
/// From this try on, bytes of different moments may stand side by side, as long as none is beyond the end.
const STRICT_TRIES: u32 = 8;

/// Bytes of a chunk that a read needs.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Where they go, from the start of the read.
    at: usize,
    chunk: ChunkId,
    /// Where they are in the chunk.
    offset: u32,
    len: u32,
}

impl Vfs {
    /// Up to `len` bytes from `offset`; fewer only at the end of the file.
    pub async fn read(&self, ino: Ino, offset: u64, len: u32) -> Result<Bytes, FsError> {
        for attempt in 0..READ_TRIES {
            // Each time: a chunk that is gone may be the effect of something that this node has not applied yet.
            self.backend.refresh(Look::whole(&[ino])).await?;
            match self.try_read(ino, offset, len, attempt < STRICT_TRIES).await {
                // Merged, cut off or overwritten since the extents were read.
                Err(FsError::Backend(BackendError::ChunkGone(_))) => {}
                Err(error) => return Err(error),
                Ok(Some(data)) => return Ok(data),
                Ok(None) => {}
            }
        }
        Err(FsError::Unstable)
    }

    /// `None` if the file changed while its extents were read.
    async fn try_read(
        &self,
        ino: Ino,
        offset: u64,
        len: u32,
        strict: bool,
    ) -> Result<Option<Bytes>, FsError> {
        let reader = self.backend.reader();
        let before = present(&reader, ino)?;
        let end = offset.saturating_add(u64::from(len)).min(before.size);
        if offset >= end {
            return Ok(Some(Bytes::new()));
        }
        let length = usize::try_from(end - offset).unwrap_or(usize::MAX);
        // After the inode, or it could lack bytes that the size counts; before the extents, or what is flushed in between
        // would be in neither.
        let unflushed = self.backend.unflushed(ino, offset, end);
        let committed_end = if unflushed.covers(offset, end) {
            offset
        } else {
            unflushed.committed_end(end)
        };
        let mut data = BytesMut::new();
        let mut from = offset;
        while from < committed_end {
            let extents = reader.extents(ino, from, committed_end, self.limits.extents_max)?;
            if !still_same(&reader, &before, end, strict)? {
                return Ok(None);
            }
            if unflushed.is_empty()
                && let [extent] = extents.as_slice()
                && let Some(piece) = clip(extent, offset, offset, end)
                && piece.len as usize == length
            {
                // All of it is in one chunk, as in a file that was written from one end to the other: nothing is copied.
                return Ok(Some(self.fetch_piece(piece).await?.1));
            }
            let more = extents.len() >= self.limits.extents_max;
            let next = extents.last().map_or(end, Extent::end);
            data.resize(length, 0);
            self.fetch(&extents, offset, from, committed_end, &mut data)
                .await?;
            if !more || next <= from {
                break;
            }
            from = next;
        }
        data.resize(length, 0);
        unflushed.put_over(offset, &mut data);
        Ok(Some(data.freeze()))
    }

    /// Puts what `extents` hold of `from..end` into `data`, whose first byte is the file's at `start`.
    async fn fetch(
        &self,
        extents: &[Extent],
        start: u64,
        from: u64,
        end: u64,
        data: &mut [u8],
    ) -> Result<(), FsError> {
        let pieces = extents.iter().filter_map(|extent| clip(extent, start, from, end));
        // Gathered by a loop: the compiler cannot prove that a stream over a closure may move between threads.
        let mut fetches = Vec::new();
        for piece in pieces {
            fetches.push(self.fetch_piece(piece));
        }
        let mut fetched = stream::iter(fetches).buffered(self.limits.chunk_reads_max);
        while let Some((piece, bytes)) = fetched.try_next().await? {
            if let Some(target) = data.get_mut(piece.at..piece.at + bytes.len()) {
                target.copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    async fn fetch_piece(&self, piece: Piece) -> Result<(Piece, Bytes), FsError> {
        let bytes = self
            .backend
            .read_chunk(piece.chunk, piece.offset, piece.len)
            .await?;
        if bytes.len() != piece.len as usize {
            return Err(BackendError::ChunkLost(piece.chunk).into());
        }
        Ok((piece, bytes))
    }
}

/// The part of an extent that lies in `from..end`, if it has bytes of its own.
fn clip(extent: &Extent, start: u64, from: u64, end: u64) -> Option<Piece> {
    let first = extent.offset.max(from);
    let last = extent.end().min(end);
    if first >= last {
        return None;
    }
    let Source::Chunk { id, offset } = extent.source else {
        return None;
    };
    Some(Piece {
        at: usize::try_from(first - start).ok()?,
        chunk: id,
        offset: offset.checked_add(u32::try_from(first - extent.offset).ok()?)?,
        len: u32::try_from(last - first).ok()?,
    })
}

/// Whether extents read after `before` fit it. A file that was cut meanwhile would show zeros that it never held.
fn still_same(reader: &Reader, before: &Inode, end: u64, strict: bool) -> Result<bool, FsError> {
    let now = present(reader, before.ino)?;
    Ok(now.data_version == before.data_version || (!strict && now.size >= end))
}
