//! How this node reaches the others.

pub mod chunk_transport;
pub mod directory;
pub mod leader_client;
pub mod lease_wire;
pub mod peers;
pub mod raft_network;
pub mod snapshot_frames;
pub mod wire;
