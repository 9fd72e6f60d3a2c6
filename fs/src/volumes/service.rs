//! What can be asked of volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::kv::KvError;
use raftstore::meta::{
    FileKind, Ino, MetaError, NewInode, NodeId, Op, Project, ProjectLimits, ROOT_INO, Reader, Refusal, Reply,
    Snapshot, TREE_ROWS_MAX, TreeSource, Volume, VolumeChange, VolumeError, VolumeOp, VolumeOptions,
};

use super::status::{SnapshotStatus, UserStatus, VolumeList, VolumeStatus, rfc3339};
use crate::backend::{Backend, BackendError, Look};
use crate::posix::{FsError, Vfs};

/// Names of a directory, and inodes, that are looked at together.
const PAGE: usize = 1024;
/// Where volumes are that were not given another place.
const VOLUMES_DIRECTORY: &str = "volumes";

/// Why something was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VolumesError {
    /// The cluster refused it.
    #[error(transparent)]
    Refused(#[from] VolumeError),
    /// The tree refused it, or the cluster could not be asked.
    #[error("{0}")]
    Tree(#[from] FsError),
    /// Files in it are open.
    #[error("volume {volume} is in use: files in it are open on node {node}: close them, or force it")]
    Open {
        /// Which volume.
        volume: String,
        /// Where.
        node: String,
    },
}

impl VolumesError {
    /// Whether the cluster has said that there is no such volume. Nothing else means that.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused(VolumeError::Unknown(_)))
    }
}

impl From<BackendError> for VolumesError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Meta(MetaError::Volume(error)) => Self::Refused(error),
            other => Self::Tree(other.into()),
        }
    }
}

impl From<KvError> for VolumesError {
    fn from(error: KvError) -> Self {
        Self::Tree(error.into())
    }
}

/// What is known of the nodes that keep the copies.
pub trait Nodes: Send + Sync + 'static {
    /// What is wrong with copies, a few words each; none if all are there.
    fn problems(&self) -> Vec<String>;
}

/// Knows which files are open on any node.
#[async_trait]
pub trait OpenSomewhere: Send + Sync + 'static {
    /// A node on which one of these inodes is open. A node that cannot be asked has none open.
    async fn open_on(&self, inodes: &[Ino]) -> Option<NodeId>;
}

/// What [`Volumes`] stands on.
pub struct VolumesParts {
    /// This node.
    pub node: NodeId,
    /// The cluster's state, to which [`Backend::refresh`] catches up.
    pub cluster: Arc<dyn Backend>,
    /// What the mounted tree stands on.
    pub tree: Arc<dyn Backend>,
    /// The tree.
    pub vfs: Arc<Vfs>,
    /// The nodes.
    pub nodes: Arc<dyn Nodes>,
    /// Open files everywhere.
    pub open: Arc<dyn OpenSomewhere>,
}

/// The volumes of the cluster, as one node manages them. All calls wait as long as there is no quorum, unless the tree
/// answers errors then; what they answer is what all nodes see.
pub struct Volumes {
    parts: VolumesParts,
}

impl Volumes {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: VolumesParts) -> Self {
        Self { parts }
    }

    /// This node's state, after it has caught up with what the cluster has decided.
    async fn reader(&self) -> Result<Reader, VolumesError> {
        self.parts.cluster.refresh(Look::whole(&[ROOT_INO])).await?;
        Ok(self.parts.cluster.reader())
    }

    async fn submit(&self, op: VolumeOp) -> Result<Reply, VolumesError> {
        Ok(self.parts.tree.submit(Op::Volume(op), Bytes::new()).await?)
    }

    async fn submit_for_volume(&self, op: VolumeOp) -> Result<VolumeStatus, VolumesError> {
        match self.submit(op).await? {
            Reply::Volume(volume) => self.status(&self.parts.cluster.reader(), &volume),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a volume; if there is one with the same options, that is the answer.
    ///
    /// # Errors
    /// If there is one with other options, or its place is taken by something else.
    pub async fn create(
        &self,
        name: &str,
        options: VolumeOptions,
        labels: BTreeMap<String, String>,
    ) -> Result<VolumeStatus, VolumesError> {
        self.make(name, options, labels, None).await
    }

    /// Makes a volume of a copy of another one, or of a snapshot. No data is copied.
    ///
    /// # Errors
    /// If there is a volume of that name, or its place is taken.
    pub async fn clone_of(
        &self,
        source: TreeSource,
        name: &str,
        options: VolumeOptions,
        labels: BTreeMap<String, String>,
    ) -> Result<VolumeStatus, VolumesError> {
        self.make(name, options, labels, Some(source)).await
    }

    async fn make(
        &self,
        name: &str,
        options: VolumeOptions,
        labels: BTreeMap<String, String>,
        source: Option<TreeSource>,
    ) -> Result<VolumeStatus, VolumesError> {
        let reader = self.reader().await?;
        self.check_size(options.limits).await?;
        let path = match options.path.as_str() {
            "" => format!("{VOLUMES_DIRECTORY}/{name}"),
            path => path.to_owned(),
        };
        let (above, entry) = path.rsplit_once('/').unwrap_or(("", &path));
        // A name that cannot be must not leave directories behind: the state machine refuses it wherever it is to be.
        let usable = raftstore::meta::is_volume_name(name);
        let parent = match reader.volume(name)? {
            Some(volume) => reader.inode(volume.root)?.map_or(ROOT_INO, |root| root.parent),
            None if usable => self.directory(above).await?,
            None => ROOT_INO,
        };
        let op = VolumeOp::Create {
            name: name.to_owned(),
            parent,
            entry: Bytes::copy_from_slice(entry.as_bytes()),
            options,
            labels,
            source,
        };
        self.submit_for_volume(op).await
    }

    /// A size must be one that the cluster can hold.
    async fn check_size(&self, limits: ProjectLimits) -> Result<(), VolumesError> {
        let space = self.parts.cluster.space().await?;
        if limits.bytes > space.capacity_bytes {
            let what = format!(
                "a size of {} bytes is more than the cluster holds, {} bytes",
                limits.bytes, space.capacity_bytes
            );
            return Err(VolumeError::BadOption(what).into());
        }
        Ok(())
    }

    /// The directory at `path`; makes those on the way that are missing.
    async fn directory(&self, path: &str) -> Result<Ino, VolumesError> {
        let mut at = ROOT_INO;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let vfs = &self.parts.vfs;
            let new = NewInode {
                kind: FileKind::Directory,
                mode: 0o755,
                umask: 0,
                uid: 0,
                gid: 0,
                rdev: 0,
                target: Bytes::new(),
            };
            let found = match vfs.lookup(at, name.as_bytes()).await {
                Err(FsError::Refused(Refusal::NotFound)) => match vfs.make(at, name.as_bytes(), new).await {
                    Err(FsError::Refused(Refusal::Exists)) => vfs.lookup(at, name.as_bytes()).await?,
                    made => made?,
                },
                found => found?,
            };
            at = found.ino;
        }
        Ok(at)
    }

    /// All volumes, and the snapshots whose volumes are gone.
    pub async fn list(&self) -> Result<VolumeList, VolumesError> {
        let reader = self.reader().await?;
        let mut volumes = Vec::new();
        for volume in reader.volumes()? {
            volumes.push(self.status(&reader, &volume)?);
        }
        let mut left_over = Vec::new();
        for snapshot in reader.snapshots(None)? {
            if reader.volume(&snapshot.volume)?.is_none() {
                left_over.push(snapshot_status(&reader, snapshot)?);
            }
        }
        Ok(VolumeList { volumes, left_over })
    }

    /// A volume.
    ///
    /// # Errors
    /// [`VolumesError::is_unknown`] if there is none; that is told only with a quorum.
    pub async fn get(&self, name: &str) -> Result<VolumeStatus, VolumesError> {
        let reader = self.reader().await?;
        let volume = known(&reader, name)?;
        self.status(&reader, &volume)
    }

    /// Changes options of a volume.
    pub async fn set(&self, name: &str, change: VolumeChange) -> Result<VolumeStatus, VolumesError> {
        self.reader().await?;
        self.check_size(ProjectLimits {
            bytes: change.bytes.unwrap_or(0),
            inodes: 0,
        })
        .await?;
        let name = name.to_owned();
        self.submit_for_volume(VolumeOp::Change { name, change }).await
    }

    /// Removes a volume, and what is in it unless it is to be kept (`keep` counts in place of its option). Snapshots
    /// of it stay.
    ///
    /// # Errors
    /// If somebody uses it, unless `force`.
    pub async fn remove(&self, name: &str, keep: Option<bool>, force: bool) -> Result<(), VolumesError> {
        let reader = self.reader().await?;
        let volume = known(&reader, name)?;
        if !force && !keep.unwrap_or(volume.options.keep) {
            self.check_not_open(&reader, &volume).await?;
        }
        let name = name.to_owned();
        self.submit_for_nothing(VolumeOp::Remove { name, keep, force })
            .await
    }

    /// Makes a snapshot of what is in a volume: all that was acknowledged on this node, and that other nodes have pushed.
    pub async fn snapshot(&self, volume: &str, name: &str) -> Result<SnapshotStatus, VolumesError> {
        self.reader().await?;
        let (volume, name) = (volume.to_owned(), name.to_owned());
        match self.submit(VolumeOp::Snapshot { volume, name }).await? {
            Reply::Snapshot(snapshot) => snapshot_status(&self.parts.cluster.reader(), snapshot),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes a snapshot.
    pub async fn remove_snapshot(&self, volume: &str, name: &str) -> Result<(), VolumesError> {
        self.reader().await?;
        let (volume, name) = (volume.to_owned(), name.to_owned());
        self.submit_for_nothing(VolumeOp::RemoveSnapshot { volume, name })
            .await
    }

    /// Puts what a snapshot shows in the place of what is in its volume.
    ///
    /// # Errors
    /// If somebody uses it, unless `force`: whoever has files of it open keeps what was there, which is removed.
    pub async fn restore(
        &self,
        volume: &str,
        snapshot: &str,
        force: bool,
    ) -> Result<VolumeStatus, VolumesError> {
        let reader = self.reader().await?;
        let found = known(&reader, volume)?;
        if !force {
            self.check_not_open(&reader, &found).await?;
        }
        self.submit_for_volume(VolumeOp::Restore {
            volume: volume.to_owned(),
            snapshot: snapshot.to_owned(),
            force,
        })
        .await
    }

    /// Says that somebody on this node uses a volume, once more: it is then neither removed nor restored without force.
    pub async fn hold(&self, volume: &str, id: &str) -> Result<VolumeStatus, VolumesError> {
        self.reader().await?;
        let (volume, id) = (volume.to_owned(), id.to_owned());
        let node = self.parts.node;
        self.submit_for_volume(VolumeOp::Hold { volume, node, id }).await
    }

    /// Takes one [`Volumes::hold`] back; no error if there is none.
    pub async fn release(&self, volume: &str, id: &str) -> Result<(), VolumesError> {
        self.submit_for_nothing(VolumeOp::Release {
            volume: volume.to_owned(),
            node: self.parts.node,
            id: id.to_owned(),
            all: false,
        })
        .await
    }

    /// Takes back all that this node holds, as after its machine has started again.
    pub async fn release_all(&self) -> Result<(), VolumesError> {
        let node = self.parts.node;
        self.submit_for_nothing(VolumeOp::ReleaseAll { node }).await
    }

    /// Limits what the directory at `path` and all below it may use; 0 for no limit.
    pub async fn set_quota(&self, path: &str, limits: ProjectLimits) -> Result<Project, VolumesError> {
        self.reader().await?;
        self.check_size(limits).await?;
        let mut directory = ROOT_INO;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            directory = self.parts.vfs.lookup(directory, name.as_bytes()).await?.ino;
        }
        match self.submit(VolumeOp::SetQuota { directory, limits }).await? {
            Reply::Project(project) => Ok(project),
            other => Err(unexpected(&other)),
        }
    }

    async fn submit_for_nothing(&self, op: VolumeOp) -> Result<(), VolumesError> {
        match self.submit(op).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether any file in the volume is open on any node. A moment later one may be: this is for people's mistakes.
    async fn check_not_open(&self, reader: &Reader, volume: &Volume) -> Result<(), VolumesError> {
        let inodes = self.inodes_of(volume.root).await?;
        for some in inodes.chunks(PAGE) {
            if let Some(node) = self.parts.open.open_on(some).await {
                return Err(VolumesError::Open {
                    volume: volume.name.clone(),
                    node: node_name(reader, node)?,
                });
            }
        }
        Ok(())
    }

    /// The inodes of a tree, as many as one operation may touch; also those that other nodes have just made.
    async fn inodes_of(&self, root: Ino) -> Result<Vec<Ino>, VolumesError> {
        let mut inodes = vec![root];
        let mut directories = vec![root];
        while let Some(directory) = directories.pop() {
            self.parts.tree.refresh(Look::whole(&[directory])).await?;
            let mut after = 0;
            loop {
                let items = self.parts.tree.reader().list(directory, after, PAGE)?;
                let complete = items.len() < PAGE;
                for item in items {
                    after = item.entry.cookie;
                    inodes.push(item.entry.ino);
                    if item.entry.kind == FileKind::Directory {
                        directories.push(item.entry.ino);
                    }
                }
                if inodes.len() >= TREE_ROWS_MAX {
                    return Ok(inodes);
                }
                if complete {
                    break;
                }
            }
        }
        Ok(inodes)
    }

    fn status(&self, reader: &Reader, volume: &Volume) -> Result<VolumeStatus, VolumesError> {
        let usage = reader.project(volume.project)?.map(|project| project.usage);
        let usage = usage.unwrap_or_default();
        let pending = self.parts.tree.pending(volume.project);
        let limits = volume.options.limits;
        let some = |limit: u64| (limit > 0).then_some(limit);
        let mut users = Vec::new();
        for hold in reader.holds(&volume.name)? {
            users.push(UserStatus {
                node: node_name(reader, hold.node)?,
                id: hold.id,
                count: hold.count,
            });
        }
        let mut snapshots = Vec::new();
        for snapshot in reader.snapshots(Some(&volume.name))? {
            snapshots.push(snapshot_status(reader, snapshot)?);
        }
        let nodes = u32::try_from(reader.nodes()?.len()).unwrap_or(u32::MAX);
        let replicas = reader.cluster()?.map_or(1, |cluster| cluster.replicas);
        let problems = self.parts.nodes.problems();
        Ok(VolumeStatus {
            name: volume.name.clone(),
            path: path_of(reader, volume)?,
            size_bytes: some(limits.bytes),
            used_bytes: usage.allocated_bytes.saturating_add(pending.allocated_bytes),
            inodes_max: some(limits.inodes),
            inodes: usage.inodes.saturating_add(pending.inodes),
            replicas: replicas.min(nodes),
            health: if problems.is_empty() {
                "ok".into()
            } else {
                problems.join(", ")
            },
            keep: volume.options.keep,
            labels: volume.labels.clone(),
            created: rfc3339(volume.created),
            users,
            snapshots,
        })
    }
}

fn unexpected(reply: &Reply) -> VolumesError {
    VolumesError::Tree(FsError::UnexpectedReply(format!("{reply:?}")))
}

fn known(reader: &Reader, name: &str) -> Result<Volume, VolumesError> {
    let found = reader.volume(name)?;
    found.ok_or_else(|| VolumeError::Unknown(name.to_owned()).into())
}

fn node_name(reader: &Reader, id: NodeId) -> Result<String, KvError> {
    let nodes = reader.nodes()?;
    let node = nodes.into_iter().find(|node| node.id == id);
    Ok(node.map_or_else(|| id.to_string(), |node| node.name))
}

/// A volume's path, if it still leads there.
fn path_of(reader: &Reader, volume: &Volume) -> Result<Option<String>, KvError> {
    let path = match volume.options.path.as_str() {
        "" => format!("{VOLUMES_DIRECTORY}/{}", volume.name),
        path => path.to_owned(),
    };
    let mut at = ROOT_INO;
    for name in path.split('/') {
        match reader.lookup(at, name.as_bytes())? {
            Some(entry) => at = entry.ino,
            None => return Ok(None),
        }
    }
    Ok((at == volume.root).then_some(path))
}

fn snapshot_status(reader: &Reader, snapshot: Snapshot) -> Result<SnapshotStatus, VolumesError> {
    let usage = reader.project(snapshot.project)?.map(|project| project.usage);
    let usage = usage.unwrap_or_default();
    Ok(SnapshotStatus {
        path: format!(".snapshots/{}/{}", snapshot.volume, snapshot.name),
        volume: snapshot.volume,
        name: snapshot.name,
        created: rfc3339(snapshot.created),
        bytes: usage.allocated_bytes,
        inodes: usage.inodes,
    })
}
