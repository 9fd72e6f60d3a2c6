//! Cluster tests: real daemons, real mounts, real faults. `scripts/test cluster` runs them.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests use the real clock, disk and randomness, and a failed step is a failed test"
)]
