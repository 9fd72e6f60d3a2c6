//! Whole trees at once: copying them by reference, and giving them to a project.

use std::collections::BTreeMap;

use crate::kv::{KvError, Pair, Scan, prefix_range};
use crate::meta::keys::{self, Counter};
use crate::meta::tables::{self, ExtentValue, NamedEntry};
use crate::meta::types::*;
use crate::meta::{NO_PROJECT, ProjectId, TREE_ROWS_MAX, VolumeError, value};

use super::namespace::FIRST_INO;
use super::step::{Fail, Step, add};
use super::tree_page::TreePage;

/// Names of a directory that are looked at together.
const PAGE_ENTRIES: usize = 512;

/// Rows that a step may still touch.
struct Budget(usize);

impl Budget {
    fn take(&mut self) -> Result<(), Fail> {
        self.0 = self
            .0
            .checked_sub(1)
            .ok_or_else(|| Fail::from(VolumeError::TooLarge))?;
        Ok(())
    }
}

impl From<VolumeError> for Fail {
    fn from(error: VolumeError) -> Self {
        Self::Refused(error.into())
    }
}

fn missing(ino: Ino) -> Fail {
    KvError::Damaged(format!("inode {ino} is gone, but has a name")).into()
}

/// Copies the tree of the directory `root`: what is in it now, with new inodes of `project`. The copy has no name yet; its
/// parent is to be `parent`. Bytes are shared: only references to them are counted.
pub(super) fn copy(step: &mut Step<'_, '_>, root: Ino, parent: Ino, project: ProjectId) -> Result<Ino, Fail> {
    let first = tables::counter(step.txn, Counter::NextIno)?.unwrap_or(FIRST_INO);
    let mut copier = Copier {
        step,
        project,
        budget: Budget(TREE_ROWS_MAX),
        next: first,
        links: BTreeMap::new(),
        directories: Vec::new(),
        bytes: 0,
    };
    let inode = tables::inode(copier.step.txn, root)?.ok_or_else(|| missing(root))?;
    let copied = copier.add(inode, parent, &mut TreePage::default())?;
    while let Some((from, to)) = copier.directories.pop() {
        copier.copy_entries(from, to)?;
    }
    copier.put_links()?;
    let (count, bytes) = (copier.next - first, copier.bytes);
    let count = u32::try_from(count).map_err(|_| VolumeError::TooLarge)?;
    step.count(Counter::NextIno, FIRST_INO, count)?;
    step.count_inodes(project, i64::from(count), bytes);
    Ok(copied)
}

struct Copier<'s, 'a, 'b> {
    step: &'s mut Step<'a, 'b>,
    project: ProjectId,
    budget: Budget,
    /// The next inode's number.
    next: Ino,
    /// Copies of files that have several names: by old number the copy, with the names that were found so far.
    links: BTreeMap<Ino, Inode>,
    /// Directories whose entries are still to be copied: old and new number.
    directories: Vec<(Ino, Ino)>,
    bytes: i64,
}

impl Copier<'_, '_, '_> {
    /// Copies an inode with all that hangs on it; the new one's number.
    fn add(&mut self, old: Inode, parent: Ino, page: &mut TreePage) -> Result<Ino, Fail> {
        self.budget.take()?;
        let ino = self.next;
        self.next = add("the next inode's number", ino, 1)?;
        let is_directory = old.kind == FileKind::Directory;
        if is_directory {
            self.directories.push((old.ino, ino));
        }
        if old.has_xattrs {
            self.copy_rows(&keys::xattr(old.ino, b""), &keys::xattr(ino, b""))?;
        }
        if old.allocated_bytes > 0 {
            let rows = match page.take_extents(old.ino) {
                Some(rows) => rows,
                None => {
                    let prefix = &keys::extent(old.ino, 0)[..9];
                    collect(self.step.txn.scan(prefix_range(prefix), false))?
                }
            };
            self.put_extents(ino, rows)?;
            let bytes = i64::try_from(old.allocated_bytes).unwrap_or(i64::MAX);
            self.bytes = self.bytes.saturating_add(bytes);
        }
        let (from, links) = (old.ino, old.nlink);
        let copy = Inode {
            ino,
            parent: if is_directory { parent } else { 0 },
            project: self.project,
            ..old
        };
        if !is_directory && links > 1 {
            // How many names it has in this tree is known at the end.
            self.links.insert(from, Inode { nlink: 1, ..copy });
        } else {
            self.put(&copy)?;
        }
        Ok(ino)
    }

    fn put(&mut self, inode: &Inode) -> Result<(), Fail> {
        let key = keys::inode(inode.ino).into();
        self.step.txn.put(key, value::encode_inode(inode)?);
        Ok(())
    }

    fn put_links(&mut self) -> Result<(), Fail> {
        for inode in std::mem::take(&mut self.links).into_values() {
            self.put(&inode)?;
        }
        Ok(())
    }

    fn copy_entries(&mut self, from: Ino, to: Ino) -> Result<(), Fail> {
        let mut after = 0;
        loop {
            let items = tables::list(self.step.txn, from, after, PAGE_ENTRIES)?;
            let complete = items.len() < PAGE_ENTRIES;
            let found = items.iter().map(|item| item.entry.ino);
            let wanted = found.filter(|ino| !self.links.contains_key(ino)).collect();
            let mut page = TreePage::read(self.step.txn, &wanted)?;
            for item in items {
                self.budget.take()?;
                let Dirent { ino, kind, cookie } = item.entry;
                after = cookie;
                let ino = match self.links.get_mut(&ino) {
                    Some(link) => {
                        link.nlink += 1;
                        link.ino
                    }
                    None => {
                        let old = match page.take_inode(ino) {
                            Some(old) => old,
                            None => tables::inode(self.step.txn, ino)?.ok_or_else(|| missing(ino))?,
                        };
                        self.add(old, to, &mut page)?
                    }
                };
                let by_name = value::encode(&Dirent { ino, kind, cookie })?;
                let txn = &mut *self.step.txn;
                txn.put(keys::entry_by_name(to, &item.name).into(), by_name);
                let name = item.name;
                let by_cookie = value::encode(&NamedEntry { name, ino, kind })?;
                txn.put(keys::entry_by_cookie(to, cookie).into(), by_cookie);
            }
            if complete {
                return Ok(());
            }
        }
    }

    /// Copies all rows under a prefix to another one, as they are.
    fn copy_rows(&mut self, from: &[u8], to: &[u8]) -> Result<(), Fail> {
        for (key, value) in collect(self.step.txn.scan(prefix_range(from), false))? {
            self.budget.take()?;
            let key = [to, &key[from.len()..]].concat();
            self.step.txn.put(key.into(), value);
        }
        Ok(())
    }

    /// Gives a file the extents of another one, and counts their references. The chunks are live already: the other file
    /// shows them.
    fn put_extents(&mut self, to: Ino, rows: Vec<Pair>) -> Result<(), Fail> {
        let mut shown: BTreeMap<ChunkId, u64> = BTreeMap::new();
        for (key, coded) in rows {
            self.budget.take()?;
            let ExtentValue { len, source } = value::decode("an extent", &coded)?;
            if let Source::Chunk { id, .. } = source {
                let bytes = shown.entry(id).or_default();
                *bytes = bytes.saturating_add(len);
            }
            let end = keys::u64_at(&key, 9).unwrap_or(0);
            self.step.txn.put(keys::extent(to, end).into(), coded);
        }
        for (id, bytes) in shown {
            let key = keys::chunk_ref(id, to).into();
            self.step.txn.put(key, value::encode(&bytes)?);
        }
        Ok(())
    }
}

/// Rows of one inode: read before any is written, and never more than a step may touch.
fn collect(scan: Scan<'_>) -> Result<Vec<Pair>, Fail> {
    let rows: Result<Vec<_>, _> = scan.take(TREE_ROWS_MAX + 1).collect();
    Ok(rows?)
}

/// Gives a directory and all below it to a project, but files that have names in another one, too, and count for that.
pub(super) fn give(step: &mut Step<'_, '_>, root: Ino, project: ProjectId) -> Result<(), Fail> {
    let mut budget = Budget(TREE_ROWS_MAX);
    budget.take()?;
    step.edit(root)?.project = project;
    step.projects.charge(project, 1, 0);
    let mut directories = vec![root];
    while let Some(directory) = directories.pop() {
        let mut after = 0;
        loop {
            let items = tables::list(step.txn, directory, after, PAGE_ENTRIES)?;
            let complete = items.len() < PAGE_ENTRIES;
            for item in items {
                budget.take()?;
                after = item.entry.cookie;
                let ino = item.entry.ino;
                let inode = tables::inode(step.txn, ino)?.ok_or_else(|| missing(ino))?;
                if inode.kind == FileKind::Directory {
                    if inode.project != NO_PROJECT {
                        let what = "a directory in it is a volume or has a quota of its own";
                        return Err(VolumeError::BadPlace(what.into()).into());
                    }
                    directories.push(ino);
                }
                if inode.project == NO_PROJECT {
                    let bytes = i64::try_from(inode.allocated_bytes).unwrap_or(i64::MAX);
                    step.projects.charge(project, 1, bytes);
                    let given = Inode { project, ..inode };
                    step.txn
                        .put(keys::inode(ino).into(), value::encode_inode(&given)?);
                }
            }
            if complete {
                break;
            }
        }
    }
    Ok(())
}
