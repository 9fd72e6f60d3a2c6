//! What only the leader does.

pub mod duties;
pub mod liveness;
pub mod membership;
pub mod placement;
pub mod round;
