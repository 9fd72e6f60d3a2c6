//! The journal: Raft's log, votes and the payload of small writes, in recycled segments (docs/FORMAT.md).
//!
//! What is to be written is queued; one thread drains the queue, writes all of it as one *frame*, syncs once, and
//! then completes everything in it (group commit without a timer: a batch is what came during the last sync).
//! Segments are files of zeros that are written in place and used again, so that an append costs the medium one
//! write and one flush, and nothing of the filesystem's own journal. Another thread keeps the next segment ready.
//!
//! Recovery ([`Journal::open`]) replays the frames. They are numbered through the journal's whole life, and at most
//! the last one can have been under way when the power went: so a frame that is not intact is a torn tail if
//! nothing follows it, and damage otherwise ([`JournalError::Damaged`]).
//!
//! [`LogStore`] is openraft's log storage on a journal.

mod batch;
mod bounds;
mod cache;
mod core;
mod error;
mod format;
#[expect(clippy::module_inception, reason = "the main type of the module")]
mod journal;
mod log;
mod log_store;
mod meter;
mod options;
mod preparer;
mod read;
mod recovery;
mod replay;
mod scan;
mod segment;
mod stats;
mod writer;

pub use self::core::Completion;
pub use error::JournalError;
pub use journal::Journal;
pub use log_store::LogStore;
pub use options::{JournalOptions, StoreIdentity};
pub use recovery::{Recovery, TornTail};
pub use stats::{JournalStats, SpaceCondition};

#[cfg(test)]
mod tests;
