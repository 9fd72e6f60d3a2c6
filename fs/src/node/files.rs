//! Small files of the store: configuration, identity, certificates. All are replaced whole and durably.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Creates a directory that only its owner can enter.
///
/// # Errors
/// Those of mkdir and chmod.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Puts `bytes` in place of what `path` held, so that a power cut leaves either the old or the new contents.
///
/// # Errors
/// Those of the underlying system calls.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    #[expect(
        clippy::disallowed_methods,
        reason = "start-up files, outside of what the simulation covers"
    )]
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Makes the name of `path` durable.
///
/// # Errors
/// Those of open and fsync.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    sync_dir(parent)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Those of open and fsync.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "start-up files, outside of what the simulation covers"
    )]
    let directory = fs::File::open(dir)?;
    directory.sync_all()
}
