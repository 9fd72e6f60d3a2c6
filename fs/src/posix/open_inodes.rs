//! Which inodes are open on this node.
//!
//! An unlinked inode lives on while some node has it open. The leader finds that out by asking every node
//! ([`OpenInodes::open_among`]) after the unlink was applied, and frees what nobody reports. That is free of races
//! because an open registers *before* it asks for the newest state and looks whether the inode still has a name:
//! either the leader's question sees the registration, or the open sees the unlink and fails with ESTALE.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftstore::meta::Ino;

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// Opens that are still being checked.
    opening: u32,
    /// Opens that succeeded.
    open: u32,
}

#[derive(Debug, Default)]
struct Inner {
    inodes: HashMap<Ino, Count>,
    /// Creations on their way: newest inode number that was known when each began, and how many began there.
    creating: BTreeMap<Ino, u32>,
}

/// A table of open inodes.
#[derive(Debug, Default)]
pub struct OpenInodes {
    inner: Mutex<Inner>,
    newest: AtomicU64,
}

impl OpenInodes {
    /// Those of `inodes` that must not be freed for this node's sake. May name a few too many, never too few.
    #[must_use]
    pub fn open_among(&self, inodes: &[Ino]) -> Vec<Ino> {
        let inner = self.lock();
        // A creation's inode is newer than any that was known when it began, since numbers are never used again.
        let created_above = inner.creating.keys().next().copied();
        let is_open = |ino: &Ino| {
            inner.inodes.contains_key(ino) || created_above.is_some_and(|newest_then| *ino > newest_then)
        };
        inodes.iter().copied().filter(is_open).collect()
    }

    /// How many inodes are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().inodes.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Registers an open that is still to be checked.
    pub(super) fn begin_open(self: &Arc<Self>, ino: Ino) -> Opening {
        let mut inner = self.lock();
        let count = inner.inodes.entry(ino).or_default();
        count.opening += 1;
        Opening {
            was_open: count.open > 0,
            ino,
            table: self.clone(),
        }
    }

    /// Registers a creation whose inode is not known yet.
    pub(super) fn begin_create(self: &Arc<Self>) -> Creating {
        let mut inner = self.lock();
        let newest_then = self.newest.load(Ordering::Relaxed);
        *inner.creating.entry(newest_then).or_default() += 1;
        Creating {
            newest_then,
            table: self.clone(),
        }
    }

    /// Undoes one open.
    pub(super) fn close(&self, ino: Ino) {
        self.change(ino, |count| count.open = count.open.saturating_sub(1));
    }

    /// This inode number has been given out.
    pub(super) fn saw(&self, ino: Ino) {
        self.newest.fetch_max(ino, Ordering::Relaxed);
    }

    fn change(&self, ino: Ino, change: impl FnOnce(&mut Count)) {
        let mut inner = self.lock();
        let count = inner.inodes.entry(ino).or_default();
        change(count);
        if count.open == 0 && count.opening == 0 {
            inner.inodes.remove(&ino);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open that is being checked; dropped, it is undone.
#[must_use]
pub(super) struct Opening {
    /// Whether the inode was open on this node already, so that it cannot have been freed.
    pub(super) was_open: bool,
    ino: Ino,
    table: Arc<OpenInodes>,
}

impl Opening {
    /// The open succeeded: it counts until [`OpenInodes::close`].
    pub(super) fn succeed(self) {
        self.table.change(self.ino, |count| count.open += 1);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.table
            .change(self.ino, |count| count.opening = count.opening.saturating_sub(1));
    }
}

/// A creation on its way; dropped, it is over.
#[must_use]
pub(super) struct Creating {
    newest_then: Ino,
    table: Arc<OpenInodes>,
}

impl Drop for Creating {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        if let Some(count) = inner.creating.get_mut(&self.newest_then) {
            *count -= 1;
            if *count == 0 {
                inner.creating.remove(&self.newest_then);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_counts_from_its_first_moment() {
        let table = Arc::new(OpenInodes::default());
        let opening = table.begin_open(7);
        assert!(!opening.was_open);
        assert_eq!(table.open_among(&[6, 7]), [7]);
        opening.succeed();
        assert_eq!(table.open_among(&[7]), [7]);
        assert!(table.begin_open(7).was_open);
        table.close(7);
        assert!(table.is_empty());
    }

    #[test]
    fn an_open_that_fails_leaves_nothing() {
        let table = Arc::new(OpenInodes::default());
        drop(table.begin_open(7));
        assert!(table.is_empty());
    }

    #[test]
    fn a_creation_guards_only_newer_inodes() {
        let table = Arc::new(OpenInodes::default());
        table.saw(10);
        let creating = table.begin_create();
        table.saw(12);
        assert_eq!(table.open_among(&[9, 10, 11, 13]), [11, 13]);
        drop(creating);
        assert!(table.open_among(&[11, 13]).is_empty());
    }
}
