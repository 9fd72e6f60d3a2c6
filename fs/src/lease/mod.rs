//! Leases: what a node may keep and change on its own, and how that is agreed with the leader.
//!
//! A lease covers one inode: its attributes, its contents, and the names in it. Many sessions may hold it
//! [`LeaseMode::Shared`] and answer reads from their own state; one may hold it [`LeaseMode::Exclusive`], and then make
//! changes that the cluster learns of later. The leader gives leases out and asks for them back; it keeps them in
//! memory only. A new leader is told by every session what it holds, before it gives anything out.
//!
//! Who asks for the attributes of many inodes may get those of a whole [range](range_of) of them as one lease, if nobody
//! else changes any of them. It is given up as soon as somebody wants to.
//!
//! A lease lives as long as its session, and a session that the leader has not heard of for a while is expired. So what
//! is kept under leases may be shown only until [`LeaseHolder::valid_until`].

mod link;
mod range;

use std::time::Duration;

use raftstore::meta::{Ino, SessionId};

pub use link::{GrantCount, LINK_MESSAGES_MAX, LeaseLink, LinkReceiver};
pub use range::{inodes_of, is_range, range_of};

/// Leases that one session may hold. The leader recalls the oldest beyond that.
pub const SESSION_LEASES_MAX: usize = 65_536;
/// Leases in one [`ToLeader::Acquire`].
pub const REQUEST_LEASES_MAX: usize = 1024;
/// Requests of one session that may wait at a time.
pub const SESSION_REQUESTS_MAX: usize = 4096;

/// What a lease allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseMode {
    /// To read from the node's own state.
    Shared,
    /// To change, too, and to tell the cluster later.
    Exclusive,
}

impl LeaseMode {
    /// True if two sessions may hold these on the same inode.
    #[must_use]
    pub const fn is_compatible(self, other: Self) -> bool {
        matches!((self, other), (Self::Shared, Self::Shared))
    }
}

/// A right to an inode. Exclusive includes shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    /// The inode.
    pub ino: Ino,
    /// What may be done with it.
    pub mode: LeaseMode,
}

/// A lease that is to be given up (`None`) or kept in this mode only. A mode that is no less than what is held changes
/// nothing.
pub type Kept = (Ino, Option<LeaseMode>);

/// What a holder tells the leader, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToLeader {
    /// Asks for all of these at once, at most [`REQUEST_LEASES_MAX`]; answered by [`LeaseHolder::granted`] with the
    /// same id. Ids of a session are not used again. Never refused while the session lives; may wait.
    Acquire {
        /// Chosen by the holder.
        id: u64,
        /// What is wanted, besides what is held.
        leases: Vec<Lease>,
    },
    /// Asks for a range, shared: granted at once with this id, if nobody else holds or wants any of its inodes exclusively.
    /// Else there is no answer.
    TryRange {
        /// Chosen by the holder, as that of a request.
        id: u64,
        /// Which: a [range](range_of).
        range: Ino,
    },
    /// Gives up, or keeps only `Shared`. What was done under these is committed and applied on this node by now. A
    /// lease is given up when this is sent, and not before: a grant that arrives later is a new lease.
    Release {
        /// What is kept of each.
        leases: Vec<Kept>,
    },
    /// Inodes that this node has made and that nobody else can know yet: it has them exclusively from birth.
    Claim {
        /// Their numbers.
        inodes: Vec<Ino>,
    },
}

/// What a holder has, and what was done under it that the cluster does not know of yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HolderStatus {
    /// Leases that are shared.
    pub shared: usize,
    /// Leases that are exclusive.
    pub exclusive: usize,
    /// Written bytes that are not committed.
    pub pending_bytes: usize,
    /// Changes of names and attributes that are not committed.
    pub pending_changes: usize,
    /// Since the oldest of these was made.
    pub oldest: Option<Duration>,
    /// From so many pending bytes on, they are pushed without being asked for.
    pub batch_bytes: usize,
    /// With more bytes, a batch goes to chunks.
    pub inline_bytes_max: usize,
}

/// The holder's side, called by the link's task, in the order in which the leader sent. Must not block.
pub trait LeaseHolder: Send + Sync + 'static {
    /// A link to a leader is up for `session`: answers with all that is held (also what was claimed or born here).
    /// Requests that were not answered are to be sent again through `link`; earlier links are dead.
    fn connected(&self, session: SessionId, link: LeaseLink) -> Vec<Lease>;
    /// The leader knows of a conflict for these (cannot happen while sessions work; drop them).
    fn refused(&self, inodes: Vec<Ino>);
    /// The leader knows of all that [`LeaseHolder::connected`] answered.
    fn welcome(&self) {}
    /// The leader knows of these claims: from now on it gives these inodes to nobody else without a recall. What makes
    /// them visible to others should not be proposed before.
    fn claimed(&self, _inodes: Vec<Ino>) {}
    /// The request is granted: everything that earlier holders did is in this node's state once it has applied
    /// `log_index`.
    fn granted(&self, id: u64, log_index: u64);
    /// Others want these: give them up (`None`) or keep `Shared`, with [`ToLeader::Release`]. To be answered also if
    /// they are not held any more, and without waiting for a request of one's own. A range must not be used for anything
    /// new from now on: another node may just have made an inode in it.
    fn recalled(&self, leases: Vec<Kept>);
    /// What is cached under leases of `session` is valid until this moment of the monotonic clock (unless renewed).
    fn valid_until(&self, session: SessionId, at: Duration);
    /// The session is over: all its leases are gone, and what was not pushed is lost.
    fn session_over(&self, session: SessionId);
    /// For people; may be called at any time, from any task.
    fn status(&self) -> HolderStatus {
        HolderStatus::default()
    }
}
