//! A random caller of a journal, and what it may expect to find after a crash.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::Rng;
use rand::rngs::StdRng;

use super::*;
use crate::raft::LogId;

/// What the journal says from outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct View {
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// Terms of entries by index.
    terms: BTreeMap<u64, u64>,
}

impl View {
    fn last_index(&self) -> u64 {
        self.terms
            .keys()
            .next_back()
            .copied()
            .or(self.purged.map(|id| id.index))
            .unwrap_or(0)
    }
}

/// A caller that obeys Raft's rules.
pub(super) struct Caller {
    /// What the journal says after each record that was handed to it; the first is what it said at the start.
    views: Vec<View>,
    /// Records known to be durable.
    acked: Arc<AtomicUsize>,
    /// Terms of purged entries whose payload counts.
    purged_terms: BTreeMap<u64, u64>,
    committed: u64,
    floor: u64,
    term: u64,
    rng: StdRng,
}

/// The payload bytes of an entry: none, some, or much.
fn len(term: u64, index: u64) -> usize {
    match (term * 31 + index * 7) % 10 {
        0..3 => 0,
        3..8 => (index * 37 % 900) as usize,
        _ => 3000 + (index * 131 % 6000) as usize,
    }
}

impl Caller {
    pub(super) fn new(rng: StdRng) -> Self {
        Self {
            views: vec![View::default()],
            acked: Arc::default(),
            purged_terms: BTreeMap::new(),
            committed: 0,
            floor: 0,
            term: 1,
            rng,
        }
    }

    pub(super) fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    pub(super) fn records(&self) -> usize {
        self.views.len() - 1
    }

    fn view(&self) -> &View {
        self.views.last().unwrap()
    }

    fn acknowledge(&self, result: Result<(), JournalError>) -> Result<(), JournalError> {
        result.inspect(|()| {
            self.acked.fetch_max(self.records(), Ordering::SeqCst);
        })
    }

    /// Does something at random.
    pub(super) fn act(&mut self, journal: &Journal) -> Result<(), JournalError> {
        match self.rng.random_range(0..100) {
            0..60 => self.append(journal),
            60..70 => {
                self.term += 1;
                let vote = vote(self.term, self.rng.random_range(1..4));
                self.views.push(View {
                    vote: Some(vote),
                    ..self.view().clone()
                });
                self.acknowledge(block_on(journal.save_vote(vote)))
            }
            70..77 => self.truncate(journal),
            77..87 => {
                self.committed = self
                    .rng
                    .random_range(self.committed..=self.view().last_index().max(self.committed));
                if let Some(term) = self.view().terms.get(&self.committed) {
                    journal.note_committed(log_id(*term, self.committed));
                }
                Ok(())
            }
            87..98 => self.purge(journal),
            _ => self.install_snapshot(journal),
        }
    }

    fn append(&mut self, journal: &Journal) -> Result<(), JournalError> {
        let mut entries = Vec::new();
        for _ in 0..self.rng.random_range(1..5) {
            let mut view = self.view().clone();
            let index = view.last_index() + 1;
            view.terms.insert(index, self.term);
            entries.push(entry(self.term, index, len(self.term, index)));
            self.views.push(view);
        }
        let (acked, records) = (Arc::clone(&self.acked), self.records());
        let done = move |result: Result<(), JournalError>| {
            if result.is_ok() {
                acked.fetch_max(records, Ordering::SeqCst);
            }
        };
        block_on(journal.append(entries, Box::new(done)))?;
        if self.rng.random_bool(0.4) {
            block_on(journal.sync())
        } else {
            Ok(())
        }
    }

    fn truncate(&mut self, journal: &Journal) -> Result<(), JournalError> {
        let low = self.committed.max(self.view().purged.map_or(0, |id| id.index));
        let last = self.rng.random_range(low..=self.view().last_index().max(low));
        let mut view = self.view().clone();
        view.terms.retain(|index, _| *index <= last);
        self.views.push(view);
        self.term += 1;
        self.acknowledge(block_on(journal.truncate_after(Some(last))))
    }

    fn purge(&mut self, journal: &Journal) -> Result<(), JournalError> {
        let Some(first) = self.view().terms.keys().next().copied() else {
            return Ok(());
        };
        if self.committed < first || !self.view().terms.contains_key(&self.committed) {
            return Ok(());
        }
        let upto = self.rng.random_range(first..=self.committed);
        let id = log_id(self.view().terms[&upto], upto);
        let mut view = self.view().clone();
        let kept = view.terms.split_off(&(upto + 1));
        self.purged_terms.extend(std::mem::replace(&mut view.terms, kept));
        view.purged = Some(id);
        self.views.push(view);
        self.acknowledge(block_on(journal.purge(id)))?;
        self.floor = self.rng.random_range(self.floor..=upto.max(self.floor));
        journal.set_payload_floor(self.floor);
        Ok(())
    }

    /// Purges past the end: what is not committed here is not the cluster's.
    fn install_snapshot(&mut self, journal: &Journal) -> Result<(), JournalError> {
        self.term += 1;
        let id = log_id(self.term, self.view().last_index() + self.rng.random_range(1..20));
        for (index, term) in &self.views.last().unwrap().terms {
            if *index <= self.committed {
                self.purged_terms.insert(*index, *term);
            } else {
                self.purged_terms.remove(index);
            }
        }
        self.committed = id.index;
        let view = View {
            purged: Some(id),
            terms: BTreeMap::new(),
            ..self.view().clone()
        };
        self.views.push(view);
        self.acknowledge(block_on(journal.purge(id)))
    }

    /// Checks what a recovered journal says: all that was acknowledged, and of the rest a prefix. Goes on from there.
    pub(super) fn verify(&mut self, journal: &Journal) {
        let entries = read(journal, 0..u64::MAX).unwrap();
        let view = View {
            vote: journal.vote(),
            purged: journal.ends().0,
            terms: entries
                .iter()
                .map(|entry| (entry.log_id.index, entry.log_id.leader_id.term))
                .collect(),
        };
        for found in &entries {
            let (term, index) = (found.log_id.leader_id.term, found.log_id.index);
            assert_eq!(*found, entry(term, index, len(term, index)));
        }
        let acked = self.acked.load(Ordering::SeqCst);
        let prefix = (acked..self.views.len()).find(|records| self.views[*records] == view);
        let Some(prefix) = prefix else {
            panic!(
                "acknowledged up to {:?}, found {view:?}, last was {:?}",
                self.views[acked],
                self.view()
            );
        };
        self.views.truncate(prefix + 1);
        self.views.drain(..prefix);
        self.acked.store(0, Ordering::SeqCst);
        self.committed = self.committed.min(view.last_index());
        // As a node does that knows from its state machine what is committed.
        if let Some(term) = view.terms.get(&self.committed) {
            journal.note_committed(log_id(*term, self.committed));
        }
        self.verify_payloads(journal, &view);
    }

    fn verify_payloads(&self, journal: &Journal, view: &View) {
        for index in 0..=view.purged.map_or(0, |id| id.index) {
            let expected = self
                .purged_terms
                .get(&index)
                .map(|term| payload(*term, index, len(*term, index)));
            let expected = expected.filter(|payload| !payload.is_empty());
            match journal.payload(index).unwrap() {
                // Below the floor it may or may not be there still.
                None if index < self.floor => {}
                found => assert!(found == expected, "payload {index}, floor {}", self.floor),
            }
        }
    }
}
