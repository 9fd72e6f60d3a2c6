//! Segments are used again, and a full medium is survived.

use super::*;
use std::time::Duration;

use crate::journal::SpaceCondition;

fn files(disk: &SimDisk) -> Vec<String> {
    disk.list(Path::new(DIR)).unwrap()
}

#[test]
fn recycling_bounds_the_space() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    let mut most = 0;
    for round in 0..200_u64 {
        let first = 1 + round * 4;
        fill(&journal, 1, first..first + 4, 4000);
        journal.note_committed(log_id(1, first + 3));
        if round % 5 == 4 {
            block_on(journal.purge(log_id(1, first + 1))).unwrap();
            journal.set_payload_floor(first);
        }
        most = most.max(files(&disk).len());
    }
    let stats = journal.stats();
    assert!(stats.written_bytes > 3_000_000, "{stats:?}");
    assert!(most <= 7, "{most} files for a log of at most 20 entries");
    // They were only ever created for want of free ones: 64 KiB of zeros each.
    assert!(disk.space(Path::new("/")).unwrap().available_bytes >= (1 << 40) - (7 << 16));
    assert_eq!(
        read(&journal, 0..1000).unwrap().first().unwrap().log_id.index,
        799
    );
}

#[test]
fn payload_keeps_its_segment_until_the_floor_rises() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    fill(&journal, 1, 1..101, 4000);
    journal.note_committed(log_id(1, 100));
    let full = journal.stats();
    assert!(full.live_segments >= 7);
    block_on(journal.purge(log_id(1, 99))).unwrap();
    block_on(journal.sync()).unwrap();
    assert_eq!(
        journal.stats().live_segments,
        full.live_segments,
        "all payload is kept"
    );
    let last = journal.stats().oldest_segment_last_index.unwrap();
    journal.set_payload_floor(last);
    fill(&journal, 1, 101..102, 10);
    fill(&journal, 1, 102..103, 10);
    assert_eq!(
        journal.stats().live_segments,
        full.live_segments,
        "one is still needed"
    );
    assert_eq!(journal.payload(last).unwrap(), Some(payload(1, last, 4000)));
    journal.set_payload_floor(last + 1);
    fill(&journal, 1, 103..104, 10);
    assert_eq!(journal.stats().live_segments, full.live_segments - 1);
    journal.set_payload_floor(1000);
    fill(&journal, 1, 104..105, 10);
    assert!(journal.stats().live_segments <= 2);
    eventually("surplus files are removed", || {
        files(&disk).len() <= 2 + 1 + options().free_segments_max
    });
    journal.shutdown();
    assert_eq!(read(&open(&disk.crash(3)), 0..1000).unwrap().len(), 5);
}

#[test]
fn segments_are_made_ahead_in_quiet_times_and_kept() {
    let disk = SimDisk::new();
    let ahead = JournalOptions {
        segments_min: 6,
        free_segments_max: 6,
        quiet: Duration::from_millis(1),
        ..options()
    };
    let (journal, _) = try_open(&disk, ahead.clone()).unwrap();
    eventually("all are there", || journal.stats().free_segments == 5);
    // Some of them are filled without a file being made, and come back.
    let made = files(&disk);
    fill(&journal, 1, 1..31, 4000);
    journal.note_committed(log_id(1, 30));
    assert!(journal.stats().live_segments >= 3);
    block_on(journal.purge(log_id(1, 29))).unwrap();
    journal.set_payload_floor(30);
    fill(&journal, 1, 31..33, 10);
    eventually("they are free again", || journal.stats().free_segments >= 4);
    assert_eq!(files(&disk), made);
    // Also after a power cut.
    journal.shutdown();
    let (journal, _) = try_open(&disk.crash(5), ahead).unwrap();
    assert_eq!(read(&journal, 0..1000).unwrap().len(), 3);
    eventually("all are there", || {
        let stats = journal.stats();
        stats.live_segments + stats.free_segments == 6
    });
}

#[test]
fn a_rather_full_medium_gets_no_segments_ahead_and_uses_no_numbers_up() {
    let disk = SimDisk::new();
    let ahead = JournalOptions {
        segments_min: 3,
        free_segments_max: 3,
        quiet: Duration::from_millis(1),
        ..options()
    };
    // Two segments are needed; less than an eighth is free beside them.
    disk.set_capacity_bytes(140 << 10);
    let (journal, _) = try_open(&disk, ahead).unwrap();
    eventually("the needed ones are there", || files(&disk).len() == 2);
    let numbers = || {
        let core = journal.shared.lock();
        (core.next_slot, core.next_generation)
    };
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!((numbers(), files(&disk).len()), ((2, 3), 2));
    assert_eq!(journal.stats().space, SpaceCondition::Ok);
    disk.set_capacity_bytes(1 << 30);
    eventually("one is made once there is room", || {
        journal.stats().free_segments == 2
    });
    assert_eq!(numbers(), (3, 4));
}

#[test]
fn a_full_medium_stops_appends_but_poisons_nothing() {
    let disk = SimDisk::new();
    disk.set_capacity_bytes(100 << 10);
    let journal = open(&disk);
    eventually("the lack of room is told", || {
        matches!(journal.stats().space, SpaceCondition::NoRoom { .. })
    });
    // There is room for these in the first segment.
    fill(&journal, 1, 1..6, 4000);
    let (tx, rx) = std::sync::mpsc::channel();
    for index in 6..20 {
        let tx = tx.clone();
        let done = move |result| tx.send((index, result)).unwrap();
        block_on(journal.append(vec![entry(1, index, 4000)], Box::new(done))).unwrap();
    }
    assert!(
        rx.recv_timeout(std::time::Duration::from_millis(300))
            .is_ok_and(|(index, _)| index < 15)
    );
    assert!(journal.poisoned().borrow().is_none());
    assert!(journal.stats().pending_bytes > 0);
    assert_eq!(read(&journal, 0..100).unwrap().len(), 19);

    disk.set_capacity_bytes(1 << 30);
    eventually("all is written once there is room", || {
        journal.stats().pending_bytes == 0
    });
    assert_eq!(journal.stats().space, SpaceCondition::Ok);
    drop(journal);
    assert_eq!(read(&open(&disk.crash(1)), 0..100).unwrap().len(), 19);
}

#[test]
fn a_full_journal_ends_with_an_error_for_what_it_could_not_write() {
    let disk = SimDisk::new();
    disk.set_capacity_bytes(100 << 10);
    let journal = open(&disk);
    let (tx, rx) = std::sync::mpsc::channel();
    for index in 1..20 {
        let tx = tx.clone();
        let done = move |result: Result<(), JournalError>| tx.send(result).unwrap();
        block_on(journal.append(vec![entry(1, index, 5000)], Box::new(done))).unwrap();
    }
    journal.shutdown();
    drop(tx);
    let results: Vec<_> = rx.iter().collect();
    let written = results.iter().take_while(|result| result.is_ok()).count();
    assert!((5..15).contains(&written) && results.len() == 19);
    assert!(
        results[written..]
            .iter()
            .all(|result| matches!(result, Err(JournalError::Full(_))))
    );
    assert_eq!(read(&open(&disk.crash(1)), 0..100).unwrap().len(), written);
}

#[test]
fn starting_on_a_full_medium_says_so() {
    let disk = SimDisk::new();
    disk.set_capacity_bytes(10 << 10);
    assert!(matches!(try_open(&disk, options()), Err(JournalError::Full(_))));
    assert_eq!(files(&disk), [""; 0]);
}

#[test]
fn a_reader_holds_its_segment_back_from_reuse() {
    let disk = SimDisk::new();
    let options = JournalOptions {
        cache_bytes_max: 0,
        ..options()
    };
    let journal = try_open(&disk, options).unwrap().0;
    fill(&journal, 1, 1..40, 4000);
    // A read that has found its entries, but not fetched them yet.
    let found = journal.find(1..8, usize::MAX);
    journal.note_committed(log_id(1, 39));
    block_on(journal.purge(log_id(1, 39))).unwrap();
    journal.set_payload_floor(40);
    fill(&journal, 1, 40..120, 4000);
    let entries = journal.fetch(found).unwrap();
    assert_eq!(
        entries,
        (1..8).map(|index| entry(1, index, 4000)).collect::<Vec<_>>()
    );
}

#[test]
fn segments_of_another_size_are_read_and_then_replaced() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    fill(&journal, 1, 1..40, 4000);
    drop(journal);
    let larger = JournalOptions {
        segment_bytes: 128 << 10,
        ..options()
    };
    let journal = try_open(&disk, larger.clone()).unwrap().0;
    append(&journal, vec![entry(1, 40, 100 << 10)]).unwrap();
    journal.note_committed(log_id(1, 40));
    block_on(journal.purge(log_id(1, 39))).unwrap();
    journal.set_payload_floor(40);
    fill(&journal, 1, 41..100, 4000);
    drop(journal);
    let journal = try_open(&disk, larger).unwrap().0;
    assert_eq!(read(&journal, 0..1000).unwrap().len(), 60);
    let name = |name: &String| disk.contents(&Path::new(DIR).join(name)).unwrap().len();
    assert!(files(&disk).iter().all(|file| name(file) == 128 << 10));
}
