//! What the leader hears from the nodes. Lives in memory: a new leader starts with fresh countdowns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bramble_proto::{KeepAliveRequest, NodeReport, NodeStats};
use raftstore::clock::Clock;
use raftstore::meta::{NodeId, SessionId};

/// A node not heard of for this long counts as unreachable.
pub const SILENT_AFTER: Duration = Duration::from_secs(4);
/// A session without a sign of life for this long is expired.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// So long after it sent a sign of life that a leader took, a node may show what it keeps under leases. A leader counts
/// from when it heard of the node, or from when it took office, both of which are later.
pub const VALIDITY: Duration = Duration::from_secs(4);
/// A session that is silent for this long is looked after: its process may be gone.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(1500);

// Also if the node's clock runs a tenth too slow, and the leader's a tenth too fast.
const _: () = assert!(VALIDITY.as_millis() * 5 / 4 < SESSION_TIMEOUT.as_millis());

/// The last sign of life of a node.
#[derive(Debug, Clone)]
pub struct Heard {
    /// When, on this node's monotonic clock.
    pub at: Duration,
    /// The session it said it has.
    pub session: SessionId,
    /// What it had applied.
    pub applied_index: u64,
    /// The program version it runs.
    pub version: String,
    /// Memory and medium.
    pub stats: NodeStats,
    /// Where it says it listens.
    pub listen: String,
}

/// Signs of life by node.
pub struct Liveness {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When this leader began to listen.
    since: Duration,
    heard: BTreeMap<NodeId, Heard>,
    /// The last sign of life of each session, or when it was first seen.
    sessions: BTreeMap<SessionId, Duration>,
    /// Those that are being expired. Signs of life come too late for them: that one was taken lets a node use its
    /// leases for a while.
    condemned: BTreeSet<SessionId>,
}

impl State {
    fn is_suspect(&self, session: SessionId, now: Duration) -> bool {
        let last = self.sessions.get(&session);
        last.is_some_and(|last| now.saturating_sub(*last) >= SUSPECT_AFTER)
    }
}

impl Liveness {
    /// Nothing heard yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State {
            since: clock.monotonic(),
            ..State::default()
        };
        Self {
            clock,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node has just become the leader: what it heard earlier is old, and every countdown starts again.
    pub fn take_office(&self) {
        *self.state() = State {
            since: self.clock.monotonic(),
            ..State::default()
        };
    }

    /// This node stood still for a while: every countdown starts again. What it has set out to expire may yet be.
    pub fn restart(&self) {
        let mut state = self.state();
        *state = State {
            since: self.clock.monotonic(),
            condemned: std::mem::take(&mut state.condemned),
            ..State::default()
        };
    }

    /// A node has called.
    pub fn heard(&self, request: &KeepAliveRequest) {
        let heard = Heard {
            at: self.clock.monotonic(),
            session: SessionId(request.session),
            applied_index: request.applied_index,
            version: request.version.clone(),
            stats: request.stats.unwrap_or_default(),
            listen: request.listen.clone(),
        };
        let mut state = self.state();
        state.sessions.insert(heard.session, heard.at);
        state.heard.insert(request.node_id, heard);
    }

    /// Forgets nodes that are no members.
    pub fn retain(&self, is_member: impl Fn(NodeId) -> bool) {
        self.state().heard.retain(|node, _| is_member(*node));
    }

    /// What was heard from a node, if anything.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Option<Heard> {
        self.state().heard.get(&node).cloned()
    }

    /// True if the node was heard of recently.
    #[must_use]
    pub fn is_live(&self, node: NodeId) -> bool {
        let now = self.clock.monotonic();
        self.state()
            .heard
            .get(&node)
            .is_some_and(|heard| now.saturating_sub(heard.at) < SILENT_AFTER)
    }

    /// False only if the node has certainly been silent for a while: a leader that began just now cannot tell yet.
    #[must_use]
    pub fn may_be_live(&self, node: NodeId) -> bool {
        let began = self.state().since;
        self.is_live(node) || self.clock.monotonic().saturating_sub(began) < SILENT_AFTER
    }

    /// Those of `sessions`, which are all there are, that have shown no sign of life for [`SESSION_TIMEOUT`]. One
    /// that this leader has not seen before gets the full time. No sign of life is taken from them any more, and they
    /// stay expired until they are gone.
    #[must_use]
    pub fn expired(&self, sessions: &[SessionId]) -> Vec<SessionId> {
        let now = self.clock.monotonic();
        let mut guard = self.state();
        let state = &mut *guard;
        state.sessions.retain(|session, _| sessions.contains(session));
        state.condemned.retain(|session| sessions.contains(session));
        for session in sessions {
            if now.saturating_sub(*state.sessions.entry(*session).or_insert(now)) >= SESSION_TIMEOUT {
                state.condemned.insert(*session);
            }
        }
        state.condemned.iter().copied().collect()
    }

    /// True if this session has shown no sign of life for [`SUSPECT_AFTER`].
    #[must_use]
    pub fn is_suspect(&self, session: SessionId) -> bool {
        self.state().is_suspect(session, self.clock.monotonic())
    }

    /// The process that this session belongs to is gone, as far as others can tell: the session is
    /// [expired](Liveness::expired), unless it has shown a sign of life since.
    pub fn condemn_suspect(&self, session: SessionId) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        if state.is_suspect(session, now) {
            state.condemned.insert(session);
        }
    }

    /// True if this session is being expired.
    #[must_use]
    pub fn is_condemned(&self, session: SessionId) -> bool {
        self.state().condemned.contains(&session)
    }

    /// For `status` and statfs on every node.
    #[must_use]
    pub fn report(&self, members: impl Iterator<Item = NodeId>) -> Vec<NodeReport> {
        let now = self.clock.monotonic();
        let state = self.state();
        let report = |node: NodeId| match state.heard.get(&node) {
            None => NodeReport {
                node_id: node,
                ..NodeReport::default()
            },
            Some(heard) => NodeReport {
                node_id: node,
                applied_index: heard.applied_index,
                version: heard.version.clone(),
                stats: Some(heard.stats),
                silent_ms: u64::try_from(now.saturating_sub(heard.at).as_millis()).ok(),
            },
        };
        members.map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftstore::clock::Timestamp;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Hand(AtomicU64);
    impl Clock for Hand {
        fn wall(&self) -> Timestamp {
            Timestamp::default()
        }
        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::SeqCst))
        }
    }

    fn call(node: NodeId, session: u64) -> KeepAliveRequest {
        KeepAliveRequest {
            node_id: node,
            session,
            ..KeepAliveRequest::default()
        }
    }

    #[test]
    fn sessions_expire_by_silence_and_a_new_leader_counts_afresh() {
        let clock = Arc::new(Hand(AtomicU64::new(100_000)));
        let liveness = Liveness::new(clock.clone());
        let advance = |ms: u64| clock.0.fetch_add(ms, Ordering::SeqCst);
        let expired = |sessions: &[u64]| -> Vec<u64> {
            let sessions: Vec<SessionId> = sessions.iter().copied().map(SessionId).collect();
            liveness
                .expired(&sessions)
                .into_iter()
                .map(|session| session.0)
                .collect()
        };
        liveness.heard(&call(1, 11));
        advance(5_999);
        assert!(expired(&[11, 22]).is_empty() && !liveness.is_live(1));
        advance(1);
        assert_eq!(
            expired(&[11, 22]),
            [11],
            "one that was seen only now has its time before it"
        );
        advance(5_999);
        assert_eq!(expired(&[11, 22]), [11, 22]);
        liveness.take_office();
        assert!(expired(&[11, 22]).is_empty());
        assert!(liveness.may_be_live(1) && !liveness.is_live(1));
        // Signs of life of a later session do not keep an earlier one alive.
        advance(4_000);
        liveness.heard(&call(1, 12));
        advance(2_000);
        assert_eq!(expired(&[11, 12]), [11]);
        assert!(liveness.is_live(1));
    }

    #[test]
    fn a_session_that_is_being_expired_is_not_brought_back_by_a_late_sign_of_life() {
        let clock = Arc::new(Hand(AtomicU64::new(100_000)));
        let liveness = Liveness::new(clock.clone());
        let (session, other) = (SessionId(11), SessionId(22));
        liveness.heard(&call(1, 11));
        clock.0.fetch_add(6_000, Ordering::SeqCst);
        assert_eq!(liveness.expired(&[session, other]), [session]);
        liveness.heard(&call(1, 11));
        assert!(liveness.is_condemned(session) && !liveness.is_condemned(other));
        assert_eq!(liveness.expired(&[session, other]), [session]);
        // Its expiry may be in the log, also if this node stood still since.
        liveness.restart();
        assert!(liveness.is_condemned(session));
        assert!(liveness.expired(&[other]).is_empty() && !liveness.is_condemned(session));
    }

    #[test]
    fn only_a_session_that_is_silent_is_taken_for_dead() {
        let clock = Arc::new(Hand(AtomicU64::new(100_000)));
        let liveness = Liveness::new(clock.clone());
        let session = SessionId(11);
        assert!(
            !liveness.is_suspect(session),
            "one that this leader has not seen is not"
        );
        liveness.heard(&call(1, 11));
        clock.0.fetch_add(1_500, Ordering::SeqCst);
        assert!(liveness.is_suspect(session));
        liveness.heard(&call(1, 11));
        liveness.condemn_suspect(session);
        assert!(
            liveness.expired(&[session]).is_empty(),
            "it was heard of after the look"
        );
        clock.0.fetch_add(1_500, Ordering::SeqCst);
        liveness.condemn_suspect(session);
        assert_eq!(liveness.expired(&[session]), [session]);
    }
}
