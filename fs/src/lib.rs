//! The Bramble node: FUSE glue, POSIX logic, chunk store and replication, the daemon and its command line.
//!
//! Layers point one way: [`fuse`] → [`posix`] → [`backend`], implemented by [`behind`] (leases and write-behind) on top of
//! [`node`], on `raftstore` and [`chunk`]. [`volumes`] stands beside [`fuse`], on [`posix`] and [`backend`], and [`docker`] on
//! [`volumes`]. [`swarm`] stands on nothing, and below [`node`].

pub mod backend;
pub mod behind;
pub mod chunk;
pub mod cli;
pub mod docker;
pub mod fuse;
pub mod lease;
pub mod medium;
pub mod node;
pub mod posix;
pub mod swarm;
pub mod volumes;
