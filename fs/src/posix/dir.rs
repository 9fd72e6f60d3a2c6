//! Listing directories.
//!
//! A name keeps its cookie for as long as it stands in the directory, and new names get higher ones. So a listing
//! needs no snapshot: what was there from beginning to end is seen exactly once.

use bytes::Bytes;
use raftstore::meta::{FIRST_COOKIE, FileKind, Ino, Inode};

use super::vfs::directory;
use super::{FsError, Vfs};
use crate::backend::Look;

/// Cookie of `.`.
const SELF_COOKIE: u64 = 1;
/// Cookie of `..`.
const PARENT_COOKIE: u64 = 2;

/// One name in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Bytes,
    /// What it stands for.
    pub ino: Ino,
    /// That inode's kind.
    pub kind: FileKind,
    /// Where a listing goes on after this entry.
    pub cookie: u64,
}

impl Vfs {
    /// Up to `entries_max` entries after `cookie` (0: from the start). Empty at the end.
    pub async fn read_dir(
        &self,
        ino: Ino,
        cookie: u64,
        entries_max: usize,
    ) -> Result<Vec<DirEntry>, FsError> {
        self.backend.refresh(Look::whole(&[ino])).await?;
        let reader = self.backend.reader();
        let dir = directory(&reader, ino)?;
        let mut entries = Vec::new();
        if dir.nlink == 0 {
            return Ok(entries);
        }
        for (dot_cookie, name, ino) in [
            (SELF_COOKIE, &b"."[..], dir.ino),
            (PARENT_COOKIE, &b".."[..], dir.parent),
        ] {
            if cookie < dot_cookie {
                entries.push(DirEntry {
                    name: Bytes::from_static(name),
                    ino,
                    kind: FileKind::Directory,
                    cookie: dot_cookie,
                });
            }
        }
        let after = cookie.max(FIRST_COOKIE - 1);
        let room = entries_max.saturating_sub(entries.len()).max(1);
        for item in reader.list(ino, after, room)? {
            entries.push(DirEntry {
                name: item.name,
                ino: item.entry.ino,
                kind: item.entry.kind,
                cookie: item.entry.cookie,
            });
        }
        Ok(entries)
    }

    /// As [`Vfs::read_dir`], with the inodes; an entry that vanished meanwhile is left out.
    pub async fn read_dir_plus(
        &self,
        ino: Ino,
        mut cookie: u64,
        entries_max: usize,
    ) -> Result<Vec<(DirEntry, Inode)>, FsError> {
        loop {
            let entries = self.read_dir(ino, cookie, entries_max).await?;
            let Some(last) = entries.last() else {
                return Ok(Vec::new());
            };
            cookie = last.cookie;
            let inodes: Vec<Ino> = entries.iter().map(|entry| entry.ino).collect();
            self.backend.refresh(Look::attributes(&inodes)).await?;
            let reader = self.backend.reader();
            let mut listed = Vec::with_capacity(entries.len());
            for entry in entries {
                if let Some(inode) = reader.inode(entry.ino)? {
                    self.open.saw(inode.ino);
                    listed.push((entry, inode));
                }
            }
            // Nothing means the end to the kernel, so go on if all of this page vanished.
            if !listed.is_empty() {
                return Ok(listed);
            }
        }
    }
}
