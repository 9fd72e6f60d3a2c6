//! Payloads of small writes: chunks whose bytes are in the journal.

use bytes::Bytes;

/// Why the journal could not give a payload.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PayloadError {
    /// Its bytes are damaged on the medium.
    #[error("the payload of log entry {0} is damaged in the journal")]
    Damaged(u64),
    /// The journal cannot be read.
    #[error("the journal cannot be read: {0}")]
    Io(String),
}

/// The journal, as far as the data plane knows it. Calls may block on the medium.
pub trait PayloadSource: Send + Sync + 'static {
    /// Verified payload of the entry at `log_index`; `None` if the journal does not hold that entry (any more).
    ///
    /// # Errors
    /// [`PayloadError`]; another node's copy is used then.
    fn payload(&self, log_index: u64) -> Result<Option<Bytes>, PayloadError>;

    /// Whether the journal holds the payload; need not read its bytes.
    ///
    /// # Errors
    /// As for [`PayloadSource::payload`].
    fn has_payload(&self, log_index: u64) -> Result<bool, PayloadError> {
        Ok(self.payload(log_index)?.is_some())
    }
}
