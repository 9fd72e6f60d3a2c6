//! The place in the tree that is mounted on.

use std::io;
use std::path::{Path, PathBuf};

use super::MountError;

/// Checks that the mount point can be used, clears away what a daemon that died has left there, and returns its
/// absolute path.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    // Listed, too: the kernel may still know the attributes of a daemon that was just killed.
    let answers = std::fs::metadata(path).and_then(|metadata| {
        if metadata.is_dir() {
            std::fs::read_dir(path)?.next().transpose()?;
        }
        Ok(metadata)
    });
    let metadata = match answers {
        // What a dead daemon's mount says, until it is unmounted.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            detach(path)?;
            std::fs::metadata(path)
        }
        other => other,
    };
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::Missing(path.to_owned()));
        }
        Err(error) => return Err(MountError::Unusable(path.to_owned(), error.to_string())),
    };
    if !metadata.is_dir() {
        return Err(MountError::NotDirectory(path.to_owned()));
    }
    let absolute = path
        .canonicalize()
        .map_err(|error| MountError::Unusable(path.to_owned(), error.to_string()))?;
    if let Some(mounted) = mounted_on(&absolute) {
        return Err(MountError::Busy(absolute, mounted.kind));
    }
    Ok(absolute)
}

/// Takes a mount away from the tree at once; those who still use it keep it until they are done.
pub(super) fn detach(path: &Path) -> Result<(), MountError> {
    rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)
        .map_err(|error| MountError::Unusable(path.to_owned(), error.to_string()))
}

/// Lets the kernel read ahead so much of a file that is read from its beginning to its end. The kernel's default is
/// smaller than a chunk. Must not ask the filesystem that is mounted: it may have to wait for a quorum.
pub(super) fn set_read_ahead(path: &Path, bytes: u64) -> io::Result<()> {
    let mounted = mounted_on(path).ok_or(io::ErrorKind::NotFound)?;
    #[expect(clippy::disallowed_methods, reason = "a setting of the kernel")]
    std::fs::write(
        format!("/sys/class/bdi/{}/read_ahead_kb", mounted.device),
        (bytes >> 10).to_string(),
    )
}

/// Something that is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    /// Numbers of its device, as sysfs writes them.
    device: String,
    /// Filesystem type.
    kind: String,
}

/// What is mounted exactly there, if anything is.
fn mounted_on(path: &Path) -> Option<Mounted> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().rev().find_map(|line| parse(line, path))
}

/// What a line of mountinfo tells, if its mount point is `path`.
fn parse(line: &str, path: &Path) -> Option<Mounted> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let device = fields.next()?;
    let point = unescape(fields.nth(1)?);
    (Path::new(&point) == path).then(|| Mounted {
        device: device.to_owned(),
        kind: filesystem.split(' ').next().unwrap_or_default().to_owned(),
    })
}

/// Blanks, tabs, newlines and backslashes stand there as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = text.to_owned();
    for (code, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, plain);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_point() {
        let line = "36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 - fuse.bramble bramble rw,user_id=0";
        let found = parse(line, Path::new("/mnt/a b")).unwrap();
        assert_eq!((&*found.device, &*found.kind), ("98:0", "fuse.bramble"));
        assert_eq!(parse(line, Path::new("/mnt/a")), None);
        assert_eq!(parse("nonsense", Path::new("/mnt")), None);
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = prepare(&dir.path().join("missing"));
        assert!(matches!(missing, Err(MountError::Missing(_))));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(prepare(file.path()), Err(MountError::NotDirectory(_))));
        assert!(matches!(prepare(Path::new("/proc")), Err(MountError::Busy(..))));
        assert!(prepare(dir.path()).is_ok());
    }
}
