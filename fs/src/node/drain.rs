//! Draining: a node that is about to be shut down, or worked on, gives away what moves elsewhere in a moment. Its data
//! stays, and it goes on serving its mount.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::files;
use super::leader::succession::Succession;
use super::store::{Layout, StoreError};

/// Between two looks whether a draining node leads.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Whether this node is draining; kept in its store, so that it still is after a restart.
#[derive(Debug)]
pub struct Drain {
    layout: Layout,
    on: watch::Sender<bool>,
}

impl Drain {
    /// As the store says.
    #[must_use]
    pub fn load(layout: &Layout) -> Self {
        let on = files::read(&**layout.disk(), &layout.draining()).is_ok();
        Self {
            layout: layout.clone(),
            on: watch::Sender::new(on),
        }
    }

    /// Whether it is draining now.
    #[must_use]
    pub fn is_on(&self) -> bool {
        *self.on.borrow()
    }

    /// Begins or ends it, durably.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn set(&self, on: bool) -> Result<(), StoreError> {
        let (disk, path) = (&**self.layout.disk(), self.layout.draining());
        let done = if on {
            let text = b"This node is draining; `bramble drain --undo` ends that.\n";
            files::replace_file(disk, &path, text, 0o644)
        } else {
            match disk.remove(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
                Ok(()) => files::sync_parent(disk, &path),
            }
        };
        done.map_err(|error| StoreError::io(&path, error))?;
        let changed = self.on.send_replace(on) != on;
        if changed {
            tracing::info!(on, "draining");
        }
        Ok(())
    }
}

/// Gives leadership away whenever this node has it while it is draining.
pub async fn give_way(drain: Arc<Drain>, succession: Succession) {
    let mut on = drain.on.subscribe();
    loop {
        if on.wait_for(|on| *on).await.is_err() {
            return;
        }
        if let Some(heir) = succession.undrained_heir() {
            succession.hand_over(heir).await;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Arc::new(raftstore::disk::RealDisk), dir.path());
        let drain = Drain::load(&layout);
        assert!(!drain.is_on());
        drain.set(false).unwrap();
        for _ in 0..2 {
            drain.set(true).unwrap();
            assert!(drain.is_on() && Drain::load(&layout).is_on());
        }
        drain.set(false).unwrap();
        assert!(!drain.is_on() && !Drain::load(&layout).is_on());
    }
}
