//! The sending end.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::SnapshotError;
use super::frame::{Frame, Totals, fits, pair_bytes};
use crate::kv::{Pair, Read, STORE_PREFIX, Scan};
use crate::raft::SnapshotMeta;

/// A snapshot's frames, in order: an iterator that blocks on the medium and holds one frame in memory. It ends after
/// the first error.
pub struct SnapshotSender {
    stage: Stage,
    scan: Scan<'static>,
    /// A pair that the last frame had no room for.
    left_over: Option<Pair>,
    number: u32,
    totals: Totals,
}

enum Stage {
    Header(Box<SnapshotMeta>),
    Pairs,
    Done,
}

impl SnapshotSender {
    pub(super) fn new(meta: &SnapshotMeta, read: Arc<dyn Read>) -> Self {
        // The store's own records stay at home; what they say is in the header.
        let range = (Bound::Included(vec![STORE_PREFIX + 1]), Bound::Unbounded);
        Self {
            stage: Stage::Header(Box::new(meta.clone())),
            scan: read.scan_owned(range, false),
            left_over: None,
            number: 0,
            totals: Totals::default(),
        }
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, SnapshotError> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Header(meta) => {
                self.stage = Stage::Pairs;
                Ok(Some(Frame::Header(meta)))
            }
            Stage::Pairs => {
                let pairs = self.next_pairs()?;
                if pairs.is_empty() {
                    return Ok(Some(Frame::End(self.totals)));
                }
                self.stage = Stage::Pairs;
                Ok(Some(Frame::Pairs(pairs)))
            }
            Stage::Done => Ok(None),
        }
    }

    fn next_pairs(&mut self) -> Result<Vec<Pair>, SnapshotError> {
        let mut pairs = Vec::new();
        let mut bytes = 0;
        while let Some(pair) = self
            .left_over
            .take()
            .map(Ok)
            .or_else(|| self.scan.next())
            .transpose()?
        {
            bytes += pair_bytes(&pair);
            if !pairs.is_empty() && !fits(bytes) {
                self.left_over = Some(pair);
                break;
            }
            self.totals.add(&pair);
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

impl Iterator for SnapshotSender {
    type Item = Result<Bytes, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        let frame = self
            .next_frame()
            .transpose()?
            .and_then(|frame| frame.encode(self.number));
        self.number += 1;
        Some(frame)
    }
}
