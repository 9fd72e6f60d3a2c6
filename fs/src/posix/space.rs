//! Allocating, punching, seeking data and holes, copying by reference.

use bytes::Bytes;
use raftstore::meta::{AttrChange, Fallocate, FileKind, Ino, Inode, Op, Refusal, Reply, Source};

use super::lock_table::Changer;
use super::vfs::present;
use super::{Caller, FsError, Vfs};
use crate::backend::{Look, SyncWhat};

/// Largest range that one copy op shares, bytes: a copy of a huge file must not stop everything else.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// What fallocate can be asked for.
pub type FallocateMode = Fallocate;

/// What lseek can look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that was written.
    Data,
    /// The next byte that was not; the end of the file counts as a hole.
    Hole,
}

impl Vfs {
    /// Allocates, punches or zeroes a range.
    pub async fn fallocate(
        &self,
        ino: Ino,
        what: FallocateMode,
        offset: u64,
        len: u64,
        caller: Caller,
    ) -> Result<(), FsError> {
        if len == 0 {
            return Err(Refusal::Invalid.into());
        }
        let fence = self.fence(ino, Changer::through(caller.handle))?;
        if what != Fallocate::PunchHole {
            self.check_space(len).await?;
        }
        let op = Op::Fallocate {
            ino,
            what,
            offset,
            len,
        };
        let inode = self.submit_fenced_for_inode(fence, op).await?;
        self.drop_privileges(&inode, caller).await
    }

    /// The next data or hole at or after `offset`; ENXIO beyond the end, or if there is no data any more.
    pub async fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, FsError> {
        self.backend.refresh(Look::whole(&[ino])).await?;
        let reader = self.backend.reader();
        let size = present(&reader, ino)?.size;
        if !self.backend.unflushed(ino, offset, size).is_empty() {
            // Only extents tell what is a hole.
            self.backend.sync(SyncWhat::Inode(ino)).await?;
        }
        if offset >= size {
            return Err(FsError::BeyondEnd);
        }
        let mut at = offset;
        loop {
            let extents = reader.extents(ino, at, size, self.limits.extents_max)?;
            let more = extents.len() >= self.limits.extents_max;
            for extent in extents {
                let written = extent.source != Source::Zero;
                match what {
                    Seek::Data if written => return Ok(extent.offset.max(at)),
                    Seek::Hole if !written || extent.offset > at => return Ok(at),
                    Seek::Data | Seek::Hole => at = extent.end().max(at),
                }
            }
            if !more || at >= size {
                break;
            }
        }
        match what {
            Seek::Data => Err(FsError::BeyondEnd),
            Seek::Hole => Ok(at.min(size)),
        }
    }

    /// Shares a range of one file with another, or with another place of the same. Returns how many bytes: fewer than
    /// asked for at the end of the source.
    pub async fn copy_range(
        &self,
        source: (Ino, u64),
        target: (Ino, u64),
        len: u64,
        caller: Caller,
    ) -> Result<u64, FsError> {
        let (source_ino, source_offset) = source;
        let (target_ino, target_offset) = target;
        if source_offset.checked_add(len).is_none() || target_offset.checked_add(len).is_none() {
            return Err(Refusal::Invalid.into());
        }
        if source_ino == target_ino && source_offset.abs_diff(target_offset) < len {
            return Err(Refusal::Invalid.into());
        }
        let fence = self.fence(target_ino, Changer::through(caller.handle))?;
        let mut done = 0;
        while done < len {
            let step = (len - done).min(COPY_BYTES_MAX);
            let op = Op::CopyRange {
                source: source_ino,
                source_offset: source_offset + done,
                target: target_ino,
                target_offset: target_offset + done,
                len: step,
            };
            match self.submit_fenced(fence, op, Bytes::new()).await {
                Ok(Reply::Copied { len: copied, inode }) => {
                    if done == 0 && copied > 0 {
                        self.drop_privileges(&inode, caller).await?;
                    }
                    done += copied;
                    if copied < step {
                        break;
                    }
                }
                Ok(other) => return Err(FsError::unexpected(&other)),
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// What a change of contents does to setuid, setgid and capabilities, where the op itself does not.
    async fn drop_privileges(&self, inode: &Inode, caller: Caller) -> Result<(), FsError> {
        self.drop_capability(inode).await?;
        if caller.is_root() || inode.kind != FileKind::Regular || inode.mode & 0o6000 == 0 {
            return Ok(());
        }
        let change = AttrChange {
            kill_suid_sgid: true,
            ..AttrChange::default()
        };
        self.submit_for_inode(Op::SetAttr {
            ino: inode.ino,
            change,
        })
        .await?;
        Ok(())
    }
}
