//! Projects (trees whose use is counted and limited), volumes and snapshots: nouns and verbs.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::types::*;
use crate::clock::Timestamp;

/// A tree whose use is counted, as in XFS: each inode carries the number of its project, which it has from the directory
/// it was made in. 0 is none. Never used again.
pub type ProjectId = u32;

/// Inodes outside of all projects have this.
pub const NO_PROJECT: ProjectId = 0;

/// Longest name of a volume or a snapshot, bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 128;
/// Most volumes.
pub const VOLUMES_MAX: usize = 4096;
/// Most snapshots of one volume.
pub const SNAPSHOTS_MAX: usize = 256;
/// Most holds on one volume.
pub const HOLDS_MAX: usize = 1024;
/// Longest id of a hold, bytes.
pub const HOLD_ID_BYTES_MAX: usize = 128;
/// What all labels of a volume may take, bytes.
pub const LABELS_BYTES_MAX: usize = 8192;
/// Longest path of a volume, bytes.
pub const VOLUME_PATH_BYTES_MAX: usize = 1024;
/// What one operation copies or marks at most: inodes, names, extents and extended attributes, each counted as one. It is
/// applied at once on each node, which stands still meanwhile.
pub const TREE_ROWS_MAX: usize = 60_000;
/// Most names that one [`VolumeOp::Prune`] removes.
pub const PRUNE_ENTRIES_MAX: u32 = 4096;

/// Where snapshots are, in the root directory.
pub const SNAPSHOTS_DIRECTORY: &[u8] = b".snapshots";

/// Docker's rule for names of volumes; those of snapshots follow it, too.
#[must_use]
pub fn is_volume_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    first && rest && name.len() <= VOLUME_NAME_BYTES_MAX
}

/// What a project's tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProjectKind {
    /// A directory with a limit.
    Directory,
    /// A volume.
    Volume,
    /// A snapshot of one: nothing in it changes.
    Snapshot,
    /// The directories that snapshots are in. Only volume operations change them.
    Snapshots,
    /// A tree that is being removed.
    Removed,
}

/// What a project may use; 0 stands for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProjectLimits {
    /// Bytes that extents cover.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl ProjectLimits {
    /// Whether `usage` is more than that.
    #[must_use]
    pub fn are_exceeded(&self, usage: &Usage) -> bool {
        let over = |limit: u64, used: u64| limit > 0 && used > limit;
        over(self.bytes, usage.allocated_bytes) || over(self.inodes, usage.inodes)
    }

    /// Whether there is any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.bytes > 0 || self.inodes > 0
    }
}

/// A project, as the state machine keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its number.
    pub id: ProjectId,
    /// Its uppermost directory; 0 once that is gone.
    pub root: Ino,
    /// What its tree is.
    pub kind: ProjectKind,
    /// What it may use.
    pub limits: ProjectLimits,
    /// What it uses: exact, counted by `apply`.
    pub usage: Usage,
}

impl Project {
    /// Whether nothing in it may be changed by programs.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(
            self.kind,
            ProjectKind::Snapshot | ProjectKind::Snapshots | ProjectKind::Removed
        )
    }
}

/// What a volume is to be, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VolumeOptions {
    /// Limits of its use.
    pub limits: ProjectLimits,
    /// Owner of its directory, if it is made.
    pub uid: Option<u32>,
    /// Group of its directory, if it is made.
    pub gid: Option<u32>,
    /// Permission bits of its directory, if it is made: 0 to 0o7777.
    pub mode: Option<u32>,
    /// Copies of its data, if that was asked for.
    pub replicas: Option<u32>,
    /// Its directory in the tree, without a slash at either end; empty for the usual place.
    pub path: String,
    /// Removing it leaves its directory where it is.
    pub keep: bool,
}

/// A volume: a directory with a name of its own and a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub root: Ino,
    /// That one's name in its own directory; renaming it is refused.
    pub entry: Bytes,
    /// Its project.
    pub project: ProjectId,
    /// What was asked for.
    pub options: VolumeOptions,
    /// Whatever its user wants to keep with it.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created: Timestamp,
}

/// A snapshot of a volume, read-only, at `.snapshots/VOLUME/NAME`. It outlives its volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Of which volume.
    pub volume: String,
    /// Its name among that volume's.
    pub name: String,
    /// Its directory.
    pub root: Ino,
    /// Its project.
    pub project: ProjectId,
    /// When it was made.
    pub created: Timestamp,
    /// The log entry that made it: it shows what was committed before.
    pub log_index: u64,
}

/// Somebody who uses a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// On which node.
    pub node: NodeId,
    /// Who.
    pub id: String,
    /// How many times.
    pub count: u32,
}

/// A tree to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeSource {
    /// That of a volume.
    Volume(String),
    /// That of a snapshot.
    Snapshot {
        /// Of which volume.
        volume: String,
        /// Its name.
        name: String,
    },
}

/// Options to change; `None` leaves one as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VolumeChange {
    /// Limit in bytes; 0 takes it away.
    pub bytes: Option<u64>,
    /// Limit in inodes; 0 takes it away.
    pub inodes: Option<u64>,
    /// Whether removing leaves the directory.
    pub keep: Option<bool>,
}

/// Operations on volumes, snapshots and quotas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeOp {
    /// Makes a volume of the directory `entry` in `parent`, which is made if it is not there. If there is such a volume
    /// with these options, it is the answer ([`super::Reply::Volume`]).
    Create {
        /// Its name.
        name: String,
        /// Directory.
        parent: Ino,
        /// Name in the directory.
        entry: Bytes,
        /// What it is to be.
        options: VolumeOptions,
        /// To be kept with it.
        labels: BTreeMap<String, String>,
        /// What it begins with; its directory must not be there then.
        source: Option<TreeSource>,
    },
    /// Changes a volume's options. Answers [`super::Reply::Volume`].
    Change {
        /// Which.
        name: String,
        /// What.
        change: VolumeChange,
    },
    /// Removes a volume, and its tree in the background unless that is kept. Answers [`super::Reply::Done`].
    Remove {
        /// Which.
        name: String,
        /// In place of its option.
        keep: Option<bool>,
        /// Also while somebody uses it.
        force: bool,
    },
    /// Makes a snapshot. Answers [`super::Reply::Snapshot`].
    Snapshot {
        /// Of which volume.
        volume: String,
        /// Its name.
        name: String,
    },
    /// Removes a snapshot. Answers [`super::Reply::Done`].
    RemoveSnapshot {
        /// Of which volume.
        volume: String,
        /// Its name.
        name: String,
    },
    /// Puts a copy of a snapshot in the place of a volume's tree, which is removed. Answers [`super::Reply::Volume`].
    Restore {
        /// Which volume.
        volume: String,
        /// Which of its snapshots.
        snapshot: String,
        /// Also while somebody uses it.
        force: bool,
    },
    /// Says that somebody on a node uses a volume, once more. Answers [`super::Reply::Volume`].
    Hold {
        /// Which volume.
        volume: String,
        /// On which node.
        node: NodeId,
        /// Who.
        id: String,
    },
    /// Takes back one [`VolumeOp::Hold`], or all of that id; no error if there is none. Answers [`super::Reply::Done`].
    Release {
        /// Which volume.
        volume: String,
        /// On which node.
        node: NodeId,
        /// Who.
        id: String,
        /// All of them.
        all: bool,
    },
    /// Takes back all that a node holds. Answers [`super::Reply::Done`].
    ReleaseAll {
        /// Which node.
        node: NodeId,
    },
    /// Limits what a directory and all below it may use; makes it a project if it is none. Answers
    /// [`super::Reply::Project`].
    SetQuota {
        /// Which directory.
        directory: Ino,
        /// The limits.
        limits: ProjectLimits,
    },
    /// Removes some of the names in trees that are to go. Answers [`super::Reply::Done`].
    Prune {
        /// How many, at most [`PRUNE_ENTRIES_MAX`].
        entries_max: u32,
    },
}

/// Why a volume operation was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum VolumeError {
    /// There is none of this name.
    #[error("there is no volume {0}")]
    Unknown(String),
    /// There is none of this name.
    #[error("volume {volume} has no snapshot {name}")]
    UnknownSnapshot {
        /// Of which volume.
        volume: String,
        /// The name.
        name: String,
    },
    /// There is one of this name, and it is another.
    #[error(
        "volume {name} exists with another {option}: change it with `bramble volume set`, or choose another name"
    )]
    Differs {
        /// The name.
        name: String,
        /// What differs.
        option: String,
    },
    /// What is to be made new is there.
    #[error("{0} exists already")]
    Exists(String),
    /// Somebody uses it.
    #[error("volume {volume} is in use on node {node} by {id}: end that first, or force it")]
    InUse {
        /// Which volume.
        volume: String,
        /// The first that uses it.
        node: NodeId,
        /// Who on it.
        id: String,
    },
    /// Not a name that can be given.
    #[error(
        "{0:?} cannot be the name of a volume or snapshot: it takes letters, digits, and after the first of them also _ . -, \
         at most 128 bytes"
    )]
    BadName(String),
    /// An option that cannot be.
    #[error("{0}")]
    BadOption(String),
    /// The place cannot be used.
    #[error("{0}")]
    BadPlace(String),
    /// More than one operation may touch.
    #[error(
        "the tree is too large for one step: its files, names, extents and attributes come to more than {TREE_ROWS_MAX}; \
         copy it with cp -a instead"
    )]
    TooLarge,
    /// A table is full.
    #[error("there are too many {0}: remove some first")]
    TooMany(String),
}
