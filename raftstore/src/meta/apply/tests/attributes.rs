//! chmod, chown, truncate, utimensat, and the times.

use super::support::*;
use crate::clock::Timestamp;
use crate::meta::*;

/// After the cluster was made.
const LATER: i64 = 2_000_000_000;

fn size(size: u64) -> AttrChange {
    AttrChange {
        size: Some(size),
        ..AttrChange::default()
    }
}

fn mode(mode: u32) -> AttrChange {
    AttrChange {
        mode: Some(mode),
        ..AttrChange::default()
    }
}

fn time(sec: i64) -> Timestamp {
    Timestamp { sec, nsec: 7 }
}

#[test]
fn every_change_moves_ctime() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let changes = [
        mode(0o600),
        AttrChange {
            uid: Some(5),
            ..AttrChange::default()
        },
        AttrChange {
            gid: Some(6),
            ..AttrChange::default()
        },
        AttrChange {
            atime: Some(SetTime::At(time(3))),
            ..AttrChange::default()
        },
        AttrChange {
            mtime: Some(SetTime::At(time(4))),
            ..AttrChange::default()
        },
        mode(0o600),
    ];
    let mut last = bench.inode(file).ctime;
    for change in changes {
        let inode = inode_of(bench.set_attr(file, change));
        assert!(inode.ctime > last, "{change:?}");
        last = inode.ctime;
    }
    let inode = bench.inode(file);
    assert_eq!((inode.mode, inode.uid, inode.gid), (0o600, 5, 6));
    assert_eq!((inode.atime, inode.mtime), (time(3), time(4)));
    // Asking for nothing changes nothing.
    assert_eq!(inode_of(bench.set_attr(file, AttrChange::default())), inode);
}

#[test]
fn truncate_cuts_extends_and_checks() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let (index, _) = bench.write(file, WriteAt::Append, &[9; 100]);
    let source = Source::Chunk {
        id: ChunkId::payload(index),
        offset: 0,
    };
    assert_eq!(inode_of(bench.set_attr(file, size(60))).allocated_bytes, 60);
    assert_eq!(
        bench.extents(file),
        [Extent {
            offset: 0,
            len: 60,
            source
        }]
    );
    let longer = inode_of(bench.set_attr(file, size(1 << 40)));
    assert_eq!((longer.size, longer.allocated_bytes), (1 << 40, 60));
    assert_eq!(
        inode_of(bench.set_attr(file, size(FILE_BYTES_MAX))).size,
        FILE_BYTES_MAX
    );
    assert_eq!(
        bench.set_attr(file, size(FILE_BYTES_MAX + 1)),
        refused(Refusal::TooLarge)
    );
    let before = bench.inode(file);
    let same = inode_of(bench.set_attr(file, size(before.size)));
    assert!(same.mtime > before.mtime && same.ctime > before.ctime);
    assert_eq!(bench.set_attr(ROOT_INO, size(0)), refused(Refusal::IsDirectory));
    let link = made(bench.try_make(ROOT_INO, "link", FileKind::Symlink));
    assert_eq!(bench.set_attr(link, size(0)), refused(Refusal::Invalid));
    assert_eq!(inode_of(bench.set_attr(file, size(0))).allocated_bytes, 0);
    assert!(!bench.reader().chunk_is_live(ChunkId::payload(index)).unwrap());
    bench.check();
}

#[test]
fn suid_and_sgid_go_when_asked() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let kill = AttrChange {
        kill_suid_sgid: true,
        ..AttrChange::default()
    };
    for (before, after) in [
        (0o6755, 0o755),
        (0o6745, 0o2745),
        (0o4700, 0o700),
        (0o1644, 0o1644),
    ] {
        bench.set_attr(file, mode(before)).unwrap();
        let inode = inode_of(bench.set_attr(file, AttrChange { uid: Some(9), ..kill }));
        assert_eq!(inode.mode, after, "from {before:o}");
        bench.set_attr(file, mode(before)).unwrap();
        let op = Op::Write {
            ino: file,
            at: WriteAt::Append,
            data: Data::Inline,
            kill_suid_sgid: true,
        };
        let written = bench.local.submit(op, bytes::Bytes::from_static(b"x")).unwrap().1;
        assert_eq!(inode_of(written).mode, after, "from {before:o}");
    }
    let dir = bench.mkdir(ROOT_INO, "dir");
    bench.set_attr(dir, mode(0o6775)).unwrap();
    assert_eq!(inode_of(bench.set_attr(dir, kill)).mode, 0o6775);
    // A write of nothing clears nothing.
    bench.set_attr(file, mode(0o4755)).unwrap();
    let op = Op::Write {
        ino: file,
        at: WriteAt::Append,
        data: Data::Inline,
        kill_suid_sgid: true,
    };
    assert_eq!(inode_of(bench.submit(op)).mode, 0o4755);
}

#[test]
fn mtime_never_repeats_when_clocks_differ() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let mut seen = Vec::new();
    for sec in [3000, 2000, 3000, 1000, 4000] {
        bench.at(LATER + sec);
        seen.push(inode_of(bench.write(file, WriteAt::Offset(0), b"x").1).mtime);
    }
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    assert_eq!(seen[4].sec, LATER + 4000);
    // A time that was set to the far future does not stick.
    let far = AttrChange {
        mtime: Some(SetTime::At(time(4_102_444_800))),
        ..AttrChange::default()
    };
    assert_eq!(inode_of(bench.set_attr(file, far)).mtime, time(4_102_444_800));
    bench.at(LATER + 5000);
    assert_eq!(
        inode_of(bench.write(file, WriteAt::Offset(0), b"x").1).mtime.sec,
        LATER + 5000
    );
    // One that was set back does not make the next the same as an earlier one.
    let back = AttrChange {
        mtime: Some(SetTime::At(seen[0])),
        ..AttrChange::default()
    };
    bench.set_attr(file, back).unwrap();
    bench.at(LATER + 1000);
    assert!(inode_of(bench.write(file, WriteAt::Offset(0), b"x").1).mtime.sec >= LATER + 5000);
}

#[test]
fn truncate_with_now_moves_mtime_on() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    bench.at(LATER + 3000);
    let before = inode_of(bench.write(file, WriteAt::Append, b"x").1);
    bench.at(LATER + 2000);
    let change = AttrChange {
        size: Some(0),
        mtime: Some(SetTime::Now),
        ..AttrChange::default()
    };
    let after = inode_of(bench.set_attr(file, change));
    assert!(after.mtime > before.mtime);
    assert_eq!(after.data_version, before.data_version + 1);
}

#[test]
fn refuses_times_that_cannot_be() {
    let bench = Bench::new();
    let bad = Timestamp {
        sec: 1,
        nsec: 1_000_000_000,
    };
    let change = AttrChange {
        mtime: Some(SetTime::At(bad)),
        ..AttrChange::default()
    };
    assert!(matches!(
        bench.set_attr(ROOT_INO, change),
        Err(MetaError::Malformed(_))
    ));
    bench.local.set_time(bad);
    assert!(matches!(
        bench.try_make(ROOT_INO, "x", FileKind::Regular),
        Err(MetaError::Malformed(_))
    ));
}
