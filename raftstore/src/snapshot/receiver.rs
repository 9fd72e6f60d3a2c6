//! The receiving end.

use std::sync::Arc;

use bytes::Bytes;

use super::SnapshotError;
use super::frame::{Frame, Totals};
use crate::kv::{Batch, Generation, KvError, STORE_PREFIX, StoreDir};
use crate::meta::AppliedState;
use crate::raft::SnapshotMeta;

/// Takes in frames, in order, into a fresh engine beside the store's present one. If it is dropped before the end,
/// or refuses a frame, nothing of it stays.
pub struct SnapshotReceiver {
    spool: Arc<Generation>,
    meta: Option<SnapshotMeta>,
    number: u32,
    totals: Totals,
    last_key: Bytes,
    ended: bool,
}

/// A complete, verified snapshot that is on the medium and waits to be installed. Dropped instead, it is removed.
pub struct ReceivedSnapshot {
    generation: Arc<Generation>,
    meta: SnapshotMeta,
}

impl SnapshotReceiver {
    pub(crate) fn new(dir: &Arc<StoreDir>) -> Result<Self, KvError> {
        Ok(Self {
            spool: dir.spool()?,
            meta: None,
            number: 0,
            totals: Totals::default(),
            last_key: Bytes::new(),
            ended: false,
        })
    }

    /// The snapshot's metadata, once its first frame is in.
    #[must_use]
    pub fn meta(&self) -> Option<&SnapshotMeta> {
        self.meta.as_ref()
    }

    /// Takes in the next frame. After an error the whole snapshot is void. Blocks on the medium.
    pub fn feed(&mut self, frame: &Bytes) -> Result<(), SnapshotError> {
        let frame = Frame::decode(frame, self.number)?;
        if self.ended {
            return Err(SnapshotError::Malformed("a frame after the last one"));
        }
        match (frame, &self.meta) {
            (Frame::Header(meta), None) => self.meta = Some(*meta),
            (Frame::Header(_), Some(_)) => return Err(SnapshotError::Malformed("a second header")),
            (_, None) => return Err(SnapshotError::Malformed("no header")),
            (Frame::Pairs(pairs), Some(_)) => {
                for pair in &pairs {
                    if pair.0 <= self.last_key || pair.0[0] == STORE_PREFIX {
                        return Err(SnapshotError::Malformed("keys out of order"));
                    }
                    self.last_key = pair.0.clone();
                    self.totals.add(pair);
                }
                let changes = pairs.into_iter().map(|(key, value)| (key, Some(value))).collect();
                self.spool.engine()?.write(Batch { changes })?;
            }
            (Frame::End(totals), Some(_)) => {
                if totals != self.totals {
                    return Err(SnapshotError::Malformed("counts that do not agree"));
                }
                self.ended = true;
            }
        }
        self.number += 1;
        Ok(())
    }

    /// The end of the stream: checks that it is the snapshot's end, and makes all of it durable.
    pub fn finish(self) -> Result<ReceivedSnapshot, SnapshotError> {
        let Some(meta) = self.meta.filter(|_| self.ended) else {
            return Err(SnapshotError::Truncated(self.number));
        };
        let applied = AppliedState::from_meta(&meta);
        let records = [applied.last_record()?, applied.membership_record()?];
        let changes = records
            .into_iter()
            .map(|(key, value)| (key, Some(value)))
            .collect();
        let engine = self.spool.engine()?;
        engine.write(Batch { changes })?;
        engine.flush()?;
        Ok(ReceivedSnapshot {
            generation: self.spool,
            meta,
        })
    }
}

impl ReceivedSnapshot {
    /// How far the state had come when it was taken.
    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// For the store in `dir`, which must be the one that it was received for.
    pub(crate) fn into_parts(self, dir: &Arc<StoreDir>) -> Result<(AppliedState, Arc<Generation>), KvError> {
        if !Arc::ptr_eq(self.generation.dir(), dir) {
            return Err(KvError::Io("the snapshot was received for another store".into()));
        }
        Ok((AppliedState::from_meta(&self.meta), self.generation))
    }
}
