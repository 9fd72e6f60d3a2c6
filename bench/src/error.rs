//! What can go wrong.

use std::io;
use std::path::{Path, PathBuf};

/// The result of most functions here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a benchmark did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A job file says something that this program does not do.
    #[error("{file}:{line}: {what}")]
    JobFile {
        /// As it was given.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what to write instead.
        what: String,
    },
    /// A call on the measured directory, or on a file of ours, failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the file's name.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The filesystem returned other bytes than were written.
    #[error("WRONG DATA in {file} at offset {offset}: {what}")]
    Verify {
        /// Its name in the measured directory.
        file: String,
        /// Of the block, in bytes.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// A report could not be read.
    #[error("{path} is no report of bramble-bench or of fio --output-format=json: {source}")]
    Report {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A program that the lab called failed.
    #[error("`{command}` failed: {what}")]
    Command {
        /// With its arguments.
        command: String,
        /// Its exit status and the end of what it printed.
        what: String,
    },
    /// The request makes no sense, or the machine lacks something.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// As fio reports it: the system's number if there is one.
    #[must_use]
    pub fn number(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(1),
            _ => 1,
        }
    }

    /// For `map_err` on a call with the file `path`.
    pub fn io(doing: &str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let doing = format!("cannot {doing} {}", path.as_ref().display());
        move |source| Self::Io { doing, source }
    }
}
