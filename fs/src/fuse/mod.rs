//! FUSE: translates between the kernel and [`crate::posix`], and decides nothing.
//!
//! A few threads read requests. Each request becomes a tokio task, which answers the kernel when it is done, so that
//! a request that waits (for a lock, for a quorum) holds up no other. Invalidations of the kernel's cache leave from
//! a thread of their own, see [`crate::posix::Invalidations`].

mod convert;
mod filesystem;
mod mount;
mod mount_point;
mod notifier;
mod reply;
mod tasks;
#[cfg(test)]
mod tests;

/// An extended attribute that no file has: asking the mount for it is answered at once by the threads that serve it,
/// and by nothing behind them. The daemon's watchdog asks.
pub const ALIVE_XATTR: &str = "trusted.bramble.alive";

pub use mount::{MountError, MountHandle, MountOptions, Unmounted, mount};
