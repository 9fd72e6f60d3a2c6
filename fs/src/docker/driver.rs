//! Docker's volume protocol: what each request means. HTTP is around it ([`super::server`]), volumes are below
//! ([`VolumeStore`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use raftstore::meta::{VOLUME_NAME_BYTES_MAX, is_volume_name};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::refusal::{NoAnswer, Refusal};
use super::store::VolumeStore;
use super::tree::{MountedTree, TreeError};
use crate::volumes::{VolumeStatus, VolumesError, parse_options};

/// Docker gives a lookup up after a minute; the connection breaks before that, and Docker asks again.
const SHORT_TIMEOUT: Duration = Duration::from_secs(50);
/// Docker gives Create and Mount two minutes.
const LONG_TIMEOUT: Duration = Duration::from_secs(110);
/// Mounts that may be under way, also for clients that have gone meanwhile.
const MOUNTS_MAX: usize = 64;
/// Of an id that is longer, the beginning counts. Docker's have 64.
const ID_BYTES_MAX: usize = 80;
/// Stands for the id of clients that give none.
const NO_ID: &str = "unnamed";

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// What the plugin is.
    Activate,
    /// What it can.
    Capabilities,
    /// Make a volume.
    Create,
    /// Remove one.
    Remove,
    /// Begin to use one.
    Mount,
    /// End using it.
    Unmount,
    /// Where it is.
    Path,
    /// What it is.
    Get,
    /// Which there are.
    List,
}

impl Call {
    /// The call at a path of the plugin's socket.
    #[must_use]
    pub fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/Plugin.Activate" => Self::Activate,
            "/VolumeDriver.Capabilities" => Self::Capabilities,
            "/VolumeDriver.Create" => Self::Create,
            "/VolumeDriver.Remove" => Self::Remove,
            "/VolumeDriver.Mount" => Self::Mount,
            "/VolumeDriver.Unmount" => Self::Unmount,
            "/VolumeDriver.Path" => Self::Path,
            "/VolumeDriver.Get" => Self::Get,
            "/VolumeDriver.List" => Self::List,
            _ => return None,
        })
    }

    /// Whether it is about one volume.
    fn names_a_volume(self) -> bool {
        !matches!(self, Self::Activate | Self::Capabilities | Self::List)
    }

    fn timeout(self) -> Duration {
        match self {
            Self::Create | Self::Mount => LONG_TIMEOUT,
            _ => SHORT_TIMEOUT,
        }
    }
}

/// The body of a request; what a call has no use for is left alone.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Request {
    name: String,
    opts: Option<BTreeMap<String, String>>,
    #[serde(rename = "ID")]
    id: String,
}

/// Where the plugin is.
#[derive(Debug, Clone)]
pub struct Here {
    /// The name of this node.
    pub node: String,
    /// Differs after each boot of this machine, at which all that Docker had mounted ends.
    pub boot: String,
}

/// Answers Docker's requests.
pub struct VolumeDriver {
    volumes: Arc<dyn VolumeStore>,
    tree: Arc<MountedTree>,
    here: Here,
    mounts: Arc<Semaphore>,
}

impl VolumeDriver {
    /// Answers for `volumes`, whose directories are in `tree`.
    #[must_use]
    pub fn new(volumes: Arc<dyn VolumeStore>, tree: MountedTree, here: Here) -> Self {
        Self {
            volumes,
            tree: Arc::new(tree),
            here,
            mounts: Arc::new(Semaphore::new(MOUNTS_MAX)),
        }
    }

    /// Answers a request. A refusal is an answer, too: `{"Err": ...}`.
    ///
    /// # Errors
    /// [`NoAnswer`] if nothing can be said.
    pub async fn answer(&self, call: Call, body: &[u8]) -> Result<Value, NoAnswer> {
        let work = async { self.carry_out(call, &request(call, body)?).await };
        match tokio::time::timeout(call.timeout(), work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) if call == Call::Get => refusal.tell_if_unknown(),
            Ok(Err(refusal)) => refusal.tell(),
            Err(_) => Err(NoAnswer("the cluster does not answer; is there a quorum?".into())),
        }
    }

    async fn carry_out(&self, call: Call, request: &Request) -> Result<Value, Refusal> {
        let name = request.name.as_str();
        match call {
            // These say nothing about volumes, so they need no quorum: else Docker would take the plugin for local.
            Call::Activate => Ok(json!({ "Implements": ["VolumeDriver"] })),
            Call::Capabilities => Ok(json!({ "Capabilities": { "Scope": "global" }, "Err": "" })),
            Call::Create => {
                let given = request.opts.clone().unwrap_or_default();
                let options = parse_options(&given).map_err(Refusal::BadOption)?;
                self.volumes.create(name, options).await?;
                Ok(done())
            }
            Call::Remove => self.remove(name).await,
            Call::Mount => self.mount(name, self.id(request)).await,
            Call::Unmount => match self.volumes.release(name, &self.id(request)).await {
                Err(error) if !error.is_unknown() => Err(error.into()),
                _ => Ok(done()),
            },
            Call::Path => {
                let volume = self.volumes.get(name).await?;
                Ok(mountpoint(&self.tree.directory(path(&volume)?).await?))
            }
            Call::Get => {
                let volume = self.volumes.get(name).await?;
                Ok(json!({ "Volume": self.describe(&volume, true), "Err": "" }))
            }
            Call::List => {
                let volumes = self.volumes.list().await?;
                let volumes: Vec<_> = volumes
                    .iter()
                    .map(|volume| self.describe(volume, false))
                    .collect();
                Ok(json!({ "Volumes": volumes, "Err": "" }))
            }
        }
    }

    async fn remove(&self, name: &str) -> Result<Value, Refusal> {
        let Err(error) = self.volumes.remove(name).await.map_err(Refusal::from) else {
            return Ok(done());
        };
        // A repetition of one whose answer was lost.
        if error.is_unknown() {
            return Ok(done());
        }
        // The state machine knows nodes by number.
        if error.is_in_use()
            && let Ok(volume) = self.volumes.get(name).await
        {
            let mut nodes: Vec<_> = volume.users.into_iter().map(|user| user.node).collect();
            nodes.dedup();
            if !nodes.is_empty() {
                let (volume, nodes) = (volume.name, nodes.join(", "));
                return Err(Refusal::InUse { volume, nodes });
            }
        }
        Err(error)
    }

    /// Notes the use of a volume and says where it is; what was noted is taken back if nobody gets that answer.
    async fn mount(&self, name: &str, id: String) -> Result<Value, Refusal> {
        // Found to be there first: without a quorum, nothing is noted that might come to pass later.
        let volume = self.volumes.get(name).await?;
        self.tree.directory(path(&volume)?).await?;
        let permit = Arc::clone(&self.mounts).acquire_owned().await;
        let permit = permit.map_err(|_| Refusal::Stopping)?;
        let (volumes, tree) = (Arc::clone(&self.volumes), Arc::clone(&self.tree));
        let (sender, receiver) = oneshot::channel();
        let name = name.to_owned();
        // A task of its own, which ends also if Docker does not wait for it.
        tokio::spawn(async move {
            let _permit = permit;
            let volume = match volumes.hold(&name, &id).await {
                Ok(volume) => volume,
                Err(error) => return drop(sender.send(Err(Refusal::from(error)))),
            };
            // Looked at again: a mount that has gone meanwhile must not be answered with its path.
            let place = match path(&volume) {
                Ok(path) => tree.directory(path).await.map_err(Refusal::from),
                Err(refusal) => Err(refusal),
            };
            let usable = place.is_ok();
            if sender.send(place).is_err() || !usable {
                tracing::info!(volume = name, "a mount that was not answered is taken back");
                if let Err(error) = volumes.release(&name, &id).await {
                    tracing::warn!(volume = name, %error, "the volume stays marked as used");
                }
            }
        });
        let place = receiver.await.map_err(|_| Refusal::Stopping)??;
        Ok(mountpoint(&place))
    }

    /// Takes back what Docker had mounted on this node before its machine was started anew.
    ///
    /// # Errors
    /// If that cannot be done now.
    pub async fn forget_earlier_boots(&self) -> Result<(), VolumesError> {
        let now = format!("@{}", self.here.boot);
        for volume in self.volumes.list().await? {
            for user in volume.users {
                if user.node != self.here.node || user.id.ends_with(&now) || !user.id.contains('@') {
                    continue;
                }
                tracing::info!(
                    volume = volume.name,
                    "no longer in use: this machine has started since"
                );
                for _ in 0..user.count {
                    self.volumes.release(&volume.name, &user.id).await?;
                }
            }
        }
        Ok(())
    }

    /// Who mounts, as the volumes know it.
    fn id(&self, request: &Request) -> String {
        let given = match request.id.as_str() {
            "" => NO_ID,
            id => id,
        };
        let plain = given.chars().filter(|c| c.is_ascii_graphic() && *c != '@');
        let id: String = plain.take(ID_BYTES_MAX).collect();
        format!("{id}@{}", self.here.boot)
    }

    fn describe(&self, volume: &VolumeStatus, with_status: bool) -> Value {
        let place = volume.path.as_deref().map(|path| self.tree.path(path));
        let mut out = json!({
            "Name": volume.name,
            "Mountpoint": place.map(|place| place.to_string_lossy().into_owned()).unwrap_or_default(),
            "CreatedAt": volume.created,
        });
        if with_status {
            let nodes: Vec<_> = volume.users.iter().map(|user| user.node.as_str()).collect();
            out["Status"] = json!({
                "path": volume.path,
                "size_bytes": volume.size_bytes,
                "used_bytes": volume.used_bytes,
                "inodes_max": volume.inodes_max,
                "inodes": volume.inodes,
                "replicas": volume.replicas,
                "health": volume.health,
                "keep": volume.keep,
                "in_use_on": nodes,
            });
        }
        out
    }
}

/// Reads a request's body.
fn request(call: Call, body: &[u8]) -> Result<Request, Refusal> {
    // Some calls come without any.
    if !call.names_a_volume() {
        return Ok(Request::default());
    }
    let request: Request = serde_json::from_slice(body)
        .map_err(|error| Refusal::BadRequest(format!("the request cannot be read: {error}")))?;
    if !is_volume_name(&request.name) {
        let name = request.name.chars().take(VOLUME_NAME_BYTES_MAX).collect();
        let error = raftstore::meta::VolumeError::BadName(name);
        return Err(Refusal::BadRequest(error.to_string()));
    }
    Ok(request)
}

fn path(volume: &VolumeStatus) -> Result<&str, Refusal> {
    let moved = || {
        let why = "a directory above it was renamed".to_owned();
        TreeError::NoDirectory(volume.name.clone().into(), why)
    };
    volume.path.as_deref().ok_or_else(|| moved().into())
}

fn mountpoint(place: &std::path::Path) -> Value {
    json!({ "Mountpoint": place.to_string_lossy(), "Err": "" })
}

fn done() -> Value {
    json!({ "Err": "" })
}
