//! A running node: its parts, put together and taken apart.

mod founding;
mod open_files;
mod parts;
mod serving;
mod trouble;
mod work;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use raftstore::clock::Clock;
use raftstore::journal::Journal;
use raftstore::meta::{MetaStore, NodeId};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::open_files::OpenFilesSlot;
use self::parts::Shared;
pub use self::trouble::Trouble;
use super::backend::NodeBackend;
use super::drain;
use super::inspect::{Inspector, InspectorParts};
use super::leader::duties::Duties;
use super::leader::succession::Succession;
use super::lease_client::LeaseHolderSlot;
use super::raft::Raft;
use super::service::meta::OpenFiles;
use super::service::swarm::SwarmHost;
use super::service::volumes::VolumesSlot;
use super::session::{SessionKeeper, SessionState};
use super::stall;
use super::storage::{Storage, StorageError};
use super::store::{Store, StoreError};
use super::tls::{Credentials, TlsError};
use super::transport::wire::WireError;
use super::volume_host::VolumeHost;
use crate::medium::Medium;
use crate::swarm::Docker;

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
        let medium = parts::measured_medium(&store, &around).await;
        let storage = Storage::open(&mut store, &around).await?;
        let id = store.identity.node_id;
        let credentials = Credentials::load(&store.layout)?;
        let (trouble, _) = watch::channel(None);
        let mut tasks = JoinSet::new();

        let (raft, directory, peers) = parts::start_raft(&store, &storage, &credentials).await?;
        let shared = parts::share(&store, &storage, &around, (raft, directory, peers), medium);
        let keeper = parts::keep_chunks(&storage, &shared);
        let backend = parts::backend(&store, &storage, &shared);
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
        serving::serve(
            &mut tasks,
            &shared,
            &store,
            (listener, &credentials),
            &open_files,
            (&inspector, &volumes, SwarmHost::new(around.docker.clone())),
            &stop,
        )?;
        shared.raft.run();
        founding::found(&mut store, &shared).await?;
        let interval = around.housekeeping_interval;
        work::work(&mut tasks, &shared, &store, &open_files, (&backend, interval));
        let succession = Succession::new(id, shared.raft.clone(), Arc::clone(&shared.duties));
        tasks.spawn(drain::give_way(Arc::clone(&shared.drain), succession.clone()));
        tasks.spawn(stall::watch(Arc::clone(&shared.stall), succession.clone()));
        work::lease(&mut tasks, &shared, &lease_holder);
        trouble::watch_trouble(&mut tasks, &shared, &trouble);
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
