//! Who may call: nodes of this cluster that have not been removed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use raftstore::meta::NodeId;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::node::tls;
use crate::node::transport::directory::Directory;
use crate::node::transport::wire::WireError;

/// Certificates whose parsing is remembered.
const KNOWN_MAX: usize = 64;

/// Tells callers apart by their certificates. TLS has already checked that the cluster's authority signed them.
#[derive(Clone)]
pub struct Gate {
    directory: Arc<Directory>,
    known: Arc<Mutex<HashMap<Vec<u8>, NodeId>>>,
}

/// Added to each request that passed the gate: the calling node.
#[derive(Debug, Clone, Copy)]
pub struct Caller(pub NodeId);

impl Gate {
    /// Lets the members in `directory` pass.
    #[must_use]
    pub fn new(directory: Arc<Directory>) -> Self {
        Self {
            directory,
            known: Arc::default(),
        }
    }

    /// The calling node.
    ///
    /// # Errors
    /// [`WireError::NotMember`] without a node's certificate, [`WireError::Removed`] for a node that was removed.
    pub fn caller<T>(&self, request: &Request<T>) -> Result<NodeId, WireError> {
        let certificates = request.peer_certs().ok_or(WireError::NotMember)?;
        let certificate = certificates.first().ok_or(WireError::NotMember)?;
        let node = self.node_of(certificate.as_ref()).ok_or(WireError::NotMember)?;
        if self.directory.was_removed(node) {
            return Err(WireError::Removed);
        }
        Ok(node)
    }

    /// The name in the caller's certificate, if it is a node's, removed or not.
    #[must_use]
    pub fn name<T>(request: &Request<T>) -> Option<String> {
        let certificates = request.peer_certs()?;
        tls::name_of(certificates.first()?.as_ref())
    }

    fn node_of(&self, certificate: &[u8]) -> Option<NodeId> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = known.get(certificate) {
            return Some(*node);
        }
        let node = tls::node_of(certificate)?;
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(certificate.to_vec(), node);
        Some(node)
    }
}

impl Interceptor for Gate {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let caller = self.caller(&request)?;
        request.extensions_mut().insert(Caller(caller));
        Ok(request)
    }
}
