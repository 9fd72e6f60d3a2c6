//! Chunks: the local store, replication, repair, reclaiming and merging.
//!
//! [`store`] keeps this node's chunks. [`DataPlane`] writes a chunk to a majority of its placement group's nodes,
//! reads it from wherever there is a good copy, and serves the other nodes. [`Keeper`] works in the background so
//! that every node holds what it should hold, whole, and nothing else; [`Merger`] moves payload out of old journal
//! segments.

mod budget;
mod keeper;
mod merger;
mod namer;
mod options;
mod payload;
mod plane;
mod read;
mod serve;
mod sparse;
pub mod store;
mod transport;
mod view;
mod watcher;
mod write;

pub use keeper::{Keeper, KeeperOptions, RepairProgress};
pub use merger::{MergeProgress, Merger, MergerOptions, NamerSource};
pub use namer::ChunkNamer;
pub use options::PlaneOptions;
pub use payload::{PayloadError, PayloadSource};
pub use plane::{DataPlane, PlaneParts, PlaneStats};
pub use transport::{ChunkTransport, TransportError};
pub use view::{Fate, MetaView, StateView};
pub use watcher::ChunkWatcher;

#[cfg(test)]
mod tests;
