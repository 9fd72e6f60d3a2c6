//! The node daemon: membership, transport, sessions, and the backend that the POSIX layer stands on.

pub mod backend;
pub mod bootstrap;
pub mod coalesce;
pub mod config;
pub mod drain;
pub(crate) mod files;
pub mod housekeeping;
pub mod idle;
pub mod inspect;
pub mod journal_payloads;
pub mod leader;
pub mod lease_client;
pub mod medium_file;
pub mod mount_probe;
pub mod mountpoint;
pub mod numbers;
pub mod process;
pub mod proposer;
pub mod raft;
pub mod running;
pub mod server;
pub mod service;
pub mod session;
mod stall;
pub mod status;
pub mod storage;
pub mod store;
pub mod tls;
pub mod token;
pub mod transport;
pub mod volume_host;

#[cfg(test)]
mod tests;
