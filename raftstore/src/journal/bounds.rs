//! Where the log begins and ends.

use serde::{Deserialize, Serialize};

use super::JournalError;
use crate::raft::LogId;

/// Which indexes the log holds: `first..next`. Kept twice: as callers see the log, and as the medium has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Bounds {
    /// Index of the first entry that was not purged.
    pub(super) first: u64,
    /// One past the last entry.
    pub(super) next: u64,
    /// False while the log never held an entry, or lost all of them without a purge: then any index may come next.
    pub(super) anchored: bool,
    /// The last purged entry.
    pub(super) purged: Option<LogId>,
}

impl Bounds {
    pub(super) fn is_empty(&self) -> bool {
        self.next == self.first
    }

    /// Takes in an appended entry.
    pub(super) fn push(&mut self, index: u64) -> Result<(), JournalError> {
        if !self.anchored {
            (self.first, self.next, self.anchored) = (index, index, true);
        }
        if index != self.next {
            return Err(JournalError::NotConsecutive {
                expected: self.next,
                got: index,
            });
        }
        self.next += 1;
        Ok(())
    }

    /// Drops entries after `last` (all, if `None`). Purged ones are out of reach.
    pub(super) fn truncate_after(&mut self, last: Option<u64>) {
        let next = last.map_or(0, |last| last.saturating_add(1)).max(self.first);
        self.next = self.next.min(next);
        if self.is_empty() && self.purged.is_none() {
            *self = Self::default();
        }
    }

    /// Drops entries up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        self.purged = Some(upto);
        self.first = upto.index + 1;
        self.next = self.next.max(self.first);
        self.anchored = true;
    }
}
