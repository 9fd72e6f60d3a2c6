//! What volumes want to know of the nodes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bramble_proto::OpenInodesRequest;
use bramble_proto::meta_client::MetaClient;
use raftstore::meta::{Ino, MetaStore, NodeId};

use super::service::meta::OpenFiles;
use super::session::SessionKeeper;
use super::transport::directory::Directory;
use super::transport::peers::{Lane, Peers};
use crate::volumes::{Nodes, OpenSomewhere};

/// A node that does not say in this time what it has open is taken to be gone.
const OPEN_INODES_TIMEOUT: Duration = Duration::from_secs(2);
/// A node that the leader has not heard of for so long is shown as down.
const DOWN_AFTER_MS: u64 = 6000;

/// Knows the nodes, from this one.
pub struct VolumeHost {
    /// This node.
    pub(super) id: NodeId,
    pub(super) meta: Arc<MetaStore>,
    pub(super) session: Arc<SessionKeeper>,
    pub(super) directory: Arc<Directory>,
    pub(super) peers: Arc<Peers>,
    pub(super) open_files: Arc<dyn OpenFiles>,
}

impl VolumeHost {
    async fn open_of(&self, node: NodeId, inodes: &[Ino]) -> Vec<Ino> {
        if node == self.id {
            return self.open_files.open_of(inodes);
        }
        let Some(listen) = self.directory.listen(node) else {
            return Vec::new();
        };
        let Ok(channel) = self.peers.channel(&listen, Lane::Urgent) else {
            return Vec::new();
        };
        let request = OpenInodesRequest {
            log_index: 0,
            inodes: inodes.to_vec(),
        };
        let mut client = MetaClient::new(channel);
        match tokio::time::timeout(OPEN_INODES_TIMEOUT, client.open_inodes(request)).await {
            Ok(Ok(response)) => response.into_inner().open,
            _ => Vec::new(),
        }
    }
}

impl Nodes for VolumeHost {
    fn problems(&self) -> Vec<String> {
        let view = self.session.view().borrow().clone();
        let Ok(nodes) = self.meta.reader().nodes() else {
            return vec!["this node's state cannot be read".into()];
        };
        let mut problems = Vec::new();
        for node in nodes {
            let report = view.nodes.iter().find(|report| report.node_id == node.id);
            let silent_ms = report.and_then(|report| report.silent_ms);
            let stats = report.and_then(|report| report.stats.as_ref());
            if silent_ms.is_none_or(|silent_ms| silent_ms > DOWN_AFTER_MS) {
                problems.push(format!("{} is down", node.name));
            } else if !stats.is_some_and(|stats| stats.chunks_complete) {
                problems.push(format!("{} is copying", node.name));
            }
        }
        problems
    }
}

#[async_trait]
impl OpenSomewhere for VolumeHost {
    async fn open_on(&self, inodes: &[Ino]) -> Option<NodeId> {
        for node in self.meta.reader().nodes().ok()? {
            if !self.open_of(node.id, inodes).await.is_empty() {
                return Some(node.id);
            }
        }
        None
    }
}
