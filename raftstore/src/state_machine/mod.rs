//! The metadata store as openraft's state machine.
//!
//! The engine's calls may block on the medium (a read that misses the cache, a write that waits for a merge), so they
//! run on tokio's blocking threads. The hop costs some ten microseconds for a group of entries, little beside the
//! journal's sync that each of them has waited for; a thread of its own would save half of that.

use std::io;
use std::sync::Arc;

use futures::{FutureExt, Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio::task::spawn_blocking;

use crate::kv::KvError;
use crate::meta::MetaStore;
use crate::raft::{Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::snapshot::{LiveSnapshot, SnapshotData, SnapshotError, receive};

#[cfg(test)]
mod tests;

/// Entries applied together, at most.
const GROUP_ENTRIES_MAX: usize = 256;
/// Payload bytes of entries applied together, about.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// A snapshot as openraft knows it.
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// openraft's state machine over a [`MetaStore`]. A clone is another handle on the same store.
#[derive(Clone)]
pub struct StateMachine {
    store: Arc<MetaStore>,
}

impl StateMachine {
    /// Over `store`.
    #[must_use]
    pub fn new(store: Arc<MetaStore>) -> Self {
        Self { store }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&MetaStore) -> Result<T, KvError> + Send + 'static,
    ) -> Result<T, io::Error> {
        let store = self.store.clone();
        spawn_blocking(move || call(&store))
            .await
            .map_err(io::Error::other)?
            .map_err(to_io)
    }

    async fn live_snapshot(&self) -> Result<Snapshot, io::Error> {
        let live = self.blocking(MetaStore::live_snapshot).await?;
        Ok(Snapshot {
            meta: live.meta().clone(),
            snapshot: SnapshotData::Live(live),
        })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.store.applied_state();
        Ok((applied.last, applied.membership))
    }

    /// Applies what the stream has ready in groups, and answers each group once it is written: readers see a change
    /// before its proposer hears of it.
    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let (entry, responder) = first?;
            let mut bytes = payload_bytes(&entry);
            let mut group = vec![entry];
            let mut responders = vec![responder];
            while group.len() < GROUP_ENTRIES_MAX && bytes < GROUP_BYTES_MAX {
                let Some(Some(next)) = entries.next().now_or_never() else {
                    break;
                };
                let (entry, responder) = next?;
                bytes += payload_bytes(&entry);
                group.push(entry);
                responders.push(responder);
            }
            let answers = self.blocking(move |store| store.apply(&group)).await?;
            for (responder, answer) in responders.into_iter().zip(answers) {
                if let Some(responder) = responder {
                    responder.send(answer);
                }
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self> {
        Some(self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let received = match snapshot {
            SnapshotData::Received(received) => received,
            // One that was never sent: taken from another store in this process.
            SnapshotData::Live(live) => self.take_in(&live).await.map_err(io::Error::other)?,
        };
        if received.meta() != meta {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the snapshot's metadata is not its contents'",
            ));
        }
        self.blocking(|store| store.install(received)).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if self.store.applied_state().last.is_none() {
            return Ok(None);
        }
        self.live_snapshot().await.map(Some)
    }
}

impl StateMachine {
    async fn take_in(&self, live: &LiveSnapshot) -> Result<crate::snapshot::ReceivedSnapshot, SnapshotError> {
        receive(self.store.receiver()?, live.frames()).await
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    /// Copies nothing: the state is flushed, which lets Raft purge its log, and a view of it is kept open until the
    /// snapshot is dropped.
    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        self.live_snapshot().await
    }
}

fn payload_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(proposal) => proposal.payload.len(),
        _ => 0,
    }
}

fn to_io(error: KvError) -> io::Error {
    let kind = match error {
        KvError::Damaged(_) => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
