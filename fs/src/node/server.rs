//! The listeners: one for other nodes, one for the command line.

use std::future::Future;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bramble_proto::admin_server::AdminServer;
use bramble_proto::chunk_server::ChunkServer;
use bramble_proto::cluster_server::ClusterServer;
use bramble_proto::meta_server::MetaServer;
use bramble_proto::raft_server::RaftServer;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::inspect::Inspector;
use super::service::admin::AdminService;
use super::service::auth::Gate;
use super::service::chunk::ChunkService;
use super::service::cluster::ClusterService;
use super::service::meta::MetaService;
use super::service::raft::RaftService;
use super::service::volumes::VolumesSlot;
use super::tls::Credentials;
use super::transport::peers::MESSAGE_BYTES_MAX;

/// Requests under way on one connection.
const STREAMS_MAX: u32 = 1024;
/// How often an idle connection is probed, and how long the probe may stay unanswered.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));
/// A caller that takes longer for the TLS handshake is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The services for other nodes.
pub struct Services {
    /// Raft.
    pub raft: RaftService,
    /// Proposals and reads.
    pub meta: MetaService,
    /// Chunks.
    pub chunk: ChunkService,
    /// Joining and leaving.
    pub cluster: ClusterService,
}

/// What a caller without a certificate may make this node keep in memory.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Serves other nodes until `stop` is done.
///
/// # Errors
/// If the certificates cannot be used, or the listener fails.
pub async fn serve_peers(
    listener: TcpListener,
    credentials: &Credentials,
    gate: Gate,
    services: Services,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let tls = credentials.server_config().timeout(HANDSHAKE_TIMEOUT);
    macro_rules! sized {
        ($server:expr) => {
            $server
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
    }
    Server::builder()
        .tls_config(tls)?
        .max_concurrent_streams(Some(STREAMS_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .initial_stream_window_size(Some(2 << 20))
        .initial_connection_window_size(Some(8 << 20))
        .add_service(InterceptedService::new(
            sized!(RaftServer::new(services.raft)),
            gate.clone(),
        ))
        .add_service(InterceptedService::new(
            sized!(MetaServer::new(services.meta)),
            gate.clone(),
        ))
        .add_service(InterceptedService::new(
            sized!(ChunkServer::new(services.chunk)),
            gate,
        ))
        // Open to callers without a certificate: it checks each call but `Join` itself.
        .add_service(ClusterServer::new(services.cluster).max_decoding_message_size(REQUEST_BYTES_MAX))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop)
        .await
}

/// A short way to a socket: the kernel takes no more than 107 bytes, and a store's path may be longer. The directory
/// is kept open for as long as the path is used.
///
/// # Errors
/// If the directory cannot be opened.
pub fn short_socket_path(path: &Path) -> std::io::Result<(PathBuf, OwnedFd)> {
    let (dir, name) = (
        path.parent().unwrap_or(Path::new(".")),
        path.file_name().unwrap_or_default(),
    );
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, rustix::fs::Mode::empty())?;
    Ok((
        Path::new("/proc/self/fd")
            .join(dir.as_raw_fd().to_string())
            .join(name),
        dir,
    ))
}

/// Opens the socket that the command line talks to; only root may.
///
/// # Errors
/// Those of bind and chmod.
pub fn control_socket(path: &Path) -> std::io::Result<UnixListener> {
    // The store is locked: whoever left this socket is dead.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (short, _dir) = short_socket_path(path)?;
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the command line until `stop` is done.
///
/// # Errors
/// If the listener fails.
pub async fn serve_control(
    listener: UnixListener,
    (inspector, volumes): (Arc<Inspector>, Arc<VolumesSlot>),
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(AdminServer::new(AdminService::new(inspector, volumes)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
}
