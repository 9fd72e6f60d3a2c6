//! Names: making, linking and removing them.

use bytes::Bytes;

use crate::kv::KvError;
use crate::meta::keys::{self, Counter};
use crate::meta::tables::{self, NamedEntry};
use crate::meta::types::*;
use crate::meta::{Event, NewInode, RESERVED_INODES_MAX, Refusal, Reply, value};

use super::projects::check_same_project;
use super::step::{Fail, Step, add, malformed};
use super::xattr;

/// Refuses what cannot be the name of an entry. The kernel never asks for the malformed ones.
pub(super) fn check_name(name: &[u8]) -> Result<(), Fail> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Refusal::NameTooLong.into());
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(malformed("not a name of a directory entry"));
    }
    Ok(())
}

/// The first number that is given to an inode.
pub(super) const FIRST_INO: Ino = ROOT_INO + 1;

impl Step<'_, '_> {
    /// The number that was reserved, if it can have been, or else the next one.
    pub(super) fn number_for_inode(&mut self, reserved: Option<Ino>) -> Result<Ino, Fail> {
        let Some(ino) = reserved else {
            if self.context.speculative {
                return Err(malformed("an inode has no reserved number"));
            }
            return self.count(Counter::NextIno, FIRST_INO, 1);
        };
        let next = tables::counter(self.txn, Counter::NextIno)?.unwrap_or(FIRST_INO);
        if ino < FIRST_INO || ino >= next && !self.context.speculative {
            return Err(malformed("an inode's number was never reserved"));
        }
        if self.find(ino)?.is_some() {
            return Err(malformed("an inode's number is taken"));
        }
        Ok(ino)
    }

    pub(super) fn entry(&self, parent: Ino, name: &[u8]) -> Result<Option<Dirent>, Fail> {
        Ok(tables::entry(self.txn, parent, name)?)
    }

    fn put_entry(&mut self, parent: Ino, name: &Bytes, entry: Dirent) -> Result<(), Fail> {
        let named = NamedEntry {
            name: name.clone(),
            ino: entry.ino,
            kind: entry.kind,
        };
        self.txn
            .put(keys::entry_by_name(parent, name).into(), value::encode(&entry)?);
        self.txn.put(
            keys::entry_by_cookie(parent, entry.cookie).into(),
            value::encode(&named)?,
        );
        self.events.push(Event::Entry {
            parent,
            name: name.clone(),
            by: self.context.session,
        });
        self.contents_changed(parent)
    }

    /// Adds an entry at the end of the directory's order.
    pub(super) fn add_entry(
        &mut self,
        parent: Ino,
        name: &Bytes,
        ino: Ino,
        kind: FileKind,
    ) -> Result<(), Fail> {
        let directory = self.edit(parent)?;
        let cookie = directory.next_cookie;
        directory.next_cookie = add("a directory's next cookie", cookie, 1)?;
        directory.size = directory.size.saturating_add(1);
        self.put_entry(parent, name, Dirent { ino, kind, cookie })
    }

    /// Makes an entry stand for something else, in the same place of the directory's order.
    pub(super) fn replace_entry(
        &mut self,
        parent: Ino,
        name: &Bytes,
        old: Dirent,
        new: Dirent,
    ) -> Result<(), Fail> {
        self.put_entry(
            parent,
            name,
            Dirent {
                cookie: old.cookie,
                ..new
            },
        )
    }

    pub(super) fn remove_entry(&mut self, parent: Ino, name: &Bytes, entry: Dirent) -> Result<(), Fail> {
        self.txn.delete(keys::entry_by_name(parent, name).into());
        self.txn
            .delete(keys::entry_by_cookie(parent, entry.cookie).into());
        let directory = self.edit(parent)?;
        directory.size = directory.size.saturating_sub(1);
        self.events.push(Event::Entry {
            parent,
            name: name.clone(),
            by: self.context.session,
        });
        self.contents_changed(parent)
    }

    /// Moves an inode's count of links; what it is then.
    pub(super) fn count_link(&mut self, ino: Ino, delta: i32) -> Result<u32, Fail> {
        let inode = self.edit(ino)?;
        let nlink = inode.nlink.checked_add_signed(delta);
        inode.nlink =
            nlink.ok_or_else(|| KvError::Damaged(format!("inode {ino} has {} links", inode.nlink)))?;
        Ok(inode.nlink)
    }

    /// Drops a link; an inode without links becomes an orphan.
    pub(super) fn drop_link(&mut self, ino: Ino) -> Result<(), Fail> {
        self.attributes_changed(ino)?;
        if self.count_link(ino, -1)? == 0 {
            self.orphan(ino)?;
        }
        Ok(())
    }

    /// Removes a directory that is empty and whose entry is gone or taken.
    pub(super) fn drop_directory(&mut self, ino: Ino) -> Result<(), Fail> {
        self.attributes_changed(ino)?;
        let inode = self.edit(ino)?;
        inode.nlink = 0;
        inode.parent = 0;
        let inode = inode.clone();
        self.root_dropped(&inode)?;
        self.orphan(ino)
    }

    fn orphan(&mut self, ino: Ino) -> Result<(), Fail> {
        self.txn.put(keys::orphan(ino).into(), value::encode(&())?);
        self.events.push(Event::Orphaned { ino });
        Ok(())
    }
}

pub(super) fn create(
    step: &mut Step<'_, '_>,
    parent: Ino,
    name: &Bytes,
    new: &NewInode,
    exclusive: bool,
    reserved: Option<Ino>,
) -> Result<Reply, Fail> {
    check_name(name)?;
    let directory = step.directory(parent)?;
    if let Some(entry) = step.entry(parent, name)? {
        return match exclusive {
            true => Err(Refusal::Exists.into()),
            false => Ok(Reply::Existing(step.inode(entry.ino)?)),
        };
    }
    step.check_writable(&directory)?;
    check_target(new)?;
    if new.kind == FileKind::Directory && directory.nlink >= LINKS_MAX {
        return Err(Refusal::TooManyLinks.into());
    }
    let ino = step.number_for_inode(reserved)?;
    step.add_inode(new_inode(step, ino, &directory, new));
    xattr::inherit_acls(step, &directory, ino, new.umask)?;
    step.add_entry(parent, name, ino, new.kind)?;
    if new.kind == FileKind::Directory {
        step.count_link(parent, 1)?;
    }
    Ok(Reply::Inode(step.inode(ino)?))
}

/// Sets numbers for inodes aside.
pub(super) fn reserve(step: &mut Step<'_, '_>, count: u32) -> Result<Reply, Fail> {
    if count == 0 || count > RESERVED_INODES_MAX {
        return Err(malformed("that many inode numbers cannot be reserved"));
    }
    Ok(Reply::Reserved {
        first: step.count(Counter::NextIno, FIRST_INO, count)?,
    })
}

fn check_target(new: &NewInode) -> Result<(), Fail> {
    if new.kind != FileKind::Symlink {
        return if new.target.is_empty() {
            Ok(())
        } else {
            Err(malformed("only a symlink has a target"))
        };
    }
    if new.target.is_empty() {
        return Err(Refusal::NotFound.into());
    }
    if new.target.len() > SYMLINK_BYTES_MAX {
        return Err(Refusal::NameTooLong.into());
    }
    if new.target.contains(&0) {
        return Err(malformed("a symlink's target has a NUL"));
    }
    Ok(())
}

pub(super) fn new_inode(step: &Step<'_, '_>, ino: Ino, directory: &Inode, new: &NewInode) -> Inode {
    let is_directory = new.kind == FileKind::Directory;
    let setgid_parent = directory.mode & 0o2000 != 0;
    let mode = match new.kind {
        FileKind::Symlink => 0o777,
        FileKind::Directory if setgid_parent => new.mode & 0o7777 | 0o2000,
        _ => new.mode & 0o7777,
    };
    let is_device = matches!(new.kind, FileKind::CharDevice | FileKind::BlockDevice);
    let time = step.time();
    Inode {
        ino,
        kind: new.kind,
        mode,
        uid: new.uid,
        gid: if setgid_parent { directory.gid } else { new.gid },
        nlink: if is_directory { 2 } else { 1 },
        rdev: if is_device { new.rdev } else { 0 },
        size: new.target.len() as u64,
        allocated_bytes: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        parent: if is_directory { directory.ino } else { 0 },
        target: new.target.clone(),
        next_cookie: FIRST_COOKIE,
        has_xattrs: false,
        data_version: 0,
        contents_time: time,
        project: directory.project,
    }
}

pub(super) fn link(step: &mut Step<'_, '_>, ino: Ino, parent: Ino, name: &Bytes) -> Result<Reply, Fail> {
    check_name(name)?;
    let directory = step.directory(parent)?;
    if step.entry(parent, name)?.is_some() {
        return Err(Refusal::Exists.into());
    }
    step.check_writable(&directory)?;
    let inode = step.find(ino)?.ok_or(Refusal::NotFound)?;
    if inode.kind == FileKind::Directory {
        return Err(Refusal::NotPermitted.into());
    }
    if inode.nlink == 0 {
        return Err(Refusal::NotFound.into());
    }
    if inode.nlink >= LINKS_MAX {
        return Err(Refusal::TooManyLinks.into());
    }
    check_same_project(&inode, &directory)?;
    step.add_entry(parent, name, ino, inode.kind)?;
    step.count_link(ino, 1)?;
    step.attributes_changed(ino)?;
    Ok(Reply::Inode(step.inode(ino)?))
}

pub(super) fn unlink(step: &mut Step<'_, '_>, parent: Ino, name: &Bytes) -> Result<Reply, Fail> {
    check_name(name)?;
    let directory = step.directory(parent)?;
    let entry = step.entry(parent, name)?.ok_or(Refusal::NotFound)?;
    step.check_writable(&directory)?;
    if entry.kind == FileKind::Directory {
        return Err(Refusal::IsDirectory.into());
    }
    step.remove_entry(parent, name, entry)?;
    step.drop_link(entry.ino)?;
    Ok(Reply::Inode(step.inode(entry.ino)?))
}

pub(super) fn rmdir(step: &mut Step<'_, '_>, parent: Ino, name: &Bytes) -> Result<Reply, Fail> {
    check_name(name)?;
    let directory = step.directory(parent)?;
    let entry = step.entry(parent, name)?.ok_or(Refusal::NotFound)?;
    step.check_writable(&directory)?;
    if entry.kind != FileKind::Directory {
        return Err(Refusal::NotDirectory.into());
    }
    step.check_no_volume(entry, &directory)?;
    if step.inode(entry.ino)?.size > 0 {
        return Err(Refusal::NotEmpty.into());
    }
    step.remove_entry(parent, name, entry)?;
    step.drop_directory(entry.ino)?;
    step.count_link(parent, -1)?;
    Ok(Reply::Done)
}
