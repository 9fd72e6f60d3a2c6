//! Volumes, quotas, snapshots and clones, for whoever manages them: the command line, Docker's plugin.
//!
//! What is decided is decided by the state machine, in one operation each. [`Volumes`] finds the places in the tree,
//! reads options as people write them, and says how things stand.

mod options;
mod service;
mod status;
#[cfg(test)]
mod tests;

pub use options::{OPTIONS, parse_change, parse_options, parse_size};
pub use service::{Nodes, OpenSomewhere, Volumes, VolumesError, VolumesParts};
pub use status::{SnapshotStatus, UserStatus, VolumeList, VolumeStatus};
