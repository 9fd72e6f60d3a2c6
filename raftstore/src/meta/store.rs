//! The state machine's state on an engine, shared by the one that applies and those that read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use tokio::sync::watch;

use super::{AppliedState, Event, Observer, Reader, Txn, apply};
use crate::disk::Disk;
use crate::kv::{Engine, Generation, KeyRange, KvError, Read, Scan, StoreDir, StoreOptions};
use crate::raft::{Answer, Entry, StoredMembership};
use crate::snapshot::{LiveSnapshot, ReceivedSnapshot, SnapshotReceiver};

/// An engine batch ends with the entry that takes it beyond this.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// The metadata of one node.
pub struct MetaStore {
    dir: Arc<StoreDir>,
    current: Arc<Current>,
    /// Held by the one that writes.
    state: Mutex<AppliedState>,
    observers: RwLock<Vec<Arc<dyn Observer>>>,
    applied: watch::Sender<u64>,
}

/// What [`MetaStore::open_or_damaged`] found.
pub enum OpenedStore {
    /// A usable store.
    Ready(MetaStore),
    /// A damaged one, to be replaced by a peer's state.
    Damaged(DamagedStore),
}

/// A store that cannot be used. Nothing of it is lost until a replacement is complete.
pub struct DamagedStore {
    dir: Arc<StoreDir>,
    why: KvError,
}

impl DamagedStore {
    /// What is wrong.
    #[must_use]
    pub fn why(&self) -> &KvError {
        &self.why
    }

    /// Takes in a peer's snapshot.
    pub fn receiver(&self) -> Result<SnapshotReceiver, KvError> {
        SnapshotReceiver::new(&self.dir)
    }

    /// Puts what was received in the place of the damaged state.
    pub fn replace_with(self, received: ReceivedSnapshot) -> Result<MetaStore, KvError> {
        let (_, generation) = received.into_parts(&self.dir)?;
        self.dir.switch_to(None, &generation)?;
        self.dir.remove_others(&generation)?;
        MetaStore::over(generation)
    }
}

impl MetaStore {
    /// An empty store in memory, for tests and simulation.
    pub fn in_memory() -> Result<Self, KvError> {
        Self::over(StoreDir::in_memory().create()?)
    }

    /// Opens the store in a directory, or makes one there; fails if it is damaged.
    pub fn open(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<Self, KvError> {
        match Self::open_or_damaged(disk, options)? {
            OpenedStore::Ready(store) => Ok(store),
            OpenedStore::Damaged(damaged) => Err(damaged.why),
        }
    }

    /// As [`MetaStore::open`], for a node that can repair a damaged store. An error is what no snapshot would help
    /// against: the medium fails, or the store is of another version.
    pub fn open_or_damaged(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<OpenedStore, KvError> {
        let (dir, generation) = StoreDir::open(disk, options)?;
        match generation.and_then(Self::over) {
            Ok(store) => Ok(OpenedStore::Ready(store)),
            Err(why @ KvError::Damaged(_)) => Ok(OpenedStore::Damaged(DamagedStore { dir, why })),
            Err(other) => Err(other),
        }
    }

    fn over(generation: Arc<Generation>) -> Result<Self, KvError> {
        let engine = generation.engine()?;
        let state = AppliedState::read(&**engine)?;
        // What was found is announced as applied, and Raft may purge what is applied.
        engine.flush()?;
        Ok(Self {
            dir: generation.dir().clone(),
            current: Arc::new(Current(RwLock::new(generation))),
            applied: watch::Sender::new(state.index()),
            state: Mutex::new(state),
            observers: RwLock::default(),
        })
    }

    /// Turns a store that lacks entries which Raft has purged from its log into a damaged one: nobody but a peer
    /// can bring it forward. `purged` is the index of the last purged entry, 0 if none was.
    #[must_use]
    pub fn require_applied(self, purged: u64) -> OpenedStore {
        let applied = self.state().index();
        if applied >= purged {
            return OpenedStore::Ready(self);
        }
        let why = KvError::Damaged(format!(
            "it ends at log entry {applied}, but the log begins after {purged}"
        ));
        OpenedStore::Damaged(DamagedStore {
            dir: self.dir.clone(),
            why,
        })
    }

    /// Reads the newest state, also after a snapshot has replaced it. Two reads may show two states: take a
    /// [`MetaStore::snapshot`] where they must not.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(self.current.clone())
    }

    /// What [`MetaStore::reader`] reads through.
    #[cfg(test)]
    pub(crate) fn read(&self) -> Arc<dyn Read> {
        self.current.clone()
    }

    /// Reads the state as it is now, whatever comes.
    pub fn snapshot(&self) -> Result<Reader, KvError> {
        Ok(Reader::new(self.current.pinned()?))
    }

    /// The state as it is now, to be sent to a peer. All of it is on the medium when this returns, so that Raft may
    /// purge the log up to it. Blocks on the medium.
    pub fn live_snapshot(&self) -> Result<LiveSnapshot, KvError> {
        let read = self.current.pinned()?;
        let applied = AppliedState::read(&*read)?;
        self.current.generation().engine()?.flush()?;
        Ok(LiveSnapshot::new(applied.to_meta(), read))
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

    /// The failure after which the store refuses everything, once there is one. Damage is found again at the next
    /// [`MetaStore::open_or_damaged`].
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<KvError>> {
        self.dir.failure()
    }

    /// Memory that the engine holds, an estimate in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.current
            .generation()
            .engine()
            .map_or(0, |engine| engine.memory_bytes())
    }

    /// Makes all that was applied durable. Blocks on the medium.
    pub fn flush(&self) -> Result<(), KvError> {
        self.current.generation().engine()?.flush()
    }

    /// Writes behind the state machine's back, for tests of limits and of damage.
    #[cfg(test)]
    pub(super) fn poke(&self, batch: crate::kv::Batch) -> Result<(), KvError> {
        self.current.generation().engine()?.write(batch)
    }

    /// Adds an observer; it hears of everything applied from now on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(observer);
    }

    /// Applies entries in log order and answers them. Blocks on the medium.
    pub fn apply(&self, entries: &[Entry]) -> Result<Vec<Answer>, KvError> {
        let mut state = self.state();
        let mut answers = Vec::with_capacity(entries.len());
        while answers.len() < entries.len() {
            self.apply_batch(&mut state, &entries[answers.len()..], &mut answers)?;
        }
        Ok(answers)
    }

    /// Applies the first of `entries` as one engine batch.
    fn apply_batch(
        &self,
        state: &mut AppliedState,
        entries: &[Entry],
        answers: &mut Vec<Answer>,
    ) -> Result<(), KvError> {
        let generation = self.current.generation();
        let engine = generation.engine()?;
        let mut txn = Txn::new(&**engine);
        let mut events = Vec::new();
        let mut next = state.clone();
        for entry in entries {
            answers.push(match &entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(proposal) => {
                    let index = entry.log_id.index;
                    Some(apply::apply(&mut txn, index, proposal, &mut events)?)
                }
                EntryPayload::Membership(membership) => {
                    next.membership = StoredMembership::new(Some(entry.log_id()), membership.clone());
                    None
                }
            });
            txn.seal();
            next.last = Some(entry.log_id());
            if txn.bytes() >= BATCH_BYTES_MAX {
                break;
            }
        }
        self.write(&**engine, txn, state, next)?;
        self.announce(state.index(), &events);
        Ok(())
    }

    fn write(
        &self,
        engine: &dyn Engine,
        txn: Txn<'_>,
        state: &mut AppliedState,
        next: AppliedState,
    ) -> Result<(), KvError> {
        let mut batch = txn.into_batch();
        let mut put = |(key, value)| batch.changes.push((key, Some(value)));
        put(next.last_record()?);
        if next.membership != state.membership {
            put(next.membership_record()?);
        }
        engine.write(batch)?;
        *state = next;
        Ok(())
    }

    /// Takes in a peer's snapshot, to be [installed](MetaStore::install).
    pub fn receiver(&self) -> Result<SnapshotReceiver, KvError> {
        SnapshotReceiver::new(&self.dir)
    }

    /// Puts a received snapshot in the place of the state. Readers go on: those of a snapshot with the old state,
    /// the others with the new one. Blocks on the medium.
    pub fn install(&self, received: ReceivedSnapshot) -> Result<(), KvError> {
        let mut state = self.state();
        let (applied, new) = received.into_parts(&self.dir)?;
        let old = self.current.generation();
        self.dir.switch_to(Some(&old), &new)?;
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        *state = applied;
        self.announce(state.index(), &[Event::Reset]);
        Ok(())
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

/// Where a store's present generation is found, also by readers that outlive a change of it.
struct Current(RwLock<Arc<Generation>>);

impl Current {
    fn generation(&self) -> Arc<Generation> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pinned(&self) -> Result<Arc<Pinned>, KvError> {
        let generation = self.generation();
        Ok(Arc::new(Pinned {
            read: generation.engine()?.snapshot()?,
            _generation: generation,
        }))
    }
}

impl Read for Current {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.generation().engine()?.get(key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        let generation = self.generation();
        match generation.engine() {
            Ok(engine) => {
                let scan = engine.clone().scan_owned(range, reverse);
                // The generation's files stay for as long as they are read.
                Box::new(scan.inspect(move |_| _ = &generation))
            }
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }
}

/// A snapshot of an engine. Dropped in this order, so that nothing is open when the generation's files go.
struct Pinned {
    read: Arc<dyn Read>,
    _generation: Arc<Generation>,
}

impl Read for Pinned {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.read.get(key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        self.read.scan(range, reverse)
    }

    fn scan_owned(self: Arc<Self>, range: KeyRange, reverse: bool) -> Scan<'static> {
        let scan = self.read.clone().scan_owned(range, reverse);
        Box::new(scan.inspect(move |_| _ = &self))
    }
}
