//! Which files are open through this node's mount.

use std::sync::{Arc, OnceLock};

use raftstore::meta::Ino;

use crate::node::service::meta::OpenFiles;

/// Files open through this node's mount; set once it is mounted.
#[derive(Default)]
pub struct OpenFilesSlot(OnceLock<Arc<dyn OpenFiles>>);

impl OpenFilesSlot {
    /// From now on `files` knows.
    pub fn set(&self, files: Arc<dyn OpenFiles>) {
        let _ = self.0.set(files);
    }
}

impl OpenFiles for OpenFilesSlot {
    fn open_of(&self, inodes: &[Ino]) -> Vec<Ino> {
        self.0
            .get()
            .map(|files| files.open_of(inodes))
            .unwrap_or_default()
    }
}
