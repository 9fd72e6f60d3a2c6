//! What trees use, and what may be changed in them.

use std::collections::BTreeMap;

use crate::meta::keys;
use crate::meta::types::*;
use crate::meta::{NO_PROJECT, Project, ProjectId, ProjectKind, Refusal, Txn, value, volume_tables};

use super::step::{Fail, Step, add};
use crate::kv::KvError;

/// Projects as a step sees and changes them, written once by [`Projects::finish`].
#[derive(Default)]
pub(super) struct Projects(BTreeMap<ProjectId, Held>);

#[derive(Default)]
struct Held {
    record: Option<Project>,
    edited: bool,
    inodes: i64,
    bytes: i64,
}

impl Projects {
    /// What was gathered of a project, and its record; `None` if there is none.
    fn held(&mut self, txn: &Txn<'_>, id: ProjectId) -> Result<(&mut Held, Option<Project>), KvError> {
        let held = self.0.entry(id).or_default();
        if held.record.is_none() {
            held.record = volume_tables::project(txn, id)?;
        }
        let record = held.record.clone();
        Ok((held, record))
    }

    /// Counts inodes and bytes that a project has more (or fewer).
    pub(super) fn charge(&mut self, id: ProjectId, inodes: i64, bytes: i64) {
        if id != NO_PROJECT {
            let held = self.0.entry(id).or_default();
            held.inodes = held.inodes.saturating_add(inodes);
            held.bytes = held.bytes.saturating_add(bytes);
        }
    }

    /// Writes what was gathered. Refuses what makes a project use more than it may, if `enforced`.
    pub(super) fn finish(mut self, txn: &mut Txn<'_>, enforced: bool) -> Result<(), Fail> {
        for id in self.0.keys().copied().collect::<Vec<_>>() {
            let (held, project) = self.held(txn, id)?;
            if (held.inodes, held.bytes, held.edited) == (0, 0, false) {
                continue;
            }
            let mut project = project.ok_or_else(|| missing(id))?;
            let usage = &mut project.usage;
            usage.inodes = add("a project's count of inodes", usage.inodes, held.inodes)?;
            usage.allocated_bytes = add("a project's bytes", usage.allocated_bytes, held.bytes)?;
            let limits = project.limits;
            let too_many = held.inodes > 0 && limits.inodes > 0 && usage.inodes > limits.inodes;
            let too_much = held.bytes > 0 && limits.bytes > 0 && usage.allocated_bytes > limits.bytes;
            if enforced && (too_many || too_much) {
                return Err(Refusal::QuotaExceeded.into());
            }
            if project.root == 0 && usage.inodes == 0 {
                txn.delete(keys::project(id).into());
            } else {
                txn.put(keys::project(id).into(), value::encode(&project)?);
            }
        }
        Ok(())
    }
}

fn missing(id: ProjectId) -> KvError {
    KvError::Damaged(format!("project {id} is gone, but has inodes"))
}

impl Step<'_, '_> {
    /// The project as the step has it by now; its usage is that from before.
    pub(super) fn project(&mut self, id: ProjectId) -> Result<Project, Fail> {
        match self.projects.held(self.txn, id)?.1 {
            Some(project) => Ok(project),
            // Removed by the log, with all that was in it; this node still has something pending there.
            None if self.context.speculative => Err(Refusal::Stale.into()),
            None => Err(missing(id).into()),
        }
    }

    /// Puts a project's record, but for its usage.
    pub(super) fn put_project(&mut self, project: Project) {
        let held = self.projects.0.entry(project.id).or_default();
        held.record = Some(project);
        held.edited = true;
    }

    /// EROFS if programs may not change the inode.
    pub(super) fn check_writable(&mut self, inode: &Inode) -> Result<(), Fail> {
        if inode.project != NO_PROJECT && self.project(inode.project)?.is_read_only() {
            return Err(Refusal::ReadOnly.into());
        }
        Ok(())
    }

    /// EBUSY if a directory whose name is to change is a volume's, EROFS if it holds snapshots: they have records of their
    /// own.
    pub(super) fn check_no_volume(&mut self, found: Dirent, directory: &Inode) -> Result<(), Fail> {
        if found.kind != FileKind::Directory {
            return Ok(());
        }
        let inode = self.inode(found.ino)?;
        if inode.project != directory.project && inode.project != NO_PROJECT {
            let project = self.project(inode.project)?;
            match project.kind {
                _ if project.root != found.ino => {}
                ProjectKind::Directory => {}
                ProjectKind::Volume => return Err(Refusal::Busy.into()),
                ProjectKind::Snapshot | ProjectKind::Snapshots | ProjectKind::Removed => {
                    return Err(Refusal::ReadOnly.into());
                }
            }
        }
        Ok(())
    }

    /// A project that loses its directory goes with its last inode.
    pub(super) fn root_dropped(&mut self, inode: &Inode) -> Result<(), Fail> {
        if inode.project == NO_PROJECT || self.context.speculative {
            return Ok(());
        }
        let project = self.project(inode.project)?;
        if project.root == inode.ino {
            self.put_project(Project { root: 0, ..project });
        }
        Ok(())
    }
}

/// EXDEV unless names may move between the two directories.
pub(super) fn check_same_project(one: &Inode, other: &Inode) -> Result<(), Fail> {
    if one.project == other.project {
        Ok(())
    } else {
        Err(Refusal::CrossesProjects.into())
    }
}
