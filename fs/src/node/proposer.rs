//! Gets proposals committed exactly once, whatever happens to the leader meanwhile.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftstore::clock::Clock;
use raftstore::meta::{Data, MetaError, MetaStore, Op, Proposal, Reply, SessionId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::{Limits, OnQuorumLoss};
use super::leader::duties::Decided;
use super::session::SessionKeeper;
use super::transport::leader_client::LeaderClient;
use super::transport::wire::WireError;
use crate::backend::BackendError;

/// After this time without an answer, `on_quorum_loss = error` fails a call.
const PATIENCE: Duration = Duration::from_secs(8);
/// Unit of the bound on payload in flight.
const BYTES_PER_PERMIT: u64 = 1024;

/// Commits proposals under this node's session.
pub struct Proposer {
    leader: Arc<LeaderClient>,
    session: Arc<SessionKeeper>,
    meta: Arc<MetaStore>,
    clock: Arc<dyn Clock>,
    gate: Gate,
}

impl Proposer {
    /// Bounded by `limits`.
    #[must_use]
    pub fn new(
        leader: Arc<LeaderClient>,
        session: Arc<SessionKeeper>,
        meta: Arc<MetaStore>,
        clock: Arc<dyn Clock>,
        on_quorum_loss: OnQuorumLoss,
        limits: &Limits,
    ) -> Self {
        Self {
            leader,
            session,
            meta,
            clock,
            gate: Gate::new(on_quorum_loss, limits),
        }
    }

    /// See [`crate::backend::Propose::submit`]. A proposal that was admitted runs in a task of its own: a caller that
    /// goes away (an interrupted system call) abandons the answer, not the proposal. One that goes away before leaves
    /// nothing behind.
    ///
    /// # Errors
    /// As there.
    pub async fn submit(self: &Arc<Self>, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        self.submit_under(None, op, payload).await
    }

    /// See [`crate::backend::Backend::submit_within`].
    ///
    /// # Errors
    /// As there.
    pub async fn submit_within(
        self: &Arc<Self>,
        session: SessionId,
        op: Op,
        payload: Bytes,
    ) -> Result<Reply, BackendError> {
        self.submit_under(Some(session), op, payload).await
    }

    async fn submit_under(
        self: &Arc<Self>,
        only: Option<SessionId>,
        op: Op,
        payload: Bytes,
    ) -> Result<Reply, BackendError> {
        let this = Arc::clone(self);
        self.gate
            .run(payload.len(), move || async move {
                this.drive(only, op, payload).await
            })
            .await
    }

    async fn drive(&self, only: Option<SessionId>, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        loop {
            let session = self.session.open_session().await.map_err(stopped)?;
            if let Some(gone) = only.filter(|only| *only != session) {
                return Err(BackendError::Meta(MetaError::SessionExpired(gone)));
            }
            let Some(proposal) = self.number(session, op.clone(), payload.clone()) else {
                // The session changed since.
                continue;
            };
            let seq = proposal.seq;
            let (decided, attempt) = self.until_decided(&proposal).await;
            self.session.numbers().proposal_done(session, seq);
            let (index, answer) = decided?;
            if answer == Err(MetaError::SessionExpired(session)) {
                self.session.session_lost(session);
                if only.is_none() && may_repropose(attempt, &op, session) {
                    continue;
                }
            }
            self.wait_applied(index).await?;
            if let Err(error) = &answer
                && !matches!(error, MetaError::Refused(_))
                && !(only.is_some() && matches!(error, MetaError::SessionExpired(_)))
            {
                tracing::warn!(%error, ?attempt, ?op, "a change failed");
            }
            return answer.map_err(BackendError::Meta);
        }
    }

    fn number(&self, session: SessionId, op: Op, payload: Bytes) -> Option<Proposal> {
        let mut numbers = self.session.numbers();
        if numbers.session() != session {
            return None;
        }
        let (seq, ack_floor, chunk_floor) = numbers.next_proposal();
        Some(Proposal {
            session,
            seq,
            ack_floor,
            chunk_floor,
            time: self.clock.wall(),
            op,
            payload,
        })
    }

    /// Repeats one proposal, number and all, until it is decided: the state machine answers a repeat with the first
    /// one's answer.
    async fn until_decided(&self, proposal: &Proposal) -> (Result<Decided, BackendError>, Attempt) {
        let mut attempt = Attempt::First;
        loop {
            match self.leader.propose(proposal).await {
                Ok(decided) => return (Ok(decided), attempt),
                Err(WireError::Stopped(why)) => return (Err(BackendError::Stopped(why)), attempt),
                Err(WireError::Removed) => return (Err(stopped(WireError::Removed)), attempt),
                Err(WireError::Malformed(why)) => {
                    return (Err(BackendError::Meta(MetaError::Malformed(why))), attempt);
                }
                Err(error) => {
                    tracing::debug!(%error, seq = proposal.seq, "will propose again");
                    if !error.nothing_done() {
                        attempt = Attempt::AfterUnknown;
                    }
                    self.leader.pause().await;
                }
            }
        }
    }

    /// Waits until this node shows the entry at `index`.
    ///
    /// # Errors
    /// If the node is shutting down.
    pub async fn wait_applied(&self, index: u64) -> Result<(), BackendError> {
        let mut applied = self.meta.applied();
        let reached = applied.wait_for(|applied| *applied >= index).await.map(drop);
        reached.map_err(|_| BackendError::Stopped("the daemon is shutting down".into()))
    }
}

/// Bounds what is in flight, and decides how long a caller waits.
struct Gate {
    on_quorum_loss: OnQuorumLoss,
    /// Proposals in flight.
    count: Arc<Semaphore>,
    /// Payload in flight, in [`BYTES_PER_PERMIT`].
    bytes: Arc<Semaphore>,
    bytes_permits: u32,
}

impl Gate {
    fn new(on_quorum_loss: OnQuorumLoss, limits: &Limits) -> Self {
        let bytes_permits =
            u32::try_from(limits.inflight_bytes_max / BYTES_PER_PERMIT).unwrap_or(u32::MAX >> 4);
        Self {
            on_quorum_loss,
            count: Arc::new(Semaphore::new(limits.inflight_proposals_max as usize)),
            bytes: Arc::new(Semaphore::new(bytes_permits as usize)),
            bytes_permits,
        }
    }

    /// Runs `work` in a task of its own once there is room. Until then it is the caller's: callers that come and go
    /// while nothing can be committed must not pile up, nor may what they gave up be done hours later.
    async fn run<F>(&self, payload_bytes: usize, work: impl FnOnce() -> F) -> Result<Reply, BackendError>
    where
        F: Future<Output = Result<Reply, BackendError>> + Send + 'static,
    {
        let admitted = async {
            let permits = self.admit(payload_bytes).await?;
            let work = work();
            let task = tokio::spawn(async move {
                let _permits = permits;
                work.await
            });
            let stopped = |_| Err(BackendError::Stopped("the daemon is shutting down".into()));
            task.await.unwrap_or_else(stopped)
        };
        match self.on_quorum_loss {
            OnQuorumLoss::Wait => admitted.await,
            OnQuorumLoss::Error => match tokio::time::timeout(PATIENCE, admitted).await {
                Ok(result) => result,
                Err(_) => Err(no_quorum()),
            },
        }
    }

    async fn admit(&self, payload_bytes: usize) -> Result<[OwnedSemaphorePermit; 2], BackendError> {
        let stopped = |_| BackendError::Stopped("the daemon is shutting down".into());
        let permits = u64::try_from(payload_bytes).unwrap_or(u64::MAX) / BYTES_PER_PERMIT + 1;
        let permits = u32::try_from(permits).unwrap_or(u32::MAX).min(self.bytes_permits);
        let count = Arc::clone(&self.count).acquire_owned().await.map_err(stopped)?;
        let bytes = Arc::clone(&self.bytes)
            .acquire_many_owned(permits)
            .await
            .map_err(stopped)?;
        Ok([count, bytes])
    }
}

fn stopped(error: WireError) -> BackendError {
    BackendError::Stopped(error.to_string())
}

/// What a caller is told who does not want to wait for a quorum.
#[must_use]
pub fn no_quorum() -> BackendError {
    BackendError::NoQuorum("too few nodes can be reached; `bramble status` says which".into())
}

/// What came before the attempt that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// Nothing that could have been committed.
    First,
    /// An attempt whose outcome is not known.
    AfterUnknown,
}

/// Whether an op that was refused because its session had expired may be proposed under another session. Not if an
/// earlier attempt may have been committed before the session expired: the new session would do it again. Not if the
/// op names something of the old session, which went with it.
fn may_repropose(attempt: Attempt, op: &Op, session: SessionId) -> bool {
    let names_session = match op {
        Op::Lock { lock, .. } => lock.owner.session == session,
        Op::Unlock { owner, .. } => owner.session == session,
        Op::Write {
            data: Data::Chunk { id, .. },
            ..
        } => id.session == session.0,
        // Done under leases, which went with it.
        Op::Batch { .. } | Op::Flush { .. } | Op::Create { ino: Some(_), .. } => true,
        Op::Merge { runs, .. } => runs.iter().any(|run| run.chunk.session == session.0),
        _ => false,
    };
    attempt == Attempt::First && !names_session
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftstore::meta::{ChunkId, Lock, LockKind, LockOwner, WriteAt};

    /// Polls a future until everything that can go on has gone on.
    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_before_there_is_room_leaves_nothing_behind() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let limits = Limits {
            inflight_proposals_max: 1,
            ..Limits::default()
        };
        let gate = Arc::new(Gate::new(OnQuorumLoss::Wait, &limits));
        let begun = Arc::new(AtomicU32::new(0));
        let (finish, finished) = tokio::sync::watch::channel(false);
        let call = || {
            let (gate, begun, mut finished) = (gate.clone(), begun.clone(), finished.clone());
            tokio::spawn(async move {
                let work = move || async move {
                    begun.fetch_add(1, Ordering::SeqCst);
                    let _ = finished.wait_for(|finished| *finished).await;
                    Ok(Reply::Done)
                };
                gate.run(1, work).await
            })
        };
        let first = call();
        settle().await;
        let killed = call();
        settle().await;
        killed.abort();
        settle().await;
        // The first one's caller goes too, but it was admitted: it goes on.
        first.abort();
        settle().await;
        finish.send_replace(true);
        settle().await;
        assert_eq!(
            begun.load(Ordering::SeqCst),
            1,
            "what was given up was done all the same"
        );
        call().await.unwrap().unwrap();
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn only_what_certainly_was_not_done_is_proposed_again() {
        let session = SessionId(5);
        let op = Op::Reap { inodes: vec![] };
        assert!(may_repropose(Attempt::First, &op, session));
        assert!(!may_repropose(Attempt::AfterUnknown, &op, session));
    }

    #[test]
    fn what_belongs_to_the_old_session_is_not_proposed_under_another() {
        let session = SessionId(5);
        let owner = LockOwner {
            session,
            token: 1,
            kind: LockKind::Flock,
        };
        let lock = Lock {
            owner,
            pid: 1,
            exclusive: true,
            start: 0,
            end: u64::MAX,
        };
        assert!(!may_repropose(
            Attempt::First,
            &Op::Lock { ino: 1, lock },
            session
        ));
        assert!(!may_repropose(
            Attempt::First,
            &Op::Unlock {
                ino: 1,
                owner,
                start: 0,
                end: 1
            },
            session
        ));
        let write = |data| Op::Write {
            ino: 1,
            at: WriteAt::Append,
            data,
            kill_suid_sgid: false,
        };
        let id = ChunkId { session: 5, seq: 1 };
        assert!(!may_repropose(
            Attempt::First,
            &write(Data::Chunk {
                id,
                offset: 0,
                len: 1
            }),
            session
        ));
        assert!(may_repropose(Attempt::First, &write(Data::Inline), session));
    }
}
