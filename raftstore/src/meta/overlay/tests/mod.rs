//! Tests of the overlay by itself, beside committed state, and read while that changes.

mod layers;
mod random;
mod readers;
mod twin;

use bytes::Bytes;

use super::Overlay;
use crate::clock::Timestamp;
use crate::meta::testing::LocalMeta;
use crate::meta::*;

/// A store, and an overlay of it.
struct Bench {
    local: LocalMeta,
    overlay: Overlay,
    /// The next reserved number.
    next_ino: Ino,
}

impl Bench {
    fn new() -> Self {
        let local = LocalMeta::new().unwrap();
        let answer = local
            .submit(Op::ReserveInodes { count: 50_000 }, Bytes::new())
            .unwrap()
            .1;
        let Ok(Reply::Reserved { first }) = answer else {
            panic!("{answer:?}")
        };
        let overlay = Overlay::new(&local.reader());
        Self {
            local,
            overlay,
            next_ino: first,
        }
    }

    fn run(&mut self, number: u64, op: Op, payload_len: usize) -> Result<Reply, MetaError> {
        let proposal = Proposal {
            session: self.local.session(),
            seq: 0,
            ack_floor: 0,
            chunk_floor: 0,
            time: time(number),
            op,
            payload: Bytes::from(vec![1; payload_len]),
        };
        let answer = self.overlay.apply(number, &proposal).unwrap();
        answer.map(|(reply, _)| reply)
    }

    fn create(&mut self, number: u64, parent: Ino, name: &str, kind: FileKind) -> Ino {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.run(number, create(parent, name, kind, Some(ino)), 0)
            .unwrap();
        ino
    }

    fn lookup(&self, name: &str) -> Option<Ino> {
        let entry = self.overlay.reader().lookup(ROOT_INO, name.as_bytes()).unwrap();
        entry.map(|entry| entry.ino)
    }

    fn inode(&self, ino: Ino) -> Inode {
        self.overlay.reader().inode(ino).unwrap().unwrap()
    }

    /// Puts an operation into the log, at the time that `run` gives it under `number`.
    fn commit(&self, number: u64, op: Op) {
        let time = time(number);
        let items = vec![BatchItem { time, op }];
        let answer = self.local.submit(Op::Batch { items }, Bytes::new()).unwrap().1;
        assert_eq!(answer, Ok(Reply::Batch { refused: vec![] }));
    }
}

fn time(number: u64) -> Timestamp {
    Timestamp {
        sec: 2_000_000_000 + i64::try_from(number).unwrap(),
        nsec: 0,
    }
}

fn create(parent: Ino, name: &str, kind: FileKind, ino: Option<Ino>) -> Op {
    let target = if kind == FileKind::Symlink { "x" } else { "" };
    let new = NewInode {
        kind,
        mode: 0o755,
        umask: 0,
        uid: 1,
        gid: 1,
        rdev: 0,
        target: target.into(),
    };
    Op::Create {
        parent,
        name: Bytes::copy_from_slice(name.as_bytes()),
        new,
        exclusive: true,
        ino,
    }
}

fn link(ino: Ino, name: &'static str) -> Op {
    Op::Link {
        ino,
        parent: ROOT_INO,
        name: name.into(),
    }
}

fn unlink(name: &'static str) -> Op {
    Op::Unlink {
        parent: ROOT_INO,
        name: name.into(),
    }
}

fn write(ino: Ino, at: WriteAt) -> Op {
    Op::Write {
        ino,
        at,
        data: Data::Inline,
        kill_suid_sgid: true,
    }
}

#[test]
fn shows_what_the_log_does_not_say_yet() {
    let mut bench = Bench::new();
    let ino = bench.create(1, ROOT_INO, "a", FileKind::Regular);
    bench.run(2, link(ino, "b"), 0).unwrap();
    assert_eq!((bench.lookup("a"), bench.lookup("b")), (Some(ino), Some(ino)));
    assert_eq!(bench.inode(ino).nlink, 2);
    bench.run(3, unlink("a"), 0).unwrap();
    assert_eq!((bench.lookup("a"), bench.lookup("b")), (None, Some(ino)));
    assert_eq!(bench.local.reader().inode(ino).unwrap(), None);
    assert_eq!(bench.local.reader().list(ROOT_INO, 0, 9).unwrap(), []);
    bench.overlay.clear();
    assert!(bench.overlay.is_empty());
    assert_eq!(bench.overlay.bytes(), 0);
    assert_eq!(bench.lookup("b"), None);
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut bench = Bench::new();
    let ino = bench.create(1, ROOT_INO, "a", FileKind::Regular);
    let bytes = bench.overlay.bytes();
    let taken = create(ROOT_INO, "b", FileKind::Regular, Some(ino));
    assert!(matches!(bench.run(2, taken, 0), Err(MetaError::Malformed(_))));
    let again = create(ROOT_INO, "a", FileKind::Regular, Some(ino + 1));
    assert_eq!(bench.run(2, again, 0), Err(Refusal::Exists.into()));
    assert_eq!(bench.overlay.bytes(), bytes);
    bench.commit(1, create(ROOT_INO, "a", FileKind::Regular, Some(ino)));
    bench.overlay.committed(1, |_| false);
    assert!(bench.overlay.is_empty());
}

#[test]
fn only_some_operations_run_ahead_of_the_log() {
    let mut bench = Bench::new();
    let file = bench.create(1, ROOT_INO, "f", FileKind::Regular);
    let (a, b) = (
        bench.create(1, ROOT_INO, "a", FileKind::Directory),
        bench.create(1, ROOT_INO, "b", FileKind::Directory),
    );
    let bytes = bench.overlay.bytes();
    let session = bench.local.session();
    let rename = |name: &'static str, new_parent, new_name: &'static str, mode| Op::Rename {
        parent: ROOT_INO,
        name: name.into(),
        new_parent,
        new_name: new_name.into(),
        mode,
    };
    let ops = [
        Op::Batch { items: Vec::new() },
        Op::ReserveInodes { count: 1 },
        Op::OpenSession { node: 1 },
        Op::ExpireSession { session },
        Op::Reap { inodes: vec![file] },
        Op::Fallocate {
            ino: file,
            what: Fallocate::Allocate,
            offset: 0,
            len: 9,
        },
        Op::CopyRange {
            source: file,
            source_offset: 0,
            target: file,
            target_offset: 5,
            len: 1,
        },
        create(ROOT_INO, "unnumbered", FileKind::Regular, None),
        rename("a", b, "moved", RenameMode::Replace),
    ];
    for op in ops {
        let answer = bench.run(2, op.clone(), 0);
        assert!(
            matches!(answer, Err(MetaError::Malformed(_))),
            "{op:?}: {answer:?}"
        );
    }
    assert_eq!(bench.overlay.bytes(), bytes);
    let within = rename("a", ROOT_INO, "moved", RenameMode::Replace);
    bench.run(2, within, 0).unwrap();
    assert_eq!(bench.lookup("moved"), Some(a));
    let file_away = rename("f", b, "f", RenameMode::Replace);
    bench.run(2, file_away, 0).unwrap();
}

/// The count of inodes, which bounds the depth of directories, is not the overlay's.
#[test]
fn deep_directories_can_be_renamed() {
    let mut bench = Bench::new();
    let mut parent = ROOT_INO;
    for depth in 1..20 {
        let directory = bench.create(depth, parent, "d", FileKind::Directory);
        let rename = Op::Rename {
            parent,
            name: "d".into(),
            new_parent: parent,
            new_name: "renamed".into(),
            mode: RenameMode::Replace,
        };
        bench.run(depth, rename, 0).unwrap();
        parent = directory;
    }
}

#[test]
fn writes_move_attributes_only() {
    let mut bench = Bench::new();
    let ino = bench.create(1, ROOT_INO, "f", FileKind::Regular);
    let change = AttrChange {
        mode: Some(0o4755),
        ..AttrChange::default()
    };
    bench.run(2, Op::SetAttr { ino, change }, 0).unwrap();
    let before = bench.inode(ino);
    let offset_of = |answer| match answer {
        Ok(Reply::Written { offset, .. }) => offset,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        offset_of(bench.run(3, write(ino, WriteAt::Offset(1000)), 50)),
        1000
    );
    let inode = bench.inode(ino);
    assert_eq!((inode.size, inode.allocated_bytes, inode.mode), (1050, 50, 0o755));
    assert!(inode.mtime > before.mtime && inode.data_version > before.data_version);
    assert_eq!(offset_of(bench.run(4, write(ino, WriteAt::Append), 10)), 1050);
    assert_eq!(bench.inode(ino).allocated_bytes, 60);
    for number in 5..9 {
        bench.run(number, write(ino, WriteAt::Offset(0)), 1000).unwrap();
    }
    let inode = bench.inode(ino);
    assert_eq!((inode.size, inode.allocated_bytes), (1060, 1060));
    let change = AttrChange {
        size: Some(7),
        ..AttrChange::default()
    };
    bench.run(9, Op::SetAttr { ino, change }, 0).unwrap();
    let inode = bench.inode(ino);
    assert_eq!((inode.size, inode.allocated_bytes), (7, 7));
    assert_eq!(bench.overlay.reader().extents(ino, 0, u64::MAX, 9).unwrap(), []);
    assert_eq!(
        bench.overlay.reader().usage().unwrap(),
        bench.local.reader().usage().unwrap()
    );
}

/// What was changed again since stays, and so do the inodes that the caller wants kept.
#[test]
fn forgets_what_was_committed() {
    let mut bench = Bench::new();
    let (a, b) = (
        bench.create(1, ROOT_INO, "a", FileKind::Regular),
        bench.create(2, ROOT_INO, "b", FileKind::Regular),
    );
    bench.run(3, write(a, WriteAt::Append), 5).unwrap();
    bench.run(4, link(b, "c"), 0).unwrap();
    bench.commit(1, create(ROOT_INO, "a", FileKind::Regular, Some(a)));
    bench.commit(2, create(ROOT_INO, "b", FileKind::Regular, Some(b)));
    bench.overlay.committed(3, |ino| ino == a);
    assert_eq!(bench.inode(a).size, 5, "kept, since it is not flushed");
    assert_eq!(bench.inode(b).nlink, 2, "changed under 4, which is not committed");
    assert_eq!(bench.lookup("c"), Some(b));
    bench.commit(4, link(b, "c"));
    bench.overlay.committed(4, |ino| ino == a);
    assert_eq!(bench.local.reader().inode(b).unwrap(), Some(bench.inode(b)));
    assert_eq!(bench.inode(a).size, 5);
    assert!(!bench.overlay.is_empty());
    bench.overlay.committed(4, |_| false);
    assert!(bench.overlay.is_empty());
    assert_eq!(bench.overlay.bytes(), 0);
    assert_eq!(bench.inode(a).size, 0, "the base has never heard of the write");
}

#[test]
fn an_inode_can_be_put() {
    let mut bench = Bench::new();
    let changed = Inode {
        size: 99,
        ..bench.inode(ROOT_INO)
    };
    bench.overlay.put_inode(7, &changed).unwrap();
    assert_eq!(bench.inode(ROOT_INO), changed);
    bench.overlay.committed(6, |_| false);
    assert_eq!(bench.inode(ROOT_INO), changed);
    bench.overlay.committed(u64::MAX, |_| true);
    assert_eq!(bench.inode(ROOT_INO), changed);
    bench.overlay.committed(u64::MAX, |_| false);
    assert_eq!(bench.inode(ROOT_INO).size, 0);
}

/// However often a file is written, an overlay remembers it once for each number.
#[test]
fn many_writes_take_no_more_memory() {
    let mut bench = Bench::new();
    let ino = bench.create(1, ROOT_INO, "f", FileKind::Regular);
    bench.run(2, write(ino, WriteAt::Offset(0)), 9).unwrap();
    let (bytes, touched) = (bench.overlay.bytes(), bench.overlay.touched[&2].len());
    for _ in 0..1000 {
        bench.run(2, write(ino, WriteAt::Offset(0)), 9).unwrap();
    }
    assert!(bench.overlay.bytes() <= bytes + 16);
    assert_eq!(bench.overlay.touched[&2].len(), touched);
}
