//! Names for new chunks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use raftstore::meta::{ChunkId, SessionId};

use crate::backend::ChunkGuard;

/// Gives out the chunk names of one session, and knows which of them are still on their way to an op.
#[derive(Debug)]
pub struct ChunkNamer {
    session: SessionId,
    state: Mutex<Names>,
}

#[derive(Debug)]
struct Names {
    next: u64,
    /// Named, guard not yet dropped.
    held: BTreeSet<u64>,
}

impl ChunkNamer {
    /// For a new session: names are counted from 1, so a session must have one namer only.
    #[must_use]
    pub fn new(session: SessionId) -> Arc<Self> {
        Arc::new(Self {
            session,
            state: Mutex::new(Names {
                next: 1,
                held: BTreeSet::new(),
            }),
        })
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Names a chunk. While the guard lives, [`ChunkNamer::floor`] stays at or below the name.
    #[must_use]
    pub fn name(self: &Arc<Self>) -> ChunkGuard {
        let seq = {
            let mut names = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let seq = names.next;
            names.next += 1;
            names.held.insert(seq);
            seq
        };
        let namer = Arc::clone(self);
        let release = move || {
            namer
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .held
                .remove(&seq);
        };
        ChunkGuard::new(
            ChunkId {
                session: self.session.0,
                seq,
            },
            Box::new(release),
        )
    }

    /// What a proposal carries as `chunk_floor`: no chunk of the session with a lower `seq` is on its way any more.
    #[must_use]
    pub fn floor(&self) -> u64 {
        let names = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        names.held.first().copied().unwrap_or(names.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_waits_for_the_oldest_guard() {
        let namer = ChunkNamer::new(SessionId(9));
        assert_eq!(namer.floor(), 1);
        let (first, second) = (namer.name(), namer.name());
        assert_eq!((first.id, second.id.seq), (ChunkId { session: 9, seq: 1 }, 2));
        drop(second);
        assert_eq!(namer.floor(), 1);
        drop(first);
        assert_eq!(namer.floor(), 3);
    }
}
