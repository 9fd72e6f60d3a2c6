//! Which numbered state of the tree readers see.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lsm_tree::{SeqNo, SequenceNumberCounter};

/// The newest state, which is that after the last whole batch, and the older ones that somebody still reads.
pub(super) struct Instants {
    /// The tree numbers changes, and its own doings, from the same counter.
    numbers: SequenceNumberCounter,
    open: Mutex<Open>,
}

struct Open {
    /// Changes with lower numbers are seen.
    newest: SeqNo,
    /// How many read each state.
    readers: BTreeMap<SeqNo, usize>,
}

impl Instants {
    /// All that a tree holds has lower numbers than `next`.
    pub(super) fn new(numbers: SequenceNumberCounter, next: SeqNo) -> Self {
        numbers.fetch_max(next);
        Self {
            numbers,
            open: Mutex::new(Open {
                newest: next,
                readers: BTreeMap::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for the next change.
    pub(super) fn number(&self) -> SeqNo {
        self.numbers.next()
    }

    /// The batch whose last change has this number is whole.
    pub(super) fn publish(&self, last: SeqNo) {
        self.lock().newest = last + 1;
    }

    /// The newest state, kept until the instant is dropped.
    pub(super) fn newest(self: &Arc<Self>) -> Instant {
        let mut open = self.lock();
        let at = open.newest;
        *open.readers.entry(at).or_default() += 1;
        Instant {
            at,
            of: Arc::clone(self),
        }
    }

    /// The oldest state that anyone may still read.
    pub(super) fn oldest(&self) -> SeqNo {
        let open = self.lock();
        open.readers.first_key_value().map_or(open.newest, |(at, _)| *at)
    }
}

/// One state, which the tree keeps as long as this lives.
pub(super) struct Instant {
    pub(super) at: SeqNo,
    of: Arc<Instants>,
}

impl Drop for Instant {
    fn drop(&mut self) {
        let mut open = self.of.lock();
        if let Some(readers) = open.readers.get_mut(&self.at) {
            *readers -= 1;
            if *readers == 0 {
                open.readers.remove(&self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_reads_is_kept() {
        let instants = Arc::new(Instants::new(SequenceNumberCounter::default(), 5));
        assert_eq!((instants.number(), instants.newest().at), (5, 5));
        let first = instants.newest();
        instants.publish(instants.number());
        let (second, third) = (instants.newest(), instants.newest());
        assert_eq!((first.at, second.at, third.at), (5, 7, 7));
        assert_eq!(instants.oldest(), 5);
        drop((first, second));
        instants.publish(instants.number());
        assert_eq!(instants.oldest(), 7, "one still reads it");
        drop(third);
        assert_eq!(instants.oldest(), 8);
    }
}
