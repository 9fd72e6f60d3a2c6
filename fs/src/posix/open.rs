//! Opening, creating-and-opening, closing.

use raftstore::meta::{AttrChange, FileKind, Ino, Inode, NO_PROJECT, NewInode, Op, Refusal, Reply};

use super::lock_table::Changer;
use super::open_inodes::Opening;
use super::vfs::{ENTRY_BYTES, check_name_length, present};
use super::{Caller, FsError, OpenFlags, OpenedFile, Vfs};
use crate::backend::Look;

impl Vfs {
    /// Opens a file. Permissions were checked by the kernel.
    pub async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<OpenedFile, FsError> {
        let opening = self.open.begin_open(ino);
        let inode = self.still_there(&opening, ino).await?;
        if (flags.write || flags.truncate) && inode.kind == FileKind::Regular {
            self.check_writable(&inode)?;
        }
        let inode = self.truncate_if_asked(inode, flags).await?;
        opening.succeed();
        Ok(OpenedFile {
            handle: self.new_file_handle(ino),
            inode,
        })
    }

    /// Opens a directory.
    pub async fn open_dir(&self, ino: Ino) -> Result<OpenedFile, FsError> {
        let opening = self.open.begin_open(ino);
        let inode = self.still_there(&opening, ino).await?;
        if inode.kind != FileKind::Directory {
            return Err(Refusal::NotDirectory.into());
        }
        opening.succeed();
        Ok(OpenedFile {
            handle: self.new_handle(),
            inode,
        })
    }

    /// Creates a regular file and opens it; without `flags.exclusive`, opens what has the name meanwhile.
    pub async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: NewInode,
        flags: OpenFlags,
    ) -> Result<OpenedFile, FsError> {
        check_name_length(name)?;
        self.check_space(ENTRY_BYTES).await?;
        let caller = Caller {
            uid: new.uid,
            gid: new.gid,
            handle: None,
        };
        let creating = self.open.begin_create();
        let reply = self
            .submit(Op::Create {
                parent,
                name: name.to_vec().into(),
                new,
                exclusive: flags.exclusive,
                ino: None,
            })
            .await?;
        match reply {
            Reply::Inode(inode) => {
                self.open.saw(inode.ino);
                self.open.begin_open(inode.ino).succeed();
                drop(creating);
                Ok(OpenedFile {
                    handle: self.new_file_handle(inode.ino),
                    inode,
                })
            }
            // Someone else was faster, and nobody has checked permissions on what they made.
            Reply::Existing(inode) if may_surely_open(&inode, caller, flags) => {
                drop(creating);
                self.open(inode.ino, flags).await
            }
            // ESTALE makes the kernel look the name up and try again, with its own permission checks.
            Reply::Existing(_) => Err(Refusal::Stale.into()),
            other => Err(FsError::unexpected(&other)),
        }
    }

    /// Closes a handle: its open-file-description and flock locks go.
    pub async fn release(&self, ino: Ino, handle: u64) -> Result<(), FsError> {
        let unlocked = self.unlock_handle(ino, handle).await;
        self.open.close(ino);
        self.locks.closed(ino, handle);
        self.forget_unreadable(ino);
        unlocked
    }

    /// Bytes that nobody can read any more need not be pushed.
    pub(super) fn forget_unreadable(&self, ino: Ino) {
        let is_open = || !self.open.open_among(&[ino]).is_empty();
        self.backend.forget_unreadable(ino, &is_open);
    }

    /// Closes a directory's handle.
    pub fn release_dir(&self, ino: Ino) {
        self.open.close(ino);
    }

    /// The inode, unless it lost its last name while nobody here had it open: then it may be freed at any moment.
    async fn still_there(&self, opening: &Opening, ino: Ino) -> Result<Inode, FsError> {
        self.backend.refresh(Look::whole(&[ino])).await?;
        let inode = present(&self.backend.reader(), ino)?;
        if inode.nlink == 0 && !opening.was_open {
            return Err(Refusal::Stale.into());
        }
        Ok(inode)
    }

    /// EROFS for what is in a snapshot.
    fn check_writable(&self, inode: &Inode) -> Result<(), FsError> {
        if inode.project == NO_PROJECT {
            return Ok(());
        }
        let project = self.backend.reader().project(inode.project)?;
        if project.is_some_and(|project| project.is_read_only()) {
            return Err(Refusal::ReadOnly.into());
        }
        Ok(())
    }

    async fn truncate_if_asked(&self, inode: Inode, flags: OpenFlags) -> Result<Inode, FsError> {
        if !flags.truncate || inode.kind != FileKind::Regular {
            return Ok(inode);
        }
        self.drop_capability(&inode).await?;
        let ino = inode.ino;
        let fence = self.fence(ino, Changer::default())?;
        let change = AttrChange {
            size: Some(0),
            kill_suid_sgid: flags.kill_suid_sgid,
            ..AttrChange::default()
        };
        let op = Op::SetAttr { ino, change };
        self.submit_fenced_for_inode(fence, op).await
    }
}

/// Whether the caller may open the file beyond doubt, judged without supplementary groups and ACLs.
fn may_surely_open(inode: &Inode, caller: Caller, flags: OpenFlags) -> bool {
    if inode.kind != FileKind::Regular {
        return false;
    }
    if caller.is_root() {
        return true;
    }
    let mut wanted = 0;
    if flags.read {
        wanted |= 0o4;
    }
    if flags.write || flags.truncate {
        wanted |= 0o2;
    }
    caller.uid == inode.uid && (inode.mode >> 6) & wanted == wanted
}
