//! Bytes of one file that were written here and are not committed yet.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raftstore::meta::ProjectId;

/// What each range costs beside its bytes, an estimate.
pub(super) const RANGE_OVERHEAD_BYTES: usize = 128;

/// What was done to a file's contents, one moment's effect over another's: first cut, then written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layer {
    /// From here on, nothing of what lies below shows.
    cut: Option<u64>,
    /// Written bytes by offset; none overlap.
    ranges: BTreeMap<u64, Bytes>,
    bytes: usize,
}

impl Layer {
    pub(super) fn is_empty(&self) -> bool {
        self.cut.is_none() && self.ranges.is_empty()
    }

    /// Memory that it holds, an estimate.
    pub(super) fn cost_bytes(&self) -> usize {
        self.bytes + self.ranges.len() * RANGE_OVERHEAD_BYTES
    }

    pub(super) fn cut(&self) -> Option<u64> {
        self.cut
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.ranges.iter().map(|(offset, data)| (*offset, data))
    }

    fn write(&mut self, offset: u64, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.clear(offset, offset + data.len() as u64);
        self.bytes += data.len();
        self.ranges.insert(offset, data);
    }

    fn truncate(&mut self, size: u64) {
        self.clear(size, u64::MAX);
        self.cut = Some(self.cut.map_or(size, |cut| cut.min(size)));
    }

    /// Forgets what was written in `start..end`.
    fn clear(&mut self, start: u64, end: u64) {
        let before = self.ranges.range(..start).next_back().map(|(offset, _)| *offset);
        let inside = self.ranges.range(start..end).map(|(offset, _)| *offset);
        let touched: Vec<u64> = before.into_iter().chain(inside).collect();
        for offset in touched {
            let Some(data) = self.ranges.get(&offset).cloned() else {
                continue;
            };
            let data_end = offset + data.len() as u64;
            if data_end <= start {
                continue;
            }
            self.ranges.remove(&offset);
            self.bytes -= data.len();
            let mut keep = |from: u64, to: u64| {
                if from < to {
                    let part = data.slice(index(from - offset)..index(to - offset));
                    self.bytes += part.len();
                    self.ranges.insert(from, part);
                }
            };
            keep(offset, start.min(data_end));
            keep(end.max(offset), data_end);
        }
    }

    /// The part of the layer that shows in `start..end`.
    fn view(&self, start: u64, end: u64) -> LayerView {
        let end = end.max(start);
        let before = self.ranges.range(..start).next_back();
        let pieces = before
            .into_iter()
            .chain(self.ranges.range(start..end))
            .filter(|(offset, data)| **offset + data.len() as u64 > start)
            .map(|(offset, data)| (*offset, data.clone()))
            .collect();
        LayerView {
            cut: self.cut.filter(|cut| *cut < end),
            pieces,
        }
    }
}

/// A distance within one range: ranges are as long as the memory that holds them.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

#[derive(Debug, Clone, Default)]
struct LayerView {
    cut: Option<u64>,
    pieces: Vec<(u64, Bytes)>,
}

/// What a read must put over the committed bytes.
#[derive(Debug, Clone, Default)]
pub struct Unflushed {
    layers: Vec<LayerView>,
}

impl Unflushed {
    /// Whether the committed bytes are all there is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Where committed bytes end to count, at most `end`.
    #[must_use]
    pub fn committed_end(&self, end: u64) -> u64 {
        let cuts = self.layers.iter().filter_map(|layer| layer.cut);
        cuts.fold(end, u64::min)
    }

    /// Whether `start..end` needs none of the committed bytes.
    #[must_use]
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let Some(newest) = self.layers.last() else {
            return start >= end;
        };
        let mut at = start;
        for (offset, data) in &newest.pieces {
            if *offset > at {
                break;
            }
            at = at.max(offset + data.len() as u64);
        }
        at >= end
    }

    /// Where written bytes are: offset and length.
    pub(super) fn written(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let pieces = self.layers.iter().flat_map(|layer| &layer.pieces);
        pieces.map(|(offset, data)| (*offset, data.len() as u64))
    }

    /// Puts it over `data`, whose first byte is the file's at `start`.
    pub fn put_over(&self, start: u64, data: &mut [u8]) {
        for layer in &self.layers {
            if let Some(cut) = layer.cut {
                let from = index(cut.saturating_sub(start)).min(data.len());
                data[from..].fill(0);
            }
            for (offset, piece) in &layer.pieces {
                let skipped = index(start.saturating_sub(*offset)).min(piece.len());
                let at = index(offset.saturating_sub(start)).min(data.len());
                let len = (piece.len() - skipped).min(data.len() - at);
                data[at..at + len].copy_from_slice(&piece[skipped..skipped + len]);
            }
        }
    }
}

/// Bytes on their way to the cluster.
#[derive(Debug)]
struct Flushing {
    /// The batch that has them.
    batch: u64,
    layer: Layer,
    /// Number of the oldest change in it.
    first: u64,
    /// When that was made, on the monotonic clock.
    since: Duration,
}

/// Which change it is, and when it was made on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) number: u64,
    pub(super) at: Duration,
}

/// What of a file is not committed yet.
#[derive(Debug)]
pub(super) struct DirtyFile {
    /// What its bytes count for.
    project: ProjectId,
    /// On its way, oldest batch first.
    flushing: VecDeque<Flushing>,
    /// Since then.
    active: Layer,
    /// Number of the oldest change in `active`.
    first: u64,
    /// When that was made, on the monotonic clock.
    since: Duration,
}

impl DirtyFile {
    pub(super) fn new(now: Duration, project: ProjectId) -> Self {
        Self {
            project,
            flushing: VecDeque::new(),
            active: Layer::default(),
            first: 0,
            since: now,
        }
    }

    pub(super) fn project(&self) -> ProjectId {
        self.project
    }

    /// When the oldest was written, on its way or not.
    pub(super) fn oldest(&self) -> Duration {
        self.flushing
            .front()
            .map_or(self.since, |flushing| flushing.since)
    }

    /// Number of the oldest change, on its way or not.
    pub(super) fn oldest_number(&self) -> u64 {
        self.flushing
            .front()
            .map_or(self.first, |flushing| flushing.first)
    }

    /// Whether changes up to this number are not on their way yet.
    pub(super) fn is_active_upto(&self, number: u64) -> bool {
        self.is_active() && self.first <= number
    }

    /// When the oldest was written that is not on its way.
    pub(super) fn since(&self) -> Duration {
        self.since
    }

    /// Whether anything is not on its way yet.
    pub(super) fn is_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// Bytes of which it consists, those on their way included.
    pub(super) fn bytes(&self) -> usize {
        self.active.bytes
            + self
                .flushing
                .iter()
                .map(|flushing| flushing.layer.bytes)
                .sum::<usize>()
    }

    /// Memory for what is not on its way, an estimate.
    pub(super) fn active_cost_bytes(&self) -> usize {
        self.active.cost_bytes()
    }

    pub(super) fn cost_bytes(&self) -> usize {
        let flushing = self.flushing.iter().map(|flushing| flushing.layer.cost_bytes());
        self.active.cost_bytes() + flushing.sum::<usize>()
    }

    pub(super) fn write(&mut self, change: Change, offset: u64, data: Bytes) {
        self.begin(change);
        self.active.write(offset, data);
    }

    pub(super) fn truncate(&mut self, change: Change, size: u64) {
        self.begin(change);
        self.active.truncate(size);
    }

    fn begin(&mut self, change: Change) {
        if self.active.is_empty() {
            self.first = change.number;
            self.since = change.at;
        }
    }

    /// What the batch `batch` is to commit. What is written from now on goes on top of it, until
    /// [`DirtyFile::flushed`].
    pub(super) fn take(&mut self, batch: u64) -> Option<&Layer> {
        if self.active.is_empty() {
            return None;
        }
        self.flushing.push_back(Flushing {
            batch,
            layer: std::mem::take(&mut self.active),
            first: self.first,
            since: self.since,
        });
        self.flushing.back().map(|flushing| &flushing.layer)
    }

    /// Nobody will read what is not on its way yet.
    pub(super) fn forget(&mut self) {
        self.active = Layer::default();
    }

    /// Whether nothing is left of it.
    pub(super) fn is_clean(&self) -> bool {
        self.flushing.is_empty() && self.active.is_empty()
    }

    /// What `batch` has taken is committed, or lost.
    pub(super) fn flushed(&mut self, batch: u64) {
        self.flushing.retain(|flushing| flushing.batch != batch);
    }

    pub(super) fn view(&self, start: u64, end: u64) -> Unflushed {
        let flushing = self.flushing.iter().map(|flushing| &flushing.layer);
        let layers = flushing.chain(std::iter::once(&self.active));
        Unflushed {
            layers: layers
                .filter(|layer| !layer.is_empty())
                .map(|layer| layer.view(start, end))
                .collect(),
        }
    }
}

/// Consecutive ranges as one, each at most `bytes_max` long. Bytes are copied only where ranges are joined.
pub(super) fn runs<'a>(
    ranges: impl Iterator<Item = (u64, &'a Bytes)>,
    bytes_max: usize,
) -> Vec<(u64, Bytes)> {
    let mut runs = Vec::new();
    let mut parts: Vec<Bytes> = Vec::new();
    let (mut start, mut len) = (0, 0);
    for (mut offset, data) in ranges {
        let mut data = data.clone();
        while !data.is_empty() {
            if start + len as u64 != offset || len >= bytes_max {
                runs.extend(join(start, &mut parts));
                (start, len) = (offset, 0);
            }
            let part = data.split_to(data.len().min(bytes_max - len));
            offset += part.len() as u64;
            len += part.len();
            parts.push(part);
        }
    }
    runs.extend(join(start, &mut parts));
    runs
}

/// What `parts` hold, as one run.
fn join(start: u64, parts: &mut Vec<Bytes>) -> Option<(u64, Bytes)> {
    if parts.len() < 2 {
        return Some((start, parts.pop()?));
    }
    let mut run = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    for part in parts.drain(..) {
        run.extend_from_slice(&part);
    }
    Some((start, run.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const FILE_BYTES: u64 = 64;

    /// Random writes, cuts and flushes against a plain vector of bytes.
    #[test]
    fn what_is_read_is_what_was_written_last() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut file = DirtyFile::new(Duration::ZERO, 0);
            let mut batch = 0;
            let mut committed = vec![9; 64];
            let mut expected = committed.clone();
            for step in 0..60 {
                let change = Change {
                    number: step,
                    at: Duration::ZERO,
                };
                match rng.random_range(0..8) {
                    0 => {
                        let size = rng.random_range(0..FILE_BYTES);
                        file.truncate(change, size);
                        expected[index(size)..].fill(0);
                    }
                    1 => {
                        batch += 1;
                        let _ = file.take(batch);
                    }
                    2 => {
                        if let Some(flushing) = file.flushing.front() {
                            let (batch, layer) = (flushing.batch, flushing.layer.clone());
                            if let Some(cut) = layer.cut {
                                committed[index(cut)..].fill(0);
                            }
                            for (offset, run) in runs(layer.ranges(), 16) {
                                committed[index(offset)..index(offset) + run.len()].copy_from_slice(&run);
                            }
                            file.flushed(batch);
                        }
                    }
                    _ => {
                        let start = rng.random_range(0..FILE_BYTES);
                        let len = rng.random_range(0..=FILE_BYTES - start).min(20);
                        let data = vec![rng.random::<u8>(); index(len)];
                        expected[index(start)..index(start + len)].copy_from_slice(&data);
                        file.write(change, start, data.into());
                    }
                }
                let start = rng.random_range(0..FILE_BYTES);
                let end = rng.random_range(start..=FILE_BYTES);
                let view = file.view(start, end);
                let mut found = committed[index(start)..index(end)].to_vec();
                let counted = view.committed_end(end).max(start);
                found[index(counted - start)..].fill(0);
                if view.covers(start, end) {
                    found.fill(77);
                }
                view.put_over(start, &mut found);
                assert_eq!(
                    found,
                    expected[index(start)..index(end)],
                    "seed {seed}, step {step}"
                );
                let bytes: usize = file.active.ranges.values().map(Bytes::len).sum();
                assert_eq!(bytes, file.active.bytes, "seed {seed}, step {step}");
            }
        }
    }

    #[test]
    fn consecutive_ranges_become_runs_of_bounded_length() {
        let ranges: Vec<(u64, Bytes)> = vec![
            (0, Bytes::from_static(b"abc")),
            (3, Bytes::from_static(b"defgh")),
            (10, Bytes::from_static(b"z")),
        ];
        let found = runs(ranges.iter().map(|(offset, data)| (*offset, data)), 4);
        let expected: Vec<(u64, Bytes)> = vec![
            (0, Bytes::from_static(b"abcd")),
            (4, Bytes::from_static(b"efgh")),
            (10, Bytes::from_static(b"z")),
        ];
        assert_eq!(found, expected);
    }
}
