//! Removing trees that have no name any more, a bounded number of names at a time.

use crate::meta::types::*;
use crate::meta::{
    NO_PROJECT, PRUNE_ENTRIES_MAX, Project, ProjectKind, Reply, keys, tables, value, volume_tables,
};

use super::step::{Fail, Step};

impl Step<'_, '_> {
    /// Lets a directory whose name is gone, or taken, be removed with all that is in it.
    pub(super) fn doom(&mut self, root: Ino) -> Result<(), Fail> {
        self.attributes_changed(root)?;
        let inode = self.edit(root)?;
        inode.parent = 0;
        let project = inode.project;
        if project != NO_PROJECT {
            let record = self.project(project)?;
            if record.root == root {
                self.put_project(Project {
                    root: 0,
                    kind: ProjectKind::Removed,
                    ..record
                });
            }
        }
        self.txn.put(keys::doomed(root).into(), value::encode(&())?);
        Ok(())
    }
}

/// Removes names in such trees. A file that has no other name becomes an orphan: somebody may have it open.
pub(super) fn prune(step: &mut Step<'_, '_>, entries_max: u32) -> Result<Reply, Fail> {
    let mut left = usize::try_from(entries_max.min(PRUNE_ENTRIES_MAX)).unwrap_or(0);
    for directory in volume_tables::doomed(step.txn, 0, left)? {
        if left == 0 {
            break;
        }
        let items = tables::list(step.txn, directory, 0, left)?;
        let all = items.len() < left;
        left -= items.len();
        for item in items {
            step.remove_entry(directory, &item.name, item.entry)?;
            if item.entry.kind == FileKind::Directory {
                step.count_link(directory, -1)?;
                step.doom(item.entry.ino)?;
            } else {
                step.drop_link(item.entry.ino)?;
            }
        }
        if all {
            left -= 1;
            step.txn.delete(keys::doomed(directory).into());
            step.drop_directory(directory)?;
        }
    }
    Ok(Reply::Done)
}
