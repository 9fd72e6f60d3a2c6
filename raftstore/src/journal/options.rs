//! Whose journal it is, and how it is kept.

use std::fmt;
use std::time::Duration;

use super::JournalError;
use super::format::{BLOCK_BYTES, CLUSTER_ID_BYTES_MAX};
use crate::meta::NodeId;

/// Whose store this is. It is part of every checksum: a journal of another cluster or node is never taken for one's
/// own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The cluster's id, 1 to 64 bytes.
    pub cluster_id: String,
    /// The node's Raft id.
    pub node_id: NodeId,
}

impl fmt::Display for StoreIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {}", self.node_id, self.cluster_id)
    }
}

/// How a journal is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalOptions {
    /// Size of new segments, a multiple of 4 KiB from 64 KiB to 1 GiB. Those that exist keep theirs.
    pub segment_bytes: u64,
    /// One write to the medium carries at most this (or one record that is larger).
    pub batch_bytes_max: usize,
    /// Appends wait while this much has not reached the medium.
    pub pending_bytes_max: usize,
    /// Memory for the newest entries, from which replication and apply are served. Entries that have not reached
    /// the medium are kept whatever their size.
    pub cache_bytes_max: usize,
    /// Segments that are kept ready ahead of need, at least 1.
    pub spare_segments: usize,
    /// Free segments beyond those are kept for reuse up to this number; more are given back to the filesystem.
    pub free_segments_max: usize,
    /// So many segments there are at least, in use or not: those that are missing are made while nothing is appended.
    pub segments_min: usize,
    /// Nothing is appended for so long before a segment is made that is not needed yet.
    pub quiet: Duration,
    /// Refuse to start an empty journal where none is found: for a store that is known to have one.
    pub must_exist: bool,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            batch_bytes_max: 1 << 20,
            pending_bytes_max: 8 << 20,
            cache_bytes_max: 8 << 20,
            spare_segments: 1,
            free_segments_max: 3,
            segments_min: 0,
            quiet: Duration::from_secs(1),
            must_exist: false,
        }
    }
}

/// Smallest segment, bytes.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Largest segment, bytes: offsets in it fit into 32 bits with room to spare.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Whether a segment may have this size.
pub(super) fn is_segment_size(bytes: u64) -> bool {
    (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(BLOCK_BYTES)
}

impl JournalOptions {
    pub(super) fn check(&self, identity: &StoreIdentity) -> Result<(), JournalError> {
        let fail = |what: &str| Err(JournalError::Options(what.to_owned()));
        if !is_segment_size(self.segment_bytes) {
            return fail("segment_bytes must be a multiple of 4 KiB from 64 KiB to 1 GiB");
        }
        if self.spare_segments == 0 {
            return fail("spare_segments must be at least 1");
        }
        if identity.cluster_id.is_empty() || identity.cluster_id.len() > CLUSTER_ID_BYTES_MAX {
            return fail("a cluster id has 1 to 64 bytes");
        }
        Ok(())
    }
}
