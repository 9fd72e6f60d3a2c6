//! A state machine's whole state on its way to another node: taken live from an engine, cut into checked frames,
//! and taken in beside the receiver's present state until it is complete.
//!
//! The stream does not depend on the engine. `docs/FORMAT.md` draws it byte by byte.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::kv::{KvError, Read};
use crate::raft::SnapshotMeta;

mod frame;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

pub use frame::FRAME_BYTES_MAX;
pub use receiver::{ReceivedSnapshot, SnapshotReceiver};
pub use sender::SnapshotSender;

/// Why a snapshot could not be sent or taken in. Whatever it is, the receiver's present state is untouched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SnapshotError {
    /// A frame's checksum is wrong.
    #[error("frame {0} of the snapshot is corrupted")]
    Corrupted(u32),
    /// A frame is missing, repeated or out of place.
    #[error("the snapshot's frame {expected} was due, but {found} came")]
    OutOfOrder {
        /// The number that was due.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// The stream ended before the snapshot did.
    #[error("the snapshot ended early, after {0} frames")]
    Truncated(u32),
    /// The contents make no sense, though the checksum is right: a defect of the sender.
    #[error("the snapshot is malformed: {0}")]
    Malformed(&'static str),
    /// It was sent by a later version.
    #[error("the snapshot is of version {found}, known is {known}: update this node")]
    Unsupported {
        /// The version that came.
        found: u16,
        /// The version that is known here.
        known: u16,
    },
    /// An engine failed.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The other end or the way to it failed.
    #[error("the snapshot's transfer failed: {0}")]
    Transfer(String),
}

/// A state as it was at one moment, to be sent. Holds on to the engine's files until it is dropped.
#[derive(Clone)]
pub struct LiveSnapshot {
    meta: SnapshotMeta,
    read: Arc<dyn Read>,
}

impl LiveSnapshot {
    pub(crate) fn new(meta: SnapshotMeta, read: Arc<dyn Read>) -> Self {
        Self { meta, read }
    }

    /// How far the state had come.
    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Its frames, in order. Blocks on the medium.
    #[must_use]
    pub fn sender(&self) -> SnapshotSender {
        SnapshotSender::new(&self.meta, self.read.clone())
    }

    /// Its frames, in order, read on a thread that may block, a few ahead of the consumer. Dropping the stream ends
    /// it. Needs a tokio runtime.
    pub fn frames(&self) -> impl Stream<Item = Result<Bytes, SnapshotError>> + Send + Unpin + 'static {
        const AHEAD_FRAMES_MAX: usize = 2;
        let (frames, queue) = mpsc::channel(AHEAD_FRAMES_MAX);
        let sender = self.sender();
        spawn_blocking(move || {
            for frame in sender {
                if frames.blocking_send(frame).is_err() {
                    return;
                }
            }
        });
        Box::pin(futures::stream::unfold(queue, |mut queue| async {
            Some((queue.recv().await?, queue))
        }))
    }
}

/// What openraft passes around as a snapshot's data: a live one on the sending side, a received one on the other.
pub enum SnapshotData {
    /// To be sent.
    Live(LiveSnapshot),
    /// To be installed.
    Received(ReceivedSnapshot),
}

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live(live) => write!(f, "Live({})", live.meta),
            Self::Received(received) => write!(f, "Received({})", received.meta()),
        }
    }
}

/// Takes in a stream of frames to its end, on threads that may block. Needs a tokio runtime.
pub async fn receive<E: fmt::Display>(
    mut receiver: SnapshotReceiver,
    frames: impl Stream<Item = Result<Bytes, E>>,
) -> Result<ReceivedSnapshot, SnapshotError> {
    let joined = |error: tokio::task::JoinError| SnapshotError::Transfer(error.to_string());
    let mut frames = std::pin::pin!(frames);
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|error| SnapshotError::Transfer(error.to_string()))?;
        receiver = spawn_blocking(move || receiver.feed(&frame).map(|()| receiver))
            .await
            .map_err(joined)??;
    }
    spawn_blocking(move || receiver.finish()).await.map_err(joined)?
}
