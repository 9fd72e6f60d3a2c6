//! A running node: its parts, put together and taken apart.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use raftstore::StateMachine;
use raftstore::clock::Clock;
use raftstore::journal::{Journal, LogStore};
use raftstore::kv::KvError;
use raftstore::meta::{ClusterInfo, Event, Ino, MetaStore, NodeId, Observer, Op, Reply};
use raftstore::raft::Member;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::backend::NodeBackend;
use super::bootstrap::FIRST_NODE;
use super::drain::{self, Drain};
use super::housekeeping::{Housekeeping, cut, idle_cut};
use super::idle::Idle;
use super::inspect::{Inspector, InspectorParts};
use super::journal_payloads::JournalPayloads;
use super::leader::duties::Duties;
use super::leader::liveness::Liveness;
use super::leader::round::Rounds;
use super::leader::succession::Succession;
use super::lease_client::{LeaseClient, LeaseHolderSlot};
use super::medium_file::medium_of;
use super::process::{ProcessStats, WriteRate};
use super::proposer::Proposer;
use super::raft::{self, Raft};
use super::server::{self, Services};
use super::service::auth::Gate;
use super::service::chunk::ChunkService;
use super::service::cluster::ClusterService;
use super::service::meta::{MetaService, OpenFiles};
use super::service::raft::RaftService;
use super::service::swarm::SwarmHost;
use super::service::volumes::VolumesSlot;
use super::session::{SessionKeeper, SessionState};
use super::storage::{Storage, StorageError};
use super::store::{self, Store, StoreError};
use super::tls::{Credentials, TlsError};
use super::transport::chunk_transport::GrpcChunkTransport;
use super::transport::directory::Directory;
use super::transport::leader_client::LeaderClient;
use super::transport::peers::Peers;
use super::transport::raft_network::Network;
use super::transport::wire::WireError;
use super::volume_host::VolumeHost;
use crate::backend::Propose;
use crate::chunk::{
    ChunkWatcher, DataPlane, Keeper, KeeperOptions, Merger, MergerOptions, MetaView, PlaneOptions, PlaneParts,
};
use crate::medium::Medium;
use crate::swarm::Docker;

/// The founder decides alone, so this takes as long as its medium does.
const FOUNDING_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in the store.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A socket.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, io::Error),
    /// Raft.
    #[error("Raft cannot start: {0}")]
    Raft(String),
    /// The first node could not found its cluster.
    #[error("the cluster cannot be founded: {0}")]
    Founding(String),
}

/// What the daemon must react to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// This node cannot go on: it has left the quorum.
    Fatal(String),
    /// The key-value store is damaged: the node must start again and repair it.
    MetadataDamaged(String),
}

/// Files open through this node's mount; set once it is mounted.
#[derive(Default)]
pub struct OpenFilesSlot(OnceLock<Arc<dyn OpenFiles>>);

impl OpenFilesSlot {
    /// From now on `files` knows.
    pub fn set(&self, files: Arc<dyn OpenFiles>) {
        let _ = self.0.set(files);
    }
}

impl OpenFiles for OpenFilesSlot {
    fn open_of(&self, inodes: &[Ino]) -> Vec<Ino> {
        self.0
            .get()
            .map(|files| files.open_of(inodes))
            .unwrap_or_default()
    }
}

/// Keeps the directory of members in step with the replicated state.
struct MemberWatch(Notify);

impl Observer for MemberWatch {
    fn applied(&self, _index: u64, events: &[Event]) {
        if events
            .iter()
            .any(|event| matches!(event, Event::Nodes | Event::Reset))
        {
            self.0.notify_one();
        }
    }
}

/// A running node.
pub struct Running {
    id: NodeId,
    store: Store,
    raft: Raft,
    meta: Arc<MetaStore>,
    journal: Arc<Journal>,
    backend: Arc<NodeBackend>,
    session: Arc<SessionKeeper>,
    duties: Arc<Duties>,
    succession: Succession,
    open_files: Arc<OpenFilesSlot>,
    lease_holder: Arc<LeaseHolderSlot>,
    mounted: Arc<AtomicBool>,
    medium: Option<Medium>,
    volumes: Arc<VolumesSlot>,
    volume_host: Arc<VolumeHost>,
    inspector: Arc<Inspector>,
    trouble: watch::Sender<Option<Trouble>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// What a node takes from its surroundings, besides the medium that its store is on.
pub struct Surroundings {
    /// Clocks.
    pub clock: Arc<dyn Clock>,
    /// Between two looks at the journal, whether it is to be cut: [`super::housekeeping::INTERVAL`], or less in tests.
    pub housekeeping_interval: Duration,
    /// Docker on this machine, for other nodes' questions about Swarm.
    pub docker: Option<Arc<dyn Docker>>,
}

/// The parts that services and background work share.
struct Shared {
    id: NodeId,
    raft: Raft,
    meta: Arc<MetaStore>,
    journal: Arc<Journal>,
    directory: Arc<Directory>,
    peers: Arc<Peers>,
    duties: Arc<Duties>,
    leader: Arc<LeaderClient>,
    session: Arc<SessionKeeper>,
    plane: Arc<DataPlane>,
    clock: Arc<dyn Clock>,
    medium: Option<Medium>,
    write_rate: Arc<WriteRate>,
    /// Snapshots taken in since the start.
    installed: Arc<AtomicU64>,
    /// Background work on chunks, once it has begun.
    keeper: Arc<OnceLock<Arc<Keeper>>>,
    /// Whether this node is draining.
    drain: Arc<Drain>,
}

impl Running {
    /// Starts the node of `store`, which is reached through `listener`.
    ///
    /// # Errors
    /// [`StartError`] says what to do.
    pub async fn start(
        mut store: Store,
        listener: std::net::TcpListener,
        around: Surroundings,
    ) -> Result<Self, StartError> {
        let medium = measured_medium(&store, &around).await;
        let storage = Storage::open(&mut store, &around).await?;
        let id = store.identity.node_id;
        let credentials = Credentials::load(&store.layout)?;
        let (trouble, _) = watch::channel(None);
        let mut tasks = JoinSet::new();

        let directory = Arc::new(Directory::new(store::load_members(&store.layout)));
        directory
            .update(&storage.meta.reader())
            .map_err(StorageError::from)?;
        let peers = Arc::new(Peers::new(credentials.client_config()));
        let config = raft::config(&store.identity.cluster_id).map_err(|e| StartError::Raft(e.to_string()))?;
        let network = Network::new(Arc::clone(&peers), Arc::clone(&directory));
        let log = LogStore::new(Arc::clone(&storage.journal));
        let machine = StateMachine::new(Arc::clone(&storage.meta));
        let raft = Raft::build(id, config, network, log, machine).await;
        let raft = raft.map_err(|error| StartError::Raft(error.to_string()))?;

        let shared = share(&store, &storage, &around, (raft, directory, peers), medium);
        let watcher = ChunkWatcher::new();
        storage.meta.observe(Arc::clone(&watcher) as Arc<dyn Observer>);
        let keeper = Arc::new(Keeper::start(
            Arc::clone(&shared.plane),
            watcher,
            medium
                .as_ref()
                .map_or_else(KeeperOptions::default, KeeperOptions::for_medium),
        ));
        let _ = shared.keeper.set(Arc::clone(&keeper));
        let limits = &store.config.limits;
        let proposer = Arc::new(Proposer::new(
            Arc::clone(&shared.leader),
            Arc::clone(&shared.session),
            Arc::clone(&shared.meta),
            Arc::clone(&around.clock),
            store.config.on_quorum_loss,
            limits,
        ));
        let backend = Arc::new(NodeBackend::new(
            Arc::clone(&shared.leader),
            proposer,
            Arc::clone(&shared.session),
            Arc::clone(&shared.meta),
            (Arc::clone(&shared.plane), storage.journal.poisoned()),
            (store.config.on_quorum_loss, limits.reserve_percent),
            Arc::clone(&around.clock),
        ));
        let open_files = Arc::new(OpenFilesSlot::default());
        let mounted = Arc::new(AtomicBool::new(false));
        let lease_holder = Arc::new(LeaseHolderSlot::default());
        let inspector = Arc::new(Inspector::new(InspectorParts {
            id,
            cluster_id: store.identity.cluster_id.clone(),
            ca_fingerprint: credentials.authority.fingerprint()?,
            store: store.layout.root().to_owned(),
            config: store.config.clone(),
            raft: shared.raft.clone(),
            meta: Arc::clone(&shared.meta),
            journal: Arc::clone(&shared.journal),
            plane: Arc::clone(&shared.plane),
            keeper,
            directory: Arc::clone(&shared.directory),
            peers: Arc::clone(&shared.peers),
            leader: Arc::clone(&shared.leader),
            session: Arc::clone(&shared.session),
            mounted: Arc::clone(&mounted),
            lease_holder: Arc::clone(&lease_holder),
            medium,
            write_rate: Arc::clone(&shared.write_rate),
            drain: Arc::clone(&shared.drain),
            installed: Arc::clone(&shared.installed),
            clock: Arc::clone(&around.clock),
            warnings: storage.warnings.clone(),
        }));
        let volumes = Arc::new(VolumesSlot::default());
        let volume_host = Arc::new(VolumeHost {
            id,
            meta: Arc::clone(&shared.meta),
            session: Arc::clone(&shared.session),
            directory: Arc::clone(&shared.directory),
            peers: Arc::clone(&shared.peers),
            open_files: Arc::clone(&open_files) as Arc<dyn OpenFiles>,
        });
        let (stop, _) = watch::channel(false);
        serve(
            &mut tasks,
            &shared,
            &store,
            (listener, &credentials),
            &open_files,
            (&inspector, &volumes, SwarmHost::new(around.docker.clone())),
            &stop,
        )?;
        shared.raft.run();
        found(&mut store, &shared).await?;
        let interval = around.housekeeping_interval;
        work(&mut tasks, &shared, &store, &open_files, (&backend, interval));
        let succession = Succession::new(id, shared.raft.clone(), Arc::clone(&shared.duties));
        tasks.spawn(drain::give_way(Arc::clone(&shared.drain), succession.clone()));
        lease(&mut tasks, &shared, &lease_holder);
        watch_trouble(&mut tasks, &shared, &trouble);
        Ok(Self {
            id,
            store,
            raft: shared.raft,
            meta: shared.meta,
            journal: shared.journal,
            backend,
            session: shared.session,
            duties: shared.duties,
            succession,
            open_files,
            lease_holder,
            mounted,
            medium,
            volumes,
            volume_host,
            inspector,
            trouble,
            stop,
            tasks,
        })
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What the POSIX layer stands on.
    #[must_use]
    pub fn backend(&self) -> &Arc<NodeBackend> {
        &self.backend
    }

    /// The metadata of this node.
    #[must_use]
    pub fn meta(&self) -> &Arc<MetaStore> {
        &self.meta
    }

    /// Where the mount registers what is open through it.
    #[must_use]
    pub fn open_files(&self) -> &OpenFilesSlot {
        &self.open_files
    }

    /// Where the mount registers who holds leases on this node. Until then nothing is leased to it.
    #[must_use]
    pub fn lease_holder(&self) -> &LeaseHolderSlot {
        &self.lease_holder
    }

    /// What its medium was found to take; `None` if it could not be measured.
    #[must_use]
    pub fn medium(&self) -> Option<Medium> {
        self.medium
    }

    /// Where the mount registers who manages volumes on it.
    #[must_use]
    pub fn volumes(&self) -> &VolumesSlot {
        &self.volumes
    }

    /// What volumes want to know of the nodes.
    #[must_use]
    pub fn volume_host(&self) -> &Arc<VolumeHost> {
        &self.volume_host
    }

    /// Set while the tree is mounted.
    #[must_use]
    pub fn mounted(&self) -> &Arc<AtomicBool> {
        &self.mounted
    }

    /// Looks into the node.
    #[must_use]
    pub fn inspector(&self) -> &Arc<Inspector> {
        &self.inspector
    }

    /// What went wrong since the start.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<Trouble>> {
        self.trouble.subscribe()
    }

    /// Where the session stands.
    #[must_use]
    pub fn session_state(&self) -> watch::Receiver<SessionState> {
        self.session.state()
    }

    /// Whether this node leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.duties.leads()
    }

    /// Waits until the node has a session, and so shows all that the cluster had committed by then.
    ///
    /// # Errors
    /// If it was removed from the cluster.
    pub async fn ready(&self) -> Result<(), WireError> {
        self.session.open_session().await.map(drop)
    }

    /// Ends at once, as if the process was killed; for tests.
    pub async fn abort(mut self) {
        self.tasks.shutdown().await;
        self.duties.leases().end();
        let _ = self.raft.shutdown().await;
        self.journal.shutdown();
    }

    /// Hands leadership over, flushes, and ends.
    pub async fn stop(mut self) {
        if let Some(heir) = self.succession.heir() {
            self.succession.hand_over(heir).await;
        }
        self.session.end().await;
        self.stop.send_replace(true);
        self.tasks.abort_all();
        self.duties.leases().end();
        let _ = self.raft.shutdown().await;
        while self.tasks.join_next().await.is_some() {}
        let (meta, journal) = (Arc::clone(&self.meta), Arc::clone(&self.journal));
        let flushed = tokio::task::spawn_blocking(move || {
            if let Err(error) = meta.flush() {
                tracing::warn!(%error, "the metadata was not flushed; the journal has it");
            }
            journal.shutdown();
        });
        let _ = flushed.await;
    }
}

/// What the store's medium takes: as long as nothing else uses it, that can be measured.
async fn measured_medium(store: &Store, around: &Surroundings) -> Option<Medium> {
    let (layout, clock) = (store.layout.clone(), Arc::clone(&around.clock));
    let measured = tokio::task::spawn_blocking(move || medium_of(&layout, &*clock)).await;
    measured.ok().flatten()
}

fn share(
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
    }
}

fn serve(
    tasks: &mut JoinSet<()>,
    shared: &Shared,
    store: &Store,
    (listener, credentials): (std::net::TcpListener, &Credentials),
    open_files: &Arc<OpenFilesSlot>,
    (inspector, volumes, swarm): (&Arc<Inspector>, &Arc<VolumesSlot>, SwarmHost),
    stop: &watch::Sender<bool>,
) -> Result<(), StartError> {
    let files = Arc::clone(open_files) as Arc<dyn OpenFiles>;
    let services = Services {
        raft: RaftService::new(
            shared.id,
            shared.raft.clone(),
            Arc::clone(&shared.meta),
            Arc::clone(&shared.installed),
        ),
        meta: MetaService::new(Arc::clone(&shared.duties), Arc::clone(&shared.meta), files),
        chunk: ChunkService::new(Arc::clone(&shared.plane)),
        cluster: ClusterService::new(
            shared.raft.clone(),
            Arc::clone(&shared.duties),
            Arc::clone(&shared.meta),
            Arc::clone(&shared.directory),
            Arc::clone(&shared.peers),
            (credentials.authority.clone(), store.identity.cluster_id.clone()),
            swarm,
        ),
    };
    let unusable = |error| StartError::Listen(store.config.listen.to_string(), error);
    listener.set_nonblocking(true).map_err(unusable)?;
    let listener = TcpListener::from_std(listener).map_err(unusable)?;
    let gate = Gate::new(Arc::clone(&shared.directory));
    let (credentials, stopped) = (credentials.clone(), stopped(stop));
    tasks.spawn(async move {
        if let Err(error) = server::serve_peers(listener, &credentials, gate, services, stopped).await {
            tracing::error!(%error, "other nodes are not served any more");
        }
    });
    let socket: PathBuf = store.layout.control_socket();
    let control = server::control_socket(&socket);
    let control = control.map_err(|error| StartError::Listen(socket.display().to_string(), error))?;
    let (asked, stopped) = ((Arc::clone(inspector), Arc::clone(volumes)), self::stopped(stop));
    tasks.spawn(async move {
        if let Err(error) = server::serve_control(control, asked, stopped).await {
            tracing::error!(%error, "the command line is not served any more");
        }
    });
    Ok(())
}

fn stopped(stop: &watch::Sender<bool>) -> impl Future<Output = ()> + Send + use<> {
    let mut stop = stop.subscribe();
    async move {
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// What runs in the background as long as the node does.
fn work(
    tasks: &mut JoinSet<()>,
    shared: &Shared,
    store: &Store,
    open_files: &Arc<OpenFilesSlot>,
    (backend, housekeeping_interval): (&Arc<NodeBackend>, Duration),
) {
    let session = Arc::clone(&shared.session);
    tasks.spawn(async move { session.run().await });
    let rounds = Rounds::new(
        shared.id,
        (
            shared.raft.clone(),
            Arc::clone(&shared.duties),
            Arc::clone(&shared.meta),
        ),
        (Arc::clone(&shared.directory), Arc::clone(&shared.peers)),
        Arc::clone(&shared.clock),
        Arc::clone(open_files) as Arc<dyn OpenFiles>,
    );
    tasks.spawn(rounds.run());
    let limits = store.config.limits.clone();
    let housekeeping = Housekeeping::new(
        shared.raft.clone(),
        Arc::clone(&shared.meta),
        Arc::clone(&shared.journal),
        limits.clone(),
        housekeeping_interval,
    );
    tasks.spawn(housekeeping.run());

    let session = Arc::clone(&shared.session);
    let merger = Merger::new(
        Arc::clone(&shared.plane),
        Arc::clone(backend) as Arc<dyn Propose>,
        Arc::new(move || session.numbers().namer()),
        MergerOptions {
            every: housekeeping_interval,
            ..shared
                .medium
                .as_ref()
                .map_or_else(MergerOptions::default, MergerOptions::for_medium)
        },
    );
    let (duties, journal) = (Arc::clone(&shared.duties), Arc::clone(&shared.journal));
    let (session, clock) = (Arc::clone(&shared.session), Arc::clone(&shared.clock));
    tasks.spawn(async move {
        // Its chunks are named after the session.
        let has_session = || matches!(*session.state().borrow(), SessionState::Open(_));
        let leads = || duties.is_ready() && duties.leads() && has_session();
        let idle = Idle::default();
        let target = || {
            let is_idle = idle.look(duties.proposals(), clock.monotonic());
            if !leads() {
                return None;
            }
            let stats = journal.stats();
            let in_idle_time = is_idle.then(|| idle_cut(&stats, &limits)).flatten();
            cut(&stats, &limits).max(in_idle_time)
        };
        // What is to be purged must not hold payload: one further than the last entry that goes.
        let payloads = merger.run(|| target().map(|last| last + 1));
        tokio::join!(payloads, merger.run_sparse(leads));
    });

    let (directory, mut metrics) = (Arc::clone(&shared.directory), shared.raft.server_metrics());
    tasks.spawn(async move {
        loop {
            let in_raft = {
                let metrics = metrics.borrow_and_update();
                // Who is to leave stays until that is decided.
                let both = [&metrics.committed_membership_config, &metrics.membership_config];
                let nodes = both.iter().flat_map(|config| config.membership().nodes());
                nodes.map(|(id, _)| *id).collect()
            };
            directory.set_in_raft(in_raft);
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });

    let watch = Arc::new(MemberWatch(Notify::new()));
    shared.meta.observe(Arc::clone(&watch) as Arc<dyn Observer>);
    let (directory, meta, peers) = (
        Arc::clone(&shared.directory),
        Arc::clone(&shared.meta),
        Arc::clone(&shared.peers),
    );
    let layout = store.layout.clone();
    tasks.spawn(async move {
        loop {
            match directory.update(&meta.reader()) {
                Ok(false) => {}
                Ok(true) => {
                    let members = directory.members();
                    peers.retain(|listen| members.values().any(|member| member.listen == listen));
                    let list: Vec<_> = members.iter().map(|(id, member)| (*id, member.clone())).collect();
                    if let Err(error) = store::save_members(&layout, &list) {
                        tracing::warn!(%error, "the members could not be written down");
                    }
                }
                Err(error) => tracing::warn!(%error, "the members cannot be read"),
            }
            watch.0.notified().await;
        }
    });
}

/// Leases: this node's link to the leader, and what it does with those of others while it leads.
fn lease(tasks: &mut JoinSet<()>, shared: &Shared, holder: &Arc<LeaseHolderSlot>) {
    let desk = Arc::clone(shared.duties.leases());
    let (duties, mut metrics) = (Arc::clone(&shared.duties), shared.raft.server_metrics());
    tasks.spawn(async move {
        loop {
            // Rounds take office; what ends it must not wait for the next.
            drop(metrics.borrow_and_update());
            desk.end_unless(|| duties.leads());
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });
    let client = LeaseClient::new(
        Arc::clone(&shared.leader),
        Arc::clone(&shared.session),
        Arc::clone(&shared.meta),
        shared.raft.clone(),
        Arc::clone(holder),
    );
    tasks.spawn(client.run());
}

/// Hears of what ends the node.
fn watch_trouble(tasks: &mut JoinSet<()>, shared: &Shared, trouble: &watch::Sender<Option<Trouble>>) {
    report_failure(tasks, trouble, shared.journal.poisoned(), |error| {
        Trouble::Fatal(error.to_string())
    });
    report_failure(tasks, trouble, shared.plane.store().poisoned(), |error| {
        Trouble::Fatal(format!("the chunk store has stopped: {error}"))
    });
    report_failure(tasks, trouble, shared.meta.failure(), metadata_trouble);
    let (sender, mut metrics) = (trouble.clone(), shared.raft.metrics());
    let failure = shared.meta.failure();
    tasks.spawn(async move {
        loop {
            let state = metrics.borrow_and_update().running_state.clone();
            if let Err(error) = state {
                let what = match failure.borrow().as_ref() {
                    Some(why) => metadata_trouble(why),
                    None => Trouble::Fatal(error.to_string()),
                };
                report(&sender, what);
                return;
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });
}

/// The first trouble counts.
fn report(trouble: &watch::Sender<Option<Trouble>>, what: Trouble) {
    trouble.send_if_modified(|known| {
        let first = known.is_none();
        if first {
            tracing::error!(?what, "this node leaves the quorum");
            *known = Some(what);
        }
        first
    });
}

/// Reports the failure of a part, once it has failed.
fn report_failure<T: Clone + Send + Sync + 'static>(
    tasks: &mut JoinSet<()>,
    trouble: &watch::Sender<Option<Trouble>>,
    mut failure: watch::Receiver<Option<T>>,
    what: impl Fn(&T) -> Trouble + Send + 'static,
) {
    let trouble = trouble.clone();
    tasks.spawn(async move {
        let failed = failure
            .wait_for(Option::is_some)
            .await
            .map(|failed| failed.clone());
        if let Ok(Some(failed)) = failed {
            report(&trouble, what(&failed));
        }
    });
}

/// Damage is repaired by starting again; a medium that fails is not.
fn metadata_trouble(error: &KvError) -> Trouble {
    match error {
        KvError::Damaged(why) => Trouble::MetadataDamaged(why.clone()),
        other => Trouble::Fatal(other.to_string()),
    }
}

/// The first node's first start makes the cluster. Each step looks whether it was done before a crash.
async fn found(store: &mut Store, shared: &Shared) -> Result<(), StartError> {
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
