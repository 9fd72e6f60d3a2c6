//! The journal as the data plane sees it.

use std::sync::Arc;

use bytes::Bytes;
use raftstore::journal::{Journal, JournalError};

use crate::chunk::{PayloadError, PayloadSource};

/// Payloads of small writes, from this node's journal.
pub struct JournalPayloads(pub Arc<Journal>);

impl PayloadSource for JournalPayloads {
    fn payload(&self, log_index: u64) -> Result<Option<Bytes>, PayloadError> {
        match self.0.payload(log_index) {
            Err(JournalError::Damaged { .. }) => Err(PayloadError::Damaged(log_index)),
            Err(error) => Err(PayloadError::Io(error.to_string())),
            // An entry without payload is not a chunk.
            Ok(payload) => Ok(payload.filter(|payload| !payload.is_empty())),
        }
    }

    fn has_payload(&self, log_index: u64) -> Result<bool, PayloadError> {
        Ok(self.0.has_payload(log_index))
    }
}
