//! POSIX on replicated metadata and chunks: everything that a filesystem decides, without a kernel in sight.
//!
//! [`Vfs`] has one method for each kind of request, split over this module's files by subject. Methods take plain
//! values and return inodes, bytes or an [`FsError`], which knows its errno. The FUSE glue only translates.

mod attr;
mod dir;
mod error;
mod invalidate;
mod lock;
mod lock_table;
mod namespace;
mod open;
mod open_inodes;
mod read;
mod space;
pub mod testing;
#[cfg(test)]
#[allow(clippy::duplicate_mod, reason = "see below")]
mod tests;
/// The same tests, on nodes that work under leases.
#[cfg(test)]
#[allow(
    clippy::duplicate_mod,
    reason = "what holds on the one backend is to hold on the other"
)]
#[path = "tests/mod.rs"]
mod tests_leased;
mod types;
mod vfs;
mod write;
mod xattr;

pub use dir::DirEntry;
pub use error::FsError;
pub use invalidate::{Invalidation, Invalidations};
pub use lock::LockRequest;
pub use open_inodes::OpenInodes;
pub use space::{FallocateMode, Seek};
pub use types::{Caller, FileSystemSpace, LockRange, OpenFlags, OpenedFile, WriteRequest, Written};
pub use vfs::{Limits, Vfs};
pub use xattr::XATTR_LIST_BYTES_MAX;
