//! Numbers of one session's proposals and chunks, and the floors that let the cluster forget old ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use raftstore::meta::SessionId;

use crate::chunk::ChunkNamer;

/// Counts what a session proposes and names.
#[derive(Debug)]
pub struct Numbers {
    session: SessionId,
    proposals: Counter,
    chunks: Arc<ChunkNamer>,
}

/// Counts from 1; knows the least number that is still in use.
#[derive(Debug)]
struct Counter {
    next: u64,
    in_use: BTreeSet<u64>,
}

impl Counter {
    fn new() -> Self {
        Self {
            next: 1,
            in_use: BTreeSet::new(),
        }
    }

    fn take(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.in_use.insert(number);
        number
    }

    /// Every number below is done with.
    fn floor(&self) -> u64 {
        self.in_use.first().copied().unwrap_or(self.next)
    }
}

impl Numbers {
    /// For a session that has proposed nothing yet.
    #[must_use]
    pub fn new(session: SessionId) -> Self {
        Self {
            session,
            proposals: Counter::new(),
            chunks: ChunkNamer::new(session),
        }
    }

    /// Whose numbers these are.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// A number for a proposal, with the floors that go with it.
    pub fn next_proposal(&mut self) -> (u64, u64, u64) {
        let seq = self.proposals.take();
        (seq, self.proposals.floor(), self.chunks.floor())
    }

    /// The answer to a proposal has been received. Numbers of an earlier session do not count.
    pub fn proposal_done(&mut self, session: SessionId, seq: u64) {
        if session == self.session {
            self.proposals.in_use.remove(&seq);
        }
    }

    /// Names the session's chunks.
    #[must_use]
    pub fn namer(&self) -> Arc<ChunkNamer> {
        Arc::clone(&self.chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_follow_the_oldest_that_is_open() {
        let mut numbers = Numbers::new(SessionId(9));
        assert_eq!(numbers.next_proposal(), (1, 1, 1));
        assert_eq!(numbers.next_proposal(), (2, 1, 1));
        let chunk = numbers.namer().name();
        numbers.proposal_done(SessionId(9), 2);
        assert_eq!(numbers.next_proposal(), (3, 1, 1));
        numbers.proposal_done(SessionId(9), 1);
        drop(chunk);
        assert_eq!(numbers.next_proposal(), (4, 3, 2));
    }

    #[test]
    fn another_sessions_numbers_do_not_count() {
        let mut numbers = Numbers::new(SessionId(9));
        numbers.next_proposal();
        numbers.proposal_done(SessionId(8), 1);
        assert_eq!(numbers.next_proposal(), (2, 1, 1));
    }
}
