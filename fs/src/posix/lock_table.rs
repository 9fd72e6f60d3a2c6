//! What this node remembers about locks: who may hold some (so that closing a file without locks costs nothing), and
//! who waits, in which order.
//!
//! The locks themselves are replicated state. Waiting is local: a queue for each inode, so that of many waiters on
//! this node only those whose turn it is ask the cluster.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftstore::meta::{Ino, Lock, LockKind, LockOwner};
use tokio::sync::Notify;

use super::LockRange;

/// How many steps of "waits for" are followed when looking for a deadlock.
const DEADLOCK_DEPTH_MAX: usize = 64;
/// Inodes remembered as wanted by others; forgetting one costs fairness, nothing else.
const WANTED_MAX: usize = 1024;

/// A lock owner on this node, with respect to one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Holder {
    pub(super) ino: Ino,
    pub(super) kind: LockKind,
    /// The kernel's owner token.
    pub(super) token: u64,
}

impl Holder {
    fn first(ino: Ino) -> Self {
        Self {
            ino,
            kind: LockKind::Posix,
            token: 0,
        }
    }
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    lock: Lock,
    blocked_by: Option<LockOwner>,
}

#[derive(Debug, Default)]
struct Queue {
    waiters: VecDeque<Waiter>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Owners that may hold locks, and the handle that each locked through last.
    held: BTreeMap<Holder, u64>,
    waiting: HashMap<Ino, Queue>,
    /// Inodes whose lock somebody else was refused since this node last gave one up.
    wanted: HashSet<Ino>,
    next_id: u64,
}

/// Holders and waiters of one node.
#[derive(Debug)]
pub(super) struct LockTable {
    inner: Mutex<Inner>,
    owners_max: usize,
}

impl LockTable {
    pub(super) fn new(owners_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            owners_max,
        }
    }

    /// Remembers that `holder` may hold locks. Returns whether that is new; `None` if the table is full.
    pub(super) fn remember(&self, holder: Holder, handle: u64) -> Option<bool> {
        let mut inner = self.lock();
        if inner.held.len() >= self.owners_max && !inner.held.contains_key(&holder) {
            return None;
        }
        Some(inner.held.insert(holder, handle).is_none())
    }

    /// `holder` holds nothing any more. Returns whether it was remembered.
    pub(super) fn forget(&self, holder: Holder) -> bool {
        self.lock().held.remove(&holder).is_some()
    }

    /// Whether `holder` may hold locks.
    pub(super) fn may_hold(&self, holder: Holder) -> bool {
        self.lock().held.contains_key(&holder)
    }

    /// Those who locked `ino` through `handle` last and have not given all up.
    pub(super) fn holders_through(&self, ino: Ino, handle: u64) -> Vec<Holder> {
        let inner = self.lock();
        inner
            .held
            .range(Holder::first(ino)..Holder::first(ino.saturating_add(1)))
            .filter(|(_, through)| **through == handle)
            .map(|(holder, _)| *holder)
            .collect()
    }

    /// The session is over, and with it went all its locks.
    pub(super) fn forget_held(&self) {
        self.lock().held.clear();
    }

    /// Joins the queue of the lock's inode.
    pub(super) fn wait(self: &Arc<Self>, ino: Ino, lock: Lock) -> Waiting {
        let mut inner = self.lock();
        inner.next_id += 1;
        let id = inner.next_id;
        let queue = inner.waiting.entry(ino).or_default();
        queue.waiters.push_back(Waiter {
            id,
            lock,
            blocked_by: None,
        });
        Waiting {
            id,
            ino,
            changed: queue.changed.clone(),
            table: self.clone(),
        }
    }

    /// A lock on `ino` was given up.
    pub(super) fn wake(&self, ino: Ino) {
        if let Some(queue) = self.lock().waiting.get(&ino) {
            queue.changed.notify_waiters();
        }
    }

    /// Everybody looks again.
    pub(super) fn wake_all(&self) {
        for queue in self.lock().waiting.values() {
            queue.changed.notify_waiters();
        }
    }

    /// Another node was refused a lock on `ino`.
    pub(super) fn wanted_elsewhere(&self, ino: Ino) {
        let mut inner = self.lock();
        if inner.wanted.len() < WANTED_MAX {
            inner.wanted.insert(ino);
        }
    }

    /// Whether another node was refused a lock on `ino`; asked once after giving one up.
    pub(super) fn take_wanted(&self, ino: Ino) -> bool {
        self.lock().wanted.remove(&ino)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue; dropped, it is given up.
#[must_use]
pub(super) struct Waiting {
    id: u64,
    ino: Ino,
    pub(super) changed: Arc<Notify>,
    table: Arc<LockTable>,
}

impl Waiting {
    /// Whether nobody on this node who came earlier waits for a conflicting lock.
    pub(super) fn is_next(&self) -> bool {
        let inner = self.table.lock();
        let Some(queue) = inner.waiting.get(&self.ino) else {
            return true;
        };
        let Some(mine) = queue.waiters.iter().find(|waiter| waiter.id == self.id) else {
            return true;
        };
        !queue
            .waiters
            .iter()
            .take_while(|waiter| waiter.id != self.id)
            .any(|earlier| conflict(&earlier.lock, &mine.lock))
    }

    /// Notes who is in the way. Returns true if that one, step by step, waits for `me`.
    pub(super) fn blocked_by(&self, me: LockOwner, blocker: LockOwner) -> bool {
        let mut inner = self.table.lock();
        if let Some(queue) = inner.waiting.get_mut(&self.ino)
            && let Some(mine) = queue.waiters.iter_mut().find(|waiter| waiter.id == self.id)
        {
            mine.blocked_by = Some(blocker);
        }
        let mut owner = blocker;
        for _ in 0..DEADLOCK_DEPTH_MAX {
            if owner == me {
                return true;
            }
            let waits_for = inner
                .waiting
                .values()
                .flat_map(|queue| &queue.waiters)
                .find(|waiter| waiter.lock.owner == owner)
                .and_then(|waiter| waiter.blocked_by);
            match waits_for {
                Some(next) => owner = next,
                None => return false,
            }
        }
        false
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        if let Some(queue) = inner.waiting.get_mut(&self.ino) {
            queue.waiters.retain(|waiter| waiter.id != self.id);
            queue.changed.notify_waiters();
            if queue.waiters.is_empty() {
                inner.waiting.remove(&self.ino);
            }
        }
    }
}

/// Whether two locks cannot be held at the same time.
pub(super) fn conflict(a: &Lock, b: &Lock) -> bool {
    let range = |lock: &Lock| LockRange {
        start: lock.start,
        end: lock.end,
    };
    a.owner.kind == b.owner.kind
        && a.owner != b.owner
        && (a.exclusive || b.exclusive)
        && range(a).overlaps(range(b))
}
