//! Certificates: the cluster's own authority, made by `init`, and one certificate for each node.
//!
//! A node's certificate carries the DNS names `bramble` (checked by whoever connects) and `node-<id>.bramble` (checked
//! by whoever is connected to), and its name as common name. Certificates practically do not expire: a Raspberry Pi
//! has no clock battery, so a date must not decide who may take part. A node that was removed is refused at each call.
//! That keeps out an honest one: each node holds the authority's key, and who has read it can sign itself another id.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use raftstore::meta::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TlsIdentity, ServerTlsConfig};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::files;
use super::store::Layout;

/// The DNS name that every node's certificate is valid for.
pub const SERVER_NAME: &str = "bramble";

/// Why certificates could not be made, read or checked.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key could not be made or parsed.
    #[error("certificate: {0}")]
    Certificate(String),
    /// A file could not be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The peer cannot be reached.
    #[error("cannot reach {0}: {1}. Check the address in --peer, and that `bramble run` is running there")]
    Unreachable(SocketAddr, String),
    /// The peer is not of the cluster that the token is for.
    #[error(
        "{0} belongs to another cluster than the token: use a token made by `bramble token` on a node of the cluster \
         that you want to join"
    )]
    OtherCluster(SocketAddr),
}

impl From<rcgen::Error> for TlsError {
    fn from(error: rcgen::Error) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// The cluster's certificate authority. Every node holds its key, so that every node can sign a joiner.
#[derive(Clone)]
pub struct Authority {
    /// Its certificate.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
}

impl Authority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn create(cluster_id: &str) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Bramble cluster {cluster_id}"));
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs a request. Of the request only the public key counts: the signer says who the node is.
    ///
    /// # Errors
    /// If the request is malformed.
    pub fn sign(&self, request_pem: &str, name: &str, node: NodeId) -> Result<String, TlsError> {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned(), node_name(node)])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        request.params = params;
        let key = KeyPair::from_pem(&self.key_pem)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, key)?;
        Ok(request.signed_by(&issuer)?.pem())
    }

    /// SHA-256 of the authority's certificate.
    ///
    /// # Errors
    /// If the PEM is malformed.
    pub fn fingerprint(&self) -> Result<[u8; 32], TlsError> {
        Ok(fingerprint(&der_of(&self.certificate_pem)?))
    }
}

/// A key pair and the request to sign it.
pub struct KeyRequest {
    /// The private key.
    pub key_pem: String,
    /// The certificate signing request.
    pub request_pem: String,
}

impl KeyRequest {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn create(name: &str) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let request_pem = params.serialize_request(&key)?.pem()?;
        Ok(Self {
            key_pem: key.serialize_pem(),
            request_pem,
        })
    }
}

/// What a node proves itself with.
#[derive(Clone)]
pub struct Credentials {
    /// The cluster's authority.
    pub authority: Authority,
    /// The node's certificate.
    pub certificate_pem: String,
    /// The node's key.
    pub key_pem: String,
}

impl Credentials {
    /// Writes the four files.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, layout: &Layout) -> Result<(), TlsError> {
        let (disk, dir) = (&**layout.disk(), layout.tls());
        files::create_private_dir(disk, &dir).map_err(|source| TlsError::Io {
            path: dir.clone(),
            source,
        })?;
        let parts = [
            ("ca.pem", &self.authority.certificate_pem, 0o644),
            ("ca.key", &self.authority.key_pem, 0o600),
            ("node.pem", &self.certificate_pem, 0o644),
            ("node.key", &self.key_pem, 0o600),
        ];
        for (name, text, mode) in parts {
            let path = dir.join(name);
            files::replace_file(disk, &path, text.as_bytes(), mode)
                .map_err(|source| TlsError::Io { path, source })?;
        }
        Ok(())
    }

    /// Reads the four files.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn load(layout: &Layout) -> Result<Self, TlsError> {
        let read = |name: &str| {
            let path = layout.tls().join(name);
            files::read_text(&**layout.disk(), &path).map_err(|source| TlsError::Io { path, source })
        };
        Ok(Self {
            authority: Authority {
                certificate_pem: read("ca.pem")?,
                key_pem: read("ca.key")?,
            },
            certificate_pem: read("node.pem")?,
            key_pem: read("node.key")?,
        })
    }

    /// A new key and certificate for `node`, signed by the cluster's authority.
    ///
    /// # Errors
    /// If the authority's files are damaged.
    pub fn issue(authority: &Authority, name: &str, node: NodeId) -> Result<Self, TlsError> {
        let request = KeyRequest::create(name)?;
        let certificate_pem = authority.sign(&request.request_pem, name, node)?;
        Ok(Self {
            authority: authority.clone(),
            certificate_pem,
            key_pem: request.key_pem,
        })
    }

    fn identity(&self) -> TlsIdentity {
        // The authority's certificate is sent along, so that a joiner can compare it with its token.
        let chain = format!("{}{}", self.certificate_pem, self.authority.certificate_pem);
        TlsIdentity::from_pem(chain, &self.key_pem)
    }

    /// For connections to other nodes.
    #[must_use]
    pub fn client_config(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .domain_name(SERVER_NAME)
            .ca_certificate(Certificate::from_pem(&self.authority.certificate_pem))
            .identity(self.identity())
    }

    /// For connections from other nodes. A joiner has no certificate yet, so one is not demanded here but by each
    /// call other than `Join`.
    #[must_use]
    pub fn server_config(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity())
            .client_ca_root(Certificate::from_pem(&self.authority.certificate_pem))
            .client_auth_optional(true)
    }
}

/// For a joiner's connection, which proves nothing but trusts only `authority_pem`.
#[must_use]
pub fn joiner_config(authority_pem: &str) -> ClientTlsConfig {
    ClientTlsConfig::new()
        .domain_name(SERVER_NAME)
        .ca_certificate(Certificate::from_pem(authority_pem))
}

fn node_name(node: NodeId) -> String {
    format!("node-{node}.{SERVER_NAME}")
}

fn der_of(pem: &str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| TlsError::Certificate(error.to_string()))
}

fn fingerprint(der: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(der.as_ref()).into()
}

/// The node that a certificate was issued to; `None` if it is not a node's.
#[must_use]
pub fn node_of(der: &[u8]) -> Option<NodeId> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => name.strip_prefix("node-")?.strip_suffix(".bramble")?.parse().ok(),
        _ => None,
    })
}

/// The name of the node that a certificate was issued to; `None` if it is not a node's.
#[must_use]
pub fn name_of(der: &[u8]) -> Option<String> {
    node_of(der)?;
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

/// Asks `peer` for its cluster's authority and compares that with the fingerprint in the token. Nothing is sent to
/// the peer on this connection, so it need not be trusted yet.
///
/// # Errors
/// [`TlsError::Unreachable`] or [`TlsError::OtherCluster`].
pub async fn fetch_authority(
    peer: SocketAddr,
    expected: [u8; 32],
    timeout: std::time::Duration,
) -> Result<String, TlsError> {
    let unreachable = |error: &dyn std::fmt::Display| TlsError::Unreachable(peer, error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Certificate(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(LookOnly { provider }))
        .with_no_client_auth();
    let name = ServerName::try_from(SERVER_NAME).map_err(|error| TlsError::Certificate(error.to_string()))?;
    let handshake = async {
        let stream = tokio::net::TcpStream::connect(peer).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    };
    let stream = match tokio::time::timeout(timeout, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(&error)),
        Err(_) => return Err(unreachable(&"it does not answer")),
    };
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().unwrap_or_default();
    let authority = chain
        .iter()
        .find(|certificate| fingerprint(certificate) == expected);
    let authority = authority.ok_or(TlsError::OtherCluster(peer))?;
    Ok(pem_of(authority))
}

fn pem_of(der: &CertificateDer<'_>) -> String {
    let body = base64(der.as_ref());
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) & 63;
            text.push(if place <= group.len() {
                char::from(ALPHABET[digit as usize])
            } else {
                '='
            });
        }
    }
    text
}

/// Accepts any certificate: the connection is only used to look at what the peer shows.
#[derive(Debug)]
struct LookOnly {
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl rustls::client::danger::ServerCertVerifier for LookOnly {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_name_their_node() {
        let authority = Authority::create("test").unwrap();
        let credentials = Credentials::issue(&authority, "pi-7", 7).unwrap();
        let der = der_of(&credentials.certificate_pem).unwrap();
        assert_eq!(node_of(&der), Some(7));
        assert_eq!(name_of(&der).as_deref(), Some("pi-7"));
        assert_eq!(name_of(&der_of(&authority.certificate_pem).unwrap()), None);
        assert_eq!(node_of(&der_of(&authority.certificate_pem).unwrap()), None);
        assert_eq!(node_of(b"garbage"), None);
    }

    #[test]
    fn a_request_cannot_choose_its_names() {
        let authority = Authority::create("test").unwrap();
        let mut params = CertificateParams::new(vec!["node-1.bramble".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let signed = authority.sign(&request, "pi-2", 2);
        if let Ok(pem) = signed {
            let der = der_of(&pem).unwrap();
            assert_eq!(node_of(&der), Some(2));
            let (_, certificate) = X509Certificate::from_der(&der).unwrap();
            assert!(!certificate.is_ca());
        }
    }

    #[test]
    fn files_survive_a_round_trip_and_keys_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Arc::new(raftstore::disk::RealDisk), dir.path());
        let authority = Authority::create("test").unwrap();
        let credentials = Credentials::issue(&authority, "pi-1", 1).unwrap();
        credentials.save(&layout).unwrap();
        let read = Credentials::load(&layout).unwrap();
        assert_eq!(read.certificate_pem, credentials.certificate_pem);
        assert_eq!(
            read.authority.fingerprint().unwrap(),
            authority.fingerprint().unwrap()
        );
        for key in ["ca.key", "node.key"] {
            let mode = std::fs::metadata(layout.tls().join(key))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn pem_round_trip() {
        let authority = Authority::create("test").unwrap();
        let der = der_of(&authority.certificate_pem).unwrap();
        assert_eq!(der_of(&pem_of(&der)).unwrap(), der);
        assert_eq!(base64(b"a"), "YQ==");
        assert_eq!(base64(b"ab"), "YWI=");
        assert_eq!(base64(b"abc"), "YWJj");
    }
}
