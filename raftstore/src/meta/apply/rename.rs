//! Renaming, in all its cases.

use bytes::Bytes;

use crate::kv::KvError;
use crate::meta::types::*;
use crate::meta::{Refusal, RenameMode, Reply, tables};

use super::namespace::check_name;
use super::projects::check_same_project;
use super::step::{Fail, Step, malformed};

/// A directory and a name in it.
type Place<'a> = (Ino, &'a Bytes);

pub(super) fn rename(
    step: &mut Step<'_, '_>,
    from: Place<'_>,
    to: Place<'_>,
    mode: RenameMode,
) -> Result<Reply, Fail> {
    check_name(from.1)?;
    check_name(to.1)?;
    let old_directory = step.directory(from.0)?;
    let new_directory = step.directory(to.0)?;
    let moved = step.entry(from.0, from.1)?.ok_or(Refusal::NotFound)?;
    let found = step.entry(to.0, to.1)?;
    match (mode, found) {
        (RenameMode::NoReplace, Some(_)) => return Err(Refusal::Exists.into()),
        (RenameMode::Exchange, None) => return Err(Refusal::NotFound.into()),
        // Two names of one inode: POSIX wants nothing to happen.
        (_, Some(found)) if found.ino == moved.ino => return Ok(Reply::Done),
        _ => {}
    }
    step.check_writable(&old_directory)?;
    step.check_writable(&new_directory)?;
    check_same_project(&old_directory, &new_directory)?;
    step.check_no_volume(moved, &old_directory)?;
    if let Some(found) = found {
        step.check_no_volume(found, &new_directory)?;
    }
    if from.0 != to.0 {
        check_no_loop(step, moved, to.0)?;
    }
    match (mode, found) {
        (RenameMode::Exchange, Some(found)) => exchange(step, from, moved, to, found)?,
        (_, Some(found)) => replace(step, from, moved, to, found)?,
        (_, None) => {
            make_room_for(step, moved, from.0, to.0)?;
            step.remove_entry(from.0, from.1, moved)?;
            step.add_entry(to.0, to.1, moved.ino, moved.kind)?;
            move_directory(step, moved, from.0, to.0)?;
        }
    }
    step.attributes_changed(moved.ino)?;
    Ok(Reply::Done)
}

/// EINVAL if `moved` is a directory and `into` lies in it or is it.
fn check_no_loop(step: &mut Step<'_, '_>, moved: Dirent, into: Ino) -> Result<(), Fail> {
    if moved.kind != FileKind::Directory {
        return Ok(());
    }
    // Whether that makes a loop may depend on what other nodes do at the same time: only the log can tell.
    if step.context.speculative {
        return Err(malformed(
            "a directory cannot get another parent ahead of the log",
        ));
    }
    let mut at = into;
    // No path is longer than there are inodes.
    for _ in 0..=tables::usage(step.txn)?.inodes {
        if at == moved.ino {
            return Err(Refusal::Invalid.into());
        }
        if at == ROOT_INO {
            return Ok(());
        }
        if at == 0 {
            // The tree that it is in has been removed.
            return Err(Refusal::NotFound.into());
        }
        let above = tables::inode(step.txn, at)?;
        at = above.map(|inode| inode.parent).ok_or_else(|| {
            KvError::Damaged(format!(
                "directory {at} has no inode, but one below it refers to it"
            ))
        })?;
    }
    Err(KvError::Damaged(format!("the parents of directory {into} form a loop")).into())
}

/// EMLINK if a directory would be one too many in `to`.
fn make_room_for(step: &mut Step<'_, '_>, moved: Dirent, from: Ino, to: Ino) -> Result<(), Fail> {
    if moved.kind == FileKind::Directory && from != to && step.directory(to)?.nlink >= LINKS_MAX {
        return Err(Refusal::TooManyLinks.into());
    }
    Ok(())
}

/// Gives a directory another parent, and both parents the right number of links.
fn move_directory(step: &mut Step<'_, '_>, moved: Dirent, from: Ino, to: Ino) -> Result<(), Fail> {
    if moved.kind == FileKind::Directory && from != to {
        step.edit(moved.ino)?.parent = to;
        step.count_link(from, -1)?;
        step.count_link(to, 1)?;
    }
    Ok(())
}

fn replace(
    step: &mut Step<'_, '_>,
    from: Place<'_>,
    moved: Dirent,
    to: Place<'_>,
    found: Dirent,
) -> Result<(), Fail> {
    match (
        moved.kind == FileKind::Directory,
        found.kind == FileKind::Directory,
    ) {
        (true, false) => return Err(Refusal::NotDirectory.into()),
        (false, true) => return Err(Refusal::IsDirectory.into()),
        (true, true) if step.inode(found.ino)?.size > 0 => return Err(Refusal::NotEmpty.into()),
        _ => {}
    }
    step.remove_entry(from.0, from.1, moved)?;
    step.replace_entry(to.0, to.1, found, moved)?;
    if found.kind == FileKind::Directory {
        step.drop_directory(found.ino)?;
        step.count_link(to.0, -1)?;
    } else {
        step.drop_link(found.ino)?;
    }
    move_directory(step, moved, from.0, to.0)
}

fn exchange(
    step: &mut Step<'_, '_>,
    from: Place<'_>,
    moved: Dirent,
    to: Place<'_>,
    found: Dirent,
) -> Result<(), Fail> {
    if from.0 != to.0 {
        check_no_loop(step, found, from.0)?;
    }
    if found.kind != FileKind::Directory {
        make_room_for(step, moved, from.0, to.0)?;
    }
    if moved.kind != FileKind::Directory {
        make_room_for(step, found, to.0, from.0)?;
    }
    step.replace_entry(from.0, from.1, moved, found)?;
    step.replace_entry(to.0, to.1, found, moved)?;
    move_directory(step, moved, from.0, to.0)?;
    move_directory(step, found, to.0, from.0)?;
    step.attributes_changed(found.ino)
}
