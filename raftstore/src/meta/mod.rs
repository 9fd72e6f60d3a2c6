//! The metadata state machine: what Raft's log means.
//!
//! [`Op`]s go in through [`MetaStore::apply`], a pure function of the state and the proposal; [`Reader`] answers
//! questions about the state; [`Event`]s tell the node what changed.

mod applied;
mod apply;
mod batch;
mod error;
mod event;
mod keys;
mod op;
mod overlay;
mod reader;
mod store;
mod tables;
pub mod testing;
mod txn;
mod types;
mod value;
mod volume;
mod volume_tables;

pub use applied::AppliedState;
pub use batch::*;
pub use error::{MetaError, Refusal};
pub use event::{Event, Observer};
pub use op::*;
pub use overlay::Overlay;
pub use reader::*;
pub use store::{DamagedStore, MetaStore, OpenedStore};
pub use txn::{Savepoint, Txn};
pub use types::*;
pub use volume::*;
