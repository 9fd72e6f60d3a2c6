//! What a node keeps on its medium: opened, checked, and repaired from the other nodes where it is damaged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bramble_proto::cluster_client::ClusterClient;
use bramble_proto::raft_client::RaftClient;
use bramble_proto::{FetchSnapshotRequest, RejoinRequest};
use raftstore::journal::{Journal, JournalError, JournalOptions, Recovery, StoreIdentity};
use raftstore::kv::{EngineKind, EngineOptions, KvError, StoreOptions as MetaOptions};
use raftstore::meta::{DamagedStore, MetaStore, NodeId, OpenedStore};
use raftstore::snapshot;
use tonic::transport::Channel;

use super::config::EngineChoice;
use super::running::Surroundings;
use super::store::{self, Store, StoreError};
use super::tls::{Credentials, TlsError};
use super::transport::peers::{Lane, MESSAGE_BYTES_MAX, Peers};
use super::transport::snapshot_frames;
use super::transport::wire::WireError;
use crate::chunk::store::{ChunkStore, StoreIdentity as ChunkStoreIdentity, StoreOptions};

/// For so long, a node that needs the others for a repair asks them.
const REPAIR_PATIENCE: Duration = Duration::from_secs(90);
/// Between two attempts.
const REPAIR_INTERVAL: Duration = Duration::from_secs(1);
/// A peer that does not begin to answer within this time is passed over.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why what is in a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The key-value store.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The chunk store.
    #[error("the chunk store: {0}")]
    Chunks(String),
    /// Damage on the only node.
    #[error(
        "{0}. This is the only node of its cluster, so there is no other to rebuild it from: restore the whole store \
         from a backup, or give it up (delete it) and make a new cluster with `bramble init`"
    )]
    NoPeers(String),
    /// Damage, and nobody helps.
    #[error(
        "{damage}. It can be rebuilt from the other nodes, but none of them could do that yet ({why}): start them, \
         then start this one again"
    )]
    NoHelp {
        /// What is wrong here.
        damage: String,
        /// What the others said.
        why: String,
    },
}

/// The open parts of a store.
pub struct Storage {
    /// Raft's log.
    pub journal: Arc<Journal>,
    /// The metadata.
    pub meta: Arc<MetaStore>,
    /// The chunks.
    pub chunks: Arc<ChunkStore>,
    /// What was repaired, for `status`.
    pub warnings: Vec<String>,
}

impl Storage {
    /// Opens everything in `store`. Damage is repaired from the other nodes, which may take a while.
    ///
    /// # Errors
    /// [`StorageError`] says what to do.
    pub async fn open(store: &mut Store, around: &Surroundings) -> Result<Self, StorageError> {
        let mut warnings = Vec::new();
        let (journal, recovery) = match open_journal(store, around) {
            Ok(opened) => opened,
            Err(error @ (JournalError::Damaged { .. } | JournalError::Missing(_))) => {
                tracing::error!(%error, "the journal cannot be used; this node starts again, blank");
                rejoin(store, &error.to_string()).await?;
                warnings.push(format!("the journal was rebuilt: {error}"));
                open_journal(store, around)?
            }
            Err(error) => return Err(error.into()),
        };
        if !store.identity.started {
            store.identity.started = true;
            store.identity.save(&store.layout)?;
        }
        let purged = recovery.last_purged.as_ref().map_or(0, |id| id.index);
        let meta = match open_meta(store, purged)? {
            OpenedStore::Ready(meta) => meta,
            OpenedStore::Damaged(damaged) => {
                let why = damaged.why().to_string();
                tracing::error!(why, "the metadata is damaged and is rebuilt");
                warnings.push(format!("the metadata was rebuilt: {why}"));
                let meta = rebuild_meta(store, damaged, purged).await?;
                drop_conflicting_tail(&journal, &meta).await?;
                meta
            }
        };
        let chunks = ChunkStore::open(
            Arc::clone(store.layout.disk()),
            &store.layout.chunks(),
            ChunkStoreIdentity::of_cluster(&store.identity.cluster_id),
            StoreOptions {
                pending_bytes_max: 8 << 20,
                ..StoreOptions::default()
            },
        );
        let chunks = chunks.map_err(|error| StorageError::Chunks(error.to_string()))?;
        Ok(Self {
            journal,
            meta: Arc::new(meta),
            chunks: Arc::new(chunks),
            warnings,
        })
    }
}

fn open_journal(store: &Store, around: &Surroundings) -> Result<(Arc<Journal>, Recovery), JournalError> {
    let (identity, limits) = (&store.identity, &store.config.limits);
    let ready =
        limits.journal_ready_bytes.min(limits.journal_bytes_max) / limits.journal_segment_bytes.max(1);
    let ready = usize::try_from(ready).unwrap_or(usize::MAX);
    let defaults = JournalOptions::default();
    let options = JournalOptions {
        segment_bytes: limits.journal_segment_bytes,
        segments_min: ready,
        free_segments_max: ready.max(defaults.free_segments_max),
        must_exist: identity.started,
        cache_bytes_max: 2 << 20,
        ..defaults
    };
    let owner = StoreIdentity {
        cluster_id: identity.cluster_id.clone(),
        node_id: identity.node_id,
    };
    let (disk, clock) = (Arc::clone(store.layout.disk()), Arc::clone(&around.clock));
    Journal::open(disk, clock, store.layout.journal(), owner, options)
}

fn meta_options(store: &Store) -> MetaOptions {
    let limits = &store.config.limits;
    MetaOptions {
        kind: match store.config.engine {
            EngineChoice::Fjall => EngineKind::Fjall,
            EngineChoice::Sled => EngineKind::Sled,
            #[cfg(test)]
            EngineChoice::Memory => EngineKind::Memory,
        },
        engine: EngineOptions {
            write_buffer_bytes_max: limits.engine_buffer_bytes_max,
            cache_bytes_max: limits.engine_cache_bytes_max,
            ..EngineOptions::default()
        },
        ..MetaOptions::new(store.layout.meta())
    }
}

fn open_meta(store: &Store, purged: u64) -> Result<OpenedStore, KvError> {
    Ok(
        match MetaStore::open_or_damaged(Arc::clone(store.layout.disk()), meta_options(store))? {
            OpenedStore::Ready(meta) => meta.require_applied(purged),
            damaged @ OpenedStore::Damaged(_) => damaged,
        },
    )
}

/// Rebuilds the metadata: from this node's journal, if that still has everything, else from another node's state.
async fn rebuild_meta(store: &Store, damaged: DamagedStore, purged: u64) -> Result<MetaStore, StorageError> {
    let why = damaged.why().to_string();
    if purged == 0 {
        drop(damaged);
        set_aside(store, &[store.layout.meta()])?;
        return Ok(MetaStore::open(
            Arc::clone(store.layout.disk()),
            meta_options(store),
        )?);
    }
    let peers = others(store)?;
    if peers.is_empty() {
        return Err(StorageError::NoPeers(why));
    }
    let mut said = String::new();
    let pull = async {
        loop {
            for (name, channel) in &peers {
                match pull_snapshot(channel, &damaged, purged).await {
                    Ok(received) => return received,
                    Err(error) => said = format!("{name}: {error}"),
                }
            }
            tracing::warn!(said, "no other node has sent its state yet");
            tokio::time::sleep(REPAIR_INTERVAL).await;
        }
    };
    match tokio::time::timeout(REPAIR_PATIENCE, pull).await {
        Ok(received) => Ok(damaged.replace_with(received)?),
        Err(_) => Err(StorageError::NoHelp {
            damage: why,
            why: said,
        }),
    }
}

/// Drops the end of the log if it is not what the cluster decided: entries of an earlier leader that were never
/// committed, at indexes at which the state that was taken over has others.
async fn drop_conflicting_tail(journal: &Journal, meta: &MetaStore) -> Result<(), StorageError> {
    let Some(reached) = meta.applied_state().last else {
        return Ok(());
    };
    let index = reached.index;
    let here = journal.read(index..index + 1, usize::MAX).await?;
    if here
        .first()
        .is_some_and(|entry| entry.log_id.index == index && entry.log_id != reached)
    {
        tracing::warn!(
            index,
            "the log ends with entries that the cluster did not commit; they are dropped"
        );
        journal.truncate_after(index.checked_sub(1)).await?;
    }
    Ok(())
}

async fn pull_snapshot(
    channel: &Channel,
    damaged: &DamagedStore,
    purged: u64,
) -> Result<snapshot::ReceivedSnapshot, String> {
    let mut client = RaftClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let call = client.fetch_snapshot(FetchSnapshotRequest {});
    let response = tokio::time::timeout(PEER_TIMEOUT, call)
        .await
        .map_err(|_| "no answer in time".to_owned())?;
    let frames = snapshot_frames::served(response.map_err(|s| WireError::from(s).to_string())?.into_inner());
    let receiver = damaged.receiver().map_err(|error| error.to_string())?;
    let received = snapshot::receive(receiver, frames)
        .await
        .map_err(|error| error.to_string())?;
    let reaches = received.meta().last_log_id.as_ref().map_or(0, |id| id.index);
    if reaches < purged {
        return Err(format!(
            "its state ends at entry {reaches}, before this node's log begins"
        ));
    }
    Ok(received)
}

/// Takes this node's place again under a fresh id, with a blank journal: the old id's promises are lost with the old
/// journal, and must not be broken. Chunks stay: they belong to the cluster.
async fn rejoin(store: &mut Store, damage: &str) -> Result<(), StorageError> {
    let peers = others(store)?;
    if peers.is_empty() {
        return Err(StorageError::NoPeers(damage.to_owned()));
    }
    let request = RejoinRequest {
        node_id: store.identity.node_id,
        reason: damage.to_owned(),
        name: store.config.name.clone(),
    };
    let mut said = String::new();
    let ask = async {
        loop {
            for (name, channel) in &peers {
                let mut client = ClusterClient::new(channel.clone());
                said = match tokio::time::timeout(PEER_TIMEOUT, client.rejoin(request.clone())).await {
                    Ok(Ok(response)) => return Ok(response.into_inner().node_id),
                    Ok(Err(status)) => match WireError::from(status) {
                        error @ (WireError::Removed | WireError::Refused(_)) => return Err(error),
                        error => format!("{name}: {error}"),
                    },
                    Err(_) => format!("{name}: no answer in time"),
                };
            }
            tracing::warn!(said, "the cluster has not taken this node back yet");
            tokio::time::sleep(REPAIR_INTERVAL).await;
        }
    };
    let no_help = |why: String| StorageError::NoHelp {
        damage: damage.to_owned(),
        why,
    };
    let node_id: NodeId = match tokio::time::timeout(REPAIR_PATIENCE, ask).await {
        Ok(Ok(node_id)) => node_id,
        Ok(Err(error)) => return Err(no_help(error.to_string())),
        Err(_) => return Err(no_help(said)),
    };
    let old = Credentials::load(&store.layout)?;
    set_aside(store, &[store.layout.journal(), store.layout.meta()])?;
    Credentials::issue(&old.authority, &store.config.name, node_id)?.save(&store.layout)?;
    store.identity.node_id = node_id;
    store.identity.started = false;
    store.identity.save(&store.layout)?;
    tracing::warn!(
        node_id,
        "this node is back under a new id, and takes the cluster's state from the others"
    );
    Ok(())
}

/// Connections to the other members last known.
fn others(store: &Store) -> Result<Vec<(String, Channel)>, StorageError> {
    let peers = Peers::new(Credentials::load(&store.layout)?.client_config());
    let members = store::load_members(&store.layout);
    let others = members
        .into_iter()
        .filter(|(id, _)| *id != store.identity.node_id);
    Ok(others
        .filter_map(|(_, member)| Some((member.name, peers.channel(&member.listen, Lane::Bulk).ok()?)))
        .collect())
}

/// Moves damaged directories to `damaged-N`, for whoever wants to look into them.
fn set_aside(store: &Store, dirs: &[PathBuf]) -> Result<(), StoreError> {
    let (disk, root) = (store.layout.disk(), store.layout.root());
    let names = disk.list(root).map_err(|error| StoreError::io(root, error))?;
    let free = (1_u32..)
        .map(|n| format!("damaged-{n}"))
        .find(|name| !names.contains(name));
    let Some(place) = free.map(|name| root.join(name)) else {
        return Ok(());
    };
    disk.create_dir_all(&place)
        .map_err(|error| StoreError::io(&place, error))?;
    for dir in dirs.iter().filter(|dir| disk.list(dir).is_ok()) {
        let target = place.join(dir.file_name().unwrap_or_default());
        disk.rename(dir, &target)
            .map_err(|error| StoreError::io(dir, error))?;
    }
    tracing::warn!(place = %place.display(), "what is damaged was moved aside; delete it when you have seen enough");
    disk.sync_dir(root).map_err(|error| StoreError::io(root, error))
}
