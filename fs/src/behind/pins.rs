//! Leases that somebody relies on at this moment.

use std::sync::Arc;

use raftstore::meta::Ino;
use tokio::sync::oneshot;

use super::backend::Shared;
use super::leases::Granted;

/// A request for leases. They come pinned: if nobody takes them, since the caller went away in the very moment in which they
/// came, they are unpinned. Else they could never be given back.
pub(super) struct Awaited {
    pub(super) shared: Arc<Shared>,
    pub(super) answer: oneshot::Receiver<Granted>,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.answer.close();
        if let Ok(granted) = self.answer.try_recv() {
            drop(Pins {
                shared: Arc::clone(&self.shared),
                inodes: granted.inodes,
            });
        }
    }
}

/// Leases that somebody relies on until this is dropped.
pub(super) struct Pins {
    pub(super) shared: Arc<Shared>,
    pub(super) inodes: Vec<Ino>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.shared.core().leases.unpin(&self.inodes) {
            self.shared.changed.notify_waiters();
        }
    }
}

/// Inodes that are changed past the queue until this is dropped; pinned, too.
pub(super) struct Gate {
    pub(super) shared: Arc<Shared>,
    pub(super) inodes: Vec<Ino>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        core.ungate(&self.inodes);
        core.leases.unpin(&self.inodes);
        drop(core);
        self.shared.changed.notify_waiters();
    }
}
