//! Volumes in memory, their directories in a temporary one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use raftstore::meta::{VolumeError, VolumeOptions};
use tokio::sync::{Mutex, watch};

use crate::backend::BackendError;
use crate::docker::VolumeStore;
use crate::posix::FsError;
use crate::volumes::{UserStatus, VolumeStatus, VolumesError};

/// The node that the plugin is on.
pub const NODE: &str = "pi-1";

/// What [`MemoryVolumes`] do when they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Answer.
    Answer,
    /// Say that there is no quorum.
    Fail,
    /// Say nothing until the mood changes.
    Wait,
    /// Answer, but do not note who uses a volume until the mood changes.
    WaitToHold,
}

#[derive(Debug, Clone)]
struct Kept {
    options: VolumeOptions,
    holds: BTreeMap<String, u32>,
}

/// See the module.
pub struct MemoryVolumes {
    root: PathBuf,
    kept: Mutex<BTreeMap<String, Kept>>,
    mood: watch::Sender<Mood>,
    /// Holds that have begun, ever.
    begun: watch::Sender<u32>,
}

impl MemoryVolumes {
    /// None yet; their directories will be in `root`.
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            kept: Mutex::default(),
            mood: watch::channel(Mood::Answer).0,
            begun: watch::channel(0).0,
        }
    }

    pub fn set_mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// How often each id uses a volume, without what says since which boot.
    pub async fn holds(&self, name: &str) -> BTreeMap<String, u32> {
        let kept = self.kept.lock().await;
        let Some(kept) = kept.get(name) else {
            return BTreeMap::new();
        };
        let plain = |(id, count): (&String, &u32)| (id.split('@').next().unwrap().to_owned(), *count);
        kept.holds.iter().map(plain).collect()
    }

    pub async fn names(&self) -> Vec<String> {
        self.kept.lock().await.keys().cloned().collect()
    }

    /// Returns once so many holds have begun.
    pub async fn has_begun(&self, holds: u32) {
        let mut begun = self.begun.subscribe();
        begun.wait_for(|count| *count >= holds).await.unwrap();
    }

    async fn ready(&self, moods: &[Mood]) -> Result<(), VolumesError> {
        let mut mood = self.mood.subscribe();
        let mood = *mood.wait_for(|mood| !moods.contains(mood)).await.unwrap();
        if mood == Mood::Fail {
            let error = BackendError::NoQuorum("one of three".into());
            return Err(VolumesError::Tree(FsError::Backend(error)));
        }
        Ok(())
    }
}

fn describe(name: &str, kept: &Kept) -> VolumeStatus {
    let path = match kept.options.path.as_str() {
        "" => format!("volumes/{name}"),
        path => path.to_owned(),
    };
    let user = |(id, count): (&String, &u32)| UserStatus {
        node: NODE.into(),
        id: id.clone(),
        count: *count,
    };
    VolumeStatus {
        name: name.into(),
        path: Some(path),
        size_bytes: Some(kept.options.limits.bytes).filter(|bytes| *bytes > 0),
        used_bytes: 4096,
        inodes: 1,
        replicas: 3,
        health: "ok".into(),
        keep: kept.options.keep,
        created: "2023-11-14T22:13:20Z".into(),
        users: kept.holds.iter().map(user).collect(),
        ..VolumeStatus::default()
    }
}

fn unknown(name: &str) -> VolumesError {
    VolumeError::Unknown(name.into()).into()
}

#[async_trait]
impl VolumeStore for MemoryVolumes {
    async fn create(&self, name: &str, options: VolumeOptions) -> Result<(), VolumesError> {
        self.ready(&[Mood::Wait]).await?;
        let mut all = self.kept.lock().await;
        if let Some(kept) = all.get(name) {
            if kept.options != options {
                let (name, option) = (name.into(), "option".into());
                return Err(VolumeError::Differs { name, option }.into());
            }
            return Ok(());
        }
        let kept = Kept {
            options,
            holds: BTreeMap::new(),
        };
        std::fs::create_dir_all(self.root.join(describe(name, &kept).path.unwrap())).unwrap();
        all.insert(name.into(), kept);
        Ok(())
    }

    async fn get(&self, name: &str) -> Result<VolumeStatus, VolumesError> {
        self.ready(&[Mood::Wait]).await?;
        let all = self.kept.lock().await;
        let kept = all.get(name).ok_or_else(|| unknown(name))?;
        Ok(describe(name, kept))
    }

    async fn list(&self) -> Result<Vec<VolumeStatus>, VolumesError> {
        self.ready(&[Mood::Wait]).await?;
        let all = self.kept.lock().await;
        Ok(all.iter().map(|(name, kept)| describe(name, kept)).collect())
    }

    async fn remove(&self, name: &str) -> Result<(), VolumesError> {
        self.ready(&[Mood::Wait]).await?;
        let mut all = self.kept.lock().await;
        let kept = all.get(name).ok_or_else(|| unknown(name))?;
        if let Some(id) = kept.holds.keys().next() {
            let (volume, id) = (name.into(), id.clone());
            return Err(VolumeError::InUse { volume, node: 1, id }.into());
        }
        if !kept.options.keep {
            std::fs::remove_dir_all(self.root.join(describe(name, kept).path.unwrap())).unwrap();
        }
        all.remove(name);
        Ok(())
    }

    async fn hold(&self, name: &str, id: &str) -> Result<VolumeStatus, VolumesError> {
        self.begun.send_modify(|begun| *begun += 1);
        self.ready(&[Mood::Wait, Mood::WaitToHold]).await?;
        let mut all = self.kept.lock().await;
        let kept = all.get_mut(name).ok_or_else(|| unknown(name))?;
        *kept.holds.entry(id.into()).or_default() += 1;
        Ok(describe(name, kept))
    }

    async fn release(&self, name: &str, id: &str) -> Result<(), VolumesError> {
        self.ready(&[Mood::Wait]).await?;
        let mut all = self.kept.lock().await;
        let kept = all.get_mut(name).ok_or_else(|| unknown(name))?;
        if let Some(count) = kept.holds.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                kept.holds.remove(id);
            }
        }
        Ok(())
    }
}
