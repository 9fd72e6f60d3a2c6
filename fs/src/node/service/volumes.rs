//! What the command line asks of volumes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bramble_proto::volume_request::Action;
use bramble_proto::{QuotaSet, VolumeCreate, VolumeRemove};
use raftstore::meta::{ProjectLimits, TreeSource};
use serde::Serialize;

use crate::node::transport::wire::WireError;
use crate::volumes::{Volumes, VolumesError, parse_change, parse_options};

/// Longer than an election takes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The volumes, once the tree is mounted.
#[derive(Default)]
pub struct VolumesSlot(OnceLock<Arc<Volumes>>);

impl VolumesSlot {
    /// From now on `volumes` can be asked.
    pub fn set(&self, volumes: Arc<Volumes>) {
        let _ = self.0.set(volumes);
    }

    /// Does what is asked; the answer as JSON.
    pub(super) async fn run(&self, action: Action) -> Result<String, WireError> {
        let volumes = self
            .0
            .get()
            .ok_or_else(|| WireError::NotNow("the tree is not mounted yet: try again".into()))?;
        let late = || {
            "no answer within 20 s: too few nodes can be reached (`bramble status` says which), or it still goes on: \
             look again with `bramble volume ls`"
        };
        tokio::time::timeout(TIMEOUT, run(volumes, action))
            .await
            .unwrap_or_else(|_| Err(WireError::Unknown(late().into())))
    }
}

fn refused(error: VolumesError) -> WireError {
    WireError::Refused(error.to_string())
}

fn json<T: Serialize>(answer: &T) -> Result<String, WireError> {
    serde_json::to_string_pretty(answer).map_err(|error| WireError::NotNow(error.to_string()))
}

async fn run(volumes: &Volumes, action: Action) -> Result<String, WireError> {
    match action {
        Action::Create(request) => create(volumes, request).await,
        Action::Remove(request) => remove(volumes, request).await,
        Action::List(_) => json(&volumes.list().await.map_err(refused)?),
        Action::Set(request) => {
            let change = parse_change(&request.options.into_iter().collect()).map_err(WireError::Refused)?;
            json(&volumes.set(&request.name, change).await.map_err(refused)?)
        }
        Action::Snapshot(request) => {
            let taken = volumes.snapshot(&request.volume, &request.name).await;
            json(&taken.map_err(refused)?)
        }
        Action::Restore(request) => {
            let restored = volumes.restore(&request.volume, &request.snapshot, request.force);
            json(&restored.await.map_err(refused)?)
        }
        Action::Quota(request) => quota(volumes, request).await,
    }
}

async fn create(volumes: &Volumes, request: VolumeCreate) -> Result<String, WireError> {
    let options = parse_options(&request.options.into_iter().collect()).map_err(WireError::Refused)?;
    let labels = request.labels.into_iter().collect();
    let volume = request.source_volume;
    let source = match (volume.is_empty(), request.source_snapshot) {
        (true, _) => None,
        (false, name) if name.is_empty() => Some(TreeSource::Volume(volume)),
        (false, name) => Some(TreeSource::Snapshot { volume, name }),
    };
    let made = match source {
        None => volumes.create(&request.name, options, labels).await,
        Some(source) => volumes.clone_of(source, &request.name, options, labels).await,
    };
    json(&made.map_err(refused)?)
}

async fn remove(volumes: &Volumes, request: VolumeRemove) -> Result<String, WireError> {
    let VolumeRemove {
        name,
        snapshot,
        keep,
        force,
    } = request;
    let removed = if snapshot.is_empty() {
        volumes.remove(&name, keep, force).await
    } else {
        volumes.remove_snapshot(&name, &snapshot).await
    };
    removed.map(|()| String::new()).map_err(refused)
}

async fn quota(volumes: &Volumes, request: QuotaSet) -> Result<String, WireError> {
    let change = parse_change(&request.options.into_iter().collect()).map_err(WireError::Refused)?;
    let limits = ProjectLimits {
        bytes: change.bytes.unwrap_or(0),
        inodes: change.inodes.unwrap_or(0),
    };
    let project = volumes.set_quota(&request.path, limits).await.map_err(refused)?;
    json(&project)
}
