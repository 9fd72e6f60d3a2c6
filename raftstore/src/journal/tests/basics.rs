use super::*;
use crate::clock::Clock;
use crate::disk::RealDisk;

#[test]
fn everything_comes_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || open_on(Arc::new(RealDisk), dir.path(), options()).unwrap();
    let (journal, report) = open();
    assert!(report.blank);
    fill(&journal, 1, 1..60, 3000);
    block_on(journal.save_vote(vote(4, 2))).unwrap();
    block_on(journal.truncate_after(Some(50))).unwrap();
    fill(&journal, 4, 51..55, 10);
    block_on(journal.purge(log_id(1, 7))).unwrap();
    journal.note_committed(log_id(4, 53));
    block_on(journal.save_vote(vote(5, 2))).unwrap();
    let expected: Vec<_> = (8..51)
        .map(|index| entry(1, index, 3000))
        .chain((51..55).map(|index| entry(4, index, 10)))
        .collect();
    assert_eq!(read(&journal, 0..100).unwrap(), expected);
    drop(journal);

    let (journal, report) = open();
    assert_eq!(read(&journal, 0..100).unwrap(), expected);
    assert_eq!(
        (
            report.blank,
            report.torn_tail.clone(),
            report.vote,
            report.last_purged,
            report.last
        ),
        (
            false,
            None,
            Some(vote(5, 2)),
            Some(log_id(1, 7)),
            Some(log_id(4, 54))
        )
    );
    assert_eq!(journal.vote(), Some(vote(5, 2)));
    assert_eq!(journal.ends(), (Some(log_id(1, 7)), Some(log_id(4, 54))));
    assert_eq!(journal.committed(), Some(log_id(4, 53)));
    assert_eq!(read(&journal, 20..22).unwrap(), expected[12..14]);
}

#[test]
fn payload_outlives_the_purge_down_to_the_floor() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    fill(&journal, 1, 1..40, 4096);
    assert_eq!(journal.payload(3).unwrap(), None, "not known to be committed");
    journal.note_committed(log_id(1, 39));
    assert_eq!(journal.payload(3).unwrap(), Some(payload(1, 3, 4096)));
    assert_eq!(journal.payload(39).unwrap(), Some(payload(1, 39, 4096)));
    assert_eq!(journal.payload(40).unwrap(), None);
    block_on(journal.purge(log_id(1, 38))).unwrap();
    assert_eq!(journal.payload(3).unwrap(), Some(payload(1, 3, 4096)));
    assert_eq!(journal.stats().oldest_retained_index, Some(1));
    drop(journal);
    let journal = open(&disk);
    assert_eq!(journal.payload(3).unwrap(), Some(payload(1, 3, 4096)));
    journal.set_payload_floor(20);
    assert_eq!(journal.payload(19).unwrap(), None);
    assert_eq!(journal.payload(20).unwrap(), Some(payload(1, 20, 4096)));
    assert_eq!(journal.stats().oldest_retained_index, Some(20));
}

#[test]
fn payload_of_entries_that_a_snapshot_replaced_is_never_handed_out() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    fill(&journal, 1, 1..10, 100);
    journal.note_committed(log_id(1, 4));
    // A snapshot of another leader's log: entries 5 to 9 here were never committed.
    block_on(journal.purge(log_id(2, 20))).unwrap();
    fill(&journal, 2, 21..23, 100);
    journal.note_committed(log_id(2, 22));
    for reopened in [false, true] {
        let journal = if reopened {
            drop(journal.clone());
            journal.shutdown();
            open(&disk)
        } else {
            Arc::clone(&journal)
        };
        assert_eq!(journal.payload(4).unwrap(), Some(payload(1, 4, 100)));
        assert_eq!(journal.payload(5).unwrap(), None);
        assert_eq!(journal.payload(9).unwrap(), None);
        assert_eq!(journal.payload(21).unwrap(), Some(payload(2, 21, 100)));
        assert_eq!(journal.ends(), (Some(log_id(2, 20)), Some(log_id(2, 22))));
    }
}

#[test]
fn a_batch_is_one_write_and_one_sync() {
    let disk = SimDisk::new();
    let journal = try_open(
        &disk,
        JournalOptions {
            segment_bytes: 1 << 20,
            ..options()
        },
    )
    .unwrap()
    .0;
    eventually("the spare segment is ready", || {
        journal.stats().free_segments == 1
    });
    let before = disk.counters();
    append(&journal, vec![entry(1, 1, 3900)]).unwrap();
    let after = disk.counters();
    assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (1, 1));
    assert_eq!(after.written_bytes - before.written_bytes, 4096);

    append(&journal, (2..102).map(|index| entry(1, index, 100)).collect()).unwrap();
    let last = disk.counters();
    assert_eq!((last.writes - after.writes, last.syncs - after.syncs), (1, 1));
    let stats = journal.stats();
    assert_eq!(
        (stats.writes, stats.syncs, stats.written_bytes),
        (last.writes, last.syncs, last.written_bytes)
    );
}

#[test]
fn all_that_comes_during_a_sync_shares_the_next() {
    let disk = SimDisk::new();
    let options = JournalOptions {
        segment_bytes: 1 << 20,
        ..options()
    };
    let (journal, _) = try_open(&disk, options).unwrap();
    eventually("the spare segment is ready", || {
        journal.stats().free_segments == 1
    });
    let before = disk.counters();
    let held = disk.hold_medium();
    let (tx, rx) = std::sync::mpsc::channel();
    let mut send = |index| {
        let tx = tx.clone();
        let done = move |result: Result<(), JournalError>| tx.send(result.map(|()| index)).unwrap();
        block_on(journal.append(vec![entry(1, index, 1000)], Box::new(done))).unwrap();
    };
    send(1);
    eventually("the first is written", || disk.counters().writes > before.writes);
    (2..102).for_each(&mut send);
    assert!(rx.try_recv().is_err(), "nothing is acknowledged before its sync");
    assert_eq!(read(&journal, 0..200).unwrap().len(), 101, "but readable");
    drop(held);
    let order: Vec<u64> = rx.iter().take(101).map(Result::unwrap).collect();
    assert_eq!(order, (1..102).collect::<Vec<_>>());
    assert_eq!(
        (
            disk.counters().writes - before.writes,
            disk.counters().syncs - before.syncs
        ),
        (2, 2)
    );
}

/// A clock that goes on by 8 ms whenever it is read.
struct SlowClock;

impl Clock for SlowClock {
    fn wall(&self) -> Timestamp {
        Timestamp::default()
    }
    fn monotonic(&self) -> std::time::Duration {
        static TICKS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        std::time::Duration::from_millis(TICKS.fetch_add(8, std::sync::atomic::Ordering::Relaxed))
    }
}

#[test]
fn latency_comes_from_the_injected_clock() {
    let disk = Arc::new(SimDisk::new());
    let (journal, _) = Journal::open(disk, Arc::new(SlowClock), DIR.into(), identity(), options()).unwrap();
    fill(&journal, 1, 1..3, 10);
    assert_eq!(journal.stats().sync_latency, std::time::Duration::from_millis(8));
}

#[test]
fn appends_are_readable_at_once_and_wait_for_room() {
    let disk = SimDisk::new();
    let options = JournalOptions {
        pending_bytes_max: 1,
        ..options()
    };
    let journal = try_open(&disk, options).unwrap().0;
    for index in 1..50 {
        block_on(journal.append(vec![entry(1, index, 2000)], Box::new(|result| result.unwrap()))).unwrap();
        assert_eq!(read(&journal, index..index + 1).unwrap(), [entry(1, index, 2000)]);
        assert!(journal.stats().pending_bytes < 5000);
    }
    block_on(journal.sync()).unwrap();
    assert_eq!(read(&journal, 0..100).unwrap().len(), 49);
}

#[test]
fn reads_are_bounded_but_never_empty() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    fill(&journal, 1, 1..20, 5000);
    assert_eq!(block_on(journal.read(3..20, 1)).unwrap(), [entry(1, 3, 5000)]);
    assert_eq!(block_on(journal.read(3..20, 16_000)).unwrap().len(), 3);
    assert!(journal.stats().cache_bytes <= 16 << 10);
    assert_eq!(read(&journal, 25..30).unwrap(), []);
}

#[test]
fn callers_errors_are_refused_and_change_nothing() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    fill(&journal, 1, 5..8, 10);
    let gap = append(&journal, vec![entry(1, 8, 10), entry(1, 10, 10)]).unwrap_err();
    assert_eq!(gap, JournalError::NotConsecutive { expected: 9, got: 10 });
    let large = append(&journal, vec![entry(1, 8, 64 << 10)]).unwrap_err();
    assert!(matches!(large, JournalError::TooLarge { .. }), "{large}");
    fill(&journal, 1, 8..9, 55 << 10);
    assert_eq!(read(&journal, 0..100).unwrap().len(), 4);
    journal.shutdown();
    assert_eq!(
        append(&journal, vec![entry(1, 9, 1)]).unwrap_err(),
        JournalError::Closed
    );
    assert_eq!(
        block_on(journal.save_vote(vote(1, 1))).unwrap_err(),
        JournalError::Closed
    );
    assert_eq!(read(&journal, 0..100).unwrap().len(), 4);
}

#[test]
fn shutdown_writes_what_is_queued() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    for index in 1..200 {
        block_on(journal.append(vec![entry(1, index, 1000)], Box::new(|result| result.unwrap()))).unwrap();
    }
    journal.shutdown();
    let journal = open(&disk.crash(9));
    assert_eq!(read(&journal, 0..1000).unwrap().len(), 199);
}

#[test]
fn another_stores_journal_is_refused() {
    let disk = SimDisk::new();
    open(&disk);
    let other = StoreIdentity {
        node_id: 4,
        ..identity()
    };
    let error = Journal::open(
        Arc::new(disk.clone()),
        Arc::new(SystemClock),
        DIR.into(),
        other.clone(),
        options(),
    )
    .err()
    .unwrap();
    assert_eq!(
        error,
        JournalError::Foreign {
            found: identity(),
            expected: other
        }
    );
}

#[test]
fn a_newer_version_is_named() {
    let disk = SimDisk::new();
    open(&disk);
    let header = super::super::format::SegmentHeader {
        version: 2,
        generation: 1,
        capacity_bytes: 64 << 10,
        slot: 0,
        identity: identity(),
    };
    disk.corrupt(&segment(0), 0, &header.encode()).unwrap();
    let error = try_open(&disk, options()).err().unwrap();
    assert_eq!(
        error,
        JournalError::NewerVersion {
            found: 2,
            supported: 1
        }
    );
}

#[test]
fn a_missing_journal_is_not_replaced_by_an_empty_one() {
    let disk = SimDisk::new();
    let options = JournalOptions {
        must_exist: true,
        ..options()
    };
    assert!(matches!(
        try_open(&disk, options.clone()),
        Err(JournalError::Missing(_))
    ));
    open(&disk);
    try_open(&disk, options).unwrap();
}
