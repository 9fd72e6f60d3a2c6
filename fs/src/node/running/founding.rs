//! The first node's first start.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use raftstore::meta::{ClusterInfo, Op, Reply};
use raftstore::raft::Member;

use super::{Shared, StartError};
use crate::node::bootstrap::FIRST_NODE;
use crate::node::store::Store;

/// The founder decides alone, so this takes as long as its medium does.
const FOUNDING_TIMEOUT: Duration = Duration::from_secs(60);

/// The first node's first start makes the cluster. Each step looks whether it was done before a crash.
pub(super) async fn found(store: &mut Store, shared: &Shared) -> Result<(), StartError> {
    if !store.identity.founder {
        return Ok(());
    }
    let failed = |error: &dyn std::fmt::Display| StartError::Founding(error.to_string());
    let config = &store.config;
    let member = Member {
        name: config.name.clone(),
        listen: config.listen.to_string(),
    };
    match shared
        .raft
        .initialize(BTreeMap::from([(FIRST_NODE, member.clone())]))
        .await
    {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
        Err(error) => return Err(failed(&error)),
    }
    let mut metrics = shared.raft.server_metrics();
    let elected = async {
        while metrics.borrow_and_update().current_leader != Some(FIRST_NODE) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(FOUNDING_TIMEOUT, elected)
        .await
        .map_err(|_| failed(&"no election was won"))?;
    shared.duties.catch_up().await.map_err(|error| failed(&error))?;
    let reader = shared.meta.reader();
    if reader.cluster().map_err(|error| failed(&error))?.is_none() {
        let info = ClusterInfo {
            cluster_id: store.identity.cluster_id.clone(),
            replicas: 3,
        };
        shared
            .duties
            .propose_system(Op::InitCluster(info))
            .await
            .map_err(|error| failed(&error))?;
    }
    if reader.nodes().map_err(|error| failed(&error))?.is_empty() {
        let op = Op::AddNode {
            name: member.name,
            listen: member.listen,
            token_hash: None,
        };
        match shared
            .duties
            .propose_system(op)
            .await
            .map_err(|error| failed(&error))?
        {
            Reply::Node(node) if node.id == FIRST_NODE => {}
            other => return Err(failed(&format!("the first node was registered as {other:?}"))),
        }
    }
    if let Some(token) = &store.identity.first_token {
        let op = Op::AddToken {
            hash: token.hash,
            valid_s: token.valid_s,
        };
        shared
            .duties
            .propose_system(op)
            .await
            .map_err(|error| failed(&error))?;
    }
    store.identity.founder = false;
    store.identity.first_token = None;
    store.identity.save(&store.layout)?;
    tracing::info!(cluster = store.identity.cluster_id, "the cluster is founded");
    Ok(())
}
