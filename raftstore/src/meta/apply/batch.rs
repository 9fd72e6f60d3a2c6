//! Several operations as one proposal.

use crate::kv::KvError;
use crate::meta::types::*;
use crate::meta::{BATCH_ITEMS_MAX, BatchItem, Event, MetaError, Reply, Txn};

use super::attempt;
use super::step::Context;

/// Applies the items in order. One that is refused is listed; the others are done all the same.
pub(super) fn apply(
    txn: &mut Txn<'_>,
    context: Context,
    items: &[BatchItem],
    events: &mut Vec<Event>,
) -> Result<Result<Reply, MetaError>, KvError> {
    let malformed = |what: &str| MetaError::Malformed(what.into());
    if items.len() > BATCH_ITEMS_MAX {
        return Ok(Err(malformed("a batch has too many items")));
    }
    if context.payload_len > u64::from(CHUNK_BYTES_MAX) {
        return Ok(Err(malformed("the payload is larger than a chunk")));
    }
    let mut refused = Vec::new();
    for (index, BatchItem { time, op }) in (0..).zip(items) {
        let answer = if op.can_be_batched() {
            let context = Context {
                time: *time,
                enforced: false,
                ..context
            };
            attempt(txn, context, op, events)?
        } else {
            Err(malformed("this operation cannot be in a batch"))
        };
        if let Err(error) = answer {
            refused.push((index, error));
        }
    }
    Ok(Ok(Reply::Batch { refused }))
}
