//! The sockets of a node: one for other nodes, one for its command line.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::open_files::OpenFilesSlot;
use super::{Shared, StartError};
use crate::node::inspect::Inspector;
use crate::node::server::{self, Services};
use crate::node::service::auth::Gate;
use crate::node::service::chunk::ChunkService;
use crate::node::service::cluster::ClusterService;
use crate::node::service::meta::{MetaService, OpenFiles};
use crate::node::service::raft::RaftService;
use crate::node::service::swarm::SwarmHost;
use crate::node::service::volumes::VolumesSlot;
use crate::node::store::Store;
use crate::node::tls::Credentials;

pub(super) fn serve(
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
