//! Reading the journal while it runs: from memory, or verified from the medium.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;

use super::cache::put_payload;
use super::core::{Core, Shared};
use super::log::{Place, Slot};
use super::segment::Life;
use super::{Journal, JournalError};
use crate::raft::Entry;

/// An entry that was found, here or on the medium.
pub(super) enum Found {
    Cached(Box<Entry>),
    Stored {
        index: u64,
        slot: Slot,
        life: Arc<Life>,
        offset: u32,
    },
}

impl Journal {
    /// Entries of the log in `range`, in order and without gaps, beginning at `range.start` or where the log
    /// begins. At least one if there is any, then as many as fit into `bytes_max`.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] if a record is not intact; [`JournalError::Io`].
    pub async fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, JournalError> {
        let found = self.find(range, bytes_max);
        if found.iter().all(|found| matches!(found, Found::Cached(_))) {
            return self.fetch(found);
        }
        let shared = Arc::clone(&self.shared);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime
                .spawn_blocking(move || fetch(&shared, found))
                .await
                .map_err(|error| JournalError::Io {
                    what: "read".into(),
                    error: error.to_string(),
                })?,
            Err(_) => self.fetch(found),
        }
    }

    pub(super) fn find(&self, range: Range<u64>, bytes_max: usize) -> Vec<Found> {
        let core = self.shared.lock();
        let mut found = Vec::new();
        let mut bytes = 0_usize;
        for index in range.start.max(core.bounds().first)..range.end.min(core.bounds().next) {
            let Some(slot) = core.log.slot(index) else { break };
            bytes = bytes.saturating_add(slot.bytes());
            if !found.is_empty() && bytes > bytes_max {
                break;
            }
            match (core.cache.get(index), core.stored(index, slot)) {
                (Some(entry), _) => found.push(Found::Cached(Box::new(entry.clone()))),
                (None, Some(stored)) => found.push(stored),
                (None, None) => break,
            }
        }
        found
    }

    pub(super) fn fetch(&self, found: Vec<Found>) -> Result<Vec<Entry>, JournalError> {
        fetch(&self.shared, found)
    }

    /// The payload of a committed entry, purged or not: `None` if the journal does not have it (any more), or does
    /// not know the entry to be committed (see [`Journal::note_committed`]). Empty for an entry without payload.
    /// Verified if it comes from the medium. Blocks.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] if the record is not intact: another node has the payload. [`JournalError::Io`].
    pub fn payload(&self, index: u64) -> Result<Option<Bytes>, JournalError> {
        let stored = {
            let core = self.shared.lock();
            let Some(slot) = core.log.payload_slot(index) else {
                return Ok(None);
            };
            let cached = if core.log.slot(index).is_some() {
                core.cache.get(index)
            } else {
                None
            };
            match cached.map(|entry| &entry.payload) {
                Some(EntryPayload::Normal(proposal)) => return Ok(Some(proposal.payload.clone())),
                Some(_) => return Ok(Some(Bytes::new())),
                None => core.stored(index, slot),
            }
        };
        let Some(Found::Stored {
            index,
            slot,
            life,
            offset,
        }) = stored
        else {
            return Ok(None);
        };
        let result = life.read_entry(index, &slot, offset, |_, payload| Ok(payload));
        count_damage(&self.shared, &result);
        result.map(Some)
    }

    /// Whether [`Journal::payload`] would look for the entry's bytes. Reads nothing from the medium.
    #[must_use]
    pub fn has_payload(&self, index: u64) -> bool {
        self.shared.lock().log.payload_slot(index).is_some()
    }
}

impl Core {
    /// Where an entry's record is, if it is on the medium.
    pub(super) fn stored(&self, index: u64, slot: &Slot) -> Option<Found> {
        let Place::At { generation, offset } = slot.place else {
            return None;
        };
        let life = Arc::clone(self.live.get(&generation)?);
        Some(Found::Stored {
            index,
            slot: *slot,
            life,
            offset,
        })
    }
}

fn fetch(shared: &Shared, found: Vec<Found>) -> Result<Vec<Entry>, JournalError> {
    let entry = |found| match found {
        Found::Cached(entry) => Ok(*entry),
        Found::Stored {
            index,
            slot,
            life,
            offset,
        } => life.read_entry(index, &slot, offset, |record, payload| {
            let mut entry: Entry = postcard::from_bytes(record.body).map_err(|error| {
                life.damaged(
                    u64::from(offset),
                    format!("entry {index} cannot be decoded: {error}"),
                )
            })?;
            put_payload(&mut entry, payload);
            Ok(entry)
        }),
    };
    let result = found.into_iter().map(entry).collect();
    count_damage(shared, &result);
    if let Err(error @ JournalError::Damaged { .. }) = &result {
        shared.report(error);
    }
    result
}

fn count_damage<T>(shared: &Shared, result: &Result<T, JournalError>) {
    if let Err(error @ JournalError::Damaged { .. }) = result {
        tracing::error!(%error, "a record of the journal is damaged");
        shared.lock().damaged_reads += 1;
    }
}
