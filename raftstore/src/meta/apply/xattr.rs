//! Extended attributes, and the two of them that are access control lists.

use bytes::Bytes;

use crate::meta::types::*;
use crate::meta::{Refusal, Reply, XattrMode, keys, tables, value};

use super::acl::Acl;
use super::step::{Fail, Step, malformed};

/// The list that decides access.
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that what is made in a directory inherits.
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
/// Longest name of an attribute, bytes.
const XATTR_NAME_BYTES_MAX: usize = 255;
/// What all names of an inode's attributes may take, each with its NUL, so that listxattr can return them.
const XATTR_LIST_BYTES_MAX: usize = 65_536;

pub(super) fn set(
    step: &mut Step<'_, '_>,
    ino: Ino,
    name: &Bytes,
    value: &Bytes,
    mode: XattrMode,
    kill_sgid: bool,
) -> Result<Reply, Fail> {
    if name.is_empty() || name.contains(&0) {
        return Err(malformed("not a name of an extended attribute"));
    }
    if name.len() > XATTR_NAME_BYTES_MAX || value.len() > XATTR_BYTES_MAX {
        return Err(Refusal::AttributeTooLarge.into());
    }
    let inode = step.inode(ino)?;
    step.check_writable(&inode)?;
    let exists = inode.has_xattrs && tables::xattr(step.txn, ino, name)?.is_some();
    match (mode, exists) {
        (XattrMode::Create, true) => return Err(Refusal::Exists.into()),
        (XattrMode::Replace, false) => return Err(Refusal::NoAttribute.into()),
        _ => {}
    }
    match &name[..] {
        ACL_ACCESS => set_access_acl(step, &inode, value, kill_sgid)?,
        ACL_DEFAULT => set_default_acl(step, &inode, value)?,
        _ => step.put_xattr(ino, name, value)?,
    }
    step.attributes_changed(ino)?;
    Ok(Reply::Done)
}

pub(super) fn remove(step: &mut Step<'_, '_>, ino: Ino, name: &Bytes) -> Result<Reply, Fail> {
    let inode = step.inode(ino)?;
    step.check_writable(&inode)?;
    if inode.has_xattrs && tables::xattr(step.txn, ino, name)?.is_some() {
        step.remove_xattr(ino, name)?;
        step.attributes_changed(ino)?;
    } else if !matches!(&name[..], ACL_ACCESS | ACL_DEFAULT) {
        // Linux lets a list be removed that is not there.
        return Err(Refusal::NoAttribute.into());
    }
    Ok(Reply::Done)
}

fn decode_acl(inode: &Inode, value: &[u8]) -> Result<Option<Acl>, Fail> {
    if inode.kind == FileKind::Symlink {
        return Err(Refusal::NotSupported.into());
    }
    Ok(Acl::decode(value)?)
}

fn set_access_acl(step: &mut Step<'_, '_>, inode: &Inode, value: &[u8], kill_sgid: bool) -> Result<(), Fail> {
    let acl = decode_acl(inode, value)?;
    if let Some(acl) = &acl {
        let kept = if kill_sgid { 0o5000 } else { 0o7000 };
        step.edit(inode.ino)?.mode = inode.mode & kept | acl.mode_bits();
    }
    step.put_acl(inode.ino, ACL_ACCESS, acl.filter(|acl| !acl.is_minimal()))
}

fn set_default_acl(step: &mut Step<'_, '_>, inode: &Inode, value: &[u8]) -> Result<(), Fail> {
    let acl = decode_acl(inode, value)?;
    if acl.is_some() && inode.kind != FileKind::Directory {
        return Err(Refusal::Invalid.into());
    }
    step.put_acl(inode.ino, ACL_DEFAULT, acl)
}

/// Gives a new inode what its directory's default list says, and otherwise what the umask leaves of its mode.
pub(super) fn inherit_acls(
    step: &mut Step<'_, '_>,
    directory: &Inode,
    ino: Ino,
    umask: u32,
) -> Result<(), Fail> {
    let inode = step.inode(ino)?;
    if inode.kind == FileKind::Symlink {
        return Ok(());
    }
    let Some(default) = step.acl(directory, ACL_DEFAULT)? else {
        step.edit(ino)?.mode &= !(umask & 0o777);
        return Ok(());
    };
    let access = default.inherited(inode.mode);
    step.edit(ino)?.mode = inode.mode & 0o7000 | access.mode_bits();
    step.put_acl(ino, ACL_ACCESS, Some(access).filter(|acl| !acl.is_minimal()))?;
    if inode.kind == FileKind::Directory {
        step.put_acl(ino, ACL_DEFAULT, Some(default))?;
    }
    Ok(())
}

/// After chmod: brings the access list in step with the mode.
pub(super) fn mode_changed(step: &mut Step<'_, '_>, ino: Ino) -> Result<(), Fail> {
    let inode = step.inode(ino)?;
    if let Some(mut acl) = step.acl(&inode, ACL_ACCESS)? {
        acl.chmod(inode.mode);
        step.put_acl(ino, ACL_ACCESS, Some(acl))?;
    }
    Ok(())
}

impl Step<'_, '_> {
    fn acl(&self, inode: &Inode, name: &[u8]) -> Result<Option<Acl>, Fail> {
        if !inode.has_xattrs {
            return Ok(None);
        }
        let coded = tables::xattr(self.txn, inode.ino, name)?;
        Ok(coded.map(|coded| Acl::decode(&coded)).transpose()?.flatten())
    }

    fn put_acl(&mut self, ino: Ino, name: &[u8], acl: Option<Acl>) -> Result<(), Fail> {
        match acl {
            Some(acl) => self.put_xattr(ino, name, &acl.encode()),
            None => self.remove_xattr(ino, name),
        }
    }

    fn put_xattr(&mut self, ino: Ino, name: &[u8], value: &Bytes) -> Result<(), Fail> {
        let key = keys::xattr(ino, name);
        if self.txn.get(&key)?.is_none() {
            let names = tables::xattr_names(self.txn, ino)?;
            let list_bytes: usize = names.iter().map(|name| name.len() + 1).sum();
            if list_bytes + name.len() + 1 > XATTR_LIST_BYTES_MAX {
                return Err(Refusal::NoSpace.into());
            }
        }
        self.txn.put(key.into(), value::encode(value)?);
        self.edit(ino)?.has_xattrs = true;
        Ok(())
    }

    /// No error if it is not there.
    fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<(), Fail> {
        if self.inode(ino)?.has_xattrs {
            self.txn.delete(keys::xattr(ino, name).into());
            self.edit(ino)?.has_xattrs = tables::any(self.txn, &keys::xattr(ino, b""))?;
        }
        Ok(())
    }
}
