//! A real Docker, asked over its socket.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::docker::{Docker, DockerError, JoinTokens, OwnSwarm, SwarmNode, SwarmState};

/// Docker itself gives up joining a Swarm after 20 s.
const TIMEOUT: Duration = Duration::from_secs(40);
/// Longest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Where Swarm's managers listen.
const LISTEN: &str = "0.0.0.0:2377";

/// Docker behind a Unix socket.
#[derive(Debug, Clone)]
pub struct DockerSocket {
    socket: PathBuf,
    /// Whether to say that there is none, rather than that it is silent, while there is no socket.
    installed: bool,
}

impl DockerSocket {
    /// The Docker that listens at `socket`; `installed`: there should be one.
    #[must_use]
    pub fn new(socket: &Path, installed: bool) -> Self {
        Self {
            socket: socket.to_owned(),
            installed,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.socket
    }

    fn silent(&self, why: impl std::fmt::Display) -> DockerError {
        DockerError::Silent(self.socket.display().to_string(), why.to_string())
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, DockerError> {
        if !self.installed && !self.socket.exists() {
            return Err(DockerError::Absent);
        }
        match tokio::time::timeout(TIMEOUT, self.talk(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent(format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }

    async fn talk(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, DockerError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| self.silent(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.silent(error))?;
        let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "docker")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(bytes))
            .map_err(|error| self.silent(error))?;
        let talk = async {
            let response = sender.send_request(request).await;
            let response = response.map_err(|error| self.silent(error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
            let body = body
                .collect()
                .await
                .map_err(|error| self.silent(error))?
                .to_bytes();
            let answer = serde_json::from_slice(&body).unwrap_or(Value::Null);
            if status.is_success() {
                return Ok(answer);
            }
            let said = answer.get("message").and_then(Value::as_str);
            Err(DockerError::Refused(
                said.map_or_else(|| status.to_string(), str::to_owned),
            ))
        };
        tokio::pin!(talk);
        tokio::select! {
            answer = &mut talk => answer,
            // The connection may end with the answer.
            _ = connection => talk.await,
        }
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, DockerError> {
        let answer = self.call(Method::GET, path, None).await?;
        serde_json::from_value(answer).map_err(|error| DockerError::Refused(format!("{path}: {error}")))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    name: String,
    #[serde(default)]
    swarm: InfoSwarm,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct InfoSwarm {
    #[serde(rename = "NodeID")]
    node_id: String,
    local_node_state: String,
    error: String,
    control_available: bool,
    remote_managers: Option<Vec<InfoManager>>,
    cluster: Option<InfoCluster>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct InfoManager {
    #[serde(rename = "NodeID")]
    node_id: String,
    addr: String,
}

#[derive(Deserialize, Default)]
struct InfoCluster {
    #[serde(rename = "ID", default)]
    id: String,
}

impl From<Info> for OwnSwarm {
    fn from(info: Info) -> Self {
        let swarm = info.swarm;
        let mut managers = swarm.remote_managers.unwrap_or_default();
        managers.sort_by_key(|manager| manager.node_id != swarm.node_id);
        let swarm_id = swarm.cluster.map(|cluster| cluster.id);
        Self {
            hostname: info.name,
            state: SwarmState::parse(&swarm.local_node_state).unwrap_or(SwarmState::Error),
            error: swarm.error,
            node_id: swarm.node_id,
            swarm_id: swarm_id.filter(|id| swarm.control_available && !id.is_empty()),
            managers: managers.into_iter().map(|manager| manager.addr).collect(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Node {
    #[serde(rename = "ID")]
    id: String,
    version: NodeVersion,
    spec: Value,
    description: NodeDescription,
    status: NodeStatus,
    manager_status: Option<ManagerStatus>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct NodeVersion {
    index: u64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct NodeDescription {
    hostname: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct NodeStatus {
    state: String,
    addr: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ManagerStatus {
    reachability: String,
}

impl From<Node> for SwarmNode {
    fn from(node: Node) -> Self {
        let role = node.spec.get("Role").and_then(Value::as_str);
        Self {
            id: node.id,
            hostname: node.description.hostname,
            address: node.status.addr,
            // One that is being demoted is a manager until it is none any more.
            is_manager: node.manager_status.is_some() || role == Some("manager"),
            is_reachable: node
                .manager_status
                .is_some_and(|status| status.reachability == "reachable"),
            is_down: node.status.state == "down",
        }
    }
}

#[async_trait]
impl Docker for DockerSocket {
    async fn own(&self) -> Result<OwnSwarm, DockerError> {
        self.get::<Info>("/info").await.map(OwnSwarm::from)
    }

    async fn nodes(&self) -> Result<Vec<SwarmNode>, DockerError> {
        let nodes: Vec<Node> = self.get("/nodes").await?;
        Ok(nodes.into_iter().map(SwarmNode::from).collect())
    }

    async fn tokens(&self) -> Result<JoinTokens, DockerError> {
        let swarm: Value = self.get("/swarm").await?;
        let token = |name: &str| {
            let token = swarm
                .pointer(&format!("/JoinTokens/{name}"))
                .and_then(Value::as_str);
            token
                .map(str::to_owned)
                .ok_or_else(|| DockerError::Refused("it gives no join tokens".into()))
        };
        Ok(JoinTokens {
            manager: token("Manager")?,
            worker: token("Worker")?,
        })
    }

    async fn init(&self, advertise: IpAddr) -> Result<(), DockerError> {
        let body = json!({
            "ListenAddr": LISTEN,
            "AdvertiseAddr": advertise.to_string(),
            "ForceNewCluster": false,
            "Spec": {},
        });
        self.call(Method::POST, "/swarm/init", Some(body)).await.map(drop)
    }

    async fn join(&self, advertise: IpAddr, managers: &[String], token: &str) -> Result<(), DockerError> {
        let body = json!({
            "ListenAddr": LISTEN,
            "AdvertiseAddr": advertise.to_string(),
            "RemoteAddrs": managers,
            "JoinToken": token,
        });
        self.call(Method::POST, "/swarm/join", Some(body)).await.map(drop)
    }

    async fn leave(&self) -> Result<(), DockerError> {
        self.call(Method::POST, "/swarm/leave?force=true", None)
            .await
            .map(drop)
    }

    async fn demote(&self, node_id: &str) -> Result<(), DockerError> {
        let path = node_path(node_id)?;
        let node: Node = self.get(&path).await?;
        let mut spec = node.spec;
        if let Some(spec) = spec.as_object_mut() {
            spec.insert("Role".into(), "worker".into());
        }
        let update = format!("{path}/update?version={}", node.version.index);
        self.call(Method::POST, &update, Some(spec)).await.map(drop)
    }

    async fn remove(&self, node_id: &str) -> Result<(), DockerError> {
        // Not forced: Docker itself refuses to remove one that is not down.
        self.call(Method::DELETE, &node_path(node_id)?, None)
            .await
            .map(drop)
    }
}

/// The path of a node, whose id has only letters and digits.
fn node_path(node_id: &str) -> Result<String, DockerError> {
    let usable = !node_id.is_empty() && node_id.bytes().all(|b| b.is_ascii_alphanumeric());
    if usable {
        Ok(format!("/nodes/{node_id}"))
    } else {
        Err(DockerError::Refused(format!(
            "{node_id:?} is no id of a Swarm node"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Answers one request with `status` and `body`; what was asked.
    async fn serve(listener: &tokio::net::UnixListener, status: &str, body: &str) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let len = stream.read(&mut request).await.unwrap();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..len]).into_owned()
    }

    #[tokio::test]
    async fn what_docker_says_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        assert_eq!(
            DockerSocket::new(&path, false).own().await,
            Err(DockerError::Absent)
        );
        assert!(matches!(
            DockerSocket::new(&path, true).own().await,
            Err(DockerError::Silent(..))
        ));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let docker = DockerSocket::new(&path, true);

        let manager = r#"{"Name":"pi-1","Swarm":{"NodeID":"n1","NodeAddr":"192.0.2.1","LocalNodeState":"active",
            "ControlAvailable":true,"Error":"","Cluster":{"ID":"s1"},"RemoteManagers":[
            {"NodeID":"n2","Addr":"192.0.2.2:2377"},{"NodeID":"n1","Addr":"192.0.2.1:2377"}]}}"#;
        let (own, _) = tokio::join!(docker.own(), serve(&listener, "200 OK", manager));
        let own = own.unwrap();
        assert_eq!(own.swarm_id.as_deref(), Some("s1"));
        assert_eq!(own.managers, ["192.0.2.1:2377", "192.0.2.2:2377"]);
        assert_eq!((own.hostname.as_str(), own.state), ("pi-1", SwarmState::Active));

        let alone =
            r#"{"Name":"pi-3","Swarm":{"NodeID":"","LocalNodeState":"inactive","RemoteManagers":null}}"#;
        let (own, _) = tokio::join!(docker.own(), serve(&listener, "200 OK", alone));
        assert_eq!(own.unwrap().state, SwarmState::Inactive);

        let nodes = r#"[{"ID":"n1","Version":{"Index":9},"Spec":{"Role":"manager"},"Description":{"Hostname":"pi-1"},
            "Status":{"State":"ready","Addr":"192.0.2.1"},"ManagerStatus":{"Reachability":"reachable"}},
            {"ID":"n2","Spec":{"Role":"worker"},"Status":{"State":"down"}}]"#;
        let (nodes, _) = tokio::join!(docker.nodes(), serve(&listener, "200 OK", nodes));
        let nodes = nodes.unwrap();
        assert!(nodes[0].is_manager && nodes[0].is_reachable && !nodes[0].is_down);
        assert!(!nodes[1].is_manager && nodes[1].is_down);

        let why = r#"{"message":"The swarm does not have a leader."}"#;
        let (failed, _) = tokio::join!(docker.nodes(), serve(&listener, "503 Unavailable", why));
        assert_eq!(
            failed,
            Err(DockerError::Refused("The swarm does not have a leader.".into()))
        );
        let (garbage, _) = tokio::join!(docker.own(), serve(&listener, "200 OK", "\u{1}{"));
        assert!(garbage.is_err());

        let address = "192.0.2.3".parse().unwrap();
        let managers = ["192.0.2.1:2377".to_owned()];
        let (joined, asked) = tokio::join!(
            docker.join(address, &managers, "T"),
            serve(&listener, "200 OK", "")
        );
        joined.unwrap();
        assert!(
            asked.starts_with("POST /swarm/join ") && asked.contains(r#""RemoteAddrs":["192.0.2.1:2377"]"#),
            "{asked}"
        );
        // What is not an id never gets into a path.
        assert!(docker.remove("../swarm").await.is_err() && docker.demote("").await.is_err());
    }
}
