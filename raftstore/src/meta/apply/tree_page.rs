//! Inodes and extents of many files, read with few scans: a scan costs an engine more than the rows that it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::kv::{KvError, Pair};
use crate::meta::types::*;
use crate::meta::{Txn, keys, value};

/// Numbers that are left out between two inodes of one scan, at most.
const GAP_MAX: u64 = 4;
/// Extents that a scan reads for each inode that it is about, on average.
const EXTENTS_EACH: usize = 4;

/// What was read.
#[derive(Default)]
pub(super) struct TreePage {
    inodes: BTreeMap<Ino, Inode>,
    extents: BTreeMap<Ino, Vec<Pair>>,
}

impl TreePage {
    /// Reads those of `wanted` that lie close together, as far as they have few extents.
    pub(super) fn read(txn: &Txn<'_>, wanted: &BTreeSet<Ino>) -> Result<Self, KvError> {
        let mut page = Self::default();
        let mut run: Vec<Ino> = Vec::new();
        for ino in wanted {
            if run.last().is_some_and(|last| ino - last > GAP_MAX) {
                page.read_run(txn, &run)?;
                run.clear();
            }
            run.push(*ino);
        }
        page.read_run(txn, &run)?;
        Ok(page)
    }

    fn read_run(&mut self, txn: &Txn<'_>, run: &[Ino]) -> Result<(), KvError> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(());
        };
        let wanted: BTreeSet<Ino> = run.iter().copied().collect();
        let range = (
            Bound::Included(keys::inode(*first)),
            Bound::Included(keys::inode(*last)),
        );
        for pair in txn.scan(range, false) {
            let (key, coded) = pair?;
            if let Some(ino) = keys::u64_at(&key, 1).filter(|ino| wanted.contains(ino)) {
                self.inodes.insert(ino, value::decode_inode(&coded)?);
            }
        }
        let range = (
            Bound::Included(keys::extent(*first, 0)),
            Bound::Included(keys::extent(*last, u64::MAX)),
        );
        let rows_max = run.len() * EXTENTS_EACH;
        let rows: Result<Vec<Pair>, KvError> = txn.scan(range, false).take(rows_max).collect();
        let rows = rows?;
        // The last one may have more than were read.
        let cut_at = rows.last().filter(|_| rows.len() == rows_max);
        let complete_below = cut_at.map_or(u64::MAX, |(key, _)| keys::u64_at(key, 1).unwrap_or(0));
        for ino in wanted.iter().filter(|ino| **ino < complete_below) {
            self.extents.insert(*ino, Vec::new());
        }
        for (key, coded) in rows {
            let file = keys::u64_at(&key, 1).and_then(|ino| self.extents.get_mut(&ino));
            if let Some(found) = file {
                found.push((key, coded));
            }
        }
        Ok(())
    }

    /// An inode, if it was read and not taken before.
    pub(super) fn take_inode(&mut self, ino: Ino) -> Option<Inode> {
        self.inodes.remove(&ino)
    }

    /// All extents of a file, if they were read and not taken before.
    pub(super) fn take_extents(&mut self, ino: Ino) -> Option<Vec<Pair>> {
        self.extents.remove(&ino)
    }
}
