//! What is asked of Docker on one machine.

use std::net::IpAddr;

use async_trait::async_trait;

/// What a machine is in Swarm, in Docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SwarmState {
    /// In none.
    #[default]
    Inactive,
    /// Joining one.
    Pending,
    /// In one.
    Active,
    /// In one that does not take it, or that it cannot reach.
    Error,
    /// A manager that waits for its key.
    Locked,
}

impl SwarmState {
    /// As Docker writes it; `None` if it is no word of Docker's.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "inactive" | "" => Self::Inactive,
            "pending" => Self::Pending,
            "active" => Self::Active,
            "error" => Self::Error,
            "locked" => Self::Locked,
            _ => return None,
        })
    }

    /// As Docker writes it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Error => "error",
            Self::Locked => "locked",
        }
    }
}

/// What Docker says of its own machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnSwarm {
    /// The machine's name, as Swarm shows it.
    pub hostname: String,
    /// Where it stands.
    pub state: SwarmState,
    /// Why, if that is bad.
    pub error: String,
    /// Its id in Swarm; empty if it is in none.
    pub node_id: String,
    /// Which Swarm; only a manager knows.
    pub swarm_id: Option<String>,
    /// IP:PORT of the Swarm's managers, this one's first if it is one; a worker knows some.
    pub managers: Vec<String>,
}

/// A node of a Swarm, as a manager sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SwarmNode {
    /// Its id.
    pub id: String,
    /// Its machine's name.
    pub hostname: String,
    /// IP of the machine.
    pub address: String,
    /// Whether it manages.
    pub is_manager: bool,
    /// Of a manager: whether the others reach it.
    pub is_reachable: bool,
    /// Whether Swarm has given it up.
    pub is_down: bool,
}

/// The secrets that let a machine join.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinTokens {
    /// As a manager.
    pub manager: String,
    /// As a worker.
    pub worker: String,
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // They stay out of logs.
        f.write_str("JoinTokens")
    }
}

/// Why Docker did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerError {
    /// Not installed on this machine.
    #[error("there is no Docker on this machine")]
    Absent,
    /// Installed, and does not answer.
    #[error("Docker does not answer on {0}: {1}")]
    Silent(String, String),
    /// Its own words.
    #[error("Docker says: {0}")]
    Refused(String),
}

/// Docker on one machine.
#[async_trait]
pub trait Docker: Send + Sync {
    /// What this machine is.
    async fn own(&self) -> Result<OwnSwarm, DockerError>;
    /// Of a manager: all nodes.
    async fn nodes(&self) -> Result<Vec<SwarmNode>, DockerError>;
    /// Of a manager: the secrets.
    async fn tokens(&self) -> Result<JoinTokens, DockerError>;
    /// Makes a Swarm of this machine.
    async fn init(&self, advertise: IpAddr) -> Result<(), DockerError>;
    /// Joins the one that these managers (IP:PORT) are of.
    async fn join(&self, advertise: IpAddr, managers: &[String], token: &str) -> Result<(), DockerError>;
    /// Leaves, whatever that does to the Swarm.
    async fn leave(&self) -> Result<(), DockerError>;
    /// Of a manager: makes a worker of another manager.
    async fn demote(&self, node_id: &str) -> Result<(), DockerError>;
    /// Of a manager: removes a worker that is down.
    async fn remove(&self, node_id: &str) -> Result<(), DockerError>;
}
