//! What a node answers other nodes about Docker Swarm on its machine, and does there for them.

use std::sync::Arc;
use std::time::Duration;

use bramble_proto as proto;

use crate::node::transport::wire::WireError;
use crate::swarm::{Docker, DockerError, JoinTokens, Seen, SwarmNode, SwarmState, rules};

/// So often it is tried to remove a machine that was demoted: it leaves the managers' own consensus in the background.
const REMOVALS_MAX: u32 = 20;
/// Between two attempts.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(500);

/// Answers for the Docker of this machine.
#[derive(Clone)]
pub struct SwarmHost {
    docker: Option<Arc<dyn Docker>>,
}

impl SwarmHost {
    /// Asks `docker`; without one, there is no Swarm here.
    #[must_use]
    pub fn new(docker: Option<Arc<dyn Docker>>) -> Self {
        Self { docker }
    }

    /// What this machine is in Swarm, and of a manager the nodes that it sees, and with `tokens` the secrets.
    pub(super) async fn look(&self, tokens: bool) -> proto::SwarmLookResponse {
        let own = match &self.docker {
            None => return proto::SwarmLookResponse::default(),
            Some(docker) => docker.own().await.map(|own| (docker, own)),
        };
        let (docker, own) = match own {
            Ok(own) => own,
            Err(DockerError::Absent) => return proto::SwarmLookResponse::default(),
            Err(error) => {
                return proto::SwarmLookResponse {
                    trouble: error.to_string(),
                    ..proto::SwarmLookResponse::default()
                };
            }
        };
        let manages = own.swarm_id.is_some() && own.state == SwarmState::Active;
        let mut response = proto::SwarmLookResponse {
            state: own.state.word().to_owned(),
            trouble: own.error,
            node_id: own.node_id,
            managers: own.managers,
            swarm_id: own.swarm_id.unwrap_or_default(),
            ..proto::SwarmLookResponse::default()
        };
        if !manages {
            return response;
        }
        match docker.nodes().await {
            Ok(nodes) => response.nodes = nodes.into_iter().map(to_wire).collect(),
            Err(error) => response.trouble = error.to_string(),
        }
        if tokens {
            match docker.tokens().await {
                Ok(tokens) => {
                    (response.manager_token, response.worker_token) = (tokens.manager, tokens.worker)
                }
                Err(error) => response.trouble = error.to_string(),
            }
        }
        response
    }

    /// Removes a machine from the Swarm that this one manages, if it is down and the Swarm does without it.
    pub(super) async fn remove(&self, node_id: &str) -> Result<(), WireError> {
        let refused = |error: DockerError| WireError::Refused(error.to_string());
        let docker = self.docker.as_ref();
        let docker = docker.ok_or_else(|| WireError::Refused("this machine manages no Swarm".into()))?;
        let nodes = docker.nodes().await.map_err(refused)?;
        let Some(node) = nodes.iter().find(|node| node.id == node_id) else {
            // An earlier request has done it.
            return Ok(());
        };
        rules::may_remove(&nodes, node).map_err(WireError::Refused)?;
        tracing::info!(
            node = node.id,
            name = node.hostname,
            "removing a dead machine from the Swarm"
        );
        if node.is_manager {
            docker.demote(&node.id).await.map_err(refused)?;
        }
        let mut removed = docker.remove(&node.id).await;
        for _ in 1..REMOVALS_MAX {
            if removed.is_ok() {
                break;
            }
            tokio::time::sleep(ATTEMPT_INTERVAL).await;
            removed = docker.remove(&node.id).await;
        }
        removed.map_err(refused)
    }
}

fn to_wire(node: SwarmNode) -> proto::SwarmNode {
    proto::SwarmNode {
        id: node.id,
        hostname: node.hostname,
        address: node.address,
        manager: node.is_manager,
        reachable: node.is_reachable,
        down: node.is_down,
    }
}

/// What another node has answered.
///
/// # Errors
/// If it is of a version that says something else.
pub fn seen(response: proto::SwarmLookResponse) -> Result<Seen, WireError> {
    let state = SwarmState::parse(&response.state)
        .ok_or_else(|| WireError::Malformed(format!("{:?} is no state in Swarm", response.state)))?;
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let tokens = some(response.manager_token).zip(some(response.worker_token));
    let nodes = response.nodes.into_iter().map(|node| SwarmNode {
        id: node.id,
        hostname: node.hostname,
        address: node.address,
        is_manager: node.manager,
        is_reachable: node.reachable,
        is_down: node.down,
    });
    Ok(Seen {
        state,
        trouble: response.trouble,
        swarm_id: some(response.swarm_id),
        managers: response.managers,
        nodes: nodes.collect(),
        tokens: tokens.map(|(manager, worker)| JoinTokens { manager, worker }),
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::swarm::OwnSwarm;

    /// The Docker of a manager, which notes what it is told.
    #[derive(Default)]
    struct Manager {
        nodes: Vec<SwarmNode>,
        told: Mutex<Vec<String>>,
        /// Removals that it refuses, as long as a demoted machine has not left the managers.
        refuses: Mutex<u32>,
    }

    impl Manager {
        fn tell(&self, what: &str, node_id: &str) {
            self.told.lock().unwrap().push(format!("{what} {node_id}"));
        }
    }

    #[async_trait]
    impl Docker for Manager {
        async fn own(&self) -> Result<OwnSwarm, DockerError> {
            unreachable!("not asked")
        }
        async fn nodes(&self) -> Result<Vec<SwarmNode>, DockerError> {
            Ok(self.nodes.clone())
        }
        async fn tokens(&self) -> Result<JoinTokens, DockerError> {
            unreachable!("not asked")
        }
        async fn init(&self, _: IpAddr) -> Result<(), DockerError> {
            unreachable!("it is in a Swarm")
        }
        async fn join(&self, _: IpAddr, _: &[String], _: &str) -> Result<(), DockerError> {
            unreachable!("it is in a Swarm")
        }
        async fn leave(&self) -> Result<(), DockerError> {
            unreachable!("it stays")
        }
        async fn demote(&self, node_id: &str) -> Result<(), DockerError> {
            self.tell("demote", node_id);
            Ok(())
        }
        async fn remove(&self, node_id: &str) -> Result<(), DockerError> {
            self.tell("remove", node_id);
            let mut refuses = self.refuses.lock().unwrap();
            if *refuses > 0 {
                *refuses -= 1;
                return Err(DockerError::Refused("it is a manager".into()));
            }
            Ok(())
        }
    }

    fn node(id: &str, is_manager: bool, is_down: bool) -> SwarmNode {
        SwarmNode {
            id: id.into(),
            hostname: id.into(),
            is_manager,
            is_reachable: is_manager && !is_down,
            is_down,
            ..SwarmNode::default()
        }
    }

    /// What came of a removal, and what Docker was told.
    async fn removed(nodes: &[SwarmNode], node_id: &str, refuses: u32) -> (Result<(), String>, Vec<String>) {
        let docker = Arc::new(Manager {
            nodes: nodes.to_vec(),
            refuses: Mutex::new(refuses),
            ..Manager::default()
        });
        let host = SwarmHost::new(Some(docker.clone()));
        let outcome = host.remove(node_id).await.map_err(|error| error.to_string());
        let told = docker.told.lock().unwrap().clone();
        (outcome, told)
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_worker_is_removed_and_a_dead_manager_demoted_first() {
        let nodes = [
            node("m1", true, false),
            node("m2", true, false),
            node("m3", true, true),
            node("w1", false, true),
            node("w2", false, false),
        ];
        let (outcome, told) = removed(&nodes, "w1", 0).await;
        assert_eq!((outcome, told), (Ok(()), vec!["remove w1".to_owned()]));
        let (outcome, told) = removed(&nodes, "m3", 2).await;
        let again = ["demote m3", "remove m3", "remove m3", "remove m3"].map(str::to_owned);
        assert_eq!((outcome, told), (Ok(()), again.to_vec()));
        // Docker's last word is passed on.
        let (outcome, told) = removed(&nodes, "w1", u32::MAX).await;
        assert!(outcome.unwrap_err().contains("it is a manager"));
        assert_eq!(told.len(), REMOVALS_MAX as usize);
    }

    #[tokio::test]
    async fn what_runs_stays_and_what_is_gone_is_no_error() {
        let nodes = [node("m1", true, false), node("w1", false, false)];
        for living in ["m1", "w1"] {
            let (outcome, told) = removed(&nodes, living, 0).await;
            assert!(outcome.unwrap_err().contains("it is running"));
            assert!(told.is_empty(), "{told:?}");
        }
        assert_eq!(removed(&nodes, "w9", 0).await, (Ok(()), Vec::new()));
        let none = SwarmHost::new(None).remove("w1").await;
        assert!(none.unwrap_err().to_string().contains("manages no Swarm"));
    }
}
