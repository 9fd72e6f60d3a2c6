//! Leases and write-behind: a backend between the POSIX layer and the node's.
//!
//! Under a shared lease, reads are answered from this node's own state. Under an exclusive one, changes are done here
//! and acknowledged at once: the state machine's own `apply` runs ahead of the log, on a [`raftstore::meta::Overlay`]
//! over the committed state, which decides and answers exactly as the cluster will. What was done waits in a queue, in
//! order; written bytes wait by file. Both leave in batches: when somebody syncs, when the lease is wanted elsewhere,
//! with age, or when there is too much of it. One batch is under way at a time, and what gathers meanwhile is the next:
//! group commit, and the order in which things were acknowledged.
//!
//! What only the cluster can decide (moving directories about, sharing bytes between files, locks that other nodes wait
//! for) goes *through*: everything before it is pushed, and the inodes are gated against changes here meanwhile.

mod backend;
mod core;
mod dirty;
mod flusher;
mod footprint;
mod leases;
mod pending;
mod recall;

use std::time::Duration;

use async_trait::async_trait;
use raftstore::meta::{Event, Ino};

pub use backend::LeasedBackend;
pub use dirty::Unflushed;
pub use recall::{Holder, holder};

/// Bounds of write-behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BehindOptions {
    /// Written bytes that may wait; writers wait when there are more.
    pub dirty_bytes_max: usize,
    /// From so many on they are pushed without being asked for.
    pub background_bytes: usize,
    /// Changes that may wait in the queue.
    pub queued_max: usize,
    /// Memory for the queue, and for what it makes of the state.
    pub queue_bytes_max: usize,
    /// Nothing waits longer than this.
    pub age_max: Duration,
    /// Bytes of a batch that ride in the log; with more, they go to chunks.
    pub inline_bytes_max: usize,
    /// Size of a chunk.
    pub chunk_bytes_max: usize,
    /// Chunks of one batch that are on their way at the same time.
    pub chunk_writes_max: usize,
    /// Leases that this node holds at most.
    pub leases_max: usize,
    /// The kernel answers on its own for at most so long after it was told something.
    pub lent_max: Duration,
}

impl Default for BehindOptions {
    fn default() -> Self {
        Self {
            dirty_bytes_max: 4 << 20,
            background_bytes: 3 << 19,
            queued_max: 8192,
            queue_bytes_max: 4 << 20,
            age_max: Duration::from_secs(5),
            inline_bytes_max: 256 << 10,
            chunk_bytes_max: 1 << 20,
            chunk_writes_max: 3,
            leases_max: 6_144,
            lent_max: Duration::from_millis(250),
        }
    }
}

/// What stands on a [`LeasedBackend`].
#[async_trait]
pub trait Upper: Send + Sync + 'static {
    /// Events of changes that were done here and are not committed yet.
    fn changed_here(&self, events: &[Event]);
    /// Whether the kernel may have pages of this inode.
    fn may_have_pages(&self, ino: Ino) -> bool;
    /// Makes the kernel forget them.
    async fn forget_pages(&self, ino: Ino);
    /// Makes the kernel forget all that it knows. Must not wait.
    fn forget_everything(&self);
}
