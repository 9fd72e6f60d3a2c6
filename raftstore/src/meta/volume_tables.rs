//! Typed reading of projects, volumes and what belongs to them.

use std::ops::Bound;

use super::keys::{self, Table};
use super::tables::{get, number, prefixed};
use super::types::*;
use super::value;
use super::volume::*;
use crate::kv::{KvError, Read, prefix_range};

pub(crate) fn project(kv: &dyn Read, id: ProjectId) -> Result<Option<Project>, KvError> {
    get(kv, "a project", &keys::project(id))
}

pub(crate) fn projects(kv: &dyn Read) -> Result<Vec<Project>, KvError> {
    prefixed(kv, &keys::table(Table::Project))
        .map(|pair| value::decode("a project", &pair?.1))
        .collect()
}

pub(crate) fn volume(kv: &dyn Read, name: &str) -> Result<Option<Volume>, KvError> {
    get(kv, "a volume", &keys::volume(name))
}

pub(crate) fn volumes(kv: &dyn Read) -> Result<Vec<Volume>, KvError> {
    prefixed(kv, &keys::table(Table::Volume))
        .map(|pair| value::decode("a volume", &pair?.1))
        .collect()
}

pub(crate) fn snapshot(kv: &dyn Read, volume: &str, name: &str) -> Result<Option<Snapshot>, KvError> {
    get(kv, "a snapshot", &keys::snapshot(volume, name))
}

/// Snapshots of one volume, or of all.
pub(crate) fn snapshots(kv: &dyn Read, volume: Option<&str>) -> Result<Vec<Snapshot>, KvError> {
    let prefix = volume.map_or_else(
        || keys::table(Table::Snapshot),
        |volume| keys::snapshot(volume, ""),
    );
    prefixed(kv, &prefix)
        .map(|pair| value::decode("a snapshot", &pair?.1))
        .collect()
}

/// Who uses a volume.
pub(crate) fn holds(kv: &dyn Read, volume: &str) -> Result<Vec<Hold>, KvError> {
    prefixed(kv, &keys::holds(volume))
        .map(|pair| value::decode("a hold", &pair?.1))
        .collect()
}

pub(crate) fn hold(kv: &dyn Read, volume: &str, node: NodeId, id: &str) -> Result<Option<Hold>, KvError> {
    get(kv, "a hold", &keys::hold(volume, node, id))
}

/// Directories above `after` of trees that are to go.
pub(crate) fn doomed(kv: &dyn Read, after: Ino, inodes_max: usize) -> Result<Vec<Ino>, KvError> {
    let (_, end) = prefix_range(&keys::table(Table::Doomed));
    let range = (Bound::Excluded(keys::doomed(after)), end);
    kv.scan(range, false)
        .take(inodes_max)
        .map(|pair| number("a doomed directory", &pair?.0, 1))
        .collect()
}
