//! Volumes and snapshots.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::kv::prefix_range;
use crate::meta::keys::{self, Table};
use crate::meta::types::*;
use crate::meta::*;

use super::namespace::check_name;
use super::quota::{self, bad_place};
use super::step::{Fail, Step};
use super::{prune, tree};

pub(super) fn run(step: &mut Step<'_, '_>, op: &VolumeOp) -> Result<Reply, Fail> {
    match op {
        VolumeOp::Create {
            name,
            parent,
            entry,
            options,
            labels,
            source,
        } => {
            check_volume_name(name)?;
            check_labels(labels)?;
            let place = (*parent, entry);
            create(step, name, place, (options, labels), source.as_ref())
        }
        VolumeOp::Change { name, change } => set(step, name, change),
        VolumeOp::Remove { name, keep, force } => remove(step, name, *keep, *force),
        VolumeOp::Snapshot { volume, name } => snapshot(step, volume, name),
        VolumeOp::RemoveSnapshot { volume, name } => remove_snapshot(step, volume, name),
        VolumeOp::Restore {
            volume,
            snapshot,
            force,
        } => restore(step, volume, snapshot, *force),
        VolumeOp::Hold { volume, node, id } => hold(step, volume, *node, id),
        VolumeOp::Release {
            volume,
            node,
            id,
            all,
        } => release(step, volume, *node, id, *all),
        VolumeOp::ReleaseAll { node } => {
            step.release_all(*node)?;
            Ok(Reply::Done)
        }
        VolumeOp::SetQuota { directory, limits } => quota::set(step, *directory, *limits),
        VolumeOp::Prune { entries_max } => prune::prune(step, *entries_max),
    }
}

fn check_volume_name(name: &str) -> Result<(), Fail> {
    if is_volume_name(name) {
        Ok(())
    } else {
        let shown = name.chars().take(VOLUME_NAME_BYTES_MAX).collect();
        Err(VolumeError::BadName(shown).into())
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Fail> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > LABELS_BYTES_MAX {
        let what = format!("labels take {bytes} bytes; a volume can have {LABELS_BYTES_MAX}");
        return Err(VolumeError::BadOption(what).into());
    }
    Ok(())
}

fn check_options(step: &Step<'_, '_>, options: &VolumeOptions) -> Result<(), Fail> {
    let bad = |what: String| Err(VolumeError::BadOption(what).into());
    if options.mode.is_some_and(|mode| mode > 0o7777) {
        return bad("a mode has at most the bits 7777".into());
    }
    if options.path.len() > VOLUME_PATH_BYTES_MAX {
        return bad(format!("a path has at most {VOLUME_PATH_BYTES_MAX} bytes"));
    }
    let replicas = tables::cluster(step.txn)?.map_or(1, |cluster| cluster.replicas);
    match options.replicas {
        Some(asked) if asked != replicas => bad(format!(
            "replicas={asked} cannot be had: this cluster keeps {replicas} copies of everything"
        )),
        _ => Ok(()),
    }
}

impl Step<'_, '_> {
    fn volume(&self, name: &str) -> Result<Volume, Fail> {
        let found = volume_tables::volume(self.txn, name)?;
        found.ok_or_else(|| VolumeError::Unknown(name.into()).into())
    }

    fn put_volume(&mut self, volume: &Volume) -> Result<(), Fail> {
        self.txn
            .put(keys::volume(&volume.name).into(), value::encode(volume)?);
        Ok(())
    }

    fn snapshot(&self, volume: &str, name: &str) -> Result<Snapshot, Fail> {
        let unknown = || VolumeError::UnknownSnapshot {
            volume: volume.into(),
            name: name.into(),
        };
        let found = volume_tables::snapshot(self.txn, volume, name)?;
        found.ok_or_else(|| unknown().into())
    }

    /// Refuses what would hurt those who use a volume.
    fn check_not_in_use(&self, name: &str, force: bool) -> Result<(), Fail> {
        let mut holds = volume_tables::holds(self.txn, name)?;
        match holds.pop() {
            Some(hold) if !force => Err(VolumeError::InUse {
                volume: name.into(),
                node: hold.node,
                id: hold.id,
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// The root of a tree that is to be copied.
    fn source(&self, source: &TreeSource) -> Result<Ino, Fail> {
        match source {
            TreeSource::Volume(name) => Ok(self.volume(name)?.root),
            TreeSource::Snapshot { volume, name } => Ok(self.snapshot(volume, name)?.root),
        }
    }

    /// Makes a directory of a project.
    fn make_directory(
        &mut self,
        parent: &Inode,
        name: &Bytes,
        project: ProjectId,
        options: &VolumeOptions,
    ) -> Result<Ino, Fail> {
        let ino = self.number_for_inode(None)?;
        let new = NewInode {
            kind: FileKind::Directory,
            mode: options.mode.unwrap_or(0o755),
            umask: 0,
            uid: options.uid.unwrap_or(0),
            gid: options.gid.unwrap_or(0),
            rdev: 0,
            target: Bytes::new(),
        };
        let inode = super::namespace::new_inode(self, ino, parent, &new);
        self.add_inode(Inode {
            project,
            gid: new.gid,
            mode: new.mode & 0o7777,
            ..inode
        });
        self.name_directory(parent.ino, name, ino)?;
        Ok(ino)
    }

    /// Gives a directory that has no name its name.
    fn name_directory(&mut self, parent: Ino, name: &Bytes, ino: Ino) -> Result<(), Fail> {
        if self.directory(parent)?.nlink >= LINKS_MAX {
            return Err(Refusal::TooManyLinks.into());
        }
        self.add_entry(parent, name, ino, FileKind::Directory)?;
        self.count_link(parent, 1)?;
        Ok(())
    }

    /// Takes the name of a directory away, and lets it be removed with all that is in it.
    fn detach(&mut self, parent: Ino, name: &Bytes) -> Result<(), Fail> {
        let entry = self.entry(parent, name)?.ok_or(Refusal::NotFound)?;
        self.remove_entry(parent, name, entry)?;
        self.count_link(parent, -1)?;
        self.doom(entry.ino)
    }

    /// Takes back all that a node holds.
    pub(super) fn release_all(&mut self, node: NodeId) -> Result<(), Fail> {
        let mut gone = Vec::new();
        for pair in self.txn.scan(prefix_range(&keys::table(Table::Hold)), false) {
            let (key, coded) = pair?;
            let hold: Hold = value::decode("a hold", &coded)?;
            if hold.node == node {
                gone.push(key);
            }
        }
        for key in gone {
            self.txn.delete(key);
        }
        Ok(())
    }
}

fn create(
    step: &mut Step<'_, '_>,
    name: &str,
    (parent, entry): (Ino, &Bytes),
    (options, labels): (&VolumeOptions, &BTreeMap<String, String>),
    source: Option<&TreeSource>,
) -> Result<Reply, Fail> {
    if let Some(volume) = volume_tables::volume(step.txn, name)? {
        if source.is_some() {
            return Err(VolumeError::Exists(format!("volume {name}")).into());
        }
        check_same(&volume, options)?;
        return Ok(Reply::Volume(volume));
    }
    check_options(step, options)?;
    check_name(entry)?;
    if volume_tables::volumes(step.txn)?.len() >= VOLUMES_MAX {
        return Err(VolumeError::TooMany("volumes".into()).into());
    }
    let directory = step.directory(parent)?;
    if directory.project != NO_PROJECT {
        return Err(bad_place(
            "the place is inside of a volume, of a snapshot or of a directory with a quota",
        ));
    }
    let found = step.entry(parent, entry)?;
    let (root, project) = match (found, source) {
        (Some(_), Some(_)) => {
            let name = String::from_utf8_lossy(entry);
            return Err(VolumeError::Exists(format!("a file or directory named {name}")).into());
        }
        (Some(found), None) => {
            if found.kind != FileKind::Directory {
                return Err(bad_place("there is something else than a directory"));
            }
            let inode = step.inode(found.ino)?;
            let project = step.make_project(&inode, ProjectKind::Volume, options.limits)?;
            (found.ino, project)
        }
        (None, None) => {
            let project = step.new_project(ProjectKind::Volume, options.limits)?;
            (step.make_directory(&directory, entry, project, options)?, project)
        }
        (None, Some(source)) => {
            let source = step.source(source)?;
            let project = step.new_project(ProjectKind::Volume, options.limits)?;
            let root = tree::copy(step, source, parent, project)?;
            step.name_directory(parent, entry, root)?;
            let inode = step.edit(root)?;
            inode.mode = options.mode.unwrap_or(inode.mode);
            inode.uid = options.uid.unwrap_or(inode.uid);
            inode.gid = options.gid.unwrap_or(inode.gid);
            (root, project)
        }
    };
    step.set_root(project, root)?;
    let volume = Volume {
        name: name.into(),
        root,
        entry: entry.clone(),
        project,
        options: options.clone(),
        labels: labels.clone(),
        created: step.time(),
    };
    step.put_volume(&volume)?;
    Ok(Reply::Volume(volume))
}

/// Refuses a repetition that asks for something else.
fn check_same(volume: &Volume, options: &VolumeOptions) -> Result<(), Fail> {
    let there = &volume.options;
    let differs = [
        ("size", there.limits.bytes != options.limits.bytes),
        ("inodes", there.limits.inodes != options.limits.inodes),
        ("uid", there.uid != options.uid),
        ("gid", there.gid != options.gid),
        ("mode", there.mode != options.mode),
        ("replicas", there.replicas != options.replicas),
        ("path", there.path != options.path),
        ("keep", there.keep != options.keep),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((option, _)) => Err(VolumeError::Differs {
            name: volume.name.clone(),
            option: (*option).into(),
        }
        .into()),
        None => Ok(()),
    }
}

fn set(step: &mut Step<'_, '_>, name: &str, change: &VolumeChange) -> Result<Reply, Fail> {
    let mut volume = step.volume(name)?;
    let limits = &mut volume.options.limits;
    limits.bytes = change.bytes.unwrap_or(limits.bytes);
    limits.inodes = change.inodes.unwrap_or(limits.inodes);
    let limits = *limits;
    volume.options.keep = change.keep.unwrap_or(volume.options.keep);
    let project = step.project(volume.project)?;
    step.put_project(Project { limits, ..project });
    step.put_volume(&volume)?;
    Ok(Reply::Volume(volume))
}

fn remove(step: &mut Step<'_, '_>, name: &str, keep: Option<bool>, force: bool) -> Result<Reply, Fail> {
    let volume = step.volume(name)?;
    step.check_not_in_use(name, force)?;
    if keep.unwrap_or(volume.options.keep) {
        // Its limit stays, too.
        let project = step.project(volume.project)?;
        step.put_project(Project {
            kind: ProjectKind::Directory,
            ..project
        });
    } else {
        let parent = step.inode(volume.root)?.parent;
        step.detach(parent, &volume.entry)?;
    }
    step.delete_all(&keys::holds(name))?;
    step.txn.delete(keys::volume(name).into());
    Ok(Reply::Done)
}

/// The directory of a volume's snapshots; makes it, and the one that it is in, if they are not there.
fn snapshots_directory(step: &mut Step<'_, '_>, volume: &str) -> Result<Ino, Fail> {
    let root = step.directory(ROOT_INO)?;
    let options = VolumeOptions::default();
    let top = match step.entry(ROOT_INO, SNAPSHOTS_DIRECTORY)? {
        Some(entry) => entry.ino,
        None => {
            let project = step.new_project(ProjectKind::Snapshots, ProjectLimits::default())?;
            let name = Bytes::from_static(SNAPSHOTS_DIRECTORY);
            let ino = step.make_directory(&root, &name, project, &options)?;
            step.set_root(project, ino)?;
            ino
        }
    };
    let top = step.inode(top)?;
    let ours = top.project != NO_PROJECT && step.project(top.project)?.kind == ProjectKind::Snapshots;
    if !ours {
        return Err(bad_place(
            "the root directory has a .snapshots that is not Bramble's: give it another name",
        ));
    }
    let name = Bytes::copy_from_slice(volume.as_bytes());
    match step.entry(top.ino, &name)? {
        Some(entry) => Ok(entry.ino),
        None => step.make_directory(&top, &name, top.project, &options),
    }
}

fn snapshot(step: &mut Step<'_, '_>, volume: &str, name: &str) -> Result<Reply, Fail> {
    check_volume_name(name)?;
    let source = step.volume(volume)?;
    if volume_tables::snapshot(step.txn, volume, name)?.is_some() {
        return Err(VolumeError::Exists(format!("snapshot {name} of volume {volume}")).into());
    }
    if volume_tables::snapshots(step.txn, Some(volume))?.len() >= SNAPSHOTS_MAX {
        return Err(VolumeError::TooMany("snapshots of the volume".into()).into());
    }
    let parent = snapshots_directory(step, volume)?;
    let project = step.new_project(ProjectKind::Snapshot, ProjectLimits::default())?;
    let root = tree::copy(step, source.root, parent, project)?;
    step.set_root(project, root)?;
    step.name_directory(parent, &Bytes::copy_from_slice(name.as_bytes()), root)?;
    let snapshot = Snapshot {
        volume: volume.into(),
        name: name.into(),
        root,
        project,
        created: step.time(),
        log_index: step.context.log_index,
    };
    step.txn
        .put(keys::snapshot(volume, name).into(), value::encode(&snapshot)?);
    Ok(Reply::Snapshot(snapshot))
}

fn remove_snapshot(step: &mut Step<'_, '_>, volume: &str, name: &str) -> Result<Reply, Fail> {
    let snapshot = step.snapshot(volume, name)?;
    let directory = step.inode(snapshot.root)?.parent;
    step.detach(directory, &Bytes::copy_from_slice(name.as_bytes()))?;
    step.txn.delete(keys::snapshot(volume, name).into());
    let directory = step.inode(directory)?;
    if directory.size == 0 {
        let name = Bytes::copy_from_slice(volume.as_bytes());
        if let Some(entry) = step.entry(directory.parent, &name)? {
            step.remove_entry(directory.parent, &name, entry)?;
            step.drop_directory(entry.ino)?;
            step.count_link(directory.parent, -1)?;
        }
    }
    Ok(Reply::Done)
}

fn restore(step: &mut Step<'_, '_>, name: &str, snapshot: &str, force: bool) -> Result<Reply, Fail> {
    let mut volume = step.volume(name)?;
    let snapshot = step.snapshot(name, snapshot)?;
    step.check_not_in_use(name, force)?;
    let parent = step.inode(volume.root)?.parent;
    let old = step.entry(parent, &volume.entry)?.ok_or(Refusal::NotFound)?;
    // A project of its own: what is there now counts until it is removed.
    let project = step.new_project(ProjectKind::Volume, volume.options.limits)?;
    let root = tree::copy(step, snapshot.root, parent, project)?;
    step.set_root(project, root)?;
    let new = Dirent { ino: root, ..old };
    step.replace_entry(parent, &volume.entry, old, new)?;
    step.doom(old.ino)?;
    volume.root = root;
    volume.project = project;
    step.put_volume(&volume)?;
    Ok(Reply::Volume(volume))
}

fn hold(step: &mut Step<'_, '_>, volume: &str, node: NodeId, id: &str) -> Result<Reply, Fail> {
    let found = step.volume(volume)?;
    if id.is_empty() || id.len() > HOLD_ID_BYTES_MAX {
        let what = format!("the id of who uses a volume has 1 to {HOLD_ID_BYTES_MAX} bytes");
        return Err(VolumeError::BadOption(what).into());
    }
    tables::node(step.txn, node)?.ok_or(Refusal::NotFound)?;
    let count = match volume_tables::hold(step.txn, volume, node, id)? {
        Some(hold) => hold.count.saturating_add(1),
        None if volume_tables::holds(step.txn, volume)?.len() >= HOLDS_MAX => {
            return Err(VolumeError::TooMany("users of the volume".into()).into());
        }
        None => 1,
    };
    let hold = Hold {
        node,
        id: id.into(),
        count,
    };
    step.txn
        .put(keys::hold(volume, node, id).into(), value::encode(&hold)?);
    Ok(Reply::Volume(found))
}

fn release(step: &mut Step<'_, '_>, volume: &str, node: NodeId, id: &str, all: bool) -> Result<Reply, Fail> {
    if let Some(hold) = volume_tables::hold(step.txn, volume, node, id)? {
        let key = keys::hold(volume, node, id).into();
        if all || hold.count <= 1 {
            step.txn.delete(key);
        } else {
            let count = hold.count - 1;
            step.txn.put(key, value::encode(&Hold { count, ..hold })?);
        }
    }
    Ok(Reply::Done)
}
