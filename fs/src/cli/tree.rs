//! The directory in the tree in which the machines of the cluster tell each other things.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::text;
use crate::node::mountpoint;

/// Its name.
pub(super) const DIR: &str = ".bramble";
/// What statfs says of a FUSE filesystem.
const FUSE_MAGIC: u64 = 0x6573_5546;

/// Opens the root of the tree, with [`DIR`] in it: never of the directory under an absent tree.
pub(super) fn open(mount: &Path) -> Result<OwnedFd, String> {
    let dir_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(mount, dir_flags, Mode::empty()).map_err(text)?;
    let is_fuse = u64::try_from(rustix::fs::fstatfs(&root).map_err(text)?.f_type) == Ok(FUSE_MAGIC);
    let kind = mountpoint::mounted(mount).map_err(text)?;
    if !is_fuse || kind.as_deref() != Some(mountpoint::MOUNT_TYPE) {
        return Err("the tree is not mounted".into());
    }
    match rustix::fs::mkdirat(&root, DIR, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.to_string()),
    }
    Ok(root)
}
