//! What `bramble status --json` says.

use serde_json::Value;

/// The status of one node.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

impl Status {
    /// A number at a JSON pointer.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn number(&self, pointer: &str) -> u64 {
        let value = self.0.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("status has no number {pointer}: {:#}", self.0))
    }

    /// The name of the node that leads, if this node knows one.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.0
            .pointer("/cluster/leader")
            .and_then(Value::as_str)
            .map(str::to_owned)
    }

    /// The log index that this node has applied.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.number("/raft/applied_index")
    }

    /// The node's id in Raft.
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.number("/node/id")
    }

    /// Chunks that were found bad or missing on this node and rewritten, since its daemon started.
    #[must_use]
    pub fn chunks_repaired(&self) -> u64 {
        self.number("/chunks/repaired")
    }

    /// Chunks that this node has.
    #[must_use]
    pub fn chunks_count(&self) -> u64 {
        self.number("/chunks/count")
    }

    /// Number of voters.
    #[must_use]
    pub fn voters(&self) -> u64 {
        self.number("/raft/voters")
    }

    /// The oldest entry that the log still holds.
    #[must_use]
    pub fn log_first_index(&self) -> u64 {
        self.number("/raft/first_index")
    }

    /// Snapshots that this node took from others, since its daemon started.
    #[must_use]
    pub fn snapshots_installed(&self) -> u64 {
        self.number("/raft/snapshots_installed")
    }

    /// Resident memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.number("/memory/resident_bytes")
    }

    /// Bytes written to the medium since the daemon started.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.number("/medium/written_bytes")
    }
}
