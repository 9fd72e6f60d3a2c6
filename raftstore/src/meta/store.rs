//! The state machine's state on an engine, shared by the one that applies and those that read.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Observer, Reader};
use crate::kv::{Engine, KvError};

/// The metadata of one node.
pub struct MetaStore {
    engine: Arc<dyn Engine>,
}

impl MetaStore {
    /// Over an engine that may hold an earlier state.
    pub fn open(engine: Arc<dyn Engine>, _spool_dir: &Path) -> Result<Self, KvError> {
        Ok(Self { engine })
    }

    /// Reads the newest state.
    #[must_use]
    pub fn reader(&self) -> Reader {
        let _ = &self.engine;
        unimplemented!()
    }

    /// Reads the state as it is now, whatever comes.
    pub fn snapshot(&self) -> Result<Reader, KvError> {
        unimplemented!()
    }

    /// The index of the last applied entry; 0 at first. Announced after observers have run.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }

    /// Adds an observer; it hears of everything applied from now on.
    pub fn observe(&self, _observer: Arc<dyn Observer>) {}
}
