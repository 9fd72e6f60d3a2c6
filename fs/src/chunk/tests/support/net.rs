//! The network between the nodes of a test, with its faults.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::meta::{ChunkId, NodeId};

use super::eventually;
use crate::chunk::{ChunkTransport, DataPlane, TransportError};

/// What is wrong with a node, seen from the others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fault {
    pub down: bool,
    pub slow: Duration,
}

/// Who can reach whom.
#[derive(Default)]
pub struct Net {
    pub planes: Mutex<BTreeMap<NodeId, Weak<DataPlane>>>,
    faults: Mutex<BTreeMap<NodeId, Fault>>,
    /// Calls: kind, from, to.
    pub calls: Mutex<Vec<(&'static str, NodeId, NodeId)>>,
}

impl Net {
    pub fn set(&self, node: NodeId, fault: Fault) {
        self.faults.lock().unwrap().insert(node, fault);
    }

    fn fault(&self, node: NodeId) -> Fault {
        self.faults
            .lock()
            .unwrap()
            .get(&node)
            .copied()
            .unwrap_or_default()
    }

    async fn call(
        &self,
        kind: &'static str,
        from: NodeId,
        to: NodeId,
    ) -> Result<Arc<DataPlane>, TransportError> {
        let down = self.fault(from).down || self.fault(to).down;
        self.calls.lock().unwrap().push((kind, from, to));
        tokio::time::sleep(self.fault(to).slow).await;
        if down || self.fault(from).down || self.fault(to).down {
            return Err(TransportError::Unreachable(to, "it is down".into()));
        }
        let plane = self.planes.lock().unwrap().get(&to).and_then(Weak::upgrade);
        plane.ok_or_else(|| TransportError::Unreachable(to, "it is gone".into()))
    }

    /// Waits until a node was asked to take copies so often, also by what goes on behind an answer.
    pub async fn puts_to(&self, node: NodeId, at_least: usize) {
        let tried = || {
            self.calls
                .lock()
                .unwrap()
                .iter()
                .filter(|c| c.0 == "put" && c.2 == node)
                .count()
        };
        eventually("a node was asked to take copies", || tried() >= at_least).await;
    }

    pub fn count(&self, kind: &str) -> usize {
        self.calls
            .lock()
            .unwrap()
            .iter()
            .filter(|call| call.0 == kind)
            .count()
    }
}

pub struct Transport {
    pub node: NodeId,
    pub net: Arc<Net>,
}

#[async_trait]
impl ChunkTransport for Transport {
    async fn put(
        &self,
        to: NodeId,
        id: ChunkId,
        data: Bytes,
        chain: Vec<NodeId>,
        enough: u32,
    ) -> Result<Vec<NodeId>, TransportError> {
        self.net
            .call("put", self.node, to)
            .await?
            .serve_put(id, data, chain, enough)
            .await
    }

    async fn get(&self, from: NodeId, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, TransportError> {
        self.net
            .call("get", self.node, from)
            .await?
            .serve_get(id, offset, len)
            .await
    }

    async fn has(&self, on: NodeId, ids: Vec<ChunkId>) -> Result<Vec<ChunkId>, TransportError> {
        self.net.call("has", self.node, on).await?.serve_has(ids).await
    }

    fn nearest(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        nodes.to_vec()
    }
}
