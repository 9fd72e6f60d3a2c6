//! The mounted tree, as other programs on this machine see it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::node::{mount_probe, mountpoint};

/// A look at a directory that takes longer has no answer: there is no quorum.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// Looks at a time. One that hangs holds a process until the quorum is back.
const LOOKS_MAX: usize = 4;

/// Why a directory of the tree cannot be handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// What is at the path is not this daemon's mount, but the local disk, or another mount.
    #[error(
        "the tree is not mounted at {0}, where the local disk would be written to: see `systemctl status bramble` or \
         `bramble health`"
    )]
    NotMounted(PathBuf),
    /// The volume's directory is gone, or something else is in its place.
    #[error("the volume's directory {0} is not there: {1}")]
    NoDirectory(PathBuf, String),
    /// It does not answer.
    #[error("the tree does not answer")]
    Silent,
}

/// A mount of the tree by this daemon.
#[derive(Debug)]
pub struct MountedTree {
    mount: PathBuf,
    device: u64,
    looks: std::sync::Arc<Semaphore>,
    /// Whether another process looks: if this one serves the mount, see [`mount_probe`].
    outside: bool,
}

impl MountedTree {
    /// The tree that this daemon has just mounted at `mount`.
    ///
    /// # Errors
    /// If nothing of ours is mounted there.
    pub fn at(mount: &Path) -> Result<Self, TreeError> {
        let not_mounted = || TreeError::NotMounted(mount.to_owned());
        let device = mountpoint::device(mount).map_err(|_| not_mounted())?;
        let tree = Self::new(mount, device.ok_or_else(not_mounted)?);
        Ok(Self {
            outside: true,
            ..tree
        })
    }

    /// The tree at `mount`, whose files are all on `device` (as `st_dev`), and which another process serves.
    #[must_use]
    pub fn new(mount: &Path, device: u64) -> Self {
        Self {
            mount: mount.to_owned(),
            device,
            looks: std::sync::Arc::new(Semaphore::new(LOOKS_MAX)),
            outside: false,
        }
    }

    /// Where programs of this machine find a path of the tree.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.mount.join(path)
    }

    /// As [`MountedTree::path`], once it is certain that programs find a directory of this mount there.
    ///
    /// # Errors
    /// [`TreeError`] says what they would find.
    pub async fn directory(&self, path: &str) -> Result<PathBuf, TreeError> {
        let (place, device, mount) = (self.path(path), self.device, self.mount.clone());
        let (looks, outside) = (std::sync::Arc::clone(&self.looks), self.outside);
        let look = async move {
            let permit = looks.acquire_owned().await.map_err(|_| TreeError::Silent)?;
            // Through the kernel, as whoever is given the path will. On its own, for as long as it takes.
            let looking = tokio::spawn(async move {
                let found = if outside {
                    look_outside(&mount, place, device).await
                } else {
                    let looking = tokio::task::spawn_blocking(move || look(&mount, place, device));
                    looking.await.unwrap_or(Err(TreeError::Silent))
                };
                drop(permit);
                found
            });
            looking.await.map_err(|_| TreeError::Silent)?
        };
        match tokio::time::timeout(LOOK_TIMEOUT, look).await {
            Ok(found) => found,
            Err(_) => Err(TreeError::Silent),
        }
    }
}

/// Has another process look.
async fn look_outside(mount: &Path, place: PathBuf, device: u64) -> Result<PathBuf, TreeError> {
    let output = Command::new(mount_probe::THIS_PROGRAM)
        .args([mount_probe::COMMAND, "--device", &device.to_string(), "--mount"])
        .arg(mount)
        .arg("--directory")
        .arg(&place)
        .output()
        .await;
    let output = output.map_err(|_| TreeError::Silent)?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim() {
        FOUND => Ok(place),
        NOT_MOUNTED => Err(TreeError::NotMounted(mount.to_owned())),
        why if output.status.success() => Err(TreeError::NoDirectory(place, why.to_owned())),
        _ => Err(TreeError::Silent),
    }
}

/// What the other process says if all is well.
const FOUND: &str = "found";
/// What it says if the mount is not the tree.
const NOT_MOUNTED: &str = "not mounted";

/// What the other process does: says what is at `place`.
#[must_use]
pub fn describe(mount: &Path, place: &Path, device: u64) -> String {
    match look(mount, place.to_owned(), device) {
        Ok(_) => FOUND.to_owned(),
        Err(TreeError::NoDirectory(_, why)) => why,
        Err(_) => NOT_MOUNTED.to_owned(),
    }
}

fn look(mount: &Path, place: PathBuf, device: u64) -> Result<PathBuf, TreeError> {
    let root = std::fs::metadata(mount).map_err(|_| TreeError::NotMounted(mount.to_owned()))?;
    if root.dev() != device {
        return Err(TreeError::NotMounted(mount.to_owned()));
    }
    match std::fs::metadata(&place) {
        Err(error) => Err(TreeError::NoDirectory(place, error.to_string())),
        // A symbolic link in the path, or a mount below ours.
        Ok(found) if found.dev() != device => Err(TreeError::NoDirectory(
            place,
            "another filesystem is in its place".into(),
        )),
        Ok(found) if !found.is_dir() => Err(TreeError::NoDirectory(place, "a file is in its place".into())),
        Ok(_) => Ok(place),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files of a test")]
mod tests {
    use super::*;

    fn device_of(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().dev()
    }

    #[tokio::test]
    async fn only_directories_of_the_mount_are_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("volumes/db")).unwrap();
        std::fs::write(dir.path().join("volumes/file"), "x").unwrap();
        std::os::unix::fs::symlink("/proc", dir.path().join("volumes/out")).unwrap();
        let tree = MountedTree::new(dir.path(), device_of(dir.path()));
        assert_eq!(
            tree.directory("volumes/db").await,
            Ok(dir.path().join("volumes/db"))
        );
        for bad in ["volumes/none", "volumes/file", "volumes/out"] {
            let refused = tree.directory(bad).await;
            assert!(
                matches!(refused, Err(TreeError::NoDirectory(..))),
                "{bad}: {refused:?}"
            );
        }
    }

    #[tokio::test]
    async fn the_local_disk_is_never_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("volumes/db")).unwrap();
        let elsewhere = MountedTree::new(dir.path(), device_of(Path::new("/proc")));
        let refused = elsewhere.directory("volumes/db").await;
        assert_eq!(refused, Err(TreeError::NotMounted(dir.path().into())));
        assert!(MountedTree::at(dir.path()).is_err(), "nothing is mounted there");
        let place = dir.path().join("volumes/db");
        assert_eq!(describe(dir.path(), &place, device_of(dir.path())), FOUND);
        assert_eq!(describe(dir.path(), &place, 0), NOT_MOUNTED);
        let none = describe(dir.path(), Path::new("/none"), device_of(dir.path()));
        assert!(none.contains("No such file"), "{none}");
    }
}
