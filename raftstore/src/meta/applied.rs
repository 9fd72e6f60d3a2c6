//! How far the state machine has come: kept in the engine, changed in the same batch as the state.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::kv::{KvError, Pair, Read};
use crate::raft::{LogId, SnapshotMeta, StoredMembership};

/// Under this key: the id of the last applied log entry.
const LAST_KEY: &[u8] = b"\0applied";
/// Under this key: the last applied membership.
const MEMBERSHIP_KEY: &[u8] = b"\0membership";

/// How far the state machine has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// The last applied log entry; `None` at first.
    pub last: Option<LogId>,
    /// The last applied membership.
    pub membership: StoredMembership,
}

impl AppliedState {
    /// The index of the last applied entry; 0 at first (Raft's first entry is the cluster's own).
    #[must_use]
    pub fn index(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.index)
    }

    /// As a snapshot's metadata.
    #[must_use]
    pub fn to_meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
        }
    }

    /// From a snapshot's metadata.
    #[must_use]
    pub fn from_meta(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
        }
    }

    /// As the engine behind `kv` holds it.
    pub(crate) fn read(kv: &dyn Read) -> Result<Self, KvError> {
        let last: Option<Option<LogId>> = read(kv, LAST_KEY)?;
        let membership = read(kv, MEMBERSHIP_KEY)?;
        Ok(Self {
            last: last.flatten(),
            membership: membership.unwrap_or_default(),
        })
    }

    /// The record of `last`.
    pub(crate) fn last_record(&self) -> Result<Pair, KvError> {
        record(LAST_KEY, &self.last)
    }

    /// The record of `membership`.
    pub(crate) fn membership_record(&self) -> Result<Pair, KvError> {
        record(MEMBERSHIP_KEY, &self.membership)
    }
}

fn read<T: DeserializeOwned>(kv: &dyn Read, key: &[u8]) -> Result<Option<T>, KvError> {
    let Some(value) = kv.get(key)? else {
        return Ok(None);
    };
    postcard::from_bytes(&value).map(Some).map_err(|error| {
        KvError::Damaged(format!(
            "the record {:?}: {error}",
            key.escape_ascii().to_string()
        ))
    })
}

fn record<T: Serialize>(key: &'static [u8], value: &T) -> Result<Pair, KvError> {
    let value = postcard::to_stdvec(value).map_err(|error| KvError::Io(error.to_string()))?;
    Ok((Bytes::from_static(key), value.into()))
}
