//! The pack files that are open: a bounded number of them, since a store may have thousands.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use raftstore::disk::{Disk, DiskFile, Open};

use super::format::{BLOCK_BYTES, pack_name};

/// Packs kept open for reading.
const OPEN_FILES_MAX: usize = 32;

/// Opens packs and remembers the ones used last.
pub(super) struct PackFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    open: Mutex<VecDeque<(u32, Arc<dyn DiskFile>)>>,
}

impl PackFiles {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self {
            disk,
            dir,
            open: Mutex::new(VecDeque::new()),
        }
    }

    pub(super) fn path(&self, pack: u32) -> PathBuf {
        self.dir.join(pack_name(pack))
    }

    /// An existing pack.
    pub(super) fn get(&self, pack: u32) -> io::Result<Arc<dyn DiskFile>> {
        let known = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.iter()
                .position(|(number, _)| *number == pack)
                .and_then(|at| open.remove(at))
        };
        let file = match known {
            Some((_, file)) => file,
            None => self.disk.open(&self.path(pack), Open::Existing)?,
        };
        self.remember(pack, Arc::clone(&file));
        Ok(file)
    }

    /// Makes a pack and its name durable.
    pub(super) fn create(&self, pack: u32) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(&self.path(pack), Open::New)?;
        self.disk.sync_dir(&self.dir)?;
        self.remember(pack, Arc::clone(&file));
        Ok(file)
    }

    /// Removes a pack. Readers that have it open finish in peace.
    pub(super) fn remove(&self, pack: u32) -> io::Result<()> {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(number, _)| *number != pack);
        self.disk.remove(&self.path(pack))
    }

    /// Keeps a pack of which nothing can be told for whoever wants to examine it, out of the way.
    pub(super) fn set_aside(&self, pack: u32) -> io::Result<()> {
        self.disk
            .rename(&self.path(pack), &self.dir.join(format!("damaged-{pack:08x}")))
    }

    pub(super) fn available_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.space(&self.dir)?.available_bytes)
    }

    fn remember(&self, pack: u32, file: Arc<dyn DiskFile>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.iter().all(|(number, _)| *number != pack) {
            open.push_back((pack, file));
        }
        if open.len() > OPEN_FILES_MAX {
            open.pop_front();
        }
    }
}

/// Byte offset of a block.
pub(super) fn at_block(block: u32) -> u64 {
    u64::from(block) * BLOCK_BYTES as u64
}
