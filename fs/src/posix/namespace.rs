//! Names: making, linking, renaming and removing them.

use raftstore::meta::{FileKind, Ino, Inode, NewInode, Op, Refusal, RenameMode, SYMLINK_BYTES_MAX};

use super::vfs::{ENTRY_BYTES, check_name_length};
use super::{FsError, Vfs};

impl Vfs {
    /// Makes anything that has a name: file, directory, symlink, pipe, socket, device. EEXIST if the name is taken.
    pub async fn make(&self, parent: Ino, name: &[u8], new: NewInode) -> Result<Inode, FsError> {
        check_name_length(name)?;
        if new.kind == FileKind::Symlink {
            if new.target.is_empty() {
                return Err(Refusal::NotFound.into());
            }
            if new.target.len() > SYMLINK_BYTES_MAX {
                return Err(Refusal::NameTooLong.into());
            }
        }
        self.check_space(ENTRY_BYTES).await?;
        self.submit_for_inode(Op::Create {
            parent,
            name: name.to_vec().into(),
            new,
            exclusive: true,
            ino: None,
        })
        .await
    }

    /// Gives an inode another name.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Inode, FsError> {
        check_name_length(name)?;
        self.check_space(ENTRY_BYTES).await?;
        let name = name.to_vec().into();
        self.submit_for_inode(Op::Link { ino, parent, name }).await
    }

    /// Removes a name that is not a directory's.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        check_name_length(name)?;
        let name = name.to_vec().into();
        self.submit_for_inode(Op::Unlink { parent, name }).await?;
        Ok(())
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        check_name_length(name)?;
        let name = name.to_vec().into();
        self.submit_for_nothing(Op::Rmdir { parent, name }).await
    }

    /// Renames, replaces, or swaps two names.
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), FsError> {
        check_name_length(name)?;
        check_name_length(new_name)?;
        self.submit_for_nothing(Op::Rename {
            parent,
            name: name.to_vec().into(),
            new_parent,
            new_name: new_name.to_vec().into(),
            mode,
        })
        .await
    }
}
