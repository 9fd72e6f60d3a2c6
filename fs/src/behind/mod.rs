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
mod options;
mod pending;
mod pins;
mod plan;
mod quota;
mod recall;
mod requests;
mod room;
mod tries;

use async_trait::async_trait;
use raftstore::meta::{Event, Ino};

pub use backend::LeasedBackend;
pub use dirty::Unflushed;
pub use options::BehindOptions;
pub use recall::{Holder, holder};

/// What stands on a [`LeasedBackend`].
#[async_trait]
pub trait Upper: Send + Sync + 'static {
    /// Events of changes that were done here and are not committed yet.
    fn changed_here(&self, events: &[Event]);
    /// Whether the kernel may have pages of this inode.
    fn may_have_pages(&self, ino: Ino) -> bool;
    /// Whether programs may look at such pages without asking: the inode is open, so it may be mapped.
    fn may_be_mapped(&self, ino: Ino) -> bool;
    /// Makes the kernel forget them.
    async fn forget_pages(&self, ino: Ino);
    /// Makes the kernel forget all that it knows. Must not wait.
    fn forget_everything(&self);
}
