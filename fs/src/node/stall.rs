//! A medium that does not answer.
//!
//! A card that is about to die, or that another program keeps busy, may hold a call for minutes. A majority of media is enough
//! to commit, so others need not wait for it. But what this node does not apply it does not answer as leader, and does not give
//! leases back for. So it gives leadership away, and then its session up, which lets the others go on; when the medium answers
//! again, the node is back with a new session.
//!
//! While this node leads, only a medium counts that holds up both the journal and what is to be applied: a batch alone may take
//! long because it is large, and for the leader's journal alone nobody waits. One that follows gets nothing more to apply once its
//! journal stands still, since the leader sends only so much that was not acknowledged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use raftstore::clock::Clock;
use raftstore::journal::Journal;
use raftstore::meta::MetaStore;

use super::leader::succession::Succession;
use super::raft::Raft;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A leader whose medium has not answered for so long lets another lead.
const LEAD_MAX: Duration = Duration::from_secs(4);
/// A leader whose medium has not answered for so long shows no signs of life.
const LEADER_LIVE_MAX: Duration = Duration::from_secs(8);
/// Another node whose medium has not answered for so long shows none. It is longer since nobody may be waiting for what it holds,
/// and what was not synced there is lost with the session.
const LIVE_MAX: Duration = Duration::from_secs(15);

/// For how long the node's medium has not answered.
pub struct Stall {
    journal: Arc<Journal>,
    meta: Arc<MetaStore>,
    raft: Raft,
    clock: Arc<dyn Clock>,
    /// What had been applied at the last look, if not all, and since when that is so.
    behind: Mutex<Option<(u64, Duration)>>,
    /// As of the last look.
    silent: AtomicBool,
}

impl Stall {
    /// None yet; [`watch`] has to run.
    #[must_use]
    pub fn new(journal: Arc<Journal>, meta: Arc<MetaStore>, raft: Raft, clock: Arc<dyn Clock>) -> Self {
        Self {
            journal,
            meta,
            raft,
            clock,
            behind: Mutex::new(None),
            silent: AtomicBool::new(false),
        }
    }

    /// Whether this node should not count as alive.
    #[must_use]
    pub fn is_silencing(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// For how long the journal has stood still, and that together with what is to be applied.
    fn look(&self, leads: bool) -> (Duration, Duration) {
        let now = self.clock.monotonic();
        let applied = *self.meta.applied().borrow();
        let is_behind = self.raft.metrics().borrow_watched().last_log_index > Some(applied);
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        let since = behind
            .filter(|(seen, _)| *seen == applied)
            .map_or(now, |(_, since)| since);
        *behind = is_behind.then_some((applied, since));
        let journal = self.journal.waited();
        let both = now.saturating_sub(since).min(journal);
        let silent = both >= LEADER_LIVE_MAX || (journal >= LIVE_MAX && !leads);
        self.silent.store(silent, Ordering::Relaxed);
        (journal, both)
    }
}

/// Looks again and again; gives leadership away if need be.
pub async fn watch(stall: Arc<Stall>, succession: Succession) {
    let mut warned = false;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let (journal, both) = stall.look(succession.leads());
        if journal < LEAD_MAX {
            if warned {
                tracing::warn!("the medium answers again");
            }
            warned = false;
            continue;
        }
        if !warned {
            tracing::error!(
                seconds = journal.as_secs(),
                "the medium does not answer; is it about to fail?"
            );
            warned = true;
        }
        if both >= LEAD_MAX
            && let Some(heir) = succession.heir()
        {
            succession.hand_over(heir).await;
        }
    }
}
