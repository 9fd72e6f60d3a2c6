//! No bytes make the journal panic.

use proptest::prelude::*;

use super::*;
use crate::disk::Open;
use crate::journal::batch::records;
use crate::journal::format::{
    FrameHeader, FrameKind, RecordKind, Seed, SegmentHeader, decode_record, encode_record,
};

fn seed() -> Seed {
    Seed::new(&identity(), 0, 1)
}

proptest! {
    #[test]
    fn decoders_survive_garbage(bytes in proptest::collection::vec(any::<u8>(), 0..700), count in 0..9_u32) {
        let _ = decode_record(&bytes, seed());
        let _ = FrameHeader::decode(&bytes, |_| seed());
        if let Some(sector) = bytes.first_chunk() {
            let _ = SegmentHeader::decode(sector);
        }
        let header = FrameHeader {
            kind: FrameKind::Records,
            generation: 1,
            sequence: 1,
            oldest_generation: 1,
            body_bytes: bytes.len() as u32,
            body_crc: 0,
            records: count,
            committed: None,
        };
        prop_assert!(records(header, &bytes, seed()).count() <= count as usize + 1);
    }

    #[test]
    fn records_come_back_and_no_flip_goes_unnoticed(
        index: u64,
        body in proptest::collection::vec(any::<u8>(), 0..60),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
        flip: usize,
        bit in 0..8_u32,
    ) {
        let mut bytes = Vec::new();
        encode_record(&mut bytes, seed(), RecordKind::Entry, index, &body, &payload);
        let record = decode_record(&bytes, seed()).unwrap();
        prop_assert_eq!(record.header.index, index);
        prop_assert_eq!((record.body, record.payload), (&body[..], &payload[..]));
        prop_assert_eq!(record.total_bytes(), bytes.len());
        prop_assert!(decode_record(&bytes, Seed::new(&identity(), 0, 2)).is_none(), "another life");
        prop_assert!(decode_record(&bytes, Seed::new(&identity(), 1, 1)).is_none(), "another file");
        let used = 32 + body.len() + payload.len();
        bytes[flip % used] ^= 1 << bit;
        prop_assert!(decode_record(&bytes, seed()).is_none());
    }

    #[test]
    fn headers_come_back(generation: u64, sequence: u64, body_bytes: u32, committed: Option<(u64, u64)>) {
        let header = FrameHeader {
            kind: FrameKind::Seal,
            generation,
            sequence,
            oldest_generation: generation / 2,
            body_bytes,
            body_crc: 5,
            records: 3,
            committed,
        };
        prop_assert_eq!(FrameHeader::decode(&header.encode(seed()), |_| seed()), Some(header));
        let header = SegmentHeader {
            version: 1,
            generation,
            capacity_bytes: sequence,
            slot: body_bytes,
            identity: identity(),
        };
        prop_assert_eq!(SegmentHeader::decode(&header.encode()), Some(header));
    }

    #[test]
    #[allow(clippy::cast_possible_truncation)]
    fn opening_survives_any_files(
        pieces in proptest::collection::vec((0..4_u32, 0..65_536_u64, proptest::collection::vec(any::<u8>(), 1..600)), 1..8),
        journal in any::<bool>(),
    ) {
        let disk = SimDisk::new();
        if journal {
            let journal = open(&disk);
            fill(&journal, 1, 1..25, 5000);
        } else {
            disk.create_dir_all(Path::new(DIR)).unwrap();
        }
        for (slot, offset, bytes) in pieces {
            let file = disk.open(&segment(slot), Open::Any).unwrap();
            file.write_all_at(&bytes, offset).unwrap();
        }
        if let Ok((journal, _)) = try_open(&disk, options()) {
            let next = journal.ends().1.map_or(1, |id| id.index + 1);
            append(&journal, vec![entry(9, next, 100)]).unwrap();
        }
    }
}
