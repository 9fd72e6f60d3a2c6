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
}
