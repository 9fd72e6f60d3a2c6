//! The newest entries, in memory.

use std::collections::VecDeque;

use openraft::EntryPayload;

use crate::raft::Entry;

/// What an entry costs beside its encoded bytes, roughly.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// The newest entries of the log, without gaps up to its end.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
}

impl Cache {
    /// Adds the entry that follows; `encoded_bytes` is its size in the journal.
    pub(super) fn push(&mut self, entry: Entry, encoded_bytes: usize) {
        if self
            .entries
            .back()
            .is_some_and(|(last, _)| last.log_id.index + 1 != entry.log_id.index)
        {
            self.clear();
        }
        let cost = encoded_bytes + ENTRY_OVERHEAD_BYTES;
        self.bytes += cost;
        self.entries.push_back((entry, cost));
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        let first = self.first()?;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        self.entries.get(at).map(|(entry, _)| entry)
    }

    /// Index of the oldest entry here.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.log_id.index)
    }

    pub(super) fn pop_first(&mut self) {
        if let Some((_, cost)) = self.entries.pop_front() {
            self.bytes -= cost;
        }
    }

    /// Drops entries at and after `next`.
    pub(super) fn truncate(&mut self, next: u64) {
        while let Some((last, cost)) = self.entries.back()
            && last.log_id.index >= next
        {
            self.bytes -= cost;
            self.entries.pop_back();
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Takes the payload out of an entry's proposal.
pub(super) fn take_payload(entry: &mut Entry) -> bytes::Bytes {
    match &mut entry.payload {
        EntryPayload::Normal(proposal) => std::mem::take(&mut proposal.payload),
        EntryPayload::Blank | EntryPayload::Membership(_) => bytes::Bytes::new(),
    }
}

/// Puts a payload (back) into an entry's proposal.
pub(super) fn put_payload(entry: &mut Entry, payload: bytes::Bytes) {
    if let EntryPayload::Normal(proposal) = &mut entry.payload {
        proposal.payload = payload;
    }
}
