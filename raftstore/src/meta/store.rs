//! The state machine's state on an engine, shared by the one that applies and those that read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{Event, MetaError, Observer, Proposal, Reader, Reply, Txn, apply};
use crate::kv::{Engine, KvError, MemoryEngine, Read};
use crate::raft::{Answer, Entry, LogId, StoredMembership};

/// First byte of the keys that belong to the store itself and not to the replicated state; snapshots leave them out.
pub(crate) const STORE_PREFIX: u8 = 0;
/// Under this key: the id of the last applied log entry.
const APPLIED_KEY: &[u8] = b"\0applied";
/// Under this key: the last applied membership.
const MEMBERSHIP_KEY: &[u8] = b"\0membership";

/// How far the state machine has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// The last applied log entry; `None` at first.
    pub last: Option<LogId>,
    /// The last applied membership.
    pub membership: StoredMembership,
}

impl AppliedState {
    /// The index of the last applied entry; 0 at first (Raft's first entry is the cluster's own).
    #[must_use]
    pub fn index(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.index)
    }

    /// As the engine behind `kv` holds it.
    pub(crate) fn read(kv: &dyn Read) -> Result<Self, KvError> {
        let membership = read_postcard(kv, MEMBERSHIP_KEY)?;
        Ok(Self {
            last: read_postcard(kv, APPLIED_KEY)?,
            membership: membership.unwrap_or_default(),
        })
    }
}

fn read_postcard<T: DeserializeOwned>(kv: &dyn Read, key: &[u8]) -> Result<Option<T>, KvError> {
    let Some(value) = kv.get(key)? else {
        return Ok(None);
    };
    postcard::from_bytes(&value).map(Some).map_err(|error| {
        KvError::Damaged(format!(
            "the record {:?}: {error}",
            key.escape_ascii().to_string()
        ))
    })
}

/// Where a store's present engine is found, also by readers that outlive a change of it.
struct Current {
    engine: RwLock<Arc<dyn Engine>>,
}

impl Current {
    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Read for Current {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.engine().get(key)
    }

    fn scan(&self, range: crate::kv::KeyRange, reverse: bool) -> crate::kv::Scan<'_> {
        self.engine().scan_owned(range, reverse)
    }
}

/// The metadata of one node.
pub struct MetaStore {
    current: Arc<Current>,
    /// Held by the one that writes.
    state: Mutex<AppliedState>,
    observers: RwLock<Vec<Arc<dyn Observer>>>,
    applied: watch::Sender<u64>,
}

impl MetaStore {
    /// An empty store in memory, for tests and simulation.
    pub fn in_memory() -> Result<Self, KvError> {
        Self::over(Arc::new(MemoryEngine::new()))
    }

    fn over(engine: Arc<dyn Engine>) -> Result<Self, KvError> {
        let state = AppliedState::read(&*engine)?;
        let (applied, _) = watch::channel(state.index());
        Ok(Self {
            current: Arc::new(Current {
                engine: RwLock::new(engine),
            }),
            state: Mutex::new(state),
            observers: RwLock::default(),
            applied,
        })
    }

    /// Reads the newest state, also after a snapshot has replaced it. Two reads may show two states: take a
    /// [`MetaStore::snapshot`] where they must not.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(self.current.clone())
    }

    /// Reads the state as it is now, whatever comes.
    pub fn snapshot(&self) -> Result<Reader, KvError> {
        Ok(Reader::new(self.current.engine().snapshot()?))
    }

    /// The index of the last applied entry; 0 at first. Announced after observers have run.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// How far the store has come.
    #[must_use]
    pub fn applied_state(&self) -> AppliedState {
        self.state().clone()
    }

    /// Adds an observer; it hears of everything applied from now on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(observer);
    }

    /// Applies entries, in log order, as one engine batch, and answers them. Blocks on the medium.
    pub fn apply(&self, entries: &[Entry]) -> Result<Vec<Answer>, KvError> {
        let mut state = self.state();
        let Some(last) = entries.last() else {
            return Ok(Vec::new());
        };
        let engine = self.current.engine();
        let mut txn = Txn::new(&*engine);
        let mut events = Vec::new();
        let mut answers = Vec::with_capacity(entries.len());
        let mut next = state.clone();
        for entry in entries {
            answers.push(match &entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(proposal) => {
                    Some(apply_one(&mut txn, entry.log_id.index, proposal, &mut events)?)
                }
                EntryPayload::Membership(membership) => {
                    next.membership = StoredMembership::new(Some(entry.log_id()), membership.clone());
                    None
                }
            });
        }
        next.last = Some(last.log_id());
        if next.membership != state.membership {
            put_postcard(&mut txn, MEMBERSHIP_KEY, &next.membership)?;
        }
        put_postcard(&mut txn, APPLIED_KEY, &next.last)?;
        engine.write(txn.into_batch())?;
        *state = next;
        self.announce(state.index(), &events);
        Ok(answers)
    }

    fn announce(&self, index: u64, events: &[Event]) {
        if !events.is_empty() {
            for observer in self
                .observers
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
            {
                observer.applied(index, events);
            }
        }
        self.applied.send_replace(index);
    }

    fn state(&self) -> MutexGuard<'_, AppliedState> {
        // A panic under this lock leaves the state as it was before: it changes by one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put_postcard<T: serde::Serialize>(
    txn: &mut Txn<'_>,
    key: &'static [u8],
    value: &T,
) -> Result<(), KvError> {
    let value = postcard::to_stdvec(value).map_err(|error| KvError::Io(error.to_string()))?;
    txn.put(Bytes::from_static(key), value.into());
    Ok(())
}

fn apply_one(
    txn: &mut Txn<'_>,
    log_index: u64,
    proposal: &Proposal,
    events: &mut Vec<Event>,
) -> Result<Result<Reply, MetaError>, KvError> {
    let answer = apply::apply(txn, log_index, proposal, events)?;
    txn.seal();
    Ok(answer)
}
