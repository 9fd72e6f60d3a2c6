//! Damage is told from a torn tail, wherever it is.

use super::*;
use crate::disk::Open;
use crate::journal::format::{
    FRAME_HEADER_BYTES, FRAMES_OFFSET, FrameKind, SEGMENT_HEADER_BYTES, Seed, SegmentHeader,
};
use crate::journal::scan::frame_at;
use crate::journal::segment::Life;

/// A stretch of a segment file that is needed.
#[derive(Debug, Clone, Copy)]
struct Region {
    slot: u32,
    start: u64,
    end: u64,
    /// The closing mark: losing it loses nothing.
    close: bool,
}

/// A journal of several segments that was shut down in order.
fn sample() -> SimDisk {
    let disk = SimDisk::new();
    let journal = open(&disk);
    fill(&journal, 1, 1..30, 5000);
    block_on(journal.save_vote(vote(2, 1))).unwrap();
    block_on(journal.truncate_after(Some(25))).unwrap();
    fill(&journal, 2, 26..30, 700);
    journal.note_committed(log_id(2, 28));
    block_on(journal.purge(log_id(1, 3))).unwrap();
    assert!(journal.stats().live_segments >= 3);
    eventually("the spare segment is ready", || {
        journal.stats().free_segments == 1
    });
    journal.shutdown();
    disk
}

fn life(disk: &SimDisk, slot: u32) -> Option<Life> {
    let bytes = disk.contents(&segment(slot)).ok()?;
    let header = SegmentHeader::decode(bytes.first_chunk()?)?;
    Some(Life {
        slot,
        generation: header.generation,
        capacity_bytes: header.capacity_bytes,
        seed: Seed::new(&identity(), slot, header.generation),
        file: disk.open(&segment(slot), Open::Existing).ok()?,
    })
}

/// Every stretch that recovery must find intact.
fn regions(disk: &SimDisk) -> Vec<Region> {
    let mut regions = Vec::new();
    for slot in 0..20 {
        let Some(life) = life(disk, slot) else { continue };
        let mut offset = FRAMES_OFFSET;
        while let Some(frame) = frame_at(&life, offset).unwrap() {
            let end = offset + FRAME_HEADER_BYTES as u64 + u64::from(frame.header.body_bytes);
            regions.push(Region {
                slot,
                start: offset,
                end,
                close: frame.header.kind == FrameKind::Close,
            });
            offset += frame.header.total_bytes();
        }
        if offset > FRAMES_OFFSET {
            regions.push(Region {
                slot,
                start: 0,
                end: SEGMENT_HEADER_BYTES as u64,
                close: false,
            });
        }
    }
    regions
}

type View = (Option<Vote>, Vec<Entry>, Option<Bytes>);

fn view(journal: &Journal) -> View {
    (
        journal.vote(),
        read(journal, 0..100).unwrap(),
        journal.payload(2).unwrap(),
    )
}

#[test]
fn flipped_bits_are_damage_in_every_region() {
    let disk = sample();
    let expected = view(&open(&disk.fork()));
    let regions = regions(&disk);
    assert!(regions.len() > 30 && regions.iter().filter(|region| region.close).count() == 1);
    for region in regions {
        let len = region.end - region.start;
        let step = (len / 12).max(1) | 1;
        for at in (0..len).step_by(step as usize).chain([len - 1]) {
            let disk = disk.fork();
            disk.flip_bits(&segment(region.slot), region.start + at, 1 << (at % 8))
                .unwrap();
            let before = disk.counters();
            match try_open(&disk, options()) {
                Err(JournalError::Damaged { .. }) if !region.close => {
                    assert_eq!(disk.counters().writes, before.writes, "nothing is changed");
                }
                Ok((journal, _)) if region.close => assert_eq!(view(&journal), expected),
                Err(error) => panic!("{region:?} + {at}: {error}"),
                Ok(_) => panic!("{region:?} + {at}: not noticed"),
            }
        }
    }
}

#[test]
fn flipped_bits_elsewhere_change_nothing() {
    let disk = sample();
    let expected = view(&open(&disk.fork()));
    let regions = regions(&disk);
    let len = disk.contents(&segment(0)).unwrap().len() as u64;
    for slot in 0..20 {
        for at in (0..len).step_by(1531) {
            let disk = disk.fork();
            let needed = |region: &Region| region.slot == slot && (region.start..region.end).contains(&at);
            if regions.iter().any(needed) || disk.flip_bits(&segment(slot), at, 0x10).is_err() {
                continue;
            }
            assert_eq!(view(&open(&disk)), expected, "slot {slot}, byte {at}");
        }
    }
}

#[test]
fn lost_or_cut_or_emptied_segments_are_damage() {
    let disk = sample();
    let slots: Vec<u32> = regions(&disk)
        .iter()
        .filter(|region| region.start == 0)
        .map(|r| r.slot)
        .collect();
    assert!(slots.len() >= 3);
    for slot in slots {
        let removed = disk.fork();
        removed.remove(&segment(slot)).unwrap();
        let cut = disk.fork();
        cut.open(&segment(slot), Open::Existing)
            .unwrap()
            .set_len(40_000)
            .unwrap();
        let zeros = disk.fork();
        zeros.corrupt(&segment(slot), 0, &[0; 64 << 10]).unwrap();
        let block = disk.fork();
        block.corrupt(&segment(slot), 0, &[0xff; 8192]).unwrap();
        for (what, disk) in [
            ("removed", removed),
            ("cut", cut),
            ("zeros", zeros),
            ("block", block),
        ] {
            let error = try_open(&disk, options()).err();
            assert!(
                matches!(error, Some(JournalError::Damaged { .. })),
                "{what} {slot}: {error:?}"
            );
        }
    }
}

#[test]
fn swapped_segments_are_damage() {
    let disk = sample();
    let (a, b) = (
        disk.contents(&segment(0)).unwrap(),
        disk.contents(&segment(1)).unwrap(),
    );
    disk.corrupt(&segment(0), 0, &b).unwrap();
    disk.corrupt(&segment(1), 0, &a).unwrap();
    assert!(matches!(
        try_open(&disk, options()),
        Err(JournalError::Damaged { .. })
    ));
}

#[test]
fn a_read_verifies_what_it_hands_on() {
    let disk = sample();
    let journal = try_open(
        &disk,
        JournalOptions {
            cache_bytes_max: 0,
            ..options()
        },
    )
    .unwrap()
    .0;
    let wanted = payload(1, 2, 5000);
    assert_eq!(journal.payload(2).unwrap(), Some(wanted.clone()));
    for (index, retained) in [(2, true), (5, false)] {
        let bytes = payload(1, index, 5000);
        let file = disk.contents(&segment(0)).unwrap();
        let at = file.windows(5000).position(|window| window == bytes).unwrap() as u64;
        disk.flip_bits(&segment(0), at + 4999, 1).unwrap();
        assert!(matches!(
            journal.payload(index),
            Err(JournalError::Damaged { .. })
        ));
        assert_eq!(read(&journal, index..index + 1).is_ok(), retained);
    }
    assert_eq!(read(&journal, 8..9).unwrap(), [entry(1, 8, 5000)]);
    assert_eq!(journal.stats().damaged_reads, 3);
    assert!(matches!(
        *journal.poisoned().borrow(),
        Some(JournalError::Damaged { .. })
    ));
}
