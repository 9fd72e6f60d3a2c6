//! Writing, allocating, copying, merging.

use bytes::Bytes;

use super::support::*;
use crate::meta::*;

fn chunk(session: SessionId, seq: u64) -> ChunkId {
    ChunkId {
        session: session.0,
        seq,
    }
}

fn at(id: ChunkId, offset: u32) -> Source {
    Source::Chunk { id, offset }
}

fn extent(offset: u64, len: u64, source: Source) -> Extent {
    Extent { offset, len, source }
}

fn write_chunk(bench: &Bench, ino: Ino, offset: u64, id: ChunkId, place: (u32, u32)) -> Answer {
    let data = Data::Chunk {
        id,
        offset: place.0,
        len: place.1,
    };
    bench.submit(Op::Write {
        ino,
        at: WriteAt::Offset(offset),
        data,
        kill_suid_sgid: false,
    })
}

#[test]
fn a_write_splits_what_it_covers() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let (first, _) = bench.write(file, WriteAt::Append, &[1; 100]);
    let (second, written) = bench.write(file, WriteAt::Offset(40), &[2; 20]);
    let (first, second) = (ChunkId::payload(first), ChunkId::payload(second));
    assert_eq!(
        bench.extents(file),
        [
            extent(0, 40, at(first, 0)),
            extent(40, 20, at(second, 0)),
            extent(60, 40, at(first, 60))
        ]
    );
    assert_eq!(inode_of(written).allocated_bytes, 100);
    let live = bench.reader().live_payloads(0, 9).unwrap();
    assert_eq!(
        live.iter().map(|payload| payload.live_bytes).collect::<Vec<_>>(),
        [80, 20]
    );
    // Only what is asked for is read, whole.
    let middle = bench.reader().extents(file, 59, 61, 9).unwrap();
    assert_eq!(
        middle,
        [extent(40, 20, at(second, 0)), extent(60, 40, at(first, 60))]
    );
    assert_eq!(bench.reader().extents(file, 100, 200, 9).unwrap(), []);
    assert_eq!(bench.reader().extents(file, 0, 100, 1).unwrap().len(), 1);
    bench.check();
}

#[test]
fn pieces_of_one_chunk_become_one_extent() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let id = chunk(bench.local.session(), 1);
    let added = Event::ChunkAdded { id };
    let (_, events) = bench.listen(|| write_chunk(&bench, file, 0, id, (0, 100)).unwrap());
    assert!(events.contains(&added));
    write_chunk(&bench, file, 200, id, (200, 100)).unwrap();
    let (_, events) = bench.listen(|| write_chunk(&bench, file, 100, id, (100, 100)).unwrap());
    assert!(!events.contains(&added));
    assert_eq!(bench.extents(file), [extent(0, 300, at(id, 0))]);
    // The same chunk, but not the next bytes.
    write_chunk(&bench, file, 300, id, (0, 50)).unwrap();
    assert_eq!(bench.extents(file).len(), 2);
    let cut = AttrChange {
        size: Some(0),
        ..AttrChange::default()
    };
    let (_, events) = bench.listen(|| bench.set_attr(file, cut).unwrap());
    assert!(events.contains(&Event::ChunkDead { id }));
    bench.check();
}

#[test]
fn overwriting_a_chunk_by_itself_does_not_kill_it() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let id = chunk(bench.local.session(), 1);
    write_chunk(&bench, file, 0, id, (0, 10)).unwrap();
    let (_, events) = bench.listen(|| write_chunk(&bench, file, 0, id, (10, 10)).unwrap());
    assert_eq!(
        events,
        [Event::Data {
            ino: file,
            by: bench.local.session()
        }]
    );
}

#[test]
fn appends_go_to_the_end_as_it_is() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let mut expected = 0;
    for len in [3, 1, 4] {
        let answer = bench.write(file, WriteAt::Append, &vec![1; len]).1;
        assert!(matches!(answer, Ok(Reply::Written { offset, .. }) if offset == expected));
        expected += len as u64;
    }
    let cut = AttrChange {
        size: Some(100),
        ..AttrChange::default()
    };
    bench.set_attr(file, cut).unwrap();
    let answer = bench.write(file, WriteAt::Append, b"x").1;
    assert!(matches!(answer, Ok(Reply::Written { offset: 100, .. })));
}

#[test]
fn writes_have_limits() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let last = FILE_BYTES_MAX - 3;
    assert_eq!(
        inode_of(bench.write(file, WriteAt::Offset(last), b"abc").1).size,
        FILE_BYTES_MAX
    );
    for at in [
        WriteAt::Offset(last + 1),
        WriteAt::Offset(u64::MAX),
        WriteAt::Append,
    ] {
        assert_eq!(bench.write(file, at, b"abc").1, refused(Refusal::TooLarge));
    }
    assert_eq!(
        bench.write(ROOT_INO, WriteAt::Append, b"x").1,
        refused(Refusal::IsDirectory)
    );
    let fifo = made(bench.try_make(ROOT_INO, "fifo", FileKind::Fifo));
    assert_eq!(
        bench.write(fifo, WriteAt::Append, b"x").1,
        refused(Refusal::Invalid)
    );
    assert_eq!(bench.write(999, WriteAt::Append, b"x").1, refused(Refusal::Stale));
    let before = bench.inode(file);
    let answer = bench.write(file, WriteAt::Offset(u64::MAX), b"").1;
    assert_eq!(
        answer,
        Ok(Reply::Written {
            offset: u64::MAX,
            inode: before
        })
    );
    bench.check();
}

#[test]
fn refuses_chunks_that_may_be_gone() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let old = bench.local.session();
    let session = bench.local.open_session().unwrap();
    let gone = Err(MetaError::SessionExpired(old));
    assert_eq!(write_chunk(&bench, file, 0, chunk(old, 5), (0, 10)), gone);
    let merge = Op::Merge {
        ino: file,
        runs: vec![Merge {
            expected: vec![],
            chunk: chunk(old, 5),
        }],
    };
    assert_eq!(bench.submit(merge), gone);
    let proposal = |seq, chunk_floor, op| Proposal {
        session,
        seq,
        ack_floor: 1,
        chunk_floor,
        time: Default::default(),
        op,
        payload: Bytes::new(),
    };
    let write = |id| {
        let data = Data::Chunk {
            id,
            offset: 0,
            len: 1,
        };
        Op::Write {
            ino: file,
            at: WriteAt::Append,
            data,
            kill_suid_sgid: false,
        }
    };
    let propose = |proposal| bench.local.propose(proposal).unwrap().1;
    assert!(propose(proposal(100, 7, write(chunk(session, 7)))).is_ok());
    let given_up = propose(proposal(101, 7, write(chunk(session, 6))));
    assert!(matches!(given_up, Err(MetaError::Malformed(_))), "{given_up:?}");
    // A floor does not go back.
    assert!(propose(proposal(102, 3, write(chunk(session, 6)))).is_err());
    assert_eq!(bench.reader().session(session).unwrap().unwrap().chunk_floor, 7);
    for (offset, len) in [(0, CHUNK_BYTES_MAX + 1), (1, CHUNK_BYTES_MAX), (u32::MAX, 2)] {
        let answer = write_chunk(&bench, file, 0, chunk(session, 9), (offset, len));
        assert!(matches!(answer, Err(MetaError::Malformed(_))), "{answer:?}");
    }
}

#[test]
fn fallocate_in_all_its_ways() {
    use Fallocate::*;
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let data = ChunkId::payload(bench.write(file, WriteAt::Offset(10), &[1; 10]).0);
    let call = |what, offset, len| {
        inode_of(bench.submit(Op::Fallocate {
            ino: file,
            what,
            offset,
            len,
        }))
    };
    let inode = call(AllocateKeepSize, 0, 30);
    assert_eq!((inode.size, inode.allocated_bytes), (20, 30));
    let whole = [
        extent(0, 10, Source::Zero),
        extent(10, 10, at(data, 0)),
        extent(20, 10, Source::Zero),
    ];
    assert_eq!(bench.extents(file), whole);
    let inode = call(Allocate, 0, 40);
    assert_eq!((inode.size, inode.allocated_bytes), (40, 40));
    assert_eq!(bench.extents(file)[2], extent(20, 20, Source::Zero));
    let inode = call(PunchHole, 5, 10);
    assert_eq!((inode.size, inode.allocated_bytes), (40, 30));
    assert_eq!(bench.extents(file)[1], extent(15, 5, at(data, 5)));
    let inode = call(ZeroRangeKeepSize, 0, 100);
    assert_eq!((inode.size, inode.allocated_bytes), (40, 100));
    let inode = call(ZeroRange, 50, 100);
    assert_eq!((inode.size, inode.allocated_bytes), (150, 150));
    assert_eq!(bench.extents(file), [extent(0, 150, Source::Zero)]);
    assert!(!bench.reader().chunk_is_live(data).unwrap());
    let call = |what, offset, len| {
        bench.submit(Op::Fallocate {
            ino: file,
            what,
            offset,
            len,
        })
    };
    assert_eq!(call(Allocate, 0, 0), refused(Refusal::Invalid));
    assert_eq!(call(Allocate, FILE_BYTES_MAX, 1), refused(Refusal::TooLarge));
    assert_eq!(call(PunchHole, u64::MAX, u64::MAX), refused(Refusal::TooLarge));
    bench.check();
}

#[test]
fn allocating_leaves_mtime_unless_the_size_changes() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let call = |what, len| {
        inode_of(bench.submit(Op::Fallocate {
            ino: file,
            what,
            offset: 0,
            len,
        }))
    };
    let before = bench.inode(file);
    let kept = call(Fallocate::AllocateKeepSize, 10);
    assert!(kept.mtime == before.mtime && kept.ctime > before.ctime);
    let grown = call(Fallocate::Allocate, 10);
    assert!(grown.mtime > kept.mtime);
    assert!(call(Fallocate::PunchHole, 5).mtime > grown.mtime);
}

#[test]
fn copies_by_reference() {
    let bench = Bench::new();
    let (source, target) = (bench.mkfile(ROOT_INO, "a"), bench.mkfile(ROOT_INO, "b"));
    let data = ChunkId::payload(bench.write(source, WriteAt::Offset(10), &[1; 10]).0);
    bench
        .set_attr(
            source,
            AttrChange {
                size: Some(40),
                ..AttrChange::default()
            },
        )
        .unwrap();
    let filler = ChunkId::payload(bench.write(target, WriteAt::Append, &[2; 100]).0);
    let copy = |source_offset, target_offset, len| {
        bench.submit(Op::CopyRange {
            source,
            source_offset,
            target,
            target_offset,
            len,
        })
    };
    let answer = copy(5, 50, u64::MAX);
    assert!(matches!(answer, Ok(Reply::Copied { len: 35, .. })), "{answer:?}");
    // The source's holes are holes now, too.
    let expected = [
        extent(0, 50, at(filler, 0)),
        extent(55, 10, at(data, 0)),
        extent(85, 15, at(filler, 85)),
    ];
    assert_eq!(bench.extents(target), expected);
    assert_eq!(bench.inode(target).allocated_bytes, 75);
    assert!(matches!(copy(0, 90, 20), Ok(Reply::Copied { len: 20, .. })));
    assert_eq!(bench.inode(target).size, 110);
    let before = bench.inode(target);
    assert_eq!(
        copy(40, 0, 10),
        Ok(Reply::Copied {
            len: 0,
            inode: before
        })
    );
    assert_eq!(copy(0, FILE_BYTES_MAX - 1, 2), refused(Refusal::TooLarge));
    // What is shared outlives either file.
    bench.unlink(ROOT_INO, "a").unwrap();
    bench.submit(Op::Reap { inodes: vec![source] }).unwrap();
    assert!(bench.reader().chunk_is_live(data).unwrap());
    bench.check();
}

#[test]
fn copies_within_a_file_unless_it_overlaps() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "a");
    let data = ChunkId::payload(bench.write(file, WriteAt::Append, &[1; 100]).0);
    let copy = |source_offset, target_offset, len| {
        bench.submit(Op::CopyRange {
            source: file,
            source_offset,
            target: file,
            target_offset,
            len,
        })
    };
    assert_eq!(copy(0, 50, 51), refused(Refusal::Invalid));
    assert_eq!(
        copy(50, 0, 60),
        Ok(Reply::Copied {
            len: 50,
            inode: bench.inode(file)
        })
    );
    assert_eq!(
        bench.extents(file),
        [extent(0, 50, at(data, 50)), extent(50, 50, at(data, 50))]
    );
    assert_eq!(copy(10, 10, 10), refused(Refusal::Invalid));
    assert_eq!(bench.reader().live_payloads(0, 1).unwrap()[0].live_bytes, 100);
    let answer = bench.submit(Op::CopyRange {
        source: ROOT_INO,
        source_offset: 0,
        target: file,
        target_offset: 0,
        len: 1,
    });
    assert_eq!(answer, refused(Refusal::IsDirectory));
    bench.check();
}

#[test]
fn copying_very_many_extents_stops_early() {
    let bench = Bench::new();
    let (source, target) = (bench.mkfile(ROOT_INO, "a"), bench.mkfile(ROOT_INO, "b"));
    bench.scatter(source, 5000);
    let size = bench.inode(source).size;
    let mut done = 0;
    let mut calls = 0;
    while done < size {
        let answer = bench.submit(Op::CopyRange {
            source,
            source_offset: done,
            target,
            target_offset: done,
            len: size - done,
        });
        let Ok(Reply::Copied { len, .. }) = answer else {
            panic!("{answer:?}")
        };
        assert!(len > 0);
        done += len;
        calls += 1;
    }
    assert_eq!(calls, 2);
    assert_eq!(bench.extents(target), bench.extents(source));
    bench.check();
}

#[test]
fn a_merge_replaces_what_is_still_there() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    for byte in 0..4 {
        bench.write(file, WriteAt::Append, &[byte; 10]).1.unwrap();
    }
    let expected = bench.extents(file);
    assert_eq!(expected.len(), 4);
    // In the meantime the second is overwritten in its middle and the fourth is gone.
    let (new, _) = bench.write(file, WriteAt::Offset(13), &[9; 4]);
    bench
        .set_attr(
            file,
            AttrChange {
                size: Some(30),
                ..AttrChange::default()
            },
        )
        .unwrap();
    let before = bench.inode(file);
    let id = chunk(bench.local.session(), 1);
    let merge = Op::Merge {
        ino: file,
        runs: vec![Merge {
            expected: expected.clone(),
            chunk: id,
        }],
    };
    let (answer, events) = bench.listen(|| bench.submit(merge.clone()));
    assert_eq!(
        (answer, events),
        (Ok(Reply::Done), vec![Event::ChunkAdded { id }])
    );
    assert_eq!(
        bench.extents(file),
        [
            extent(0, 13, at(id, 0)),
            extent(13, 4, at(ChunkId::payload(new), 0)),
            extent(17, 13, at(id, 17)),
        ]
    );
    assert_eq!(bench.inode(file), before);
    assert_eq!(bench.reader().live_payloads(0, 9).unwrap().len(), 1);
    // Once more: nothing is left of what is expected.
    let (_, events) = bench.listen(|| bench.submit(merge).unwrap());
    assert_eq!(events, []);
    bench.check();
}

#[test]
fn refuses_a_merge_that_makes_no_sense() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let id = chunk(bench.local.session(), 1);
    let merge = |ino, expected| {
        bench.submit(Op::Merge {
            ino,
            runs: vec![Merge { expected, chunk: id }],
        })
    };
    let zero = |offset, len| extent(offset, len, Source::Zero);
    for expected in [
        vec![zero(10, 10), zero(0, 10)],
        vec![zero(0, 10), zero(5, 10)],
        vec![zero(0, 0)],
        vec![zero(u64::MAX, 2)],
        vec![zero(0, u64::from(CHUNK_BYTES_MAX) + 1)],
    ] {
        let answer = merge(file, expected);
        assert!(matches!(answer, Err(MetaError::Malformed(_))), "{answer:?}");
    }
    assert_eq!(merge(999, vec![zero(0, 10)]), Ok(Reply::Done));
}

#[test]
fn lists_live_chunks_in_pages() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let other = bench.mkfile(ROOT_INO, "other");
    let ids: Vec<ChunkId> = (1..6).map(|seq| chunk(bench.local.session(), seq)).collect();
    bench
        .write(file, WriteAt::Append, b"a payload is no chunk")
        .1
        .unwrap();
    for (i, id) in ids.iter().enumerate() {
        write_chunk(&bench, file, 100 * i as u64, *id, (0, 100)).unwrap();
        write_chunk(&bench, other, 100 * i as u64, *id, (0, 100)).unwrap();
    }
    let reader = bench.reader();
    assert_eq!(reader.chunks(None, 9).unwrap(), ids);
    assert_eq!(reader.chunks(None, 2).unwrap(), ids[..2]);
    assert_eq!(reader.chunks(Some(ids[1]), 2).unwrap(), ids[2..4]);
    assert_eq!(reader.chunks(Some(ids[4]), 2).unwrap(), []);
    assert_eq!(reader.chunks(Some(ChunkId::payload(3)), 1).unwrap(), ids[..1]);
    assert!(reader.chunk_is_live(ids[0]).unwrap());
    assert!(!reader.chunk_is_live(chunk(bench.local.session(), 99)).unwrap());
}
