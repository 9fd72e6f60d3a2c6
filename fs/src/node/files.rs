//! Small files of the store: configuration, identity, certificates. All are replaced whole and durably.

use std::io;
use std::path::Path;

use raftstore::disk::{Disk, Open};

/// More than any of these files has; what is longer is none of ours.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Creates a directory that only its owner can enter, durably; its parent must exist.
///
/// # Errors
/// Those of mkdir and chmod.
pub fn create_private_dir(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    disk.create_dir_all(path)?;
    disk.set_mode(path, 0o700)
}

/// All that a file holds.
///
/// # Errors
/// Those of open and read; `InvalidData` if it is too long.
pub fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Open::Read)?;
    let len = file.len()?;
    if len > FILE_BYTES_MAX {
        let text = format!("{len} bytes are too many: this program never wrote that");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// As [`read`], for text.
///
/// # Errors
/// As [`read`]; `InvalidData` if it is no UTF-8.
pub fn read_text(disk: &dyn Disk, path: &Path) -> io::Result<String> {
    String::from_utf8(read(disk, path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Puts `bytes` in place of what `path` held, so that a power cut leaves either the old or the new contents.
///
/// # Errors
/// Those of the underlying system calls.
pub fn replace_file(disk: &dyn Disk, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let draft = path.with_extension("new");
    let file = disk.open(&draft, Open::Any)?;
    // Before it holds anything: a key must never be there for all to read.
    disk.set_mode(&draft, mode)?;
    file.set_len(0)?;
    file.write_all_at(bytes, 0)?;
    file.sync_data()?;
    drop(file);
    disk.rename(&draft, path)?;
    sync_parent(disk, path)
}

/// The directory that `path` is in.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the name of `path` durable.
///
/// # Errors
/// Those of open and fsync.
pub fn sync_parent(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    disk.sync_dir(parent(path))
}
