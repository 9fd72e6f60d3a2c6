//! What each proposal does to the state.

use super::{Event, MetaError, Proposal, Reply, Txn};
use crate::kv::KvError;

/// Applies one proposal: a pure function of what `txn` shows and of the proposal.
#[expect(clippy::unnecessary_wraps, reason = "the operations are not built yet")]
pub(crate) fn apply(
    _txn: &mut Txn<'_>,
    _log_index: u64,
    _proposal: &Proposal,
    _events: &mut Vec<Event>,
) -> Result<Result<Reply, MetaError>, KvError> {
    Ok(Err(MetaError::Malformed("operations are not built yet".into())))
}
