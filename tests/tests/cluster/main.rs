//! Cluster tests: real daemons, real mounts, real faults. `scripts/test cluster` runs them.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests use the real clock, disk and randomness, and a failed step is a failed test"
)]

mod ansible;
mod bad_input;
mod blackout;
mod bootstrap;
mod coherence;
mod contention;
mod crashes;
mod damage;
mod docker;
mod files;
mod limits;
mod links;
mod locks;
mod machine_boot;
mod membership;
mod package;
mod programs;
mod quick_start;
mod stacks;
mod suites;
mod units;
mod vip;
mod volumes;
