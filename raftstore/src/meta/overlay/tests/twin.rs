//! Two stores that must come to the same: one to which each operation is applied at once, and one on which an overlay
//! runs ahead, and which gets the operations in batches.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::Overlay;
use crate::clock::Timestamp;
use crate::meta::testing::{LocalMeta, broken_rules};
use crate::meta::*;

pub(super) type Answer = Result<Reply, MetaError>;

/// A store with what a test has to know of it.
pub(super) struct Side {
    pub(super) local: LocalMeta,
    heard: Arc<Heard>,
    seq: u64,
    /// What stands in which chunk or payload.
    chunks: BTreeMap<ChunkId, Bytes>,
}

#[derive(Default)]
struct Heard(Mutex<Vec<Event>>);

impl Observer for Heard {
    fn applied(&self, _index: u64, events: &[Event]) {
        self.0.lock().unwrap().extend_from_slice(events);
    }
}

impl Side {
    fn new() -> Self {
        let (local, heard) = (LocalMeta::new().unwrap(), Arc::new(Heard::default()));
        local.store().observe(heard.clone());
        Self {
            local,
            heard,
            seq: 0,
            chunks: BTreeMap::new(),
        }
    }

    fn proposal(&mut self, time: Timestamp, op: Op, payload: Bytes) -> Proposal {
        self.seq += 1;
        Proposal {
            session: self.local.session(),
            seq: self.seq,
            ack_floor: self.seq,
            chunk_floor: 0,
            time,
            op,
            payload,
        }
    }

    /// Applies an operation; its answer and events.
    fn submit(&mut self, time: Timestamp, op: Op, payload: Bytes) -> (Answer, Vec<Event>) {
        self.heard.0.lock().unwrap().clear();
        let proposal = self.proposal(time, op, payload.clone());
        let (index, answer) = self.local.propose(proposal).unwrap();
        self.chunks.insert(ChunkId::payload(index), payload);
        (answer, std::mem::take(&mut self.heard.0.lock().unwrap()))
    }

    /// A file's bytes, and which of them are allocated.
    fn contents(&self, inode: &Inode) -> (Vec<u8>, BTreeSet<u64>) {
        let mut bytes = vec![0; usize::try_from(inode.size).unwrap()];
        let mut allocated = BTreeSet::new();
        let reader = self.local.reader();
        for extent in reader.extents(inode.ino, 0, u64::MAX, usize::MAX).unwrap() {
            allocated.extend(extent.offset..extent.end());
            if let Source::Chunk { id, offset } = extent.source {
                let (start, len) = (usize::try_from(extent.offset).unwrap(), extent.len as usize);
                bytes[start..start + len].copy_from_slice(&self.chunks[&id][offset as usize..][..len]);
            }
        }
        (bytes, allocated)
    }
}

/// What a node holds of a file that it has written to.
#[derive(Default)]
struct Dirty {
    /// The old bytes from here on are gone.
    cut: Option<u64>,
    bytes: BTreeMap<u64, u8>,
}

impl Dirty {
    fn truncate(&mut self, old_size: u64, size: u64) {
        if size <= old_size {
            self.cut = Some(self.cut.unwrap_or(u64::MAX).min(size));
        }
        self.bytes.retain(|offset, _| *offset < size);
    }

    /// Runs of bytes that follow each other.
    fn runs(&self) -> Vec<(u64, Vec<u8>)> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (offset, byte) in &self.bytes {
            match runs.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == *offset => run.push(*byte),
                _ => runs.push((*offset, vec![*byte])),
            }
        }
        runs
    }
}

pub(super) struct Twin {
    /// Gets everything at once.
    pub(super) first: Side,
    /// Gets it in batches.
    pub(super) second: Side,
    overlay: Overlay,
    /// What the second has not got, under increasing numbers.
    queue: VecDeque<(u64, BatchItem)>,
    dirty: BTreeMap<Ino, Dirty>,
    number: u64,
    next_ino: Ino,
    next_chunk: u64,
    /// Batches that were committed, and flushes in them.
    pub(super) batches: usize,
    pub(super) flushes: usize,
}

impl Twin {
    pub(super) fn new() -> Self {
        let (mut first, mut second) = (Side::new(), Side::new());
        let mut next_ino = 0;
        for side in [&mut first, &mut second] {
            let op = Op::ReserveInodes { count: 10_000 };
            match side.submit(Timestamp::default(), op, Bytes::new()).0 {
                Ok(Reply::Reserved { first }) => next_ino = first,
                other => panic!("{other:?}"),
            }
        }
        let overlay = Overlay::new(&second.local.reader());
        Self {
            first,
            second,
            overlay,
            queue: VecDeque::new(),
            dirty: BTreeMap::new(),
            number: 0,
            next_ino,
            next_chunk: 1,
            batches: 0,
            flushes: 0,
        }
    }

    /// A number for a new inode.
    pub(super) fn reserved(&mut self) -> Ino {
        self.next_ino += 1;
        self.next_ino - 1
    }

    /// Inodes that may exist.
    pub(super) fn inodes(&self) -> std::ops::Range<Ino> {
        ROOT_INO..self.next_ino + 1
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Does an operation at both; they must answer the same.
    pub(super) fn run(&mut self, time: Timestamp, op: Op, payload: Bytes) -> Answer {
        let number = self.number + 1;
        let old_size = self.size_of(&op);
        let proposal = self.second.proposal(time, op.clone(), payload.clone());
        let ahead = self.overlay.apply(number, &proposal).unwrap();
        if matches!((&op, &ahead), (Op::Rename { .. }, Err(MetaError::Malformed(_)))) {
            return self.run_in_the_log(time, op);
        }
        let (answer, mut events) = self.first.submit(time, op.clone(), payload.clone());
        // Only the log knows of chunks.
        events.retain(|event| !matches!(event, Event::ChunkAdded { .. } | Event::ChunkDead { .. }));
        let (ahead, ahead_events) = match ahead {
            Ok((reply, events)) => (Ok(reply), events),
            Err(error) => (Err(error), Vec::new()),
        };
        assert_eq!(
            without_allocation(ahead),
            without_allocation(answer.clone()),
            "{op:?}"
        );
        assert_eq!(ahead_events, events, "{op:?}");
        if let Ok(reply) = &answer {
            self.number = number;
            self.note(number, time, op, old_size, reply, &payload);
        }
        answer
    }

    /// For what cannot run ahead: everything is committed before.
    pub(super) fn run_in_the_log(&mut self, time: Timestamp, op: Op) -> Answer {
        self.commit_all();
        let answer = self.first.submit(time, op.clone(), Bytes::new()).0;
        let same = self.second.submit(time, op.clone(), Bytes::new()).0;
        assert_eq!(same, answer, "{op:?}");
        answer
    }

    fn size_of(&self, op: &Op) -> u64 {
        let Op::SetAttr { ino, .. } = op else { return 0 };
        let inode = self.overlay.reader().inode(*ino).unwrap();
        inode.map_or(0, |inode| inode.size)
    }

    /// Notes what was done, for the second store.
    fn note(&mut self, number: u64, time: Timestamp, op: Op, old_size: u64, reply: &Reply, payload: &Bytes) {
        match (&op, reply) {
            (Op::Write { .. }, _) if payload.is_empty() => {}
            (Op::Write { ino, .. }, Reply::Written { offset, .. }) => {
                let dirty = self.dirty.entry(*ino).or_default();
                dirty.bytes.extend((*offset..).zip(payload.iter().copied()));
            }
            (
                Op::SetAttr {
                    ino,
                    change: AttrChange { size: Some(size), .. },
                },
                _,
            ) => self.dirty.entry(*ino).or_default().truncate(old_size, *size),
            _ => self.queue.push_back((number, BatchItem { time, op })),
        }
    }

    pub(super) fn commit_all(&mut self) {
        let all: Vec<Ino> = self.dirty.keys().copied().collect();
        self.commit(self.queue.len(), &all, |_| true);
    }

    /// Commits the queue, and some of the dirty files with it.
    pub(super) fn commit_with_flushes(&mut self, rng: &mut StdRng) {
        let mut some: Vec<Ino> = self.dirty.keys().copied().collect();
        some.retain(|_| rng.random());
        self.commit(self.queue.len(), &some, |_| rng.random());
    }

    /// Commits the first `count` of what is queued, and flushes (only behind the whole queue: the state of a file is
    /// what all of it has made of it).
    pub(super) fn commit(&mut self, count: usize, flushed: &[Ino], mut inline: impl FnMut(usize) -> bool) {
        assert!(flushed.is_empty() || count == self.queue.len());
        let mut items = Vec::new();
        let mut number = 0;
        for (of_item, item) in self.queue.drain(..count) {
            number = of_item;
            items.push(item);
        }
        if self.queue.is_empty() {
            number = self.number;
        }
        let mut payload = Vec::new();
        for ino in flushed {
            items.push(self.flush(*ino, &mut payload, &mut inline));
        }
        self.flushes += flushed.len();
        self.batches += 1;
        let batch = Op::Batch { items };
        let (answer, _) = self.second.submit(Timestamp::default(), batch, payload.into());
        assert_eq!(answer, Ok(Reply::Batch { refused: vec![] }));
        // Both show the same, also while the changes are in the overlay and in the base.
        self.compare_visible();
        self.overlay
            .committed(number, |ino| self.dirty.contains_key(&ino));
    }

    /// Takes what is dirty of a file, with the state that the overlay shows.
    fn flush(
        &mut self,
        ino: Ino,
        payload: &mut Vec<u8>,
        inline: &mut impl FnMut(usize) -> bool,
    ) -> BatchItem {
        let dirty = self.dirty.remove(&ino).unwrap();
        let id = ChunkId {
            session: self.second.local.session().0,
            seq: self.next_chunk,
        };
        self.next_chunk += 1;
        let mut chunk = b"head".to_vec();
        let piece = |(offset, bytes): (u64, Vec<u8>)| {
            let len = u32::try_from(bytes.len()).unwrap();
            let (target, in_payload) = if inline(bytes.len()) {
                (&mut *payload, true)
            } else {
                (&mut chunk, false)
            };
            let at = u32::try_from(target.len()).unwrap();
            target.extend(bytes);
            let data = match in_payload {
                true => PieceData::Inline { offset: at },
                false => PieceData::Chunk { id, offset: at },
            };
            Piece { offset, len, data }
        };
        let pieces = dirty.runs().into_iter().map(piece).collect();
        self.second.chunks.insert(id, chunk.into());
        let state = FileState::from(&self.overlay.reader().inode(ino).unwrap().unwrap());
        let op = Op::Flush {
            ino,
            cut: dirty.cut,
            pieces,
            state,
        };
        BatchItem {
            time: Timestamp::default(),
            op,
        }
    }

    /// What anyone can see through the overlay must be what the first store shows.
    pub(super) fn compare_visible(&self) {
        let (expected, shown) = (self.first.local.reader(), self.overlay.reader());
        for ino in self.inodes() {
            let inode = |reader: &Reader| {
                let mut inode = reader.inode(ino).unwrap();
                inode.iter_mut().for_each(|inode| inode.allocated_bytes = 0);
                inode
            };
            assert_eq!(inode(&shown), inode(&expected));
            compare_rows(&shown, &expected, ino);
        }
        assert_eq!(
            shown.orphans(0, usize::MAX).unwrap(),
            expected.orphans(0, usize::MAX).unwrap()
        );
    }

    /// The stores themselves must be the same once everything is committed.
    pub(super) fn compare_stores(&mut self) {
        self.commit_all();
        assert!(self.overlay.is_empty());
        assert_eq!(self.overlay.bytes(), 0);
        let (first, second) = (self.first.local.reader(), self.second.local.reader());
        for reader in [&first, &second] {
            assert_eq!(broken_rules(reader).unwrap(), Vec::<String>::new());
        }
        for ino in self.inodes() {
            let inode = first.inode(ino).unwrap();
            assert_eq!(second.inode(ino).unwrap(), inode);
            compare_rows(&second, &first, ino);
            if let Some(inode) = inode.filter(|inode| inode.kind == FileKind::Regular) {
                let same = self.second.contents(&inode) == self.first.contents(&inode);
                assert!(same, "contents of {ino} differ");
            }
        }
        assert_eq!(second.usage().unwrap(), first.usage().unwrap());
    }
}

/// Entries (by cookie and by name), extended attributes and locks.
fn compare_rows(shown: &Reader, expected: &Reader, ino: Ino) {
    let items = expected.list(ino, 0, usize::MAX).unwrap();
    assert_eq!(shown.list(ino, 0, usize::MAX).unwrap(), items, "entries of {ino}");
    for item in items {
        assert_eq!(shown.lookup(ino, &item.name).unwrap(), Some(item.entry));
    }
    let names = expected.xattr_names(ino).unwrap();
    assert_eq!(shown.xattr_names(ino).unwrap(), names, "attributes of {ino}");
    for name in names {
        assert_eq!(
            shown.xattr(ino, &name).unwrap(),
            expected.xattr(ino, &name).unwrap()
        );
    }
    assert_eq!(
        shown.locks(ino).unwrap(),
        expected.locks(ino).unwrap(),
        "locks on {ino}"
    );
}

/// An overlay only guesses how much is allocated.
fn without_allocation(answer: Answer) -> Answer {
    answer.map(|mut reply| {
        match &mut reply {
            Reply::Inode(inode)
            | Reply::Existing(inode)
            | Reply::Written { inode, .. }
            | Reply::Copied { inode, .. } => inode.allocated_bytes = 0,
            _ => {}
        }
        reply
    })
}
