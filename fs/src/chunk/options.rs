//! Bounds and patience of the data plane.

use std::time::Duration;

/// Bounds of a [`DataPlane`](super::DataPlane).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaneOptions {
    /// Chunks being written take at most this much memory; more writes wait.
    pub inflight_bytes_max: usize,
    /// Copies that go on after a majority has the chunk hold at most this much memory; beyond that the slow node is
    /// left to repair.
    pub laggard_bytes_max: usize,
    /// Reads of the local medium that run at a time.
    pub local_reads_max: usize,
    /// How long one copy to another node may take.
    pub put_timeout: Duration,
    /// After this time without a majority, the nodes of the chain that have not answered are served directly.
    pub put_hedge_after: Duration,
    /// First wait before a write is tried again; doubles up to `backoff_max`.
    pub backoff_min: Duration,
    /// Longest wait before a write or read is tried again.
    pub backoff_max: Duration,
    /// After this time without an answer the next node is asked too.
    pub read_hedge_after: Duration,
    /// How long a read goes on asking while nodes that may have the chunk cannot be reached.
    pub read_patience: Duration,
}

impl Default for PlaneOptions {
    fn default() -> Self {
        Self {
            inflight_bytes_max: 4 << 20,
            laggard_bytes_max: 4 << 20,
            local_reads_max: 16,
            put_timeout: Duration::from_secs(30),
            put_hedge_after: Duration::from_secs(3),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            read_hedge_after: Duration::from_secs(1),
            read_patience: Duration::from_secs(30),
        }
    }
}
