//! The thread that tells the kernel what to forget.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{INodeNo, Notifier};

use crate::posix::Invalidations;

/// Starts the thread. It ends when `invalidations` is detached.
pub(super) fn spawn(notifier: Notifier, invalidations: Arc<Invalidations>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("fuse-invalidate".into())
        .spawn(move || {
            while let Some(next) = invalidations.next() {
                for ino in next.inodes {
                    // All of the file, to its end. It may wait for pages that are being read or written.
                    if let Err(error) = notifier.inval_inode(INodeNo(ino), 0, 0) {
                        tracing::debug!(ino, %error, "the kernel refused an invalidation");
                    }
                }
                invalidations.delivered(next.serial);
            }
        })
}
