//! The gRPC services of a node.

pub mod admin;
pub mod auth;
pub mod chunk;
pub mod cluster;
pub mod meta;
pub mod raft;
pub mod swarm;
pub mod volumes;
