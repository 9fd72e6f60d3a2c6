//! The state machine without Raft, for the tests of what stands on it.

mod check;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use super::*;
use crate::clock::Timestamp;
#[cfg(test)]
use crate::kv::Batch;
use crate::kv::KvError;
use crate::raft::{Entry, LogId};

pub use check::broken_rules;

/// A store in memory with a cluster of one node, whose one session proposes. What would be Raft is a counter.
pub struct LocalMeta {
    store: Arc<MetaStore>,
    node: NodeId,
    progress: Mutex<Progress>,
}

struct Progress {
    log_index: u64,
    session: SessionId,
    seq: u64,
    time: Timestamp,
}

impl LocalMeta {
    /// An empty cluster: a root directory, a node and its session.
    ///
    /// # Errors
    /// None that a test need expect: the engine is in memory.
    pub fn new() -> Result<Self, KvError> {
        let progress = Progress {
            log_index: 0,
            session: SessionId::SYSTEM,
            seq: 0,
            time: Timestamp {
                sec: 1_000_000_000,
                nsec: 0,
            },
        };
        let store = Arc::new(MetaStore::in_memory()?);
        let mut local = Self {
            store,
            node: 0,
            progress: Mutex::new(progress),
        };
        let info = ClusterInfo {
            cluster_id: "local".into(),
            replicas: 1,
        };
        expect_done(&local.system(Op::InitCluster(info))?.1)?;
        let add = Op::AddNode {
            name: "local".into(),
            listen: "127.0.0.1:1".into(),
            token_hash: None,
        };
        match local.system(add)?.1 {
            Ok(Reply::Node(node)) => local.node = node.id,
            other => return Err(unexpected(&other)),
        }
        local.open_session()?;
        Ok(local)
    }

    /// The store, to read from and to observe.
    #[must_use]
    pub fn store(&self) -> Arc<MetaStore> {
        self.store.clone()
    }

    /// The newest state.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.store.reader()
    }

    /// The session under which [`LocalMeta::submit`] proposes.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.progress().session
    }

    /// Opens a new session for the node, which expires the present one.
    pub fn open_session(&self) -> Result<SessionId, KvError> {
        match self.system(Op::OpenSession { node: self.node })?.1 {
            Ok(Reply::Session(session)) => {
                let mut progress = self.progress();
                (progress.session, progress.seq) = (session, 0);
                Ok(session)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Sets the wall clock that the next proposals are stamped with; it advances by a microsecond with each.
    pub fn set_time(&self, time: Timestamp) {
        self.progress().time = time;
    }

    /// Proposes under the session. Answers the log index (which names the payload as a chunk) and the reply.
    pub fn submit(&self, op: Op, payload: Bytes) -> Result<(u64, Result<Reply, MetaError>), KvError> {
        let mut progress = self.progress();
        progress.seq += 1;
        let proposal = Proposal {
            session: progress.session,
            seq: progress.seq,
            ack_floor: progress.seq,
            chunk_floor: 0,
            time: progress.time,
            op,
            payload,
        };
        self.apply_one(&mut progress, proposal)
    }

    /// Proposes as the cluster itself.
    pub fn system(&self, op: Op) -> Result<(u64, Result<Reply, MetaError>), KvError> {
        let mut progress = self.progress();
        let proposal = Proposal {
            session: SessionId::SYSTEM,
            seq: 0,
            ack_floor: 0,
            chunk_floor: 0,
            time: progress.time,
            op,
            payload: Bytes::new(),
        };
        self.apply_one(&mut progress, proposal)
    }

    /// Applies any proposal as the next entry of the log.
    pub fn propose(&self, proposal: Proposal) -> Result<(u64, Result<Reply, MetaError>), KvError> {
        self.apply_one(&mut self.progress(), proposal)
    }

    /// Applies proposals as the next entries of the log, all of them in one batch.
    pub fn propose_all(
        &self,
        proposals: impl IntoIterator<Item = Proposal>,
    ) -> Result<Vec<Result<Reply, MetaError>>, KvError> {
        self.apply(&mut self.progress(), proposals)
    }

    /// Puts rows as they are, for tests of limits that take long to reach.
    #[cfg(test)]
    pub(crate) fn poke(&self, rows: impl IntoIterator<Item = (Vec<u8>, Bytes)>) -> Result<(), KvError> {
        let changes = rows.into_iter().map(|(key, value)| (key.into(), Some(value)));
        self.store.poke(Batch {
            changes: changes.collect(),
        })
    }

    fn apply_one(
        &self,
        progress: &mut Progress,
        proposal: Proposal,
    ) -> Result<(u64, Result<Reply, MetaError>), KvError> {
        let answer = self.apply(progress, [proposal])?.pop();
        let answer = answer.ok_or_else(|| KvError::Io("the store did not answer".into()))?;
        Ok((progress.log_index, answer))
    }

    fn apply(
        &self,
        progress: &mut Progress,
        proposals: impl IntoIterator<Item = Proposal>,
    ) -> Result<Vec<Result<Reply, MetaError>>, KvError> {
        let mut entries = Vec::new();
        for proposal in proposals {
            progress.log_index += 1;
            progress.time.nsec += 1000;
            if progress.time.nsec >= 1_000_000_000 {
                progress.time = Timestamp {
                    sec: progress.time.sec + 1,
                    nsec: 0,
                };
            }
            let log_id = LogId::new_term_index(1, progress.log_index);
            entries.push(Entry::new(log_id, EntryPayload::Normal(proposal)));
        }
        Ok(self.store.apply(&entries)?.into_iter().flatten().collect())
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn expect_done(answer: &Result<Reply, MetaError>) -> Result<(), KvError> {
    if *answer == Ok(Reply::Done) {
        Ok(())
    } else {
        Err(unexpected(answer))
    }
}

fn unexpected(answer: &Result<Reply, MetaError>) -> KvError {
    KvError::Io(format!("the state machine answered {answer:?}"))
}
