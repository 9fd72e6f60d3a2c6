//! Files of the benchmark itself, not those it measures: job files, reports.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark is no part of the simulated system: its own files are ordinary ones"
)]

use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::{Error, Result};

/// A file's text.
///
/// # Errors
/// With the file's name.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}

/// Writes a file.
///
/// # Errors
/// With the file's name.
pub fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io("write", path))
}

/// Writes a file anew; whoever reads it finds the old text or the new one.
///
/// # Errors
/// With the file's name.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    write(temporary.as_ref(), text)?;
    fs::rename(&temporary, path).map_err(Error::io("write", path))
}

/// Appends to a file, which is made if it is missing.
///
/// # Errors
/// With the file's name.
pub fn append(path: &Path, text: &str) -> Result<()> {
    append_to(path)?
        .write_all(text.as_bytes())
        .map_err(Error::io("write", path))
}

/// Opens a file to append to, which is made if it is missing.
///
/// # Errors
/// With the file's name.
pub fn append_to(path: &Path) -> Result<fs::File> {
    let open = fs::OpenOptions::new().create(true).append(true).open(path);
    open.map_err(Error::io("open", path))
}

/// Makes a file of so many bytes, with nothing in it.
///
/// # Errors
/// With the file's name.
pub fn make_sparse(path: &Path, bytes: u64) -> Result<()> {
    fs::File::create(path)
        .and_then(|file| file.set_len(bytes))
        .map_err(Error::io("make", path))
}

/// Makes a directory.
///
/// # Errors
/// With its name; also if it is there.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir(path).map_err(Error::io("make", path))
}
