//! Changing attributes, and statfs.

use raftstore::meta::{
    AttrChange, FILE_BYTES_MAX, FileKind, Ino, Inode, NAME_BYTES_MAX, NO_PROJECT, Op, Project, Refusal,
};

use super::lock_table::Changer;
use super::vfs::{Fence, present};
use super::{FileSystemSpace, FsError, Vfs};
use crate::backend::Look;

/// Unit in which statfs counts.
const BLOCK_BYTES: u32 = 4096;
/// What statfs says is left of inodes: there is no table that could fill up.
const INODES_FREE: u64 = u32::MAX as u64;

impl Vfs {
    /// Changes attributes. Permissions were checked by the kernel.
    pub async fn setattr(&self, ino: Ino, change: AttrChange) -> Result<Inode, FsError> {
        self.setattr_through(ino, None, change).await
    }

    /// Changes attributes through an open file, if `handle` names one.
    pub async fn setattr_through(
        &self,
        ino: Ino,
        handle: Option<u64>,
        mut change: AttrChange,
    ) -> Result<Inode, FsError> {
        if change.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(Refusal::TooLarge.into());
        }
        let fence = match change.size {
            Some(_) => self.fence(ino, Changer::through(handle))?,
            None => Fence::NONE,
        };
        let changes_owner = change.uid.is_some() || change.gid.is_some();
        if changes_owner || change.size.is_some() {
            self.backend.refresh(Look::whole(&[ino])).await?;
            let inode = present(&self.backend.reader(), ino)?;
            // chown takes these privileges from anything that can be executed, whoever calls it.
            change.kill_suid_sgid |= changes_owner && inode.kind != FileKind::Directory;
            self.drop_capability(&inode).await?;
        }
        self.submit_fenced_for_inode(fence, Op::SetAttr { ino, change })
            .await
    }

    /// What statfs tells of the place where `ino` is: below a directory with a quota, that is the filesystem.
    pub async fn statfs(&self, ino: Ino) -> Result<FileSystemSpace, FsError> {
        let space = self.cluster_space().await?;
        let reader = self.backend.reader();
        let mut usage = reader.usage()?;
        let (mut capacity, mut available) = (space.capacity_bytes, space.available_bytes);
        let mut inodes_free = INODES_FREE;
        let inode = reader.inode(ino)?.filter(|inode| inode.project != NO_PROJECT);
        let project = match inode {
            Some(inode) => reader.project(inode.project)?,
            None => None,
        };
        if let Some(Project {
            id,
            limits,
            usage: used,
            ..
        }) = project.filter(|project| project.limits.any())
        {
            let pending = self.backend.pending(id);
            if limits.bytes > 0 {
                let used = used.allocated_bytes.saturating_add(pending.allocated_bytes);
                capacity = limits.bytes;
                available = available.min(capacity.saturating_sub(used));
            }
            if limits.inodes > 0 {
                usage.inodes = used.inodes.saturating_add(pending.inodes);
                inodes_free = limits.inodes.saturating_sub(usage.inodes);
            }
        }
        let block_bytes = u64::from(BLOCK_BYTES);
        Ok(FileSystemSpace {
            block_bytes: BLOCK_BYTES,
            blocks: capacity / block_bytes,
            blocks_free: available.min(capacity) / block_bytes,
            inodes: usage.inodes,
            inodes_free,
            name_bytes_max: u32::try_from(NAME_BYTES_MAX).unwrap_or(u32::MAX),
        })
    }
}
