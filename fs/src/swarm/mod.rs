//! Docker Swarm beside the tree: finds the one Swarm of the cluster's machines, or makes it, and takes a machine in.
//!
//! [`Docker`] is what is asked of Docker on one machine, [`DockerSocket`] asks a real one. [`Enroll`] takes this machine
//! in; what it does next is decided by pure functions ([`rules`]), from what the daemons of all nodes say of their
//! machines ([`Peers`]). That there is one Swarm, whoever begins first, is seen to by a [`Register`] in the tree.

mod docker;
mod enroll;
mod http;
pub mod rules;
#[cfg(test)]
mod tests;

pub use docker::{Docker, DockerError, JoinTokens, OwnSwarm, SwarmNode, SwarmState};
pub use enroll::{Enroll, EnrollError, Hold, Peers, Register};
pub use http::DockerSocket;
pub use rules::{Enrolled, MANAGERS_MAX, Seen, View};
