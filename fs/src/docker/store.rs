//! Where volumes are kept, as the plugin needs it.

use async_trait::async_trait;
use raftstore::meta::VolumeOptions;

use crate::volumes::{VolumeStatus, Volumes, VolumesError};

/// Volumes by name. All calls may be repeated, and wait as long as there is no quorum, or say so.
#[async_trait]
pub trait VolumeStore: Send + Sync + 'static {
    /// Makes a volume, if there is not this very one.
    ///
    /// # Errors
    /// Also if there is one of this name with other options.
    async fn create(&self, name: &str, options: VolumeOptions) -> Result<(), VolumesError>;

    /// A volume.
    ///
    /// # Errors
    /// [`VolumesError::is_unknown`] only if a majority knows of none.
    async fn get(&self, name: &str) -> Result<VolumeStatus, VolumesError>;

    /// All volumes.
    ///
    /// # Errors
    /// If they cannot be known now.
    async fn list(&self) -> Result<Vec<VolumeStatus>, VolumesError>;

    /// Removes a volume that nobody uses, with its data unless that is to be kept.
    ///
    /// # Errors
    /// Also if somebody uses it.
    async fn remove(&self, name: &str) -> Result<(), VolumesError>;

    /// Notes that `id` uses the volume on this node, once more.
    ///
    /// # Errors
    /// As [`VolumeStore::get`].
    async fn hold(&self, name: &str, id: &str) -> Result<VolumeStatus, VolumesError>;

    /// Takes back one [`VolumeStore::hold`]; nothing if there is none.
    ///
    /// # Errors
    /// If that cannot be done now.
    async fn release(&self, name: &str, id: &str) -> Result<(), VolumesError>;
}

#[async_trait]
impl VolumeStore for Volumes {
    async fn create(&self, name: &str, options: VolumeOptions) -> Result<(), VolumesError> {
        let labels = std::collections::BTreeMap::new();
        Volumes::create(self, name, options, labels).await.map(drop)
    }

    async fn get(&self, name: &str) -> Result<VolumeStatus, VolumesError> {
        Volumes::get(self, name).await
    }

    async fn list(&self) -> Result<Vec<VolumeStatus>, VolumesError> {
        Ok(Volumes::list(self).await?.volumes)
    }

    async fn remove(&self, name: &str) -> Result<(), VolumesError> {
        Volumes::remove(self, name, None, false).await
    }

    async fn hold(&self, name: &str, id: &str) -> Result<VolumeStatus, VolumesError> {
        Volumes::hold(self, name, id).await
    }

    async fn release(&self, name: &str, id: &str) -> Result<(), VolumesError> {
        Volumes::release(self, name, id).await
    }
}
