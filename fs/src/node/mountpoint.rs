//! The mount point: what must be true of it, and how a killed predecessor's mount is cleared away.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Where FUSE is.
const FUSE_DEVICE: &str = "/dev/fuse";
/// What mountinfo calls a mount of ours.
pub const MOUNT_TYPE: &str = "fuse.bramble";

/// Why a directory cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum MountPointError {
    /// Nothing there.
    #[error("the mount point {0} does not exist: create it with `mkdir -p {0}`")]
    Missing(PathBuf),
    /// Something else there.
    #[error("the mount point {0} is not a directory: choose one with --mount")]
    NotDirectory(PathBuf),
    /// In use.
    #[error("{0} is busy: something ({1}) is mounted there already. Unmount it, or choose another directory")]
    Busy(PathBuf, String),
    /// Would hide files.
    #[error(
        "the mount point {0} is not empty: what it holds would be hidden. Move it away, or choose another directory"
    )]
    NotEmpty(PathBuf),
    /// A dead mount.
    #[error("{0} is the mount of a daemon that was killed: clear it with `umount -l {0}`")]
    Stale(PathBuf),
    /// No FUSE.
    #[error(
        "there is no {FUSE_DEVICE}: load the kernel's FUSE module with `modprobe fuse` (in a container, pass the device on)"
    )]
    NoFuse,
    /// Not root.
    #[error("bramble mounts a filesystem for all users and must run as root: use sudo, or a systemd unit")]
    NotRoot,
    /// Anything else.
    #[error("cannot use the mount point {0}: {1}")]
    Io(PathBuf, io::Error),
}

/// What is at a mount point.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Directory { empty: bool },
    Dead,
}

/// True if this process may mount.
///
/// # Errors
/// [`MountPointError::NotRoot`] or [`MountPointError::NoFuse`].
pub fn check_privileges() -> Result<(), MountPointError> {
    if !rustix::process::geteuid().is_root() {
        return Err(MountPointError::NotRoot);
    }
    if !Path::new(FUSE_DEVICE).exists() {
        return Err(MountPointError::NoFuse);
    }
    Ok(())
}

/// For `init` and `join`: the mount point is an empty directory that nothing is mounted on.
///
/// # Errors
/// [`MountPointError`] says what to do.
pub fn check_new(path: &Path) -> Result<(), MountPointError> {
    match look(path)? {
        Found::Dead => Err(MountPointError::Stale(path.to_owned())),
        Found::Directory { .. } if let Some(what) = mounted(path)? => {
            Err(MountPointError::Busy(path.to_owned(), what))
        }
        Found::Directory { empty: false } => Err(MountPointError::NotEmpty(path.to_owned())),
        Found::Directory { empty: true } => Ok(()),
    }
}

/// True if what is mounted there is a killed predecessor's tree.
fn is_left_over(path: &Path) -> Result<bool, MountPointError> {
    Ok(mounted(path)?.is_some_and(|kind| kind == MOUNT_TYPE) && look(path)? == Found::Dead)
}

/// For `run`, before it waits for the cluster: [`prepare`] will be able to. A killed predecessor's mount stays until
/// then: as long as it is there, whoever uses the tree gets errors, and does not write to the machine's own disk.
///
/// # Errors
/// [`MountPointError`] says what to do.
pub fn check(path: &Path) -> Result<(), MountPointError> {
    if is_left_over(path)? {
        Ok(())
    } else {
        prepare(path)
    }
}

/// For `run`, right before it mounts: clears a killed predecessor's mount away; whatever else is mounted there is left
/// alone.
///
/// # Errors
/// [`MountPointError`] says what to do.
pub fn prepare(path: &Path) -> Result<(), MountPointError> {
    if is_left_over(path)? {
        tracing::warn!(mount = %path.display(), "clearing the mount of a daemon that was killed");
        detach(path)?;
    }
    if let Some(what) = mounted(path)? {
        return Err(MountPointError::Busy(path.to_owned(), what));
    }
    match look(path)? {
        Found::Dead => Err(MountPointError::Stale(path.to_owned())),
        Found::Directory { empty } => {
            if !empty {
                tracing::warn!(mount = %path.display(), "the mount point is not empty: what it holds is hidden now");
            }
            Ok(())
        }
    }
}

/// Unmounts lazily: the name is free at once, files that are still open there fail.
///
/// # Errors
/// [`MountPointError::Io`].
pub fn detach(path: &Path) -> Result<(), MountPointError> {
    rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)
        .map_err(|error| MountPointError::Io(path.to_owned(), error.into()))
}

fn look(path: &Path) -> Result<Found, MountPointError> {
    // The listing shows whether a daemon answers: the kernel may still know the attributes of one that was just killed.
    let listed = std::fs::metadata(path).and_then(|data| {
        if data.is_dir() {
            let first = std::fs::read_dir(path)?.next().transpose()?;
            return Ok(Some(first.is_none()));
        }
        Ok(None)
    });
    match listed {
        Ok(Some(empty)) => Ok(Found::Directory { empty }),
        Ok(None) => Err(MountPointError::NotDirectory(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(MountPointError::Missing(path.to_owned()))
        }
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOTCONN | Errno::CONNABORTED) => Ok(Found::Dead),
            _ => Err(MountPointError::Io(path.to_owned(), error)),
        },
    }
}

/// The type of what is mounted on `path`, if anything is.
///
/// # Errors
/// If the mount table cannot be read.
pub fn mounted(path: &Path) -> Result<Option<String>, MountPointError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo");
    let table = table.map_err(|error| MountPointError::Io(path.to_owned(), error))?;
    Ok(find_mount(&table, path))
}

/// The device (`st_dev`) that all files of the mount on `path` are on, if that is one of ours. Asks nobody but the kernel.
///
/// # Errors
/// If the mount table cannot be read.
pub fn device(path: &Path) -> Result<Option<u64>, MountPointError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo");
    let table = table.map_err(|error| MountPointError::Io(path.to_owned(), error))?;
    Ok(find_device(&table, path))
}

/// The topmost mount on `path` in the text of a mountinfo file.
fn find_mount(table: &str, path: &Path) -> Option<String> {
    let (_, rest) = find_line(table, path)?;
    Some(rest.split(' ').next().unwrap_or("unknown").to_owned())
}

/// The device of the topmost mount on `path`, if it is a mount of ours.
fn find_device(table: &str, path: &Path) -> Option<u64> {
    let (fields, rest) = find_line(table, path)?;
    let (major, minor) = fields.split(' ').nth(2)?.split_once(':')?;
    (rest.split(' ').next() == Some(MOUNT_TYPE))
        .then(|| Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?)))
        .flatten()
}

/// The two halves of the last line about `path`.
fn find_line<'a>(table: &'a str, path: &Path) -> Option<(&'a str, &'a str)> {
    let halves = |line: &'a str| {
        let halves = line.split_once(" - ")?;
        let point = unescape(halves.0.split(' ').nth(4)?);
        (Path::new(&point) == path).then_some(halves)
    };
    table.lines().rev().find_map(halves)
}

/// mountinfo writes space, tab, newline and backslash as octal.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| {
            text.replace(escape, plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_understood() {
        let table = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                     36 22 0:42 / /mnt/my\\040cluster rw - fuse.bramble bramble rw\n\
                     37 22 0:43 / /mnt/two rw - tmpfs tmpfs rw\n\
                     38 37 0:44 / /mnt/two rw - fuse.bramble bramble rw\n";
        assert_eq!(
            find_mount(table, Path::new("/mnt/my cluster")).as_deref(),
            Some("fuse.bramble")
        );
        assert_eq!(
            find_mount(table, Path::new("/mnt/two")).as_deref(),
            Some("fuse.bramble")
        );
        assert_eq!(find_mount(table, Path::new("/")).as_deref(), Some("ext4"));
        assert_eq!(find_mount(table, Path::new("/mnt")), None);
        assert_eq!(
            find_device(table, Path::new("/mnt/two")),
            Some(rustix::fs::makedev(0, 44))
        );
        assert_eq!(find_device(table, Path::new("/")), None, "not a mount of ours");
        assert_eq!(find_device("garbage", Path::new("/mnt/two")), None);
    }

    #[test]
    fn mount_points_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_new(dir.path()).is_ok());
        assert!(matches!(
            check_new(&dir.path().join("none")),
            Err(MountPointError::Missing(_))
        ));
        let file = dir.path().join("file");
        super::super::files::replace_file(&raftstore::disk::RealDisk, &file, b"x", 0o600).unwrap();
        assert!(matches!(check_new(&file), Err(MountPointError::NotDirectory(_))));
        assert!(matches!(check_new(dir.path()), Err(MountPointError::NotEmpty(_))));
        assert!(
            prepare(dir.path()).is_ok(),
            "a daemon that starts again only warns"
        );
        assert!(matches!(
            check_new(Path::new("/proc")),
            Err(MountPointError::Busy(..))
        ));
    }
}
