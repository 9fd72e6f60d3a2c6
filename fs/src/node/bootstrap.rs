//! `init` and `join`: they make a store, or leave nothing.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bramble_proto::JoinRequest;
use bramble_proto::cluster_client::ClusterClient;
use raftstore::disk::{Disk, Space};
use raftstore::meta::NodeId;
use raftstore::raft::Member;
use rand::TryRngCore;

use super::config::{Config, ConfigError};
use super::files;
use super::store::{FORMAT_VERSION, FirstToken, Identity, NewStore, StoreError};
use super::tls::{self, Authority, Credentials, KeyRequest, TlsError};
use super::token::{JoinToken, hex};
use super::transport::peers;
use super::transport::wire::WireError;

/// The first node's id: the state machine counts from here.
pub const FIRST_NODE: NodeId = 1;
/// Free bytes on the medium below which no store is made.
const STORE_BYTES_MIN: u64 = 64 << 20;
/// A peer that takes longer to answer is given up.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a node could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates, or the way to the peer.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Another program listens there.
    #[error(
        "the address {0} is in use by another program: choose another port with --listen, or stop that program"
    )]
    AddressInUse(SocketAddr),
    /// Not this machine's.
    #[error("{0} is not an address of this machine: give one of those that `ip addr` lists in --listen")]
    AddressForeign(SocketAddr),
    /// Cannot listen for another reason.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// Too little room.
    #[error(
        "the medium that holds {path} has {available_bytes} bytes left, a store needs at least {STORE_BYTES_MIN}: make room, or choose another --store"
    )]
    Full {
        /// Where the store was to be.
        path: PathBuf,
        /// What is left.
        available_bytes: u64,
    },
    /// No random numbers.
    #[error("the operating system has no random numbers: {0}")]
    Random(String),
    /// The cluster said no, or could not be asked.
    #[error("{0}")]
    Refused(String),
    /// The cluster said no for now; nothing was done, and the token is still good.
    #[error("the cluster cannot take the node in now: {0}")]
    NotYet(String),
}

/// Makes the first node of a new cluster on `disk`. Returns the first join token.
///
/// # Errors
/// [`BootstrapError`] says what to do; nothing is left then.
pub fn init(
    disk: Arc<dyn Disk>,
    store: &Path,
    config: &Config,
    token_valid: Duration,
) -> Result<JoinToken, BootstrapError> {
    config.validate()?;
    check_listen(config.listen)?;
    check_room(&*disk, store)?;
    let new = NewStore::prepare(disk, store)?;
    let cluster_id = random_hex()?;
    let authority = Authority::create(&cluster_id)?;
    let token =
        JoinToken::generate(authority.fingerprint()?).map_err(|e| BootstrapError::Random(e.to_string()))?;
    Credentials::issue(&authority, &config.name, FIRST_NODE)?.save(new.layout())?;
    let identity = Identity {
        format_version: FORMAT_VERSION,
        cluster_id,
        node_id: FIRST_NODE,
        founder: true,
        first_token: Some(FirstToken {
            hash: token.hash(),
            valid_s: token_valid.as_secs(),
        }),
        started: false,
    };
    let member = Member {
        name: config.name.clone(),
        listen: config.listen.to_string(),
    };
    new.commit(config, &identity, &[(FIRST_NODE, member)])?;
    Ok(token)
}

/// Makes a further node of the cluster that `peer` belongs to on `disk`. Returns its id.
///
/// # Errors
/// [`BootstrapError`] says what to do; nothing is left then.
pub async fn join(
    disk: Arc<dyn Disk>,
    store: &Path,
    config: &Config,
    peer: SocketAddr,
    token: &JoinToken,
) -> Result<NodeId, BootstrapError> {
    config.validate()?;
    check_listen(config.listen)?;
    check_room(&*disk, store)?;
    if peer == config.listen {
        return Err(BootstrapError::Refused(
            "--peer and --listen are the same: --peer is the address of a node that runs already".into(),
        ));
    }
    let authority_pem = tls::fetch_authority(peer, token.ca_fingerprint, PEER_TIMEOUT).await?;
    // The store is begun before the token is used up: most of what can go wrong here goes wrong now.
    let new = NewStore::prepare(disk, store)?;
    let request = KeyRequest::create(&config.name)?;
    let refused = |error: WireError| match error {
        WireError::NotNow(why) => BootstrapError::NotYet(why),
        error => BootstrapError::Refused(explain(&error, peer)),
    };
    let endpoint = peers::endpoint(&peer.to_string(), tls::joiner_config(&authority_pem)).map_err(refused)?;
    let mut client = ClusterClient::new(endpoint.connect_lazy());
    let call = client.join(JoinRequest {
        token_secret: token.secret.clone(),
        name: config.name.clone(),
        listen: config.listen.to_string(),
        csr_pem: request.request_pem,
        format_version: FORMAT_VERSION,
    });
    let response = match tokio::time::timeout(2 * PEER_TIMEOUT, call).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(refused(status.into())),
        Err(_) => return Err(refused(WireError::Unknown("no answer in time".into()))),
    };
    let authority = Authority {
        certificate_pem: response.ca_certificate_pem,
        key_pem: response.ca_key_pem,
    };
    let credentials = Credentials {
        authority,
        certificate_pem: response.certificate_pem,
        key_pem: request.key_pem,
    };
    credentials.save(new.layout())?;
    let identity = Identity {
        format_version: FORMAT_VERSION,
        cluster_id: response.cluster_id,
        node_id: response.node_id,
        founder: false,
        first_token: None,
        started: false,
    };
    let members = response.members.into_iter().map(|m| {
        (
            m.node_id,
            Member {
                name: m.name,
                listen: m.listen,
            },
        )
    });
    new.commit(config, &identity, &members.collect::<Vec<_>>())?;
    Ok(response.node_id)
}

fn explain(error: &WireError, peer: SocketAddr) -> String {
    match error {
        WireError::Refused(why) => format!("the cluster refuses: {why}"),
        WireError::Unreachable(why) => TlsError::Unreachable(peer, why.clone()).to_string(),
        WireError::Unknown(why) => format!(
            "the cluster could not take the node in: {why}. Look at `bramble status` there; if it then lists this \
             node, remove that entry with `bramble node rm` before you try again with a new token"
        ),
        error => format!("the cluster refuses: {error}"),
    }
}

/// Checks that this machine can listen on `listen`.
///
/// # Errors
/// One of the address errors.
pub fn check_listen(listen: SocketAddr) -> Result<(), BootstrapError> {
    match TcpListener::bind(listen) {
        Ok(_) => Ok(()),
        Err(error) => Err(listen_error(listen, error)),
    }
}

/// Explains why a node cannot listen.
#[must_use]
pub fn listen_error(listen: SocketAddr, error: io::Error) -> BootstrapError {
    match error.kind() {
        io::ErrorKind::AddrInUse => BootstrapError::AddressInUse(listen),
        io::ErrorKind::AddrNotAvailable => BootstrapError::AddressForeign(listen),
        _ => BootstrapError::Listen(listen, error),
    }
}

fn check_room(disk: &dyn Disk, store: &Path) -> Result<(), BootstrapError> {
    // A missing parent is reported where the store is made.
    let Ok(Space { available_bytes, .. }) = disk.space(files::parent(store)) else {
        return Ok(());
    };
    if available_bytes < STORE_BYTES_MIN {
        return Err(BootstrapError::Full {
            path: store.to_owned(),
            available_bytes,
        });
    }
    Ok(())
}

fn random_hex() -> Result<String, BootstrapError> {
    let mut bytes = [0; 16];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| BootstrapError::Random(error.to_string()))?;
    Ok(hex(&bytes))
}
