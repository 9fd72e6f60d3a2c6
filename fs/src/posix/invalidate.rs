//! What the kernel's page cache must forget because another node changed it.
//!
//! The observer of the state machine pushes, one thread of the FUSE glue takes and notifies the kernel. An
//! invalidation waits for locked pages, and those for reads and writes that are on their way: so neither the thread
//! that applies nor a request's own task may ever wait in the kernel, and reads and writes never wait for
//! [`Invalidations::settled`].

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raftstore::meta::Ino;
use tokio::sync::watch;

/// A kernel that does not take an invalidation for so long is not waited for: its cache may be stale for mapped
/// files then, but the mount answers.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// What to invalidate next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalidation {
    /// Data of these inodes.
    pub inodes: Vec<Ino>,
    /// To be handed to [`Invalidations::delivered`] afterwards.
    pub serial: u64,
}

#[derive(Default)]
struct Inner {
    /// Nobody listens before the kernel is attached, nor after it is detached.
    attached: bool,
    /// Inodes that the kernel knows, and how many references it has.
    known: HashMap<Ino, u64>,
    pending: HashSet<Ino>,
    all: bool,
    /// Counts pushes.
    serial: u64,
}

/// A bounded queue of invalidations, and the table of inodes that the kernel knows.
pub struct Invalidations {
    inner: Mutex<Inner>,
    wake: Condvar,
    delivered: watch::Sender<u64>,
    pending_max: usize,
    known_max: usize,
}

impl Invalidations {
    /// At most `pending_max` inodes queued one by one, and `known_max` remembered.
    #[must_use]
    pub fn new(pending_max: usize, known_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            wake: Condvar::new(),
            delivered: watch::Sender::new(0),
            pending_max,
            known_max,
        }
    }

    /// From now on, someone calls [`Invalidations::next`].
    pub fn attach(&self) {
        self.lock().attached = true;
    }

    /// Ends [`Invalidations::next`]; nothing is queued from now on.
    pub fn detach(&self) {
        let mut inner = self.lock();
        *inner = Inner {
            serial: inner.serial,
            ..Inner::default()
        };
        self.delivered.send_replace(inner.serial);
        self.wake.notify_all();
    }

    /// The kernel was told of this inode once more.
    pub fn looked_up(&self, ino: Ino) {
        let mut inner = self.lock();
        if let Some(count) = inner.known.get_mut(&ino) {
            *count += 1;
        } else if inner.attached && inner.known.len() < self.known_max {
            // Beyond the limit the kernel still notices changes by mtime whenever it asks for attributes.
            inner.known.insert(ino, 1);
        }
    }

    /// The kernel dropped `count` references to this inode.
    pub fn forgot(&self, ino: Ino, count: u64) {
        let mut inner = self.lock();
        if let Some(known) = inner.known.get_mut(&ino) {
            *known = known.saturating_sub(count);
            if *known == 0 {
                inner.known.remove(&ino);
            }
        }
    }

    /// Queues an inode if the kernel knows it. Does not block.
    pub fn push(&self, ino: Ino) {
        let mut inner = self.lock();
        if !inner.attached || !inner.known.contains_key(&ino) {
            return;
        }
        if inner.pending.len() >= self.pending_max {
            inner.pending = HashSet::new();
            inner.all = true;
        }
        if !inner.all {
            inner.pending.insert(ino);
        }
        inner.serial += 1;
        self.wake.notify_all();
    }

    /// Queues everything that the kernel knows. Does not block.
    pub fn push_all(&self) {
        let mut inner = self.lock();
        if inner.attached {
            inner.all = true;
            inner.serial += 1;
            self.wake.notify_all();
        }
    }

    /// Blocks until there is something to invalidate; `None` once detached.
    #[must_use]
    pub fn next(&self) -> Option<Invalidation> {
        let mut inner = self.lock();
        loop {
            if !inner.attached {
                return None;
            }
            if inner.all || !inner.pending.is_empty() {
                break;
            }
            inner = self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        let pending = std::mem::take(&mut inner.pending);
        let inodes = if std::mem::take(&mut inner.all) {
            inner.known.keys().copied().collect()
        } else {
            pending.into_iter().collect()
        };
        Some(Invalidation {
            inodes,
            serial: inner.serial,
        })
    }

    /// The kernel has taken everything up to `serial`.
    pub fn delivered(&self, serial: u64) {
        self.delivered.send_if_modified(|delivered| {
            let newer = serial > *delivered;
            *delivered = serial.max(*delivered);
            newer
        });
    }

    /// Waits until everything queued so far has been delivered.
    pub async fn settled(&self) {
        let serial = self.lock().serial;
        if *self.delivered.borrow() >= serial {
            return;
        }
        let mut delivered = self.delivered.subscribe();
        let wait = delivered.wait_for(|delivered| *delivered >= serial);
        if tokio::time::timeout(SETTLE_MAX, wait).await.is_err() {
            tracing::warn!("the kernel does not take cache invalidations; mapped files may be stale");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
