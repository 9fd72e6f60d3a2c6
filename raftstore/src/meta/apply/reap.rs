//! Freeing unlinked inodes.

use crate::kv::prefix_range;
use crate::meta::types::*;
use crate::meta::{Reply, keys, tables};

use super::step::{Fail, Step};

/// Extents that one [`crate::meta::Op::Reap`] frees at most. What is left stays an orphan, for the next one.
const REAP_EXTENTS_MAX: usize = 16_384;

pub(super) fn reap(step: &mut Step<'_, '_>, inodes: &[Ino]) -> Result<Reply, Fail> {
    let mut extents_left = REAP_EXTENTS_MAX;
    for ino in inodes {
        if extents_left == 0 {
            break;
        }
        if tables::is_orphan(step.txn, *ino)? {
            let (all, freed) = step.free_extents(*ino, extents_left)?;
            extents_left -= freed;
            if all {
                free(step, *ino)?;
            }
        }
    }
    Ok(Reply::Done)
}

/// Frees an orphan that has no extents any more.
fn free(step: &mut Step<'_, '_>, ino: Ino) -> Result<(), Fail> {
    step.drop_locks(ino, None)?;
    step.delete_all(&keys::xattr(ino, b""))?;
    step.txn.delete(keys::orphan(ino).into());
    step.remove_inode(ino)
}

impl Step<'_, '_> {
    /// Deletes all keys that start with `prefix`.
    pub(super) fn delete_all(&mut self, prefix: &[u8]) -> Result<(), Fail> {
        let keys: Result<Vec<_>, _> = self
            .txn
            .scan(prefix_range(prefix), false)
            .map(|pair| Ok(pair?.0))
            .collect();
        for key in keys.map_err(Fail::Kv)? {
            self.txn.delete(key);
        }
        Ok(())
    }
}
