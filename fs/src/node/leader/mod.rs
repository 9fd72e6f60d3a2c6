//! What only the leader does.

pub mod duties;
pub mod lease_desk;
pub mod lease_server;
pub mod lease_table;
pub mod liveness;
pub mod membership;
pub mod placement;
pub mod round;
pub mod succession;
