//! Snapshots on the wire. A pushed snapshot starts with a frame that holds the leader's vote (postcard); the frames
//! that follow, and all of a pulled one, are those of [`raftstore::snapshot`], each with a checksum of its own.

use std::sync::{Arc, Mutex, PoisonError};

use bramble_proto::SnapshotFrame;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, future, stream};
use openraft::raft::SnapshotResponse;
use raftstore::TypeConfig;
use raftstore::kv::KvError;
use raftstore::meta::{MetaStore, NodeId};
use raftstore::raft::Vote;
use raftstore::snapshot::{self, LiveSnapshot, SnapshotData, SnapshotError};
use raftstore::state_machine::Snapshot;
use tonic::{Status, Streaming};

use super::wire::{WireError, decode, encode};
use crate::node::raft::Raft;

/// What went wrong while a snapshot was read; the stream that carries it just ends then.
#[derive(Clone, Default)]
pub struct Failure(Arc<Mutex<Option<SnapshotError>>>);

impl Failure {
    /// The error, if there was one.
    #[must_use]
    pub fn get(&self) -> Option<SnapshotError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, error: SnapshotError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

fn frame(target: NodeId, data: Bytes) -> SnapshotFrame {
    let crc = crc32fast::hash(&data);
    SnapshotFrame { target, data, crc }
}

fn checked(frame: SnapshotFrame) -> Result<Bytes, WireError> {
    if crc32fast::hash(&frame.data) == frame.crc {
        Ok(frame.data)
    } else {
        Err(WireError::NotNow(
            "a snapshot's frame was damaged on the way".into(),
        ))
    }
}

/// The frames of a snapshot that the leader pushes to `target`.
///
/// # Errors
/// If the snapshot is not one of this node's own.
pub fn outgoing(
    target: NodeId,
    vote: &Vote,
    snapshot: &Snapshot,
) -> Result<(impl Stream<Item = SnapshotFrame> + Send + 'static, Failure), WireError> {
    let SnapshotData::Live(live) = &snapshot.snapshot else {
        return Err(WireError::Malformed(
            "a snapshot that was received is not passed on".into(),
        ));
    };
    let failure = Failure::default();
    let noted = failure.clone();
    let first = frame(target, encode(vote)?);
    let frames = live.frames().scan(noted, move |noted, item| {
        let item = item.map_err(|error| noted.set(error)).ok();
        future::ready(item.map(|data| frame(target, data)))
    });
    Ok((stream::once(future::ready(first)).chain(frames), failure))
}

/// The frames that came in, checked.
fn incoming(
    frames: Streaming<SnapshotFrame>,
) -> impl Stream<Item = Result<Bytes, WireError>> + Send + 'static {
    frames.map(|frame| checked(frame.map_err(WireError::from)?))
}

/// Takes in a snapshot that the leader pushes, and installs it.
///
/// # Errors
/// If it is not for this node, incomplete or damaged; the present state is untouched then.
pub async fn receive(
    here: NodeId,
    raft: &Raft,
    meta: &Arc<MetaStore>,
    mut frames: Streaming<SnapshotFrame>,
) -> Result<SnapshotResponse<TypeConfig>, WireError> {
    let first = frames
        .message()
        .await?
        .ok_or_else(|| WireError::Malformed("an empty snapshot".into()))?;
    if first.target != here {
        return Err(WireError::WrongTarget {
            wanted: first.target,
            here,
        });
    }
    let vote: Vote = decode(&checked(first)?)?;
    let store = Arc::clone(meta);
    let receiver = blocking(move || store.receiver()).await?;
    let received = snapshot::receive(receiver, incoming(frames)).await;
    let received = received.map_err(|error| WireError::NotNow(error.to_string()))?;
    let snapshot = Snapshot {
        meta: received.meta().clone(),
        snapshot: SnapshotData::Received(received),
    };
    let installed = raft.install_full_snapshot(vote, snapshot).await;
    installed.map_err(|error| WireError::Stopped(error.to_string()))
}

/// The frames of this node's present state, for a node that asks for it.
///
/// # Errors
/// If the state cannot be read.
pub async fn serve(
    meta: &Arc<MetaStore>,
) -> Result<BoxStream<'static, Result<SnapshotFrame, Status>>, WireError> {
    let store = Arc::clone(meta);
    let live: LiveSnapshot = blocking(move || store.live_snapshot()).await?;
    let frames = live.frames().map(|item| match item {
        Ok(data) => Ok(frame(0, data)),
        Err(error) => Err(Status::from(WireError::NotNow(error.to_string()))),
    });
    Ok(frames.boxed())
}

/// Frames that a peer serves.
#[must_use]
pub fn served(frames: Streaming<SnapshotFrame>) -> BoxStream<'static, Result<Bytes, WireError>> {
    incoming(frames).boxed()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KvError> + Send + 'static,
) -> Result<T, WireError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| WireError::NotNow(error.to_string()))?;
    done.map_err(|error| WireError::NotNow(error.to_string()))
}
