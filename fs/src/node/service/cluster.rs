//! Joining, rejoining and leaving.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bramble_proto::cluster_client::ClusterClient;
use bramble_proto::cluster_server::Cluster;
use bramble_proto::{
    JoinRequest, JoinResponse, Member, MembersRequest, MembersResponse, RejoinRequest, RejoinResponse,
    RemoveNodeRequest, RemoveNodeResponse, SwarmLookRequest, SwarmLookResponse, SwarmRemoveRequest,
    SwarmRemoveResponse,
};
use openraft::async_runtime::watch::WatchReceiver;
use raftstore::kv::KvError;
use raftstore::meta::{MetaError, MetaStore, NodeInfo, Op, PLACEMENT_GROUPS, Reply};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::auth::Gate;
use super::swarm::SwarmHost;
use crate::node::leader::duties::Duties;
use crate::node::leader::liveness::SILENT_AFTER;
use crate::node::leader::membership;
use crate::node::leader::round::view_of;
use crate::node::raft::{self, Raft};
use crate::node::store::FORMAT_VERSION;
use crate::node::tls::Authority;
use crate::node::token::hash_secret;
use crate::node::transport::directory::Directory;
use crate::node::transport::peers::{Lane, Peers};
use crate::node::transport::wire::WireError;

/// A forwarded call is given up after this time.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than any node takes to say that it has begun to look for chunks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(2500);

/// The Cluster service.
pub struct ClusterService {
    raft: Raft,
    duties: Arc<Duties>,
    meta: Arc<MetaStore>,
    directory: Arc<Directory>,
    peers: Arc<Peers>,
    gate: Gate,
    authority: Authority,
    cluster_id: String,
    swarm: SwarmHost,
}

impl ClusterService {
    /// Answers for this node.
    #[must_use]
    pub fn new(
        raft: Raft,
        duties: Arc<Duties>,
        meta: Arc<MetaStore>,
        directory: Arc<Directory>,
        peers: Arc<Peers>,
        (authority, cluster_id): (Authority, String),
        swarm: SwarmHost,
    ) -> Self {
        let gate = Gate::new(Arc::clone(&directory));
        Self {
            raft,
            duties,
            meta,
            directory,
            peers,
            gate,
            authority,
            cluster_id,
            swarm,
        }
    }

    /// The leader, if it is another node.
    fn leader_elsewhere(&self) -> Result<Option<ClusterClient<Channel>>, WireError> {
        if self.duties.leads() {
            return Ok(None);
        }
        let listen = raft::leader(&self.raft).and_then(|leader| self.directory.listen(leader));
        let listen =
            listen.ok_or_else(|| WireError::NotNow("the cluster has no leader now: try again".into()))?;
        Ok(Some(ClusterClient::new(
            self.peers.channel(&listen, Lane::Urgent)?,
        )))
    }

    /// Waits until this node, which leads, shows all that was committed before.
    async fn catch_up(&self) -> Result<Vec<NodeInfo>, WireError> {
        self.duties.catch_up().await?;
        self.meta
            .reader()
            .nodes()
            .map_err(|error| WireError::NotNow(error.to_string()))
    }

    async fn add_node(
        &self,
        name: String,
        listen: String,
        token: Option<[u8; 32]>,
    ) -> Result<NodeInfo, WireError> {
        match self
            .duties
            .propose_system(Op::AddNode {
                name,
                listen,
                token_hash: token,
            })
            .await
        {
            Ok(Reply::Node(node)) => Ok(node),
            Ok(other) => Err(WireError::Unknown(format!("unexpected answer {other:?}"))),
            Err(WireError::Refused(why)) if why == MetaError::BadToken.to_string() => Err(bad_token()),
            Err(error) => Err(error),
        }
    }

    /// Whether the token would do now; it is not used up.
    fn check_token(&self, token: &[u8; 32]) -> Result<(), WireError> {
        let tokens = self.meta.reader().tokens();
        let tokens = tokens.map_err(|error| WireError::NotNow(error.to_string()))?;
        if tokens.iter().any(|(known, _)| known == token) {
            Ok(())
        } else {
            Err(bad_token())
        }
    }

    async fn join_here(&self, request: JoinRequest) -> Result<JoinResponse, WireError> {
        let nodes = self.catch_up().await?;
        // First, though it is used up last: who has none learns nothing of the nodes, and makes nobody wait.
        let token = hash_secret(&request.token_secret);
        self.check_token(&token)?;
        if let Some(node) = nodes.iter().find(|node| node.name == request.name) {
            self.may_replace(node).await?;
        }
        if let Some(node) = nodes
            .iter()
            .find(|node| node.listen == request.listen && node.name != request.name)
        {
            return Err(WireError::Refused(format!(
                "the address {} belongs to node {}: choose another with --listen, or remove that node first",
                request.listen, node.name
            )));
        }
        // Signed first: a request that cannot be signed must not use up the token. The id is not known yet.
        self.authority
            .sign(&request.csr_pem, &request.name, 0)
            .map_err(|e| WireError::Malformed(e.to_string()))?;
        let node = self.add_node(request.name, request.listen, Some(token)).await?;
        let certificate = self.authority.sign(&request.csr_pem, &node.name, node.id);
        // The token is used up by now: to try again would not help.
        let nodes = self
            .catch_up()
            .await
            .map_err(|error| WireError::Unknown(error.to_string()))?;
        tracing::info!(
            node = node.id,
            name = node.name,
            listen = node.listen,
            "a node joins"
        );
        Ok(JoinResponse {
            node_id: node.id,
            cluster_id: self.cluster_id.clone(),
            certificate_pem: certificate.map_err(|error| WireError::Unknown(error.to_string()))?,
            ca_certificate_pem: self.authority.certificate_pem.clone(),
            ca_key_pem: self.authority.key_pem.clone(),
            members: nodes.into_iter().map(member).collect(),
        })
    }

    /// Whether a blank node may take the name, and the place, of this one: it is certainly down, and the others are
    /// enough without it and have all that it had.
    async fn may_replace(&self, old: &NodeInfo) -> Result<(), WireError> {
        let liveness = self.duties.liveness();
        // This node, which leads, may not have heard of itself yet.
        let is_here = self.raft.metrics().borrow_watched().id == old.id;
        if !is_here && liveness.is_live(old.id) {
            // It may have died a moment ago.
            tokio::time::sleep(SILENT_AFTER).await;
        }
        if is_here || liveness.is_live(old.id) {
            return Err(WireError::Refused(format!(
                "the name {} is in use by a node that is running at {}: choose another with --name",
                old.name, old.listen
            )));
        }
        if liveness.may_be_live(old.id) {
            return Err(WireError::NotNow(format!(
                "a node named {} was there a moment ago, and may still run at {}",
                old.name, old.listen
            )));
        }
        let view = view_of(&self.raft, &self.meta, liveness)
            .map_err(|error| WireError::NotNow(error.to_string()))?;
        let refused = |why: String| {
            WireError::NotNow(format!(
                "a blank node does not take the place of the dead {}: {why}",
                old.name
            ))
        };
        membership::may_remove(&view, old.id).map_err(refused)?;
        match self.others_have_all(old).await {
            Err(WireError::Refused(_)) => Err(refused(format!(
                "the other nodes have not got all their chunks yet, and it may have the only good copy of some. Wait until \
                 `bramble status` shows no node that is copying. If that does not end, bring the old {0} back, or give up \
                 what only it has with `bramble node rm {0} --force`",
                old.name
            ))),
            outcome => outcome,
        }
    }

    async fn rejoin_here(&self, request: &RejoinRequest) -> Result<RejoinResponse, WireError> {
        let nodes = self.catch_up().await?;
        // By name: the answer to an earlier request may have been lost, and with it the id that it gave.
        let old = nodes
            .into_iter()
            .find(|node| node.name == request.name)
            .ok_or(WireError::Removed)?;
        if old.id != request.node_id && self.duties.liveness().is_live(old.id) {
            return Err(WireError::Refused(format!(
                "a node named {} is running at {}",
                old.name, old.listen
            )));
        }
        let view = view_of(&self.raft, &self.meta, self.duties.liveness())
            .map_err(|error| WireError::NotNow(error.to_string()))?;
        // The blank node does not vote until it has caught up: the others must be enough without it.
        membership::may_remove(&view, old.id).map_err(WireError::NotNow)?;
        let node = self.add_node(old.name, old.listen, None).await?;
        tracing::warn!(
            old = request.node_id,
            new = node.id,
            name = node.name,
            reason = request.reason,
            "a node starts again, blank"
        );
        Ok(RejoinResponse { node_id: node.id })
    }

    async fn remove_here(&self, request: &RemoveNodeRequest) -> Result<RemoveNodeResponse, WireError> {
        let nodes = self.catch_up().await?;
        let by_name = nodes.iter().find(|node| node.name == request.node);
        let wanted = by_name.or_else(|| nodes.iter().find(|node| node.id.to_string() == request.node));
        let node = wanted.ok_or_else(|| {
            WireError::Refused(format!(
                "there is no node {}: `bramble node ls` lists them",
                request.node
            ))
        })?;
        let view = view_of(&self.raft, &self.meta, self.duties.liveness())
            .map_err(|error| WireError::NotNow(error.to_string()))?;
        let allowed = membership::may_remove(&view, node.id);
        if let Err(why) = allowed
            && (!request.force || nodes.len() == 1)
        {
            return Err(WireError::Refused(format!(
                "node {} was not removed: {why}",
                node.name
            )));
        }
        if !request.force && self.duties.liveness().is_live(node.id) {
            self.others_have_all(node).await?;
        }
        self.duties
            .propose_system(Op::RemoveNode { node: node.id })
            .await?;
        tracing::info!(
            node = node.id,
            name = node.name,
            force = request.force,
            "a node was removed"
        );
        let message = format!(
            "node {} (id {}) was removed: its daemon ends by itself once the others need it no longer; then delete its \
             store",
            node.name, node.id
        );
        Ok(RemoveNodeResponse { message })
    }

    /// Sees to it that a node which still runs is not removed while it holds the only good copy of anything. It looks
    /// twice: a node that has only just been given chunks has begun to look for them by the second time.
    async fn others_have_all(&self, node: &NodeInfo) -> Result<(), WireError> {
        for look in 0..2 {
            if look > 0 {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            let kv = |error: KvError| WireError::NotNow(error.to_string());
            let reader = self.meta.reader();
            let others: Vec<NodeInfo> = reader.nodes().map_err(kv)?;
            let others: Vec<&NodeInfo> = others.iter().filter(|other| other.id != node.id).collect();
            let mut placed = BTreeSet::new();
            for group in 0..PLACEMENT_GROUPS {
                placed.extend(reader.placement(group).map_err(kv)?);
            }
            let copying = others.iter().find(|other| {
                let heard = self.duties.liveness().of(other.id);
                let complete = heard.is_some_and(|heard| heard.stats.chunks_complete);
                self.duties.liveness().is_live(other.id) && !(complete && placed.contains(&other.id))
            });
            if let Some(copying) = copying {
                return Err(WireError::Refused(format!(
                    "node {} was not removed: {} has not got all its chunks yet, and {0} may have the only good copy of \
                     some. Try again once `bramble status` shows no node that is copying, or add --force to give up \
                     what only {0} has",
                    node.name, copying.name
                )));
            }
        }
        Ok(())
    }
}

fn bad_token() -> WireError {
    WireError::Refused(format!(
        "{}: make a new one with `bramble token --store DIR` on a node of the cluster",
        MetaError::BadToken
    ))
}

fn member(node: NodeInfo) -> Member {
    Member {
        node_id: node.id,
        name: node.name,
        listen: node.listen,
    }
}

async fn forwarded<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    match tokio::time::timeout(FORWARD_TIMEOUT, call).await {
        Ok(result) => result,
        Err(_) => Err(WireError::Unknown("the leader did not answer in time".into()).into()),
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        if request.format_version != FORMAT_VERSION {
            return Err(WireError::Refused(format!(
                "the cluster has format version {FORMAT_VERSION}, this program {}: install the same bramble version on \
                 all nodes",
                request.format_version
            ))
            .into());
        }
        match self.leader_elsewhere()? {
            Some(mut leader) => forwarded(leader.join(request)).await,
            None => Ok(Response::new(self.join_here(request).await?)),
        }
    }

    async fn rejoin(&self, request: Request<RejoinRequest>) -> Result<Response<RejoinResponse>, Status> {
        // Either the node itself asks (its old id may have been retired already), or a member passes it on.
        let own = Gate::name(&request).is_some_and(|name| name == request.get_ref().name);
        if !own {
            self.gate.caller(&request)?;
        }
        let request = request.into_inner();
        match self.leader_elsewhere()? {
            Some(mut leader) => forwarded(leader.rejoin(request)).await,
            None => Ok(Response::new(self.rejoin_here(&request).await?)),
        }
    }

    async fn members(&self, request: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        self.gate.caller(&request)?;
        let members = self.directory.members();
        let members = members.iter().map(|(id, member)| Member {
            node_id: *id,
            name: member.name.clone(),
            listen: member.listen.clone(),
        });
        let leader = raft::leader(&self.raft).unwrap_or(0);
        Ok(Response::new(MembersResponse {
            leader,
            members: members.collect(),
        }))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        self.gate.caller(&request)?;
        let request = request.into_inner();
        match self.leader_elsewhere()? {
            Some(mut leader) => forwarded(leader.remove_node(request)).await,
            None => Ok(Response::new(self.remove_here(&request).await?)),
        }
    }
    async fn swarm_look(
        &self,
        request: Request<SwarmLookRequest>,
    ) -> Result<Response<SwarmLookResponse>, Status> {
        self.gate.caller(&request)?;
        Ok(Response::new(self.swarm.look(request.get_ref().tokens).await))
    }

    async fn swarm_remove(
        &self,
        request: Request<SwarmRemoveRequest>,
    ) -> Result<Response<SwarmRemoveResponse>, Status> {
        self.gate.caller(&request)?;
        self.swarm.remove(&request.get_ref().node_id).await?;
        Ok(Response::new(SwarmRemoveResponse {}))
    }
}
