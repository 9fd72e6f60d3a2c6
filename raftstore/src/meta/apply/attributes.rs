//! chmod, chown, truncate, utimensat.

use crate::clock::Timestamp;
use crate::meta::types::*;
use crate::meta::{AttrChange, Refusal, Reply, SetTime};

use super::step::{Fail, Step, check_time};
use super::xattr;

pub(super) fn set(step: &mut Step<'_, '_>, ino: Ino, change: &AttrChange) -> Result<Reply, Fail> {
    let inode = step.inode(ino)?;
    if *change == AttrChange::default() {
        return Ok(Reply::Inode(inode));
    }
    step.check_writable(&inode)?;
    if let Some(size) = change.size {
        step.file(ino)?;
        step.resize(ino, size)?;
    }
    step.attributes_changed(ino)?;
    if let Some(uid) = change.uid {
        step.edit(ino)?.uid = uid;
    }
    if let Some(gid) = change.gid {
        step.edit(ino)?.gid = gid;
    }
    if let Some(mode) = change.mode {
        if inode.kind == FileKind::Symlink {
            return Err(Refusal::NotSupported.into());
        }
        step.edit(ino)?.mode = mode & 0o7777;
        xattr::mode_changed(step, ino)?;
    }
    if change.kill_suid_sgid {
        step.kill_suid_sgid(ino)?;
    }
    if let Some(atime) = change.atime {
        let time = resolve(step, atime)?;
        step.edit(ino)?.atime = time;
    }
    // A new size has moved mtime to now already, and in a way that no other change has.
    if let Some(mtime) = change
        .mtime
        .filter(|mtime| change.size.is_none() || *mtime != SetTime::Now)
    {
        let time = resolve(step, mtime)?;
        step.edit(ino)?.mtime = time;
    }
    Ok(Reply::Inode(step.inode(ino)?))
}

fn resolve(step: &Step<'_, '_>, time: SetTime) -> Result<Timestamp, Fail> {
    match time {
        SetTime::Now => Ok(step.time()),
        SetTime::At(time) => check_time(time).map(|()| time),
    }
}
