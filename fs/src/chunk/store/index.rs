//! Which chunk is where: the store's memory.

use std::collections::BTreeMap;

use raftstore::meta::ChunkId;

use super::format::{BLOCK_BYTES, record_blocks};

/// Set in [`Location::len`] once a read found damage.
const DAMAGED: u32 = 1 << 31;

/// Where a chunk's record is. Twelve bytes: there are hundreds of thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Pack number.
    pub pack: u32,
    /// The record header's block in the pack.
    pub block: u32,
    len: u32,
}

impl Location {
    /// A chunk of `len` bytes.
    #[must_use]
    pub fn new(pack: u32, block: u32, len: u32) -> Self {
        Self { pack, block, len }
    }

    /// Length of the chunk in bytes.
    #[must_use]
    pub fn len(self) -> u32 {
        self.len & !DAMAGED
    }

    /// Whether a read found this copy damaged.
    #[must_use]
    pub fn is_damaged(self) -> bool {
        self.len & DAMAGED != 0
    }

    /// Whether the two are the same record.
    #[must_use]
    pub fn same_record(self, other: Self) -> bool {
        (self.pack, self.block) == (other.pack, other.block)
    }
}

/// A pack file as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pack {
    /// Length of the file in blocks.
    pub blocks: u32,
    /// Blocks of records that were written to it.
    pub record_blocks: u32,
    /// Blocks of records that the index points to.
    pub live_blocks: u32,
    /// Nothing more will be appended.
    pub sealed: bool,
}

/// The in-memory index.
#[derive(Debug, Default)]
pub struct Index {
    chunks: BTreeMap<ChunkId, Location>,
    packs: BTreeMap<u32, Pack>,
    damaged: u64,
}

/// Totals of an [`Index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Number of chunks.
    pub chunks: u64,
    /// Chunks whose copy is known to be damaged.
    pub damaged_chunks: u64,
    /// Bytes of records in use, headers included.
    pub live_bytes: u64,
    /// Bytes of packs that hold nothing in use.
    pub dead_bytes: u64,
    /// Number of packs.
    pub packs: u64,
}

impl Index {
    /// Where the chunk is, damaged or not.
    #[must_use]
    pub fn get(&self, id: ChunkId) -> Option<Location> {
        self.chunks.get(&id).copied()
    }

    /// Whether there is a copy that is not known to be damaged.
    #[must_use]
    pub fn is_good(&self, id: ChunkId) -> bool {
        self.get(id).is_some_and(|location| !location.is_damaged())
    }

    /// Up to `max` chunks after `after`, in order, with their lengths.
    #[must_use]
    pub fn after(&self, after: Option<ChunkId>, max: usize) -> Vec<(ChunkId, u32)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.chunks
            .range((from, Unbounded))
            .take(max)
            .map(|(id, location)| (*id, location.len()))
            .collect()
    }

    /// The chunks whose records are in `pack`.
    #[must_use]
    pub fn in_pack(&self, pack: u32) -> Vec<(ChunkId, Location)> {
        let mut found: Vec<_> = self
            .chunks
            .iter()
            .filter(|(_, at)| at.pack == pack)
            .map(|(id, at)| (*id, *at))
            .collect();
        found.sort_unstable_by_key(|(_, at)| at.block);
        found
    }

    /// Points a chunk to a record, giving up the record it had.
    pub fn insert(&mut self, id: ChunkId, location: Location) {
        self.remove(id);
        self.chunks.insert(id, location);
        self.packs.entry(location.pack).or_default().live_blocks += record_blocks(location.len());
    }

    /// Forgets a chunk; true if there was one.
    pub fn remove(&mut self, id: ChunkId) -> bool {
        let Some(old) = self.chunks.remove(&id) else {
            return false;
        };
        self.damaged -= u64::from(old.is_damaged());
        if let Some(pack) = self.packs.get_mut(&old.pack) {
            pack.live_blocks = pack.live_blocks.saturating_sub(record_blocks(old.len()));
        }
        true
    }

    /// Marks a record as damaged; no effect if the chunk has another one by now. True if it was thought good.
    pub fn mark_damaged(&mut self, id: ChunkId, location: Location) -> bool {
        match self.chunks.get_mut(&id) {
            Some(at) if at.same_record(location) && !at.is_damaged() => {
                at.len |= DAMAGED;
                self.damaged += 1;
                true
            }
            _ => false,
        }
    }

    /// A pack, made if there was none.
    pub fn pack_mut(&mut self, pack: u32) -> &mut Pack {
        self.packs.entry(pack).or_default()
    }

    /// Takes out the sealed packs that hold nothing in use any more.
    pub fn take_dead_packs(&mut self) -> Vec<u32> {
        let dead = |pack: &Pack| pack.sealed && pack.live_blocks == 0;
        let numbers: Vec<_> = self
            .packs
            .iter()
            .filter(|(_, pack)| dead(pack))
            .map(|(n, _)| *n)
            .collect();
        for number in &numbers {
            self.packs.remove(number);
        }
        numbers
    }

    /// Sealed packs with at most `live_percent_max` of their records in use, emptiest first. What was copied into a
    /// fresh pack is all in use, so compaction comes to an end for any value below 100.
    #[must_use]
    pub fn sparse_packs(&self, live_percent_max: u32) -> Vec<(u32, Pack)> {
        let share = |pack: &Pack| u64::from(pack.live_blocks) * 100 / u64::from(pack.record_blocks.max(1));
        let sparse = |pack: &Pack| pack.sealed && share(pack) <= u64::from(live_percent_max.min(99));
        let mut found: Vec<_> = self
            .packs
            .iter()
            .filter(|(_, p)| sparse(p))
            .map(|(n, p)| (*n, *p))
            .collect();
        found.sort_by_key(|(_, pack)| share(pack));
        found
    }

    /// Totals.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let bytes = |blocks: u64| blocks * BLOCK_BYTES as u64;
        let all: u64 = self.packs.values().map(|pack| u64::from(pack.blocks)).sum();
        let live: u64 = self.packs.values().map(|pack| u64::from(pack.live_blocks)).sum();
        Totals {
            chunks: self.chunks.len() as u64,
            damaged_chunks: self.damaged,
            live_bytes: bytes(live),
            dead_bytes: bytes(all.saturating_sub(live)),
            packs: self.packs.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64) -> ChunkId {
        ChunkId { session: 1, seq }
    }

    #[test]
    fn a_location_is_small() {
        assert_eq!(size_of::<Location>(), 12);
    }

    #[test]
    fn counts_follow_moves_damage_and_removal() {
        let mut index = Index::default();
        index.pack_mut(1).blocks = 10;
        index.pack_mut(2).blocks = 10;
        index.insert(id(1), Location::new(1, 1, 5000));
        index.insert(id(2), Location::new(1, 4, 10));
        assert_eq!(index.totals().live_bytes, 5 * 4096);
        assert!(index.mark_damaged(id(1), Location::new(1, 1, 5000)));
        assert!(!index.mark_damaged(id(1), Location::new(1, 1, 5000)));
        assert!(!index.is_good(id(1)));
        assert_eq!(index.get(id(1)).map(Location::len), Some(5000));
        assert_eq!(index.totals().damaged_chunks, 1);
        index.insert(id(1), Location::new(2, 1, 5000));
        assert!(index.is_good(id(1)));
        assert_eq!(index.totals().damaged_chunks, 0);
        assert!(index.remove(id(2)));
        assert!(index.take_dead_packs().is_empty(), "pack 1 may still grow");
        index.pack_mut(1).sealed = true;
        assert_eq!(index.take_dead_packs(), [1]);
        assert_eq!(index.after(None, 9), [(id(1), 5000)]);
        assert_eq!(index.after(Some(id(1)), 9), []);
    }
}
