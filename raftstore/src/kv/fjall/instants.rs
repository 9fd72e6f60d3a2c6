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
        let instants = Self {
            numbers,
            open: Mutex::new(Open {
                newest: next,
                readers: BTreeMap::new(),
            }),
        };
        instants.go_on();
        instants
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch gets a number that no change had before: the buffer with the last one's is no longer changed.
    pub(super) fn go_on(&self) {
        let _ = self.numbers.next();
    }

    /// Begins a batch, whose changes are seen once what this returns is dropped. There is one at a time.
    ///
    /// If nobody reads, the batch gets the number of the last one, and nobody begins to read before it is whole. Changes of the
    /// same keys then take each other's place in the tree's buffer. Else it would keep all of them, and a scan passes each: a lock
    /// that a database takes and gives up a thousand times a second makes every later look at that file's locks slower.
    pub(super) fn begin(&self) -> Writing<'_> {
        let open = self.lock();
        if open.readers.is_empty() && self.numbers.get() == open.newest {
            Writing {
                number: open.newest.saturating_sub(1),
                of: self,
                alone: Some(open),
            }
        } else {
            drop(open);
            Writing {
                number: self.numbers.next(),
                of: self,
                alone: None,
            }
        }
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

/// A batch that is being written.
pub(super) struct Writing<'a> {
    /// Of all its changes.
    pub(super) number: SeqNo,
    of: &'a Instants,
    /// Keeps readers out.
    alone: Option<MutexGuard<'a, Open>>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.alone.is_none() {
            self.of.lock().newest = self.number + 1;
        }
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

    fn write(instants: &Instants) -> SeqNo {
        instants.begin().number
    }

    #[test]
    fn what_somebody_reads_is_kept() {
        let instants = Arc::new(Instants::new(SequenceNumberCounter::default(), 5));
        assert_eq!(instants.newest().at, 5);
        let first = instants.newest();
        assert_eq!(write(&instants), 6);
        let (second, third) = (instants.newest(), instants.newest());
        assert_eq!((first.at, second.at, third.at), (5, 7, 7));
        assert_eq!(instants.oldest(), 5);
        drop((first, second));
        assert_eq!(write(&instants), 7);
        assert_eq!(instants.oldest(), 7, "one still reads it");
        drop(third);
        assert_eq!(instants.oldest(), 8);
    }

    #[test]
    fn a_number_is_used_again_only_if_nobody_has_seen_it_and_its_buffer_is_the_same() {
        let numbers = SequenceNumberCounter::default();
        let instants = Arc::new(Instants::new(numbers.clone(), 5));
        let first = write(&instants);
        assert!(first >= 5, "older changes are in files");
        assert_eq!(write(&instants), first);
        let reader = instants.newest();
        let second = write(&instants);
        assert!(second >= reader.at);
        drop(reader);
        assert_eq!(write(&instants), second);
        instants.go_on();
        let third = write(&instants);
        assert!(third > second);
        // A flush.
        let _ = numbers.next();
        assert!(write(&instants) > third);
    }
}
