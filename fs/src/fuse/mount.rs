//! Mounting and unmounting.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use tokio::runtime::Handle;

use super::filesystem::BrambleFilesystem;
use super::{mount_point, notifier};
use crate::posix::Vfs;

/// The name under which `mount` and `df` show the filesystem.
const NAME: &str = "bramble";
/// The kernel's side of FUSE.
const DEVICE: &str = "/dev/fuse";

/// As much as one request may ask for.
const READ_AHEAD_BYTES: u64 = 1 << 20;

/// How to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountOptions {
    /// Threads that read requests; they only hand them on.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { threads: 3 }
    }
}

/// Why the filesystem could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel offers no FUSE.
    #[error(
        "there is no usable {DEVICE} ({0}): load the kernel's fuse module (modprobe fuse); in a container, pass the \
         device in and allow mounting (--device /dev/fuse --cap-add SYS_ADMIN)"
    )]
    NoFuse(String),
    /// The mount point is not there.
    #[error("the mount point {} does not exist: create it (mkdir -p) or choose another one with --mount", .0.display())]
    Missing(PathBuf),
    /// The mount point is something else.
    #[error("the mount point {} is not a directory: choose a directory with --mount", .0.display())]
    NotDirectory(PathBuf),
    /// Something is mounted there already.
    #[error("the mount point {path} is busy, a filesystem of type {kind} is mounted there: unmount it (umount) or choose another one with --mount", path = .0.display(), kind = .1)]
    Busy(PathBuf, String),
    /// The mount point cannot be examined.
    #[error("the mount point {path} cannot be used: {reason}", path = .0.display(), reason = .1)]
    Unusable(PathBuf, String),
    /// This user may not mount.
    #[error("not allowed to mount on {path} ({reason}): run as root, or install fusermount3 (Debian package fuse3) and set user_allow_other in /etc/fuse.conf", path = .0.display(), reason = .1)]
    NotAllowed(PathBuf, String),
    /// The kernel refused for another reason.
    #[error("cannot mount on {path}: {reason}", path = .0.display(), reason = .1)]
    Refused(PathBuf, String),
    /// Unmounting failed.
    #[error("cannot unmount {path}: {reason}", path = .0.display(), reason = .1)]
    Unmount(PathBuf, String),
}

/// How an unmount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody used it any more.
    Clean,
    /// Someone still uses it. It is gone from the tree, and their requests fail once this process ends.
    StillInUse,
}

/// A mounted filesystem; unmounted when it is dropped.
pub struct MountHandle {
    path: PathBuf,
    vfs: Arc<Vfs>,
    session: Option<BackgroundSession>,
    notifier: Option<JoinHandle<()>>,
}

/// Mounts `vfs` on the directory `path`. Requests run as tasks of `runtime`, which must not be single-threaded.
///
/// Returns once the kernel answers for the mount point. Blocks meanwhile.
///
/// # Errors
/// Why it could not; nothing is left mounted then.
pub fn mount(
    vfs: Arc<Vfs>,
    runtime: Handle,
    path: &Path,
    options: MountOptions,
) -> Result<MountHandle, MountError> {
    if let Err(error) = std::fs::metadata(DEVICE) {
        return Err(MountError::NoFuse(error.to_string()));
    }
    let path = mount_point::prepare(path)?;
    let filesystem = BrambleFilesystem::new(vfs.clone(), runtime);
    let session =
        Session::new(filesystem, &path, &config(options)).map_err(|error| explain(&path, &error))?;
    let notifier = notifier::spawn(session.notifier(), vfs.invalidations().clone())
        .map_err(|error| explain(&path, &error))?;
    let session = session.spawn().map_err(|error| explain(&path, &error))?;
    if let Err(error) = mount_point::set_read_ahead(&path, READ_AHEAD_BYTES) {
        tracing::debug!(%error, "the kernel's read-ahead stays as it is");
    }
    Ok(MountHandle {
        path,
        vfs,
        session: Some(session),
        notifier: Some(notifier),
    })
}

fn config(options: MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(NAME.into()),
        MountOption::CUSTOM(format!("subtype={NAME}")),
        MountOption::DefaultPermissions,
        MountOption::Dev,
        MountOption::Suid,
        // Reads leave atime alone, and the kernel need not try.
        MountOption::NoAtime,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(options.threads.max(1));
    config
}

fn explain(path: &Path, error: &io::Error) -> MountError {
    let text = error.to_string();
    match std::fs::metadata(DEVICE) {
        Err(missing) => MountError::NoFuse(missing.to_string()),
        // The device is there but does not work: the module is not loaded, or a container forbids it.
        Ok(_)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENODEV | libc::ENXIO | libc::EPERM)
            ) =>
        {
            MountError::NoFuse(text)
        }
        Ok(_)
            if error.kind() == io::ErrorKind::PermissionDenied || error.kind() == io::ErrorKind::NotFound =>
        {
            MountError::NotAllowed(path.to_owned(), text)
        }
        Ok(_) => MountError::Refused(path.to_owned(), text),
    }
}

impl MountHandle {
    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts; if someone still uses the filesystem, takes it out of the tree and leaves it to them. Blocks until
    /// the kernel has sent what it still had to send.
    ///
    /// # Errors
    /// If it cannot be unmounted even so.
    pub fn unmount(mut self) -> Result<Unmounted, MountError> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<Unmounted, MountError> {
        let Some(session) = self.session.take() else {
            return Ok(Unmounted::Clean);
        };
        let outcome = match session.umount_and_join() {
            Ok(()) => Ok(Unmounted::Clean),
            Err(error) => {
                tracing::info!(%error, "the mount is still in use");
                mount_point::detach(&self.path)
                    .map(|()| Unmounted::StillInUse)
                    .map_err(|error| MountError::Unmount(self.path.clone(), error.to_string()))
            }
        };
        self.vfs.invalidations().detach();
        if let (Ok(Unmounted::Clean), Some(notifier)) = (&outcome, self.notifier.take()) {
            let _ = notifier.join();
        }
        outcome
    }
}

impl Drop for MountHandle {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            tracing::warn!(%error, "the filesystem stays mounted");
        }
    }
}
