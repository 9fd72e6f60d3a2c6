//! Extended attributes, POSIX ACLs among them.

use bytes::Bytes;
use raftstore::meta::{Ino, Inode, NAME_BYTES_MAX, Op, Refusal, XATTR_BYTES_MAX, XattrMode};

use super::vfs::{ENTRY_BYTES, present};
use super::{Caller, FsError, Vfs};
use crate::backend::Look;

/// What the kernel takes as a list of names.
pub const XATTR_LIST_BYTES_MAX: usize = 65_536;
/// File capabilities: gone as soon as the file's contents or owner change.
const CAPABILITY: &[u8] = b"security.capability";

impl Vfs {
    /// The value of an attribute; ENODATA if there is none.
    pub async fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, FsError> {
        check_namespace(name)?;
        self.backend.refresh(Look::whole(&[ino])).await?;
        let reader = self.backend.reader();
        if !present(&reader, ino)?.has_xattrs {
            return Err(Refusal::NoAttribute.into());
        }
        reader
            .xattr(ino, name)?
            .ok_or_else(|| Refusal::NoAttribute.into())
    }

    /// All names, each followed by NUL. `trusted.*` is for root's eyes only.
    pub async fn list_xattrs(&self, ino: Ino, caller: Caller) -> Result<Vec<u8>, FsError> {
        self.backend.refresh(Look::whole(&[ino])).await?;
        let reader = self.backend.reader();
        let mut list = Vec::new();
        if !present(&reader, ino)?.has_xattrs {
            return Ok(list);
        }
        for name in reader.xattr_names(ino)? {
            if caller.is_root() || !name.starts_with(b"trusted.") {
                list.extend_from_slice(&name);
                list.push(0);
            }
        }
        Ok(list)
    }

    /// Sets an attribute.
    pub async fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: Bytes,
        mode: XattrMode,
        kill_sgid: bool,
    ) -> Result<(), FsError> {
        check_namespace(name)?;
        if value.len() > XATTR_BYTES_MAX {
            return Err(Refusal::AttributeTooLarge.into());
        }
        self.check_space(ENTRY_BYTES.max(value.len() as u64)).await?;
        self.submit_for_nothing(Op::SetXattr {
            ino,
            name: name.to_vec().into(),
            value,
            mode,
            kill_sgid,
        })
        .await
    }

    /// Removes an attribute; ENODATA if there is none.
    pub async fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        check_namespace(name)?;
        let name = name.to_vec().into();
        self.submit_for_nothing(Op::RemoveXattr { ino, name }).await
    }

    /// Takes the file's capabilities away, as whoever changes contents or owner must.
    pub(super) async fn drop_capability(&self, inode: &Inode) -> Result<(), FsError> {
        if !inode.has_xattrs || self.backend.reader().xattr(inode.ino, CAPABILITY)?.is_none() {
            return Ok(());
        }
        match self.remove_xattr(inode.ino, CAPABILITY).await {
            Err(FsError::Refused(Refusal::NoAttribute)) => Ok(()),
            other => other,
        }
    }
}

/// EOPNOTSUPP unless the name is in a namespace that is kept.
fn check_namespace(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::BufferTooSmall);
    }
    let prefixed = |prefix: &[u8]| name.starts_with(prefix) && name.len() > prefix.len();
    let known = prefixed(b"user.")
        || prefixed(b"trusted.")
        || prefixed(b"security.")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default";
    if known {
        Ok(())
    } else {
        Err(Refusal::NotSupported.into())
    }
}
