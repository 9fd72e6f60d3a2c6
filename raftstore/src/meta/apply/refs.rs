//! Counting which files refer to which chunks.

use std::collections::BTreeMap;

use crate::kv::KvError;
use crate::meta::types::*;
use crate::meta::{Event, Txn, keys, tables, value};

use super::step::add;

/// By how many live bytes each reference of a file to a chunk changes. Gathered over a step, so that an extent that
/// is only cut or moved does not make its chunk look dead in between.
#[derive(Default)]
pub(super) struct RefChanges(BTreeMap<ChunkId, BTreeMap<Ino, i64>>);

impl RefChanges {
    /// Notes that `ino` shows `bytes` more (or fewer) bytes of a chunk.
    pub(super) fn change(&mut self, id: ChunkId, ino: Ino, bytes: i64) {
        let delta = self.0.entry(id).or_default().entry(ino).or_default();
        *delta = delta.saturating_add(bytes);
    }

    /// Writes the changed counts; tells which chunks have come to life or died.
    pub(super) fn commit(&mut self, txn: &mut Txn<'_>, events: &mut Vec<Event>) -> Result<(), KvError> {
        for (id, files) in std::mem::take(&mut self.0) {
            let mut changed = Vec::new();
            let mut rows_change = false;
            for (ino, delta) in files {
                let old = tables::chunk_ref(txn, id, ino)?;
                let new = add("a chunk's count of live bytes", old, delta)?;
                rows_change |= (old == 0) != (new == 0);
                if old != new {
                    changed.push((ino, new));
                }
            }
            let tells = rows_change && id.payload_index().is_none();
            let was_live = tells && tables::chunk_is_live(txn, id)?;
            for (ino, live_bytes) in changed {
                let key = keys::chunk_ref(id, ino).into();
                match live_bytes {
                    0 => txn.delete(key),
                    _ => txn.put(key, value::encode(&live_bytes)?),
                }
            }
            if tells {
                match (was_live, tables::chunk_is_live(txn, id)?) {
                    (false, true) => events.push(Event::ChunkAdded { id }),
                    (true, false) => events.push(Event::ChunkDead { id }),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
