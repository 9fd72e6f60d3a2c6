//! What this node remembers about locks: who may hold some (so that closing a file without locks costs nothing), who
//! waits, in which order, and which open files have lost theirs.
//!
//! The locks themselves are replicated state. Waiting is local: a queue for each inode, so that of many waiters on
//! this node only those whose turn it is ask the cluster.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftstore::meta::{Ino, Lock, LockKind, LockOwner, SessionId};
use tokio::sync::{Mutex as Turn, Notify, OwnedMutexGuard};

use super::{FsError, LockRange};

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

/// What is known of one holder.
#[derive(Debug)]
struct Held {
    /// Through which it locked last.
    handle: u64,
    /// Under which it may hold locks; `None` if it holds none.
    session: Option<SessionId>,
    /// Requests of it on their way.
    users: u32,
    turn: Arc<Turn<()>>,
}

/// Open files, and owners, whose locks on an inode went with a session. What they do would be done without the locks
/// that its program relies on.
#[derive(Debug, Default)]
struct Lost {
    handles: HashSet<u64>,
    owners: HashSet<u64>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    lock: Lock,
    blocked_by: Option<LockOwner>,
}

/// One step of "waits for".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) ino: Ino,
    /// What is waited for.
    pub(super) lock: Lock,
    /// Who had it when the cluster was last asked.
    pub(super) blocker: LockOwner,
}

#[derive(Debug, Default)]
struct Queue {
    waiters: VecDeque<Waiter>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    held: BTreeMap<Holder, Held>,
    /// Handles of the files that are open.
    open: HashMap<Ino, HashSet<u64>>,
    lost: HashMap<Ino, Lost>,
    /// The newest session that is over.
    last_lost: SessionId,
    waiting: HashMap<Ino, Queue>,
    /// Inodes whose lock somebody else was refused since this node last gave one up.
    wanted: HashSet<Ino>,
    next_id: u64,
}

impl Inner {
    fn of_inode(&self, ino: Ino) -> impl Iterator<Item = (&Holder, &Held)> {
        self.held
            .range(Holder::first(ino)..Holder::first(ino.saturating_add(1)))
    }
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

    /// Begins a request for a lock; `None` if the table is full.
    pub(super) fn begin(self: &Arc<Self>, holder: Holder, handle: u64) -> Option<Using> {
        let mut inner = self.lock();
        if inner.held.len() >= self.owners_max && !inner.held.contains_key(&holder) {
            return None;
        }
        let held = inner.held.entry(holder).or_insert_with(|| Held {
            handle,
            session: None,
            users: 0,
            turn: Arc::default(),
        });
        held.handle = handle;
        held.users += 1;
        Some(Using {
            holder,
            turn: held.turn.clone(),
            table: self.clone(),
        })
    }

    /// Begins to give locks up; `None` if `holder` holds none and is not about to.
    pub(super) fn begin_unlock(self: &Arc<Self>, holder: Holder) -> Option<Using> {
        let mut inner = self.lock();
        let held = inner.held.get_mut(&holder)?;
        held.users += 1;
        Some(Using {
            holder,
            turn: held.turn.clone(),
            table: self.clone(),
        })
    }

    /// Those who locked `ino` through `handle` last and have not given all up.
    pub(super) fn holders_through(&self, ino: Ino, handle: u64) -> Vec<Holder> {
        let inner = self.lock();
        inner
            .of_inode(ino)
            .filter(|(_, held)| held.handle == handle)
            .map(|(holder, _)| *holder)
            .collect()
    }

    /// A file was opened.
    pub(super) fn opened(&self, ino: Ino, handle: u64) {
        self.lock().open.entry(ino).or_default().insert(handle);
    }

    /// A handle is gone, and with it what it had lost.
    pub(super) fn closed(&self, ino: Ino, handle: u64) {
        let mut inner = self.lock();
        if let Some(handles) = inner.open.get_mut(&ino) {
            handles.remove(&handle);
            if handles.is_empty() {
                inner.open.remove(&ino);
            }
        }
        if let Some(lost) = inner.lost.get_mut(&ino) {
            lost.handles.remove(&handle);
            if lost.handles.is_empty() {
                inner.lost.remove(&ino);
            }
        }
    }

    /// A process closed a descriptor of the file: it cannot believe any more that it holds locks.
    pub(super) fn owner_let_go(&self, ino: Ino, token: u64) {
        if let Some(lost) = self.lock().lost.get_mut(&ino) {
            lost.owners.remove(&token);
        }
    }

    /// `session` is over, and with it went all its locks. Every file that is open now and on whose inode one was held
    /// has lost it: this node does not know which of its programs rely on which lock.
    pub(super) fn session_over(&self, session: SessionId) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.last_lost = inner.last_lost.max(session);
        for (holder, held) in &mut inner.held {
            if held.session.is_none_or(|under| under > session) {
                continue;
            }
            held.session = None;
            let Some(handles) = inner.open.get(&holder.ino) else {
                continue;
            };
            let lost = inner.lost.entry(holder.ino).or_default();
            lost.handles.extend(handles);
            lost.owners.insert(holder.token);
        }
        inner
            .held
            .retain(|_, held| held.users > 0 || held.session.is_some());
    }

    /// Before a change of `ino` through `handle`, by `owner`. The session, if locks on it are held on this node: the
    /// change must not be made under another one.
    ///
    /// # Errors
    /// [`FsError::LocksLost`].
    pub(super) fn check(&self, ino: Ino, by: Changer) -> Result<Option<SessionId>, FsError> {
        let inner = self.lock();
        if let Some(lost) = inner.lost.get(&ino)
            && (by.mapped
                || by.handle.is_some_and(|handle| lost.handles.contains(&handle))
                || by.owner.is_some_and(|owner| lost.owners.contains(&owner)))
        {
            return Err(FsError::LocksLost);
        }
        Ok(inner.of_inode(ino).find_map(|(_, held)| held.session))
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
        if let Some(queue) = self.lock().waiting.get_mut(&ino) {
            for waiter in &mut queue.waiters {
                waiter.blocked_by = None;
            }
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

/// Who changes a file, as far as the kernel tells.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Changer {
    pub(super) handle: Option<u64>,
    /// The kernel's owner token.
    pub(super) owner: Option<u64>,
    /// Pages of a mapping: the kernel picks any open file for them.
    pub(super) mapped: bool,
}

impl Changer {
    /// Whoever uses this open file, if one is named.
    pub(super) fn through(handle: Option<u64>) -> Self {
        Self {
            handle,
            ..Self::default()
        }
    }
}

/// A request of a holder on its way: so long, the holder is not forgotten.
#[must_use]
#[derive(Debug)]
pub(super) struct Using {
    holder: Holder,
    turn: Arc<Turn<()>>,
    table: Arc<LockTable>,
}

impl Using {
    /// Waits until no other request of the holder is on its way: they would overtake each other.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// Under which session the holder may hold locks.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.table.lock().held.get(&self.holder)?.session
    }

    /// The holder was granted a lock under `session`. False if that is over meanwhile, so that the lock is gone.
    pub(super) fn granted(&self, session: SessionId) -> bool {
        let mut inner = self.table.lock();
        if session <= inner.last_lost {
            return false;
        }
        if let Some(held) = inner.held.get_mut(&self.holder) {
            held.session = Some(session);
        }
        true
    }

    /// The holder holds nothing. To be called in its turn.
    pub(super) fn freed(&self) {
        if let Some(held) = self.table.lock().held.get_mut(&self.holder) {
            held.session = None;
        }
    }

    /// [`LockTable::check`] for the request itself.
    pub(super) fn check(&self, handle: u64) -> Result<(), FsError> {
        let by = Changer {
            handle: Some(handle),
            owner: Some(self.holder.token),
            mapped: false,
        };
        self.table.check(self.holder.ino, by).map(drop)
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        if let Some(held) = inner.held.get_mut(&self.holder) {
            held.users -= 1;
            if held.users == 0 && held.session.is_none() {
                inner.held.remove(&self.holder);
            }
        }
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

    /// Notes who is in the way of `mine`. If that one, step by step, waits for the owner of `mine`: the steps. They
    /// are what the waiters were last told; whether each still holds is for the caller to look up.
    pub(super) fn blocked_by(&self, mine: Lock, blocker: LockOwner) -> Option<Vec<Edge>> {
        let mut inner = self.table.lock();
        if let Some(queue) = inner.waiting.get_mut(&self.ino)
            && let Some(waiter) = queue.waiters.iter_mut().find(|waiter| waiter.id == self.id)
        {
            // The session may be another than when the wait began.
            waiter.lock = mine;
            waiter.blocked_by = Some(blocker);
        }
        let mut path = vec![Edge {
            ino: self.ino,
            lock: mine,
            blocker,
        }];
        let mut owner = blocker;
        while path.len() <= DEADLOCK_DEPTH_MAX {
            if owner == mine.owner {
                return Some(path);
            }
            let next = inner.waiting.iter().find_map(|(ino, queue)| {
                let of_owner = |waiter: &&Waiter| waiter.lock.owner == owner && waiter.blocked_by.is_some();
                let waiter = queue.waiters.iter().find(of_owner)?;
                Some(Edge {
                    ino: *ino,
                    lock: waiter.lock,
                    blocker: waiter.blocked_by?,
                })
            })?;
            owner = next.blocker;
            path.push(next);
        }
        None
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
