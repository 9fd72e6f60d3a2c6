//! Limits of directories, and the making of projects.

use crate::meta::keys::Counter;
use crate::meta::types::*;
use crate::meta::{NO_PROJECT, Project, ProjectId, ProjectKind, ProjectLimits, Reply, VolumeError};

use super::step::{Fail, Step, malformed};
use super::tree;

/// Says that a place in the tree cannot be used.
pub(super) fn bad_place(what: &str) -> Fail {
    VolumeError::BadPlace(what.into()).into()
}

impl Step<'_, '_> {
    /// A number for a project.
    pub(super) fn new_project(
        &mut self,
        kind: ProjectKind,
        limits: ProjectLimits,
    ) -> Result<ProjectId, Fail> {
        let number = self.count(Counter::NextProject, 1, 1)?;
        let id =
            ProjectId::try_from(number).map_err(|_| malformed("there are no more numbers of projects"))?;
        self.put_project(Project {
            id,
            root: 0,
            kind,
            limits,
            usage: Usage::default(),
        });
        Ok(id)
    }

    /// Says which directory is a project's uppermost one.
    pub(super) fn set_root(&mut self, project: ProjectId, root: Ino) -> Result<(), Fail> {
        let record = self.project(project)?;
        self.put_project(Project { root, ..record });
        Ok(())
    }

    /// Makes a project of a directory that is there, whatever it uses; its number.
    pub(super) fn make_project(
        &mut self,
        inode: &Inode,
        kind: ProjectKind,
        limits: ProjectLimits,
    ) -> Result<ProjectId, Fail> {
        if inode.project != NO_PROJECT {
            let project = self.project(inode.project)?;
            return match project.kind {
                ProjectKind::Directory if project.root == inode.ino => {
                    self.put_project(Project {
                        kind,
                        limits,
                        ..project
                    });
                    Ok(project.id)
                }
                ProjectKind::Volume if project.root == inode.ino => {
                    Err(bad_place("the directory is a volume's: use `bramble volume set`"))
                }
                _ => Err(bad_place(
                    "the directory is inside of a volume, of a snapshot or of a directory with a quota",
                )),
            };
        }
        let id = self.new_project(kind, limits)?;
        self.set_root(id, inode.ino)?;
        // What is there already may be more than the limit.
        self.context.enforced = false;
        tree::give(self, inode.ino, id)?;
        Ok(id)
    }
}

/// Limits what a directory may use.
pub(super) fn set(step: &mut Step<'_, '_>, directory: Ino, limits: ProjectLimits) -> Result<Reply, Fail> {
    let inode = step.directory(directory)?;
    if directory == ROOT_INO {
        return Err(bad_place("the root directory cannot have a quota"));
    }
    let id = step.make_project(&inode, ProjectKind::Directory, limits)?;
    Ok(Reply::Project(step.project(id)?))
}
