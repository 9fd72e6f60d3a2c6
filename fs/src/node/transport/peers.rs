//! Connections to other nodes: kept open, and opened again at the first call after they broke.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::wire::WireError;

/// Largest message, bytes: an append of as many entries as one request may carry, each with its payload.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// A peer that does not accept a connection within this time is taken for unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often an open connection is probed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// A connection that leaves a probe unanswered for this long is given up.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// A probe that gets no answer in this time tells nothing.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);

/// Connections to one peer do not wait for each other: bulk must not hold up what keeps the leader alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Heartbeats, votes, proposals, reads: small and urgent.
    Urgent,
    /// Log entries, chunks, snapshots.
    Bulk,
}

/// All connections of this node.
#[derive(Debug)]
pub struct Peers {
    tls: ClientTlsConfig,
    channels: Mutex<HashMap<(String, Lane), Channel>>,
}

impl Peers {
    /// Connections that prove who this node is with `tls`.
    #[must_use]
    pub fn new(tls: ClientTlsConfig) -> Self {
        Self {
            tls,
            channels: Mutex::default(),
        }
    }

    /// The connection to the node that listens on `listen` (IP:PORT).
    ///
    /// # Errors
    /// If the address is malformed. That the peer is unreachable shows at the first call.
    pub fn channel(&self, listen: &str, lane: Lane) -> Result<Channel, WireError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (listen.to_owned(), lane);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let channel = endpoint(listen, self.tls.clone())?.connect_lazy();
        channels.insert(key, channel.clone());
        Ok(channel)
    }

    /// The next call opens a new connection: after a link was down for a moment, an old one may stand still for much
    /// longer, until TCP tries again.
    pub fn renew(&self, listen: &str, lane: Lane) {
        let key = (listen.to_owned(), lane);
        self.channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key);
    }

    /// Forgets connections to addresses that no member listens on any more.
    pub fn retain(&self, listens: impl Fn(&str) -> bool) {
        self.channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(listen, _), _| listens(listen));
    }
}

/// True if the machine of `listen` (IP:PORT) is up, and says that no process listens there. False also if that is not
/// known in time.
pub async fn is_refused(listen: &str) -> bool {
    let connecting = tokio::net::TcpStream::connect(listen);
    let connected = tokio::time::timeout(PROBE_TIMEOUT, connecting).await;
    let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    matches!(connected, Ok(Err(error)) if refused(&error))
}

/// How a node is reached at `listen`.
///
/// # Errors
/// If the address or the certificates are malformed.
pub fn endpoint(listen: &str, tls: ClientTlsConfig) -> Result<Endpoint, WireError> {
    let unusable = |error: tonic::transport::Error| WireError::Unreachable(format!("{listen}: {error}"));
    let endpoint = Endpoint::from_shared(format!("https://{listen}")).map_err(unusable)?;
    Ok(endpoint
        .tls_config(tls)
        .map_err(unusable)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(Some(2 << 20))
        .initial_connection_window_size(Some(8 << 20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_told_from_one_that_is_busy() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap().to_string();
        assert!(
            !is_refused(&listen).await,
            "nobody accepts, but a process is there"
        );
        drop(listener);
        assert!(is_refused(&listen).await);
        assert!(!is_refused("no address").await);
    }
}
