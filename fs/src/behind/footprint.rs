//! What a change touches: the leases that it needs, and whether it can wait in the queue.

use raftstore::kv::KvError;
use raftstore::meta::{
    Data, Dirent, FileKind, Ino, Op, ROOT_INO, Reader, SNAPSHOTS_DIRECTORY, SessionId, VolumeOp,
};

use crate::lease::{Lease, LeaseMode};

/// How a change gets to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It is done here and pushed later.
    Behind,
    /// It is proposed at once, with the leases held: only the cluster can decide it.
    Through,
    /// It touches nothing that is leased.
    Free,
}

/// What a change touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footprint {
    pub(super) leases: Vec<Lease>,
    pub(super) way: Way,
}

/// The footprint of `op`, as far as `reader` shows. Right only under the leases that it names.
pub(super) fn of(op: &Op, reader: &Reader, session: SessionId, wanted: bool) -> Result<Footprint, KvError> {
    let mut touched = Touched::default();
    let way = match op {
        Op::Create {
            parent,
            name,
            exclusive,
            ..
        } => {
            touched.change(*parent);
            if let Some(entry) = reader.lookup(*parent, name)?.filter(|_| !exclusive) {
                touched.read(entry.ino);
            }
            Way::Behind
        }
        Op::Link { ino, parent, .. } => {
            touched.change(*parent);
            touched.change(*ino);
            Way::Behind
        }
        Op::Unlink { parent, name } | Op::Rmdir { parent, name } => {
            touched.entry(reader, *parent, name)?;
            Way::Behind
        }
        Op::Rename {
            parent,
            name,
            new_parent,
            new_name,
            ..
        } => {
            let moved = touched.entry(reader, *parent, name)?;
            let replaced = touched.entry(reader, *new_parent, new_name)?;
            let is_directory = |entry: Option<Dirent>| entry.is_some_and(|e| e.kind == FileKind::Directory);
            // Whether a directory would get into itself depends on directories that are not leased here.
            if parent != new_parent && (is_directory(moved) || is_directory(replaced)) {
                Way::Through
            } else {
                Way::Behind
            }
        }
        Op::SetAttr { ino, .. }
        | Op::SetXattr { ino, .. }
        | Op::RemoveXattr { ino, .. }
        | Op::Write {
            ino,
            data: Data::Inline,
            ..
        } => {
            touched.change(*ino);
            Way::Behind
        }
        Op::Lock { ino, .. } | Op::Unlock { ino, .. } => {
            touched.change(*ino);
            // What other nodes wait for, or have, is for all to see at once.
            let foreign = reader
                .locks(*ino)?
                .iter()
                .any(|lock| lock.owner.session != session);
            if wanted || foreign {
                Way::Through
            } else {
                Way::Behind
            }
        }
        Op::Write { ino, .. } | Op::Fallocate { ino, .. } | Op::Flush { ino, .. } => {
            touched.change(*ino);
            Way::Through
        }
        Op::CopyRange { source, target, .. } => {
            touched.change(*target);
            // Its bytes must be the cluster's before they can be shared.
            touched.change(*source);
            Way::Through
        }
        Op::Volume(op) => touched.volume(op, reader)?,
        _ => Way::Free,
    };
    Ok(Footprint {
        leases: touched.0,
        way,
    })
}

#[derive(Default)]
struct Touched(Vec<Lease>);

impl Touched {
    fn add(&mut self, ino: Ino, mode: LeaseMode) {
        match self.0.iter_mut().find(|lease| lease.ino == ino) {
            Some(lease) => lease.mode = lease.mode.max(mode),
            None => self.0.push(Lease { ino, mode }),
        }
    }

    fn change(&mut self, ino: Ino) {
        self.add(ino, LeaseMode::Exclusive);
    }

    fn read(&mut self, ino: Ino) {
        self.add(ino, LeaseMode::Shared);
    }

    /// The directories whose entries an operation on volumes changes. Copies are read from the log's state alone, and
    /// nobody can know of them before.
    fn volume(&mut self, op: &VolumeOp, reader: &Reader) -> Result<Way, KvError> {
        match op {
            VolumeOp::Create { parent, entry, .. } => {
                self.entry(reader, *parent, entry)?;
            }
            VolumeOp::Remove { name, .. } | VolumeOp::Restore { volume: name, .. } => {
                if let Some(volume) = reader.volume(name)? {
                    self.change(volume.root);
                    self.change(reader.inode(volume.root)?.map_or(ROOT_INO, |root| root.parent));
                }
            }
            VolumeOp::Snapshot { volume, .. } => {
                self.change(ROOT_INO);
                if let Some(top) = reader.lookup(ROOT_INO, SNAPSHOTS_DIRECTORY)? {
                    self.entry(reader, top.ino, volume.as_bytes())?;
                }
            }
            VolumeOp::RemoveSnapshot { volume, name } => {
                self.read(ROOT_INO);
                if let Some(top) = reader.lookup(ROOT_INO, SNAPSHOTS_DIRECTORY)?
                    && let Some(directory) = self.entry(reader, top.ino, volume.as_bytes())?
                {
                    self.entry(reader, directory.ino, name.as_bytes())?;
                }
            }
            VolumeOp::SetQuota { directory, .. } => self.change(*directory),
            VolumeOp::Change { .. }
            | VolumeOp::Hold { .. }
            | VolumeOp::Release { .. }
            | VolumeOp::ReleaseAll { .. }
            | VolumeOp::Prune { .. } => return Ok(Way::Free),
        }
        Ok(Way::Through)
    }

    fn entry(&mut self, reader: &Reader, parent: Ino, name: &[u8]) -> Result<Option<Dirent>, KvError> {
        self.change(parent);
        let entry = reader.lookup(parent, name)?;
        if let Some(entry) = entry {
            self.change(entry.ino);
        }
        Ok(entry)
    }
}
