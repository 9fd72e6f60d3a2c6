//! Writing: small writes ride in the log, larger ones go to chunks first.

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use raftstore::meta::{Data, FILE_BYTES_MAX, Ino, Inode, Op, Refusal, Reply, WriteAt};

use super::lock_table::Changer;
use super::vfs::{Fence, present};
use super::{FsError, Vfs, WriteRequest, Written};
use crate::backend::{ChunkGuard, Look};

impl Vfs {
    /// Writes. What is written is on the media of a majority when this returns.
    pub async fn write(&self, request: WriteRequest) -> Result<Written, FsError> {
        let by = Changer {
            handle: (!request.from_mapping).then_some(request.handle),
            owner: request.owner,
            mapped: request.from_mapping,
        };
        let fence = self.fence(request.ino, by)?;
        let mut request = request;
        if request.from_mapping {
            self.clamp_to_size(&mut request).await?;
        }
        let nothing = Written {
            len: 0,
            offset: request.offset,
        };
        let len = request.data.len() as u64;
        if len == 0 {
            return Ok(nothing);
        }
        if !request.append && request.offset.saturating_add(len) > FILE_BYTES_MAX {
            return Err(Refusal::TooLarge.into());
        }
        self.check_space(len).await?;
        if let Some(inode) = self.backend.reader().inode(request.ino)? {
            self.drop_capability(&inode).await?;
        }
        let (ino, kernels_end) = (request.ino, request.offset);
        let appends = request.append;
        let (written, inode) = if request.data.len() <= self.limits.inline_bytes_max {
            self.write_inline(fence, request).await?
        } else {
            self.write_pieces(fence, request).await?
        };
        if appends && written.offset != kernels_end {
            // The kernel's cached size was old, so what it did to its cache was elsewhere.
            self.invalidations().push(ino);
        }
        // Capabilities that another node set a moment ago; the answer is newer than the look before the write.
        self.drop_capability(&inode).await?;
        Ok(written)
    }

    async fn write_inline(&self, fence: Fence, request: WriteRequest) -> Result<(Written, Inode), FsError> {
        let at = place(&request);
        let len = request.data.len();
        let op = Op::Write {
            ino: request.ino,
            at,
            data: Data::Inline,
            kill_suid_sgid: request.kill_suid_sgid,
        };
        let (offset, inode) = written(self.submit_fenced(fence, op, request.data).await?)?;
        Ok((Written { len, offset }, inode))
    }

    /// Chunks of several pieces are stored concurrently, but placed in order: if one fails, those before it count.
    async fn write_pieces(&self, fence: Fence, request: WriteRequest) -> Result<(Written, Inode), FsError> {
        let mut stores = Vec::new();
        for piece in cut(&request.data, self.limits.piece_bytes_max) {
            stores.push(self.store(piece));
        }
        let mut stored = stream::iter(stores).buffered(self.limits.chunk_writes_max);
        let mut done: Option<(Written, Inode)> = None;
        while let Some(chunk) = stored.next().await {
            let placed = match chunk {
                Ok((guard, len)) => {
                    let so_far = done.as_ref().map_or(0, |(written, _)| written.len);
                    let at = match place(&request) {
                        WriteAt::Append => WriteAt::Append,
                        WriteAt::Offset(offset) => WriteAt::Offset(offset + so_far as u64),
                    };
                    let op = Op::Write {
                        ino: request.ino,
                        at,
                        data: Data::Chunk {
                            id: guard.id,
                            offset: 0,
                            len: u32::try_from(len).unwrap_or(u32::MAX),
                        },
                        kill_suid_sgid: request.kill_suid_sgid,
                    };
                    let reply = self.submit_fenced(fence, op, Bytes::new()).await;
                    drop(guard);
                    reply
                        .and_then(written)
                        .map(|(offset, inode)| (len, offset, inode))
                }
                Err(error) => Err(error),
            };
            match (placed, done.take()) {
                (Ok((len, offset, inode)), None) => done = Some((Written { len, offset }, inode)),
                (Ok((len, _, inode)), Some((before, _))) => {
                    let len = before.len + len;
                    done = Some((Written { len, ..before }, inode));
                }
                (Err(_), Some(before)) => return Ok(before),
                (Err(error), None) => return Err(error),
            }
        }
        done.ok_or_else(|| Refusal::Invalid.into())
    }

    async fn store(&self, piece: Bytes) -> Result<(ChunkGuard, usize), FsError> {
        let len = piece.len();
        Ok((self.backend.write_chunk(piece).await?, len))
    }

    /// Pages that were mapped may lie beyond an end that another node has moved: such bytes are gone.
    async fn clamp_to_size(&self, request: &mut WriteRequest) -> Result<(), FsError> {
        request.append = false;
        self.backend.refresh(Look::whole(&[request.ino])).await?;
        let size = self.size(request.ino)?;
        let room = usize::try_from(size.saturating_sub(request.offset)).unwrap_or(usize::MAX);
        request.data.truncate(room);
        Ok(())
    }

    fn size(&self, ino: Ino) -> Result<u64, FsError> {
        Ok(present(&self.backend.reader(), ino)?.size)
    }
}

fn place(request: &WriteRequest) -> WriteAt {
    if request.append {
        WriteAt::Append
    } else {
        WriteAt::Offset(request.offset)
    }
}

fn written(reply: Reply) -> Result<(u64, Inode), FsError> {
    match reply {
        Reply::Written { offset, inode } => Ok((offset, inode)),
        other => Err(FsError::unexpected(&other)),
    }
}

/// Consecutive pieces of at most `piece_bytes_max`, sharing the bytes.
fn cut(data: &Bytes, piece_bytes_max: usize) -> impl Iterator<Item = Bytes> + '_ {
    let step = piece_bytes_max.max(1);
    (0..data.len())
        .step_by(step)
        .map(move |start| data.slice(start..data.len().min(start + step)))
}
