//! Flushes: what a node has written to a file on its own.

use bytes::Bytes;
use proptest::prelude::*;

use super::support::*;
use crate::clock::Timestamp;
use crate::meta::*;

fn state(size: u64) -> FileState {
    let time = |sec| Timestamp { sec, nsec: 1 };
    FileState {
        size,
        mode: 0o640,
        mtime: time(2_000_000_001),
        ctime: time(2_000_000_002),
        contents_time: time(2_000_000_003),
        data_version: 77,
    }
}

fn inline(at: u64, len: u32, offset: u32) -> Piece {
    Piece {
        offset: at,
        len,
        data: PieceData::Inline { offset },
    }
}

/// Flushes with a payload of `payload_len` bytes; the log index, which names it.
fn flush(bench: &Bench, op: Op, payload_len: u32) -> (u64, Answer) {
    let payload = Bytes::from(vec![1; payload_len as usize]);
    bench.local.submit(op, payload).unwrap()
}

fn extent(offset: u64, len: u64, id: ChunkId, at: u32) -> Extent {
    let source = Source::Chunk { id, offset: at };
    Extent { offset, len, source }
}

#[test]
fn puts_pieces_in_place_and_sets_attributes() {
    let bench = Bench::new();
    let ino = bench.mkfile(ROOT_INO, "f");
    let old = ChunkId::payload(bench.write(ino, WriteAt::Offset(0), &[9; 100]).0);
    let before = bench.inode(ino);
    let id = ChunkId {
        session: bench.local.session().0,
        seq: 1,
    };
    let pieces = vec![
        inline(10, 5, 3),
        Piece {
            offset: 50,
            len: 100,
            data: PieceData::Chunk { id, offset: 1000 },
        },
        inline(200, 1, 0),
    ];
    let op = Op::Flush {
        ino,
        cut: None,
        pieces,
        state: state(300),
    };
    let ((index, answer), events) = bench.listen(|| flush(&bench, op, 8));
    let inode = inode_of(answer);
    assert_eq!(FileState::from(&inode), state(300));
    let unchanged = Inode {
        allocated_bytes: 151,
        ..inode.clone()
    };
    assert_eq!(
        (inode.atime, inode.nlink, inode.btime),
        (before.atime, before.nlink, before.btime)
    );
    assert_eq!(inode, unchanged);
    assert_eq!(bench.inode(ino), inode);
    let payload = ChunkId::payload(index);
    assert_eq!(
        bench.extents(ino),
        [
            extent(0, 10, old, 0),
            extent(10, 5, payload, 3),
            extent(15, 35, old, 15),
            extent(50, 100, id, 1000),
            extent(200, 1, payload, 0),
        ]
    );
    let by = bench.local.session();
    assert_eq!(events, [Event::Data { ino, by }, Event::ChunkAdded { id }]);
    bench.check();
}

#[test]
fn cuts_before_it_writes() {
    let bench = Bench::new();
    let ino = bench.mkfile(ROOT_INO, "f");
    let old = ChunkId::payload(bench.write(ino, WriteAt::Offset(0), &[9; 100]).0);
    let op = Op::Flush {
        ino,
        cut: Some(20),
        pieces: vec![inline(40, 10, 0)],
        state: state(100),
    };
    let (index, answer) = flush(&bench, op, 10);
    answer.unwrap();
    let new = extent(40, 10, ChunkId::payload(index), 0);
    assert_eq!(bench.extents(ino), [extent(0, 20, old, 0), new]);
    assert_eq!(bench.inode(ino).size, 100);
    bench.check();
}

#[test]
fn a_smaller_size_cuts_too() {
    let bench = Bench::new();
    let ino = bench.mkfile(ROOT_INO, "f");
    let old = ChunkId::payload(bench.write(ino, WriteAt::Offset(0), &[9; 100]).0);
    for (cut, left) in [(None, 60), (Some(70), 50), (Some(10), 10)] {
        let size = left.max(20);
        let op = Op::Flush {
            ino,
            cut,
            pieces: Vec::new(),
            state: state(size),
        };
        flush(&bench, op, 0).1.unwrap();
        assert_eq!(bench.extents(ino), [extent(0, left, old, 0)]);
        assert_eq!(bench.inode(ino).size, size);
        bench.check();
    }
}

#[test]
fn times_do_not_go_back_but_mtime() {
    let bench = Bench::new();
    let ino = bench.mkfile(ROOT_INO, "f");
    bench.write(ino, WriteAt::Append, b"x").1.unwrap();
    let before = bench.inode(ino);
    let early = Timestamp { sec: -5, nsec: 0 };
    let state = FileState {
        mtime: early,
        ctime: early,
        contents_time: early,
        ..FileState::from(&before)
    };
    let op = Op::Flush {
        ino,
        cut: None,
        pieces: Vec::new(),
        state,
    };
    let inode = inode_of(flush(&bench, op, 0).1);
    assert_eq!(
        inode,
        Inode {
            mtime: early,
            ..before
        }
    );
}

#[test]
fn flushes_of_a_batch_share_its_payload() {
    let bench = Bench::new();
    let files = [bench.mkfile(ROOT_INO, "a"), bench.mkfile(ROOT_INO, "b")];
    let item = |ino, at| BatchItem {
        time: Timestamp::default(),
        op: Op::Flush {
            ino,
            cut: None,
            pieces: vec![inline(0, 6, at)],
            state: state(6),
        },
    };
    let items = vec![item(files[0], 0), item(files[1], 6), item(files[1], 7)];
    let (index, answer) = flush(&bench, Op::Batch { items }, 12);
    match answer {
        Ok(Reply::Batch { refused }) => {
            assert_eq!(refused.len(), 1);
            assert!(matches!(refused[0], (2, MetaError::Malformed(_))));
        }
        other => panic!("{other:?}"),
    }
    let payload = ChunkId::payload(index);
    assert_eq!(bench.extents(files[0]), [extent(0, 6, payload, 0)]);
    assert_eq!(bench.extents(files[1]), [extent(0, 6, payload, 6)]);
    let live = bench.reader().live_payloads(index, 9).unwrap();
    assert_eq!(live.len(), 2);
    bench.check();
}

#[test]
fn needs_a_file() {
    let bench = Bench::new();
    let directory = bench.mkdir(ROOT_INO, "d");
    let link = made(bench.try_make(ROOT_INO, "l", FileKind::Symlink));
    for (ino, refusal) in [
        (99, Refusal::Stale),
        (directory, Refusal::IsDirectory),
        (link, Refusal::Invalid),
    ] {
        let op = Op::Flush {
            ino,
            cut: None,
            pieces: Vec::new(),
            state: state(0),
        };
        assert_eq!(flush(&bench, op, 0).1, refused(refusal));
    }
    bench.check();
}

#[test]
fn refuses_what_makes_no_sense() {
    let bench = Bench::new();
    let ino = bench.mkfile(ROOT_INO, "f");
    let before = bench.inode(ino);
    let session = bench.local.session().0;
    let chunk = |offset, len| Piece {
        offset: 0,
        len,
        data: PieceData::Chunk {
            id: ChunkId { session, seq: 1 },
            offset,
        },
    };
    let bad_time = Timestamp {
        sec: 0,
        nsec: 1_000_000_000,
    };
    let pieces = [
        vec![inline(0, 0, 0)],
        vec![inline(0, 9, 0)],
        vec![inline(0, 1, 8)],
        vec![inline(0, 8, u32::MAX)],
        vec![inline(0, 2, 0), inline(1, 2, 0)],
        vec![inline(4, 1, 0), inline(0, 1, 0)],
        vec![inline(93, 8, 0)],
        vec![inline(u64::MAX, 8, 0)],
        vec![chunk(CHUNK_BYTES_MAX, 1)],
        vec![chunk(u32::MAX, u32::MAX)],
        (0..=FLUSH_PIECES_MAX as u64).map(|i| inline(i, 1, 0)).collect(),
    ];
    let mut flushes: Vec<(Vec<Piece>, FileState)> =
        pieces.into_iter().map(|pieces| (pieces, state(100))).collect();
    flushes[10].1.size = 100_000;
    for state in [
        state(FILE_BYTES_MAX + 1),
        FileState {
            mode: 0o10_000,
            ..state(0)
        },
        FileState {
            mtime: bad_time,
            ..state(0)
        },
        FileState {
            ctime: bad_time,
            ..state(0)
        },
        FileState {
            contents_time: bad_time,
            ..state(0)
        },
    ] {
        flushes.push((Vec::new(), state));
    }
    for (pieces, state) in flushes {
        let what = format!("{state:?} with {} pieces", pieces.len());
        let op = Op::Flush {
            ino,
            cut: Some(0),
            pieces,
            state,
        };
        let answer = flush(&bench, op, 8).1;
        assert!(
            matches!(answer, Err(MetaError::Malformed(_))),
            "{what}: {answer:?}"
        );
    }
    let op = Op::Flush {
        ino,
        cut: None,
        pieces: Vec::new(),
        state: state(0),
    };
    let answer = flush(&bench, op, CHUNK_BYTES_MAX + 1).1;
    assert!(matches!(answer, Err(MetaError::Malformed(_))));
    assert_eq!(bench.inode(ino), before);
    bench.check();
}

#[test]
fn refuses_chunks_that_may_be_gone() {
    let bench = Bench::new();
    let ino = bench.mkfile(ROOT_INO, "f");
    let piece = |session| Piece {
        offset: 0,
        len: 1,
        data: PieceData::Chunk {
            id: ChunkId { session, seq: 1 },
            offset: 0,
        },
    };
    let op = |session| Op::Flush {
        ino,
        cut: None,
        pieces: vec![piece(session)],
        state: state(1),
    };
    let old = bench.local.session();
    flush(&bench, op(old.0), 0).1.unwrap();
    bench.local.open_session().unwrap();
    assert_eq!(flush(&bench, op(old.0), 0).1, Err(MetaError::SessionExpired(old)));
    assert_eq!(
        flush(&bench, op(0), 0).1,
        Err(MetaError::SessionExpired(SessionId(0))),
        "a log payload has no other name than its own entry's"
    );
    bench.check();
}

/// A flush that makes sense or not.
pub(super) fn any_flush(ino: impl Strategy<Value = Ino>) -> impl Strategy<Value = Op> {
    let number = || prop_oneof![8 => 0..3000u64, 1 => any::<u64>()];
    let data = prop_oneof![
        3 => (0..500u32).prop_map(|offset| PieceData::Inline { offset }),
        1 => (2..5u64, any::<u32>()).prop_map(|(session, offset)| {
            PieceData::Chunk { id: ChunkId { session, seq: 1 }, offset: offset >> 12 }
        }),
    ];
    let piece = (number(), 0..200u32, data).prop_map(|(offset, len, data)| Piece { offset, len, data });
    let nsec = prop_oneof![9 => Just(5), 1 => any::<u32>()];
    (
        ino,
        prop::option::of(number()),
        prop::collection::vec(piece, 0..5),
        number(),
        nsec,
    )
        .prop_map(|(ino, cut, mut pieces, size, nsec)| {
            pieces.sort_by_key(|piece| piece.offset);
            let time = Timestamp { sec: 5, nsec };
            let state = FileState {
                mtime: time,
                ..state(size)
            };
            Op::Flush {
                ino,
                cut,
                pieces,
                state,
            }
        })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_state_hangs_together(flushes in prop::collection::vec((any_flush(1..5u64), 0..600u32), 1..40)) {
        let bench = Bench::new();
        for name in ["a", "b", "c"] {
            bench.mkfile(ROOT_INO, name);
        }
        for (op, payload_len) in flushes {
            let before = bench.reader().usage().unwrap();
            let answer = flush(&bench, op, payload_len).1;
            if answer.is_err() {
                prop_assert_eq!(bench.reader().usage().unwrap(), before);
            }
        }
        bench.check();
    }
}
