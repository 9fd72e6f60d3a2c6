//! Tests of the data plane and of the background work: several nodes in one process, on simulated disks.

mod merging;
mod model;
mod reading;
mod reclaiming;
mod repairing;
mod support;
mod writing;
