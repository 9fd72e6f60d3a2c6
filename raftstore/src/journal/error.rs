//! Why the journal refused or failed.

use std::io;

use super::StoreIdentity;

/// An error of the journal. All but [`JournalError::TooLarge`] and [`JournalError::NotConsecutive`], which a
/// correct caller never sees, mean that this node cannot take part in the cluster as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Acknowledged records are lost or changed: not what a power cut leaves, but damage. The node must rejoin
    /// blank under a fresh id.
    #[error(
        "the journal is damaged in {segment} at byte {offset}: {detail}; \
         take this node out of the cluster and let it join again with an empty store"
    )]
    Damaged {
        /// File name of the segment, in the journal's directory.
        segment: String,
        /// Where in the file.
        offset: u64,
        /// What was found there.
        detail: String,
    },
    /// A later release wrote this journal.
    #[error(
        "the journal has format version {found}, and this release knows versions up to {supported}: \
         install the release that wrote it, or a later one"
    )]
    NewerVersion {
        /// The journal's version.
        found: u32,
        /// The newest version known here.
        supported: u32,
    },
    /// The journal belongs to another store.
    #[error("the journal belongs to {found}, not to {expected}: check the store's path")]
    Foreign {
        /// Whose it is.
        found: StoreIdentity,
        /// Whose it should be.
        expected: StoreIdentity,
    },
    /// There is no journal, where there must be one.
    #[error(
        "there is no journal in {0}, but this store had one: if it is lost, let this node join again with an empty store"
    )]
    Missing(String),
    /// The medium failed while the journal was opened or read.
    #[error("the journal cannot {what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        error: String,
    },
    /// A write or sync failed earlier. What is on the medium is no longer known, so nothing more is accepted.
    #[error(
        "the journal stopped after its medium failed to {0}: check the medium, then start the node again"
    )]
    Poisoned(String),
    /// The present segment is full and there is no room on the medium for another one.
    #[error("the journal is full and its medium has no room for another segment ({0}): free some space")]
    Full(String),
    /// One record does not fit into a segment.
    #[error("a record of {bytes} bytes does not fit into a segment, which takes {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest.
        bytes_max: usize,
    },
    /// Entries must follow one another.
    #[error("entry {got} was appended where entry {expected} must follow")]
    NotConsecutive {
        /// The index that must come next.
        expected: u64,
        /// The index that came.
        got: u64,
    },
    /// The options make no sense.
    #[error("journal options: {0}")]
    Options(String),
    /// The journal was shut down.
    #[error("the journal is shut down")]
    Closed,
}

impl JournalError {
    /// Wraps an error of the medium.
    pub(super) fn io(what: impl Into<String>, error: &io::Error) -> Self {
        Self::Io {
            what: what.into(),
            error: error.to_string(),
        }
    }
}

impl From<JournalError> for io::Error {
    /// The journal's error stays inside, for `downcast`.
    fn from(error: JournalError) -> Self {
        let kind = match error {
            JournalError::Damaged { .. } => io::ErrorKind::InvalidData,
            JournalError::Full(_) => io::ErrorKind::StorageFull,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
