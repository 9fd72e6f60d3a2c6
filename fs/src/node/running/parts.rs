//! The parts of a node that its services and its background work share.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use raftstore::StateMachine;
use raftstore::clock::Clock;
use raftstore::journal::{Journal, LogStore};
use raftstore::meta::{MetaStore, NodeId, Observer};

use super::{StartError, Surroundings};
use crate::chunk::{ChunkWatcher, DataPlane, Keeper, KeeperOptions, MetaView, PlaneOptions, PlaneParts};
use crate::medium::Medium;
use crate::node::backend::NodeBackend;
use crate::node::drain::Drain;
use crate::node::journal_payloads::JournalPayloads;
use crate::node::leader::duties::Duties;
use crate::node::leader::liveness::Liveness;
use crate::node::medium_file::medium_of;
use crate::node::process::{ProcessStats, WriteRate};
use crate::node::proposer::Proposer;
use crate::node::raft::{self, Raft};
use crate::node::session::SessionKeeper;
use crate::node::stall::Stall;
use crate::node::storage::{Storage, StorageError};
use crate::node::store::{self, Store};
use crate::node::tls::Credentials;
use crate::node::transport::chunk_transport::GrpcChunkTransport;
use crate::node::transport::directory::Directory;
use crate::node::transport::leader_client::LeaderClient;
use crate::node::transport::peers::Peers;
use crate::node::transport::raft_network::Network;

/// The parts that services and background work share.
pub(super) struct Shared {
    pub(super) id: NodeId,
    pub(super) raft: Raft,
    pub(super) meta: Arc<MetaStore>,
    pub(super) journal: Arc<Journal>,
    pub(super) directory: Arc<Directory>,
    pub(super) peers: Arc<Peers>,
    pub(super) duties: Arc<Duties>,
    pub(super) leader: Arc<LeaderClient>,
    pub(super) session: Arc<SessionKeeper>,
    pub(super) plane: Arc<DataPlane>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) medium: Option<Medium>,
    pub(super) write_rate: Arc<WriteRate>,
    /// Snapshots taken in since the start.
    pub(super) installed: Arc<AtomicU64>,
    /// Background work on chunks, once it has begun.
    pub(super) keeper: Arc<OnceLock<Arc<Keeper>>>,
    /// Whether this node is draining.
    pub(super) drain: Arc<Drain>,
    /// Whether its medium answers.
    pub(super) stall: Arc<Stall>,
}

/// What the store's medium takes: as long as nothing else uses it, that can be measured.
pub(super) async fn measured_medium(store: &Store, around: &Surroundings) -> Option<Medium> {
    let (layout, clock) = (store.layout.clone(), Arc::clone(&around.clock));
    let measured = tokio::task::spawn_blocking(move || medium_of(&layout, &*clock)).await;
    measured.ok().flatten()
}

pub(super) fn share(
    store: &Store,
    storage: &Storage,
    around: &Surroundings,
    (raft, directory, peers): (Raft, Arc<Directory>, Arc<Peers>),
    medium: Option<Medium>,
) -> Shared {
    let id = store.identity.node_id;
    let (meta, clock) = (Arc::clone(&storage.meta), Arc::clone(&around.clock));
    let liveness = Arc::new(Liveness::new(Arc::clone(&clock)));
    let duties = Arc::new(Duties::new(
        id,
        raft.clone(),
        Arc::clone(&meta),
        Arc::clone(&directory),
        Arc::clone(&clock),
        liveness,
    ));
    let leader = Arc::new(LeaderClient::new(
        id,
        raft.clone(),
        Arc::clone(&duties),
        Arc::clone(&peers),
        Arc::clone(&directory),
    ));
    let keeper = Arc::new(OnceLock::new());
    let write_rate = Arc::<WriteRate>::default();
    let drain = Arc::new(Drain::load(&store.layout));
    let stall = Arc::new(Stall::new(
        Arc::clone(&storage.journal),
        Arc::clone(&meta),
        raft.clone(),
        Arc::clone(&clock),
    ));
    let session = Arc::new(SessionKeeper::new(
        id,
        store.config.listen.to_string(),
        Arc::clone(&leader),
        Arc::clone(&meta),
        Arc::clone(&clock),
        Arc::new(ProcessStats {
            store: store.layout.root().to_owned(),
            journal: Arc::clone(&storage.journal),
            chunks: Arc::clone(&storage.chunks),
            keeper: Arc::clone(&keeper),
            clock: Arc::clone(&clock),
            rate: Arc::clone(&write_rate),
            drain: Arc::clone(&drain),
            stall: Arc::clone(&stall),
        }),
    ));
    let transport =
        GrpcChunkTransport::new(id, Arc::clone(&peers), Arc::clone(&directory), Arc::clone(&clock));
    let plane = DataPlane::new(
        PlaneParts {
            node: id,
            store: Arc::clone(&storage.chunks),
            view: Arc::new(MetaView::new(&meta)),
            transport: Arc::new(transport),
            payloads: Arc::new(JournalPayloads(Arc::clone(&storage.journal))),
        },
        PlaneOptions::default(),
    );
    let journal = Arc::clone(&storage.journal);
    Shared {
        id,
        raft,
        meta,
        journal,
        directory,
        peers,
        duties,
        leader,
        session,
        plane,
        clock,
        medium,
        write_rate,
        installed: Arc::default(),
        keeper,
        drain,
        stall,
    }
}

/// Raft over the store's log and metadata, not running yet, and what it finds the other nodes by.
pub(super) async fn start_raft(
    store: &Store,
    storage: &Storage,
    credentials: &Credentials,
) -> Result<(Raft, Arc<Directory>, Arc<Peers>), StartError> {
    let directory = Arc::new(Directory::new(store::load_members(&store.layout)));
    directory
        .update(&storage.meta.reader())
        .map_err(StorageError::from)?;
    let peers = Arc::new(Peers::new(credentials.client_config()));
    let failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
    let config = raft::config(&store.identity.cluster_id).map_err(|error| failed(&error))?;
    let network = Network::new(Arc::clone(&peers), Arc::clone(&directory));
    let log = LogStore::new(Arc::clone(&storage.journal));
    let machine = StateMachine::new(Arc::clone(&storage.meta));
    let raft = Raft::build(store.identity.node_id, config, network, log, machine).await;
    Ok((raft.map_err(|error| failed(&error))?, directory, peers))
}

/// Begins the background work on chunks.
pub(super) fn keep_chunks(storage: &Storage, shared: &Shared) -> Arc<Keeper> {
    let watcher = ChunkWatcher::new();
    storage.meta.observe(Arc::clone(&watcher) as Arc<dyn Observer>);
    let options = shared
        .medium
        .as_ref()
        .map_or_else(KeeperOptions::default, KeeperOptions::for_medium);
    let keeper = Arc::new(Keeper::start(Arc::clone(&shared.plane), watcher, options));
    let _ = shared.keeper.set(Arc::clone(&keeper));
    keeper
}

/// What the POSIX layer stands on.
pub(super) fn backend(store: &Store, storage: &Storage, shared: &Shared) -> Arc<NodeBackend> {
    let (config, limits) = (&store.config, &store.config.limits);
    let proposer = Arc::new(Proposer::new(
        Arc::clone(&shared.leader),
        Arc::clone(&shared.session),
        Arc::clone(&shared.meta),
        Arc::clone(&shared.clock),
        config.on_quorum_loss,
        limits,
    ));
    Arc::new(NodeBackend::new(
        Arc::clone(&shared.leader),
        proposer,
        Arc::clone(&shared.session),
        Arc::clone(&shared.meta),
        (Arc::clone(&shared.plane), storage.journal.poisoned()),
        (config.on_quorum_loss, limits.reserve_percent),
        Arc::clone(&shared.clock),
    ))
}
