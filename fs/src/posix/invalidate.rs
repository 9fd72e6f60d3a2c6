//! What the kernel's page cache must forget because another node changed it.
//!
//! Files are read and written past the page cache; only mappings fill it. So an inode gets in here when the kernel
//! asks for a page of it, and is due for one invalidation when another node changes its data.
//!
//! The observer of the state machine pushes, one thread of the FUSE glue takes and notifies the kernel. An
//! invalidation waits for locked pages, and those for reads and writes that are on their way: so neither the thread
//! that applies nor a request's own task may ever wait in the kernel, and reads and writes never wait for
//! [`Invalidations::settled`].
//!
//! An invalidation has a price: the kernel throws away the attributes in answers that are on their way at that
//! moment. Therefore nothing is invalidated that need not be.

use std::collections::HashSet;
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
    /// Inodes that the page cache may hold pages of.
    cached: HashSet<Ino>,
    /// Inodes to be invalidated.
    pending: HashSet<Ino>,
    /// Counts pushes.
    serial: u64,
}

/// The inodes whose pages the kernel has, and a queue of those that it must forget. Both are bounded.
pub struct Invalidations {
    inner: Mutex<Inner>,
    wake: Condvar,
    delivered: watch::Sender<u64>,
    cached_max: usize,
}

impl Invalidations {
    /// At most `cached_max` inodes are remembered; before there are more, all are invalidated.
    #[must_use]
    pub fn new(cached_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            wake: Condvar::new(),
            delivered: watch::Sender::new(0),
            cached_max,
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

    /// The kernel is about to be given a page of this inode. To be called before the page's bytes are looked up.
    pub fn cached(&self, ino: Ino) {
        let mut inner = self.lock();
        if !inner.attached {
            return;
        }
        if inner.cached.len() >= self.cached_max && !inner.cached.contains(&ino) {
            self.queue_all(&mut inner);
        }
        inner.cached.insert(ino);
    }

    /// Whether the kernel may have pages of this inode, or has not forgotten them yet.
    #[must_use]
    pub fn is_cached(&self, ino: Ino) -> bool {
        let inner = self.lock();
        inner.cached.contains(&ino) || inner.pending.contains(&ino)
    }

    /// Queues an inode if the kernel has pages of it. Does not block.
    pub fn push(&self, ino: Ino) {
        let mut inner = self.lock();
        if inner.cached.remove(&ino) {
            inner.pending.insert(ino);
            inner.serial += 1;
            self.wake.notify_all();
        }
    }

    /// Queues everything that the kernel has pages of. Does not block.
    pub fn push_all(&self) {
        self.queue_all(&mut self.lock());
    }

    fn queue_all(&self, inner: &mut Inner) {
        if inner.cached.is_empty() {
            // Nothing would be delivered, and whoever waits for that would wait in vain.
            return;
        }
        let cached = std::mem::take(&mut inner.cached);
        inner.pending.extend(cached);
        inner.serial += 1;
        self.wake.notify_all();
    }

    /// Blocks until there is something to invalidate; `None` once detached.
    #[must_use]
    pub fn next(&self) -> Option<Invalidation> {
        let mut inner = self.lock();
        while inner.attached && inner.pending.is_empty() {
            inner = self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        if !inner.attached {
            return None;
        }
        Some(Invalidation {
            inodes: std::mem::take(&mut inner.pending).into_iter().collect(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_cached_is_invalidated_and_only_once() {
        let queue = Invalidations::new(10);
        queue.attach();
        queue.push(1);
        queue.cached(2);
        queue.push(2);
        queue.push(2);
        let next = queue.next().unwrap();
        assert_eq!(next.inodes, [2]);
        queue.cached(2);
        queue.cached(3);
        queue.push_all();
        let mut inodes = queue.next().unwrap().inodes;
        inodes.sort_unstable();
        assert_eq!(inodes, [2, 3]);
        queue.detach();
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn memory_stays_bounded() {
        let queue = Invalidations::new(3);
        queue.attach();
        for ino in 1..=4 {
            queue.cached(ino);
        }
        let mut inodes = queue.next().unwrap().inodes;
        inodes.sort_unstable();
        assert_eq!(inodes, [1, 2, 3]);
        queue.push(4);
        assert_eq!(queue.next().unwrap().inodes, [4]);
    }

    #[tokio::test]
    async fn settled_waits_for_what_was_queued_before() {
        let queue = std::sync::Arc::new(Invalidations::new(3));
        queue.attach();
        // Of nothing, nothing need be forgotten.
        queue.push_all();
        let settled = tokio::time::timeout(SETTLE_MAX / 2, queue.settled()).await;
        assert!(settled.is_ok());
        queue.settled().await;
        queue.cached(1);
        queue.push(1);
        let next = queue.next().unwrap();
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.settled().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        queue.delivered(next.serial);
        waiting.await.unwrap();
    }
}
