use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use openraft::EntryPayload;

use super::log::log_id;
use super::{Journal, JournalError, JournalOptions, Recovery, StoreIdentity};
use crate::clock::{SystemClock, Timestamp};
use crate::disk::{Disk, SimDisk};
use crate::meta::{Data, Op, Proposal, SessionId, WriteAt};
use crate::raft::{Entry, Vote};

mod basics;
mod conformance;
mod crash;
mod damage;
mod fuzz;
mod model;
mod space;

const DIR: &str = "/store/journal";

fn identity() -> StoreIdentity {
    StoreIdentity {
        cluster_id: "brave-bramble".into(),
        node_id: 3,
    }
}

fn options() -> JournalOptions {
    JournalOptions {
        segment_bytes: 64 << 10,
        cache_bytes_max: 16 << 10,
        ..JournalOptions::default()
    }
}

fn try_open(disk: &SimDisk, options: JournalOptions) -> Result<(Arc<Journal>, Recovery), JournalError> {
    open_on(Arc::new(disk.clone()), DIR, options)
}

fn open_on(
    disk: Arc<dyn Disk>,
    dir: impl Into<PathBuf>,
    options: JournalOptions,
) -> Result<(Arc<Journal>, Recovery), JournalError> {
    Journal::open(disk, Arc::new(SystemClock), dir.into(), identity(), options)
}

fn open(disk: &SimDisk) -> Arc<Journal> {
    try_open(disk, options()).unwrap().0
}

/// The payload that [`entry`] gives an entry.
fn payload(term: u64, index: u64, len: usize) -> Bytes {
    let mut word = (term * 1_000_003 + index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&word.to_le_bytes());
        word = word.rotate_left(7).wrapping_add(index);
    }
    bytes.truncate(len);
    bytes.into()
}

/// An entry with a proposal that carries `len` bytes.
fn entry(term: u64, index: u64, len: usize) -> Entry {
    let proposal = Proposal {
        session: SessionId(7),
        seq: index,
        ack_floor: index,
        chunk_floor: 0,
        time: Timestamp {
            sec: index as i64,
            nsec: 5,
        },
        op: Op::Write {
            ino: index,
            at: WriteAt::Offset(0),
            data: Data::Inline,
            kill_suid_sgid: false,
        },
        payload: payload(term, index, len),
    };
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(proposal),
    }
}

fn append(journal: &Journal, entries: Vec<Entry>) -> Result<(), JournalError> {
    let (tx, rx) = std::sync::mpsc::channel();
    block_on(journal.append(entries, Box::new(move |result| tx.send(result).unwrap())))?;
    rx.recv().unwrap()
}

/// Appends entries one by one, each durable before the next.
fn fill(journal: &Journal, term: u64, indexes: std::ops::Range<u64>, len: usize) {
    for index in indexes {
        append(journal, vec![entry(term, index, len)]).unwrap();
    }
}

fn read(journal: &Journal, range: std::ops::Range<u64>) -> Result<Vec<Entry>, JournalError> {
    block_on(journal.read(range, usize::MAX))
}

fn vote(term: u64, node: u64) -> Vote {
    Vote::new(term, node)
}

fn segment(slot: u32) -> PathBuf {
    Path::new(DIR).join(super::segment::segment_name(slot))
}

/// Waits for something that another thread brings about.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("never: {what}");
}
