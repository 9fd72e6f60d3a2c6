//! Where every entry is: the index in memory.

use std::collections::{BTreeMap, VecDeque};

use openraft::alias::CommittedLeaderIdOf;

use super::JournalError;
use super::bounds::Bounds;
use crate::TypeConfig;
use crate::raft::LogId;

/// Where an entry's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Not on the medium yet; the number tells it from another entry of the same index.
    Pending(u64),
    /// In the segment of this generation, at this byte.
    At { generation: u64, offset: u32 },
}

/// What is known of an entry without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) term: u64,
    pub(super) place: Place,
    pub(super) body_bytes: u32,
    pub(super) payload_bytes: u32,
}

impl Slot {
    pub(super) fn bytes(&self) -> usize {
        self.body_bytes as usize + self.payload_bytes as usize
    }
}

/// The log's entries, and those purged ones whose payload is kept.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    bounds: Bounds,
    /// Of the entries up to `bounds.next`. After a recovery that began in the middle the first ones may be missing,
    /// until a later purge covers them: see [`Log::check_complete`].
    slots: VecDeque<Slot>,
    /// Purged entries whose payload is kept, by ascending index.
    retained: VecDeque<(u64, Slot)>,
    /// Entries below this index are known to be the cluster's: by Raft's log matching they are, if one at or after
    /// them was committed under its present term.
    committed_end: u64,
    /// Payload below this index is not needed.
    floor: u64,
    /// How many of `slots` and `retained` are in each generation.
    used: BTreeMap<u64, Use>,
}

/// What of a generation is in use.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    count: u64,
    last_index: u64,
}

impl Log {
    /// A log whose entries so far are `bounds`, none of which is at hand.
    pub(super) fn resume(bounds: Bounds, committed_end: u64) -> Self {
        Self {
            bounds,
            committed_end,
            ..Self::default()
        }
    }

    pub(super) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    pub(super) fn committed_end(&self) -> u64 {
        self.committed_end
    }

    /// The last entry's id; the last purged one's if there is none.
    pub(super) fn last(&self) -> Option<LogId> {
        let last = self.bounds.next.checked_sub(1)?;
        match self.slot(last) {
            Some(slot) => Some(log_id(slot.term, last)),
            None => self.bounds.purged,
        }
    }

    /// The slot of an entry of the log.
    pub(super) fn slot(&self, index: u64) -> Option<&Slot> {
        if index < self.bounds.first || index >= self.bounds.next {
            return None;
        }
        let from_end = usize::try_from(self.bounds.next - index).ok()?;
        self.slots.get(self.slots.len().checked_sub(from_end)?)
    }

    pub(super) fn push(&mut self, index: u64, slot: Slot) -> Result<(), JournalError> {
        self.bounds.push(index)?;
        if let Place::At { generation, .. } = slot.place {
            self.use_generation(generation, index);
        }
        self.slots.push_back(slot);
        Ok(())
    }

    pub(super) fn truncate_after(&mut self, last: Option<u64>) {
        let before = self.bounds.next;
        self.bounds.truncate_after(last);
        let dropped = if self.bounds.anchored {
            before - self.bounds.next
        } else {
            u64::MAX
        };
        let keep = self
            .slots
            .len()
            .saturating_sub(usize::try_from(dropped).unwrap_or(usize::MAX));
        for slot in self.slots.split_off(keep) {
            self.unuse(&slot);
        }
    }

    /// Up to where a purge up to `upto` may trust the entries here: all of them if ours at `upto` is that very one,
    /// otherwise (a snapshot was installed over a log that lags, or differs) those known to be committed.
    pub(super) fn trusted_end(&self, upto: LogId) -> u64 {
        match self.slot(upto.index) {
            Some(slot) if slot.term == upto.leader_id.term => upto.index + 1,
            _ => self.committed_end,
        }
    }

    /// Drops entries up to `upto`, but keeps the payload of those below `trusted_end`.
    pub(super) fn purge(&mut self, upto: LogId, trusted_end: u64) {
        let mut index = self.bounds.next - self.slots.len() as u64;
        while index <= upto.index
            && let Some(slot) = self.slots.pop_front()
        {
            if slot.payload_bytes > 0 && index < trusted_end && index >= self.floor {
                self.retained.push_back((index, slot));
            } else {
                self.unuse(&slot);
            }
            index += 1;
        }
        self.bounds.purge(upto);
        self.committed_end = self.committed_end.max(self.bounds.first);
    }

    /// Learns that the cluster has committed this entry.
    pub(super) fn note_committed(&mut self, id: LogId) -> bool {
        let ours = self
            .slot(id.index)
            .is_some_and(|slot| slot.term == id.leader_id.term);
        if ours {
            self.committed_end = self.committed_end.max(id.index + 1);
        }
        ours
    }

    pub(super) fn set_floor(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        while let Some((index, slot)) = self.retained.front().copied()
            && index < self.floor
        {
            self.retained.pop_front();
            self.unuse(&slot);
        }
    }

    /// Notes that the entry appended under `ticket` is on the medium now. Nothing happens if it was dropped since.
    pub(super) fn place(&mut self, index: u64, ticket: u64, generation: u64, offset: u32) {
        let live = index.checked_sub(self.bounds.next - self.slots.len() as u64);
        let slot = match live {
            Some(at) => usize::try_from(at).ok().and_then(|at| self.slots.get_mut(at)),
            None => match self.retained.binary_search_by_key(&index, |(index, _)| *index) {
                Ok(at) => self.retained.get_mut(at).map(|(_, slot)| slot),
                Err(_) => None,
            },
        };
        if let Some(slot) = slot
            && slot.place == Place::Pending(ticket)
        {
            slot.place = Place::At { generation, offset };
            self.use_generation(generation, index);
        }
    }

    /// The slot of an entry, purged or not, whose payload is kept and that is known to be committed.
    pub(super) fn payload_slot(&self, index: u64) -> Option<&Slot> {
        if index >= self.committed_end {
            return None;
        }
        match self.slot(index) {
            Some(slot) => Some(slot),
            None => {
                let at = self
                    .retained
                    .binary_search_by_key(&index, |(index, _)| *index)
                    .ok()?;
                self.retained.get(at).map(|(_, slot)| slot)
            }
        }
    }

    /// The oldest generation that an entry is in.
    pub(super) fn oldest_generation(&self) -> Option<u64> {
        self.used.keys().next().copied()
    }

    /// The oldest index whose payload or entry is kept.
    pub(super) fn oldest_index(&self) -> Option<u64> {
        match self.retained.front() {
            Some((index, _)) => Some(*index),
            None => (!self.bounds.is_empty()).then_some(self.bounds.first),
        }
    }

    /// After a recovery: the first index of the log that has no entry, if there is one.
    pub(super) fn first_missing(&self) -> Option<u64> {
        let at_hand = self.slots.len() as u64;
        (self.bounds.next - self.bounds.first != at_hand).then_some(self.bounds.first)
    }

    /// The last index that was ever in the oldest generation.
    pub(super) fn oldest_generation_last_index(&self) -> Option<u64> {
        self.used.values().next().map(|used| used.last_index)
    }

    fn use_generation(&mut self, generation: u64, index: u64) {
        let used = self.used.entry(generation).or_default();
        used.count += 1;
        used.last_index = used.last_index.max(index);
    }

    fn unuse(&mut self, slot: &Slot) {
        if let Place::At { generation, .. } = slot.place
            && let Some(used) = self.used.get_mut(&generation)
        {
            used.count -= 1;
            if used.count == 0 {
                self.used.remove(&generation);
            }
        }
    }
}

/// openraft's log id of a term and an index.
pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(term), index)
}
