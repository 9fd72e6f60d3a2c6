//! The daemons of the cluster, asked over its mutual TLS with this node's certificate.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bramble_proto::cluster_client::ClusterClient;
use bramble_proto::{SwarmLookRequest, SwarmRemoveRequest};
use raftstore::disk::RealDisk;

use crate::cli::{admin, text};
use crate::node::service::swarm::seen;
use crate::node::store::Layout;
use crate::node::tls::Credentials;
use crate::node::transport::peers::{Lane, Peers as Connections};
use crate::node::transport::wire::WireError;
use crate::swarm::{Peers, Seen, View};

/// A daemon asks its Docker before it answers.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// A manager that is demoted takes a while to leave the managers' own consensus.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(60);

/// All members that the daemon of a store knows.
pub(super) struct Daemons<'a> {
    store: &'a Path,
    connections: Connections,
}

impl<'a> Daemons<'a> {
    /// Calls as the node of `store`.
    pub(super) fn new(store: &'a Path) -> Result<Self, String> {
        let credentials = Credentials::load(&Layout::new(Arc::new(RealDisk), store)).map_err(text)?;
        Ok(Self {
            store,
            connections: Connections::new(credentials.client_config()),
        })
    }

    /// Names and addresses.
    async fn members(&self) -> Result<Vec<(String, String)>, String> {
        let status = admin::status_within(self.store).await?;
        let nodes = status.cluster.nodes.into_iter();
        Ok(nodes.map(|node| (node.name, node.listen)).collect())
    }

    async fn ask(&self, listen: &str) -> Result<Seen, WireError> {
        let mut client = ClusterClient::new(self.connections.channel(listen, Lane::Urgent)?);
        let asked = client.swarm_look(SwarmLookRequest { tokens: true });
        match tokio::time::timeout(LOOK_TIMEOUT, asked).await {
            Ok(answer) => seen(answer?.into_inner()),
            Err(_) => Err(WireError::Unreachable(format!("{listen} does not answer"))),
        }
    }
}

#[async_trait]
impl Peers for Daemons<'_> {
    async fn look(&self) -> Result<Vec<View>, String> {
        let members = self.members().await?;
        let asked = members.iter().map(|(_, listen)| self.ask(listen));
        let answers = futures::future::join_all(asked).await;
        let views = members.into_iter().zip(answers).map(|((node, _), answer)| View {
            node,
            seen: answer.map_err(text),
        });
        Ok(views.collect())
    }

    async fn remove(&self, via: &str, node_id: &str) -> Result<(), String> {
        let members = self.members().await?;
        let member = members.iter().find(|(name, _)| name == via);
        let (_, listen) = member.ok_or_else(|| format!("{via} has left the cluster"))?;
        let channel = self.connections.channel(listen, Lane::Urgent).map_err(text)?;
        let mut client = ClusterClient::new(channel);
        let request = SwarmRemoveRequest {
            node_id: node_id.to_owned(),
        };
        match tokio::time::timeout(REMOVE_TIMEOUT, client.swarm_remove(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(WireError::from(status).to_string()),
            Err(_) => Err(format!(
                "{via} has not done it within {} s",
                REMOVE_TIMEOUT.as_secs()
            )),
        }
    }
}
