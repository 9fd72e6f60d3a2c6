//! Raft as this node configures it.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Config, ConfigError, SnapshotPolicy, StepDownPolicy};
use raftstore::TypeConfig;
use raftstore::meta::NodeId;

use raftstore::StateMachine;

/// The Raft node.
pub type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Entries in one append request. With payloads of up to 64 KiB each, a request stays well below the message limit.
pub const APPEND_ENTRIES_MAX: u64 = 64;

/// Timings for machines in one home: a lost leader is replaced within about three seconds, and a busy card or a
/// short hiccup of a cheap switch does not cost an election.
///
/// # Errors
/// If the values contradict each other; a defect.
pub fn config(cluster_id: &str) -> Result<Arc<Config>, ConfigError> {
    let config = Config {
        cluster_name: cluster_id.to_owned(),
        heartbeat_interval: 250,
        // A follower lets the leader's lease (`election_timeout_max`) pass before it votes for another.
        election_timeout_min: 800,
        election_timeout_max: 1400,
        enable_pre_vote: Some(true),
        // A leader that restarts must be elected again: others may have moved on while it was away.
        enable_leader_restore: Some(false),
        max_payload_entries: APPEND_ENTRIES_MAX,
        max_append_entries: Some(256),
        api_channel_size: Some(1024),
        api_batch_capacity: 256,
        notification_channel_size: Some(4096),
        state_machine_channel_size: Some(256),
        install_snapshot_timeout: 600_000,
        // Housekeeping decides when the log is cut: by bytes, and never beyond what the engine has on the medium.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: u64::MAX,
        removed_leader_step_down: StepDownPolicy::After(500),
        broadcast_submitted_on_append: Some(true),
        ..Config::default()
    };
    config.validate().map(Arc::new)
}

/// Who leads, as this node believes; `None` during an election, or if this node is not a member yet.
#[must_use]
pub fn leader(raft: &Raft) -> Option<NodeId> {
    raft.server_metrics().borrow_watched().current_leader
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_configuration_is_sound() {
        let config = super::config("test").unwrap();
        assert!(config.election_timeout_min > 3 * config.heartbeat_interval);
    }
}
