//! The replicated half of Bramble: the journal that holds Raft's log, votes and the payload of small writes; the
//! key-value engines; and the metadata state machine that Raft's log is applied to.
//!
//! Nothing in this crate knows of FUSE, of the network or of the chunk store.

pub mod clock;
pub mod disk;
pub mod journal;
pub mod kv;
pub mod meta;
pub mod raft;
pub mod snapshot;
pub mod state_machine;

pub use raft::TypeConfig;
pub use state_machine::StateMachine;
