//! Files of the benchmark itself, not those it measures: job files, reports.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark is no part of the simulated system: its own files are ordinary ones"
)]

use std::fs;
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
