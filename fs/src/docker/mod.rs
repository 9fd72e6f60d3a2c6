//! Docker's volume plugin, served by the node on a Unix socket.
//!
//! A volume is a directory of the tree, so there is nothing to mount for one: Docker is told where the directory is on
//! this machine's mount. [`server`] speaks HTTP, [`VolumeDriver`] says what a request means, [`VolumeStore`] is where
//! volumes are kept, and [`MountedTree`] makes sure that nobody is sent to the local disk.

mod driver;
mod plugin;
mod primer;
mod refusal;
mod server;
mod socket;
mod store;
#[cfg(test)]
mod tests;
mod tree;

pub use driver::{Call, Here, VolumeDriver};
pub use plugin::DockerPlugin;
pub use refusal::NoAnswer;
pub use socket::{PluginSocket, SocketError};
pub use store::VolumeStore;
pub use tree::{MountedTree, TreeError, describe};
