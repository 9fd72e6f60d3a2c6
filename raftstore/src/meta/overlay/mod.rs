//! What a node has done on its own and the log does not say yet, on top of the state.

mod layers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::keys::{self, Table};
use super::txn::KeyChange;
use super::types::*;
use super::{Event, MetaError, Proposal, Reader, Reply, Txn, apply, value};
use crate::kv::KvError;
use layers::{Changes, Layers, Row};

/// Changes of inodes, names, extended attributes and locks that no other node can see yet: this node has made them
/// under leases, and has not proposed them or not seen them applied. The same code as [`super::MetaStore::apply`]'s
/// makes them, so that the log comes to the same result.
///
/// One thread changes an overlay; any number of others read through its [`Overlay::reader`] meanwhile.
pub struct Overlay {
    layers: Arc<Layers>,
    /// The keys that were changed under each number. One that was changed again under a higher number since is listed
    /// there, too.
    touched: BTreeMap<u64, Vec<Bytes>>,
}

impl Overlay {
    /// No changes yet, over what `base` shows, now and later: it must read the newest state, not a snapshot.
    #[must_use]
    pub fn new(base: &Reader) -> Self {
        Self {
            layers: Arc::new(Layers::new(base.shared_kv())),
            touched: BTreeMap::new(),
        }
    }

    /// Runs an operation as if it were the next one in the log, and keeps what it changes under `number`. Nothing is
    /// kept if it is refused.
    ///
    /// It must be one that [`super::Op::can_be_batched`], or a write; `Create` needs a reserved number, and a
    /// directory cannot get another parent. Contents are not kept: a write only moves the file's attributes, of
    /// which `allocated_bytes` is a guess.
    pub fn apply(
        &mut self,
        number: u64,
        proposal: &Proposal,
    ) -> Result<Result<(Reply, Vec<Event>), MetaError>, KvError> {
        let layers = self.layers.clone();
        let mut txn = Txn::new(&*layers);
        let mut events = Vec::new();
        let answer = apply::speculate(&mut txn, proposal, &mut events)?;
        Ok(answer.map(|reply| {
            self.keep(number, txn.into_batch().changes);
            (reply, events)
        }))
    }

    /// Puts an inode's record, changed otherwise than by an operation, under `number`.
    pub fn put_inode(&mut self, number: u64, inode: &Inode) -> Result<(), KvError> {
        let row = (keys::inode(inode.ino).into(), Some(value::encode_inode(inode)?));
        self.keep(number, vec![row]);
        Ok(())
    }

    /// Forgets what was last changed under `number` or a lower one: the base shows it by now. The records of inodes
    /// for which `keep` is true stay, until another call for which it is not.
    pub fn committed(&mut self, number: u64, keep: impl Fn(Ino) -> bool) {
        let later = match number.checked_add(1) {
            Some(next) => self.touched.split_off(&next),
            None => BTreeMap::new(),
        };
        let done = std::mem::replace(&mut self.touched, later);
        let mut forgotten = Vec::new();
        for (number, touched) in done {
            // Nobody else changes the rows, so they may be looked at first. `keep` is asked without the lock.
            let (kept, gone) = self
                .unchanged_since(number, touched)
                .into_iter()
                .partition::<Vec<Bytes>, _>(|key| inode_of(key).is_some_and(&keep));
            forgotten.extend(gone);
            if !kept.is_empty() {
                self.touched.insert(number, kept);
            }
        }
        let mut changes = self.layers.write();
        for key in &forgotten {
            changes.remove(key);
        }
    }

    /// Those of `touched` that were not changed again under another number.
    fn unchanged_since(&self, number: u64, mut touched: Vec<Bytes>) -> Vec<Bytes> {
        let changes = self.layers.read();
        touched.retain(|key| changes.rows.get(key).is_some_and(|row| row.number == number));
        touched
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.touched.clear();
        *self.layers.write() = Changes::default();
    }

    /// Memory that the changes take, an estimate.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers.read().bytes
    }

    /// Whether nothing differs from the base.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.read().rows.is_empty()
    }

    /// The base with the changes on top, also with later ones. A listing that is long shows changes that are made
    /// while it runs, or not; each of its rows is right by itself.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(self.layers.clone())
    }

    /// All at once, as readers see it.
    fn keep(&mut self, number: u64, rows: Vec<KeyChange>) {
        let mut changes = self.layers.write();
        for (key, value) in rows {
            if is_kept(&key) && changes.put(key.clone(), Row { number, value }) {
                self.touched.entry(number).or_default().push(key);
            }
        }
    }
}

/// Whether the overlay keeps changes of the key's table.
fn is_kept(key: &[u8]) -> bool {
    const TABLES: [Table; 7] = [
        Table::Inode,
        Table::EntryByName,
        Table::EntryByCookie,
        Table::Xattr,
        Table::Orphan,
        Table::Lock,
        Table::SessionLock,
    ];
    TABLES.iter().any(|table| key.first() == Some(&(*table as u8)))
}

/// The inode whose record is under the key.
fn inode_of(key: &[u8]) -> Option<Ino> {
    let is_record = key.first() == Some(&(Table::Inode as u8));
    keys::u64_at(key, 1).filter(|_| is_record)
}
