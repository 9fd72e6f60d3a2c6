//! Batches, and the inode numbers reserved for what they make.

use bytes::Bytes;
use proptest::prelude::*;

use super::support::*;
use crate::clock::Timestamp;
use crate::meta::*;

fn at(sec: i64, op: Op) -> BatchItem {
    let time = Timestamp { sec, nsec: 0 };
    BatchItem { time, op }
}

fn create(name: &'static str, ino: Ino) -> Op {
    let new = NewInode {
        kind: FileKind::Regular,
        mode: 0o644,
        umask: 0,
        uid: 1,
        gid: 2,
        rdev: 0,
        target: Bytes::new(),
    };
    Op::Create {
        parent: ROOT_INO,
        name: name.into(),
        new,
        exclusive: true,
        ino: Some(ino),
    }
}

fn unlink(name: &'static str) -> Op {
    Op::Unlink {
        parent: ROOT_INO,
        name: name.into(),
    }
}

fn reserve(bench: &Bench, count: u32) -> Ino {
    match bench.submit(Op::ReserveInodes { count }) {
        Ok(Reply::Reserved { first }) => first,
        other => panic!("{other:?}"),
    }
}

fn refused_of(answer: Answer) -> Vec<(u32, MetaError)> {
    match answer {
        Ok(Reply::Batch { refused }) => refused,
        other => panic!("{other:?}"),
    }
}

fn is_malformed<T>(answer: &Result<T, MetaError>) -> bool {
    matches!(answer, Err(MetaError::Malformed(_)))
}

#[test]
fn numbers_are_reserved_once() {
    let bench = Bench::new();
    let first = reserve(&bench, 10);
    assert_eq!(reserve(&bench, 1), first + 10);
    assert_eq!(bench.mkfile(ROOT_INO, "next"), first + 11);
    assert_eq!(reserve(&bench, RESERVED_INODES_MAX), first + 12);
    assert_eq!(
        bench.mkfile(ROOT_INO, "after"),
        first + 12 + u64::from(RESERVED_INODES_MAX)
    );
    for count in [0, RESERVED_INODES_MAX + 1, u32::MAX] {
        assert!(is_malformed(&bench.submit(Op::ReserveInodes { count })));
    }
    bench.check();
}

#[test]
fn a_reserved_number_makes_one_inode() {
    let bench = Bench::new();
    let first = reserve(&bench, 2);
    assert_eq!(made(bench.submit(create("b", first + 1))), first + 1);
    assert_eq!(bench.lookup(ROOT_INO, "b"), Some(first + 1));
    for taken_or_unknown in [0, ROOT_INO, first + 1, first + 2, u64::MAX] {
        let answer = bench.submit(create("x", taken_or_unknown));
        assert!(is_malformed(&answer), "{taken_or_unknown}: {answer:?}");
    }
    assert_eq!(
        bench.submit(create("b", first)),
        refused(Refusal::Exists),
        "the name is taken"
    );
    assert_eq!(made(bench.submit(create("a", first))), first);
    bench.check();
}

#[test]
fn items_are_done_in_order_each_at_its_time() {
    let bench = Bench::new();
    let first = reserve(&bench, 2);
    let items = vec![
        at(2_000_000_010, create("a", first)),
        at(2_000_000_020, create("b", first + 1)),
        at(2_000_000_030, unlink("a")),
        at(2_000_000_040, create("a", 0)),
        at(
            2_000_000_050,
            Op::Link {
                ino: first + 1,
                parent: ROOT_INO,
                name: "a".into(),
            },
        ),
    ];
    let (answer, events) = bench.listen(|| bench.submit(Op::Batch { items }));
    let refused = refused_of(answer);
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, 3);
    assert_eq!(bench.inode(first).btime.sec, 2_000_000_010);
    assert_eq!(bench.inode(first).ctime.sec, 2_000_000_030);
    assert_eq!(bench.inode(first).nlink, 0);
    assert_eq!(bench.inode(first + 1).nlink, 2);
    assert_eq!(bench.inode(first + 1).ctime.sec, 2_000_000_050);
    assert_eq!(bench.inode(ROOT_INO).mtime.sec, 2_000_000_050);
    assert_eq!(bench.names(ROOT_INO), ["b", "a"]);
    let names: Vec<&[u8]> = events
        .iter()
        .filter_map(|event| match event {
            Event::Entry { name, .. } => Some(&name[..]),
            _ => None,
        })
        .collect();
    assert_eq!(names, [b"a", b"b", b"a", b"a"]);
    assert!(events.contains(&Event::Orphaned { ino: first }));
    bench.check();
}

#[test]
fn a_refused_item_changes_nothing() {
    let bench = Bench::new();
    let (directory, file) = (bench.mkdir(ROOT_INO, "d"), bench.mkfile(ROOT_INO, "f"));
    bench.mkfile(directory, "inside");
    let before = (bench.inode(ROOT_INO), bench.inode(directory), bench.inode(file));
    let time = SetTime::At(Timestamp {
        sec: 0,
        nsec: u32::MAX,
    });
    let change = AttrChange {
        mode: Some(0),
        atime: Some(time),
        ..AttrChange::default()
    };
    let items = vec![
        at(
            3_000_000_000,
            Op::Rmdir {
                parent: ROOT_INO,
                name: "d".into(),
            },
        ),
        // Fails after it has changed the mode.
        at(3_000_000_000, Op::SetAttr { ino: file, change }),
        BatchItem {
            time: Timestamp {
                sec: 1,
                nsec: 1_000_000_000,
            },
            op: unlink("f"),
        },
    ];
    let (answer, events) = bench.listen(|| bench.submit(Op::Batch { items }));
    let refused = refused_of(answer);
    assert_eq!(
        refused.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert_eq!(refused[0].1, MetaError::Refused(Refusal::NotEmpty));
    assert_eq!(events, []);
    let after = (bench.inode(ROOT_INO), bench.inode(directory), bench.inode(file));
    assert_eq!(after, before);
    bench.check();
}

#[test]
fn some_operations_cannot_be_in_a_batch() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "f");
    let ops = vec![
        Op::Batch { items: Vec::new() },
        Op::OpenSession { node: 1 },
        Op::ExpireSession {
            session: bench.local.session(),
        },
        Op::ReserveInodes { count: 1 },
        Op::Reap { inodes: vec![file] },
        Op::RemoveNode { node: 1 },
        Op::Write {
            ino: file,
            at: WriteAt::Append,
            data: Data::Inline,
            kill_suid_sgid: false,
        },
        Op::Fallocate {
            ino: file,
            what: Fallocate::Allocate,
            offset: 0,
            len: 1,
        },
    ];
    let count = u32::try_from(ops.len()).unwrap();
    let mut items: Vec<BatchItem> = ops.into_iter().map(|op| at(1, op)).collect();
    items.push(at(1, unlink("f")));
    let (_, answer) = bench
        .local
        .submit(Op::Batch { items }, Bytes::from_static(b"payload"))
        .unwrap();
    let refused = refused_of(answer);
    assert_eq!(
        refused.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
        (0..count).collect::<Vec<_>>()
    );
    assert!(
        refused
            .iter()
            .all(|(_, error)| matches!(error, MetaError::Malformed(_)))
    );
    assert_eq!(bench.inode(file).nlink, 0, "the last item was done");
    assert_eq!(bench.inode(file).size, 0);
    bench.check();
}

#[test]
fn batches_have_limits() {
    let bench = Bench::new();
    let items = |count| vec![at(1, unlink("nothing")); count];
    let answer = bench.submit(Op::Batch {
        items: items(BATCH_ITEMS_MAX + 1),
    });
    assert!(is_malformed(&answer));
    let most = Op::Batch {
        items: items(BATCH_ITEMS_MAX),
    };
    assert_eq!(refused_of(bench.submit(most)).len(), BATCH_ITEMS_MAX);
    assert_eq!(refused_of(bench.submit(Op::Batch { items: items(0) })), []);
    let payload = |len: u32| Bytes::from(vec![0; len as usize]);
    let submit = |len| {
        bench
            .local
            .submit(Op::Batch { items: items(1) }, payload(len))
            .unwrap()
    };
    assert!(is_malformed(&submit(CHUNK_BYTES_MAX + 1).1));
    assert_eq!(refused_of(submit(CHUNK_BYTES_MAX).1).len(), 1);
    bench.check();
}

#[test]
fn a_repeated_batch_is_not_done_again() {
    let bench = Bench::new();
    let first = reserve(&bench, 1);
    let proposal = Proposal {
        session: bench.local.session(),
        seq: 100,
        ack_floor: 1,
        chunk_floor: 0,
        time: Timestamp::default(),
        op: Op::Batch {
            items: vec![at(5, create("a", first)), at(6, unlink("b")), at(7, unlink("a"))],
        },
        payload: Bytes::new(),
    };
    let answer = bench.local.propose(proposal.clone()).unwrap().1;
    assert_eq!(
        refused_of(answer.clone()),
        [(1, MetaError::Refused(Refusal::NotFound))]
    );
    let before = bench.inode(ROOT_INO);
    let (again, events) = bench.listen(|| bench.local.propose(proposal).unwrap().1);
    assert_eq!(again, answer);
    assert_eq!(events, []);
    assert_eq!(bench.inode(ROOT_INO), before);
}

/// An operation that makes sense or not, on inodes that are there or not.
fn any_item() -> impl Strategy<Value = BatchItem> {
    let ino = || prop_oneof![5 => 0..12u64, 1 => any::<u64>()];
    let name = || {
        let long = Bytes::from(vec![7; NAME_BYTES_MAX + 1]);
        let bad = ["", ".", "x/y"].map(Bytes::from).into_iter().chain([long]);
        prop_oneof![
            4 => prop::sample::select(vec![Bytes::from("a"), Bytes::from("b"), Bytes::from("c")]),
            1 => prop::sample::select(bad.collect::<Vec<_>>()),
        ]
    };
    let kind = prop_oneof![
        Just(FileKind::Regular),
        Just(FileKind::Directory),
        Just(FileKind::Symlink)
    ];
    let mode = prop_oneof![
        Just(RenameMode::Replace),
        Just(RenameMode::NoReplace),
        Just(RenameMode::Exchange)
    ];
    let op = prop_oneof![
        4 => (ino(), name(), kind, any::<bool>(), prop::option::of(ino())).prop_map(
            |(parent, name, kind, exclusive, ino)| {
                let target = if kind == FileKind::Symlink { "x" } else { "" };
                let new = NewInode { kind, mode: 0o6777, umask: 0, uid: 0, gid: 0, rdev: 0, target: target.into() };
                Op::Create { parent, name, new, exclusive, ino }
            }
        ),
        1 => (ino(), ino(), name()).prop_map(|(ino, parent, name)| Op::Link { ino, parent, name }),
        1 => (ino(), name()).prop_map(|(parent, name)| Op::Unlink { parent, name }),
        1 => (ino(), name()).prop_map(|(parent, name)| Op::Rmdir { parent, name }),
        2 => (ino(), name(), ino(), name(), mode).prop_map(|(parent, name, new_parent, new_name, mode)| {
            Op::Rename { parent, name, new_parent, new_name, mode }
        }),
        1 => (ino(), any::<u64>()).prop_map(|(ino, size)| {
            let change = AttrChange { size: Some(size), ..AttrChange::default() };
            Op::SetAttr { ino, change }
        }),
        1 => prop::collection::vec(ino(), 0..3).prop_map(|inodes| Op::Reap { inodes }),
        2 => super::flush::any_flush(ino()),
    ];
    let nsec = prop_oneof![9 => Just(5), 1 => any::<u32>()];
    (op, any::<i64>(), nsec).prop_map(|(op, sec, nsec)| {
        let time = Timestamp { sec: sec >> 1, nsec };
        BatchItem { time, op }
    })
}

proptest! {
    #![proptest_config(config())]

    /// Whatever is in a batch, the state hangs together, and a batch does what its items do one by one.
    #[test]
    fn is_the_same_as_its_items(items in prop::collection::vec(any_item(), 1..60), payload_len in 0..3000usize) {
        let (whole, single) = (Bench::new(), Bench::new());
        let payload = Bytes::from(vec![1; payload_len]);
        for bench in [&whole, &single] {
            reserve(bench, 8);
        }
        let refused = refused_of(whole.local.submit(Op::Batch { items: items.clone() }, payload.clone()).unwrap().1);
        whole.check();
        let mut refused_singly = Vec::new();
        for (index, item) in (0..).zip(items) {
            let batch = Op::Batch { items: vec![item] };
            let answer = single.local.submit(batch, payload.clone()).unwrap().1;
            refused_singly.extend(refused_of(answer).into_iter().map(|(_, error)| (index, error)));
        }
        prop_assert_eq!(refused, refused_singly);
        single.check();
        for ino in 0..12 {
            prop_assert_eq!(whole.reader().inode(ino).unwrap(), single.reader().inode(ino).unwrap());
            prop_assert_eq!(whole.reader().list(ino, 0, 99).unwrap(), single.reader().list(ino, 0, 99).unwrap());
        }
    }
}
