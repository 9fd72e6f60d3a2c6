//! Cleaning up, however the lab ends: by itself, by an error, by Ctrl-C or by `kill -9`.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{Error, Result, files};

/// A directory, and a process that removes it with all that is listed in it once this value is dropped or this
/// process has ended.
#[derive(Debug)]
pub struct Janitor {
    dir: PathBuf,
    process: Child,
}

/// What can be listed.
#[derive(Debug, Clone, Copy)]
pub enum Listed {
    /// A network namespace: all its processes are killed, and it is deleted.
    Netns,
    /// A loop device: detached, if its file is in the directory.
    Loop,
    /// A file of a limit, and what to write there to lift it.
    Limit,
    /// A control group: removed.
    Cgroup,
}

impl Janitor {
    /// Makes the directory in `parent`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(parent: &Path, system: &str) -> Result<Self> {
        let dir = parent.join(format!("bramble-lab-{}-{system}", std::process::id()));
        files::make_dir(&dir)?;
        let process = Command::new("/bin/sh")
            .args(["-c", include_str!("janitor.sh"), "janitor"])
            .arg(&dir)
            .stdin(Stdio::piped())
            // A group of its own, so that Ctrl-C at the terminal does not reach it.
            .process_group(0)
            .spawn()
            .map_err(Error::io("start a shell to clean up", &dir))?;
        Ok(Self { dir, process })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lists something; to be called before it is made.
    ///
    /// # Errors
    /// If the list cannot be written.
    pub fn list(&self, what: Listed, line: &str) -> Result<()> {
        let list = match what {
            Listed::Netns => "netns",
            Listed::Loop => "loops",
            Listed::Limit => "limits",
            Listed::Cgroup => "cgroups",
        };
        files::append(&self.dir.join(list), &format!("{line}\n"))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
