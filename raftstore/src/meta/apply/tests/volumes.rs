//! Projects, volumes and snapshots.

use bytes::Bytes;

use super::support::*;
use crate::meta::*;

fn bytes(limit: u64) -> ProjectLimits {
    ProjectLimits {
        bytes: limit,
        inodes: 0,
    }
}

fn used(bench: &Bench, root: Ino) -> (u64, u64) {
    let usage = bench.project(root).usage;
    (usage.inodes, usage.allocated_bytes)
}

fn write(bench: &Bench, ino: Ino, offset: u64, len: usize) -> Answer {
    bench.write(ino, WriteAt::Offset(offset), &vec![7; len]).1
}

fn error(answer: Answer) -> VolumeError {
    match answer {
        Err(MetaError::Volume(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn snapshot(bench: &Bench, volume: &str, name: &str) -> Snapshot {
    let (volume, name) = (volume.to_owned(), name.to_owned());
    match bench.volume(VolumeOp::Snapshot { volume, name }) {
        Ok(Reply::Snapshot(snapshot)) => snapshot,
        other => panic!("{other:?}"),
    }
}

fn remove(name: &str) -> VolumeOp {
    VolumeOp::Remove {
        name: name.into(),
        keep: None,
        force: false,
    }
}

#[test]
fn what_is_in_a_volume_is_counted_and_limited() {
    let bench = Bench::new();
    let volume = bench.mkvolume("v", bytes(1000));
    assert_eq!(used(&bench, volume.root), (1, 0));
    let dir = bench.mkdir(volume.root, "dir");
    let file = bench.mkfile(dir, "file");
    write(&bench, file, 0, 600).unwrap();
    assert_eq!(used(&bench, volume.root), (3, 600));
    assert_eq!(write(&bench, file, 600, 401), refused(Refusal::QuotaExceeded));
    write(&bench, file, 0, 1000).unwrap();
    write(&bench, file, 10, 500).unwrap();
    let grow = AttrChange {
        size: Some(1 << 40),
        ..AttrChange::default()
    };
    bench.set_attr(file, grow).unwrap();
    let allocate = |len| Op::Fallocate {
        ino: file,
        what: Fallocate::Allocate,
        offset: 1000,
        len,
    };
    assert_eq!(bench.submit(allocate(1)), refused(Refusal::QuotaExceeded));
    let outside = bench.mkfile(ROOT_INO, "outside");
    write(&bench, outside, 0, 100).unwrap();
    let copy = Op::CopyRange {
        source: outside,
        source_offset: 0,
        target: file,
        target_offset: 5000,
        len: 100,
    };
    assert_eq!(bench.submit(copy.clone()), refused(Refusal::QuotaExceeded));
    bench.check();
    let cut = AttrChange {
        size: Some(100),
        ..AttrChange::default()
    };
    bench.set_attr(file, cut).unwrap();
    bench.submit(copy).unwrap();
    assert_eq!(used(&bench, volume.root), (3, 200));
    // What was acknowledged on a node is taken, however much it is.
    let state = FileState::from(&Inode {
        size: 5000,
        ..bench.inode(file)
    });
    let flush = Op::Flush {
        ino: file,
        cut: None,
        pieces: vec![Piece {
            offset: 0,
            len: 5000,
            data: PieceData::Inline { offset: 0 },
        }],
        state,
    };
    let time = crate::clock::Timestamp::default();
    let batch = Op::Batch {
        items: vec![BatchItem { time, op: flush }],
    };
    let answer = bench.local.submit(batch, Bytes::from(vec![1; 5000])).unwrap().1;
    assert_eq!(answer, Ok(Reply::Batch { refused: vec![] }));
    assert_eq!(used(&bench, volume.root), (3, 5000));
    bench.unlink(dir, "file").unwrap();
    bench.prune_all();
    assert_eq!(used(&bench, volume.root), (2, 0));
}

#[test]
fn inodes_are_limited_too() {
    let bench = Bench::new();
    let limits = ProjectLimits { bytes: 0, inodes: 3 };
    let volume = bench.mkvolume("v", limits);
    bench.mkfile(volume.root, "a");
    bench.mkdir(volume.root, "b");
    assert_eq!(
        bench.try_make(volume.root, "c", FileKind::Symlink),
        refused(Refusal::QuotaExceeded)
    );
    bench.unlink(volume.root, "a").unwrap();
    bench.prune_all();
    bench.mkfile(volume.root, "c");
    bench.check();
}

#[test]
fn names_do_not_move_between_projects() {
    let bench = Bench::new();
    let (v, w) = (bench.mkvolume("v", bytes(0)), bench.mkvolume("w", bytes(0)));
    let file = bench.mkfile(v.root, "file");
    bench.mkfile(w.root, "other");
    bench.mkdir(v.root, "dir");
    bench.mkfile(ROOT_INO, "outside");
    let crosses = refused(Refusal::CrossesProjects);
    for to in [w.root, ROOT_INO] {
        assert_eq!(bench.link(file, to, "x"), crosses);
        for name in ["file", "dir"] {
            let rename = bench.rename((v.root, name), (to, "x"), RenameMode::Replace);
            assert_eq!(rename, crosses);
        }
    }
    let exchange = bench.rename((v.root, "file"), (w.root, "other"), RenameMode::Exchange);
    assert_eq!(exchange, crosses);
    let into = bench.rename((ROOT_INO, "outside"), (v.root, "x"), RenameMode::Replace);
    assert_eq!(into, crosses);
    bench
        .rename((v.root, "file"), (v.root, "dir2"), RenameMode::Replace)
        .unwrap();
    let busy = refused(Refusal::Busy);
    assert_eq!(
        bench.rename((ROOT_INO, "v"), (ROOT_INO, "x"), RenameMode::Replace),
        busy
    );
    assert_eq!(bench.rmdir(ROOT_INO, "w"), busy);
    bench.mkdir(ROOT_INO, "empty");
    assert_eq!(
        bench.rename((ROOT_INO, "empty"), (ROOT_INO, "w"), RenameMode::Replace),
        busy
    );
    bench.check();
}

#[test]
fn creating_again_is_the_same_volume_or_an_error() {
    let bench = Bench::new();
    let volume = bench.mkvolume("v", bytes(10));
    assert_eq!(bench.mkvolume("v", bytes(10)), volume);
    let other = VolumeOptions {
        mode: Some(0o700),
        ..volume.options.clone()
    };
    let differs = error(bench.volume(create_volume("v", other, None)));
    assert!(differs.to_string().contains("another mode"), "{differs}");
    for name in ["", "-a", ".a", "a/b", "a b", "\u{e4}", "a\0", &"x".repeat(129)] {
        let bad = error(bench.volume(create_volume(name, VolumeOptions::default(), None)));
        assert!(matches!(bad, VolumeError::BadName(_)), "{name}: {bad}");
    }
    let replicas = VolumeOptions {
        replicas: Some(7),
        ..VolumeOptions::default()
    };
    assert!(matches!(
        error(bench.volume(create_volume("x", replicas, None))),
        VolumeError::BadOption(_)
    ));
    let nested = VolumeOp::Create {
        name: "x".into(),
        parent: volume.root,
        entry: "x".into(),
        options: VolumeOptions::default(),
        labels: Default::default(),
        source: None,
    };
    assert!(matches!(error(bench.volume(nested)), VolumeError::BadPlace(_)));
    bench.mkfile(ROOT_INO, "file");
    let file = create_volume("file", VolumeOptions::default(), None);
    assert!(matches!(error(bench.volume(file)), VolumeError::BadPlace(_)));
    let change = VolumeChange {
        bytes: Some(99),
        keep: Some(true),
        ..VolumeChange::default()
    };
    let name = "v".to_owned();
    let Ok(Reply::Volume(changed)) = bench.volume(VolumeOp::Change { name, change }) else {
        panic!("not changed");
    };
    assert_eq!((changed.options.limits, changed.options.keep), (bytes(99), true));
    assert_eq!(bench.project(volume.root).limits, bytes(99));
    bench.check();
}

/// A directory that is there becomes a volume with all that is in it, and stays if the volume is to be kept.
#[test]
fn a_directory_becomes_a_volume_and_remains() {
    let bench = Bench::new();
    let dir = bench.mkdir(ROOT_INO, "v");
    let file = bench.mkfile(bench.mkdir(dir, "sub"), "file");
    write(&bench, file, 0, 500).unwrap();
    // More than the limit is there already: nothing more fits, that is all.
    let volume = bench.mkvolume("v", bytes(100));
    assert_eq!(volume.root, dir);
    assert_eq!(used(&bench, dir), (3, 500));
    assert_eq!(write(&bench, file, 500, 1), refused(Refusal::QuotaExceeded));
    let keep = VolumeOp::Remove {
        name: "v".into(),
        keep: Some(true),
        force: false,
    };
    bench.volume(keep).unwrap();
    assert_eq!(bench.lookup(ROOT_INO, "v"), Some(dir));
    assert_eq!(bench.reader().volume("v").unwrap(), None);
    bench.check();
    assert_eq!(bench.mkvolume("v", bytes(0)).root, dir);
    write(&bench, file, 500, 1000).unwrap();
    bench.volume(remove("v")).unwrap();
    assert_eq!(bench.lookup(ROOT_INO, "v"), None);
    bench.prune_all();
    assert_eq!(bench.reader().usage().unwrap().inodes, 1);
    assert_eq!(bench.reader().projects().unwrap(), vec![]);
}

#[test]
fn directories_can_have_quotas() {
    let bench = Bench::new();
    let dir = bench.mkdir(ROOT_INO, "dir");
    let quota = |directory, limit| {
        bench.volume(VolumeOp::SetQuota {
            directory,
            limits: bytes(limit),
        })
    };
    quota(dir, 100).unwrap();
    let file = bench.mkfile(dir, "file");
    assert_eq!(write(&bench, file, 0, 101), refused(Refusal::QuotaExceeded));
    quota(dir, 0).unwrap();
    write(&bench, file, 0, 101).unwrap();
    let sub = bench.mkdir(dir, "sub");
    assert!(matches!(error(quota(sub, 1)), VolumeError::BadPlace(_)));
    assert!(matches!(error(quota(ROOT_INO, 1)), VolumeError::BadPlace(_)));
    assert_eq!(quota(file, 1), refused(Refusal::NotDirectory));
    let volume = bench.mkvolume("v", bytes(0));
    assert!(matches!(error(quota(volume.root, 1)), VolumeError::BadPlace(_)));
    // It goes with its directory, and with what was still open of it.
    let orphan = bench.mkfile(dir, "orphan");
    write(&bench, orphan, 0, 10).unwrap();
    for name in ["file", "orphan"] {
        bench.unlink(dir, name).unwrap();
    }
    bench.rmdir(dir, "sub").unwrap();
    bench.rmdir(ROOT_INO, "dir").unwrap();
    bench.check();
    bench.prune_all();
    assert_eq!(bench.reader().projects().unwrap().len(), 1);
}

#[test]
fn a_snapshot_shares_all_and_changes_no_more() {
    let bench = Bench::new();
    let volume = bench.mkvolume("v", bytes(0));
    let dir = bench.mkdir(volume.root, "dir");
    let file = bench.mkfile(dir, "file");
    let (index, _) = bench.write(file, WriteAt::Offset(0), b"some bytes");
    bench.link(file, volume.root, "second").unwrap();
    bench.submit(set_xattr(file, "user.a", b"1")).unwrap();
    bench.try_make(volume.root, "link", FileKind::Symlink).unwrap();
    let (taken, events) = bench.listen(|| snapshot(&bench, "v", "s1"));
    assert!(events.len() < 12, "{events:?}");
    bench.check();
    write(&bench, file, 0, 3).unwrap();
    bench.unlink(volume.root, "link").unwrap();
    bench.mkfile(dir, "later");

    let top = bench.lookup(ROOT_INO, ".snapshots").unwrap();
    let of_volume = bench.lookup(top, "v").unwrap();
    assert_eq!(bench.lookup(of_volume, "s1"), Some(taken.root));
    assert_eq!(bench.names(taken.root), ["dir", "second", "link"]);
    let copied = bench.lookup(taken.root, "second").unwrap();
    let copied_dir = bench.lookup(taken.root, "dir").unwrap();
    assert_eq!(bench.names(copied_dir), ["file"]);
    assert_eq!(bench.lookup(copied_dir, "file"), Some(copied));
    let source = Source::Chunk {
        id: ChunkId::payload(index),
        offset: 0,
    };
    let whole = Extent {
        offset: 0,
        len: 10,
        source,
    };
    assert_eq!(bench.extents(copied), [whole]);
    assert_eq!(bench.reader().xattr(copied, b"user.a").unwrap(), Some("1".into()));
    assert_eq!(
        (bench.inode(copied).nlink, bench.inode(copied_dir).parent),
        (2, taken.root)
    );
    assert_eq!(used(&bench, taken.root), (4, 10));

    let read_only = refused(Refusal::ReadOnly);
    assert_eq!(write(&bench, copied, 0, 1), read_only);
    assert_eq!(bench.try_make(copied_dir, "x", FileKind::Regular), read_only);
    assert_eq!(bench.unlink(copied_dir, "file"), read_only);
    assert_eq!(bench.rmdir(of_volume, "s1"), read_only);
    assert_eq!(bench.rmdir(ROOT_INO, ".snapshots"), read_only);
    let rename = bench.rename((ROOT_INO, ".snapshots"), (ROOT_INO, "x"), RenameMode::Replace);
    assert_eq!(rename, read_only);
    let rename = bench.rename((of_volume, "s1"), (of_volume, "x"), RenameMode::Replace);
    assert_eq!(rename, read_only);
    assert_eq!(bench.submit(set_xattr(copied, "user.a", b"2")), read_only);
    let mode = AttrChange {
        mode: Some(0),
        ..AttrChange::default()
    };
    assert_eq!(bench.set_attr(copied, mode), read_only);
    assert_eq!(bench.set_attr(taken.root, mode), read_only);
    assert_eq!(bench.link(copied, copied_dir, "x"), read_only);
    bench.check();

    let again = VolumeOp::Snapshot {
        volume: "v".into(),
        name: "s1".into(),
    };
    assert!(matches!(error(bench.volume(again)), VolumeError::Exists(_)));
    // It outlives its volume, and takes its directories with it.
    bench.volume(remove("v")).unwrap();
    bench.prune_all();
    assert_eq!(bench.extents(copied), [whole]);
    let gone = VolumeOp::RemoveSnapshot {
        volume: "v".into(),
        name: "s1".into(),
    };
    bench.volume(gone.clone()).unwrap();
    bench.prune_all();
    assert!(matches!(
        error(bench.volume(gone)),
        VolumeError::UnknownSnapshot { .. }
    ));
    assert_eq!(bench.names(top), Vec::<String>::new());
    assert_eq!(bench.reader().usage().unwrap().allocated_bytes, 0);
}

#[test]
fn clones_are_volumes_of_their_own() {
    let bench = Bench::new();
    let volume = bench.mkvolume("v", bytes(0));
    let file = bench.mkfile(volume.root, "file");
    write(&bench, file, 0, 100).unwrap();
    snapshot(&bench, "v", "s");
    write(&bench, file, 100, 100).unwrap();
    let of_snapshot = Some(TreeSource::Snapshot {
        volume: "v".into(),
        name: "s".into(),
    });
    let of_volume = Some(TreeSource::Volume("v".into()));
    for (name, source, len) in [("a", of_snapshot, 100), ("b", of_volume.clone(), 200)] {
        let options = VolumeOptions {
            uid: Some(33),
            ..VolumeOptions::default()
        };
        let Ok(Reply::Volume(clone)) = bench.volume(create_volume(name, options, source)) else {
            panic!("no clone");
        };
        let copied = bench.lookup(clone.root, "file").unwrap();
        assert_eq!(bench.inode(copied).size, len);
        assert_eq!(bench.inode(clone.root).uid, 33);
        write(&bench, copied, 0, 300).unwrap();
        assert_eq!(used(&bench, clone.root), (2, 300));
        bench.check();
    }
    assert_eq!(bench.inode(file).size, 200);
    let small = VolumeOptions {
        limits: bytes(150),
        ..VolumeOptions::default()
    };
    let answer = bench.volume(create_volume("c", small, of_volume.clone()));
    assert_eq!(answer, refused(Refusal::QuotaExceeded));
    let again = bench.volume(create_volume("a", VolumeOptions::default(), of_volume.clone()));
    assert!(matches!(error(again), VolumeError::Exists(_)));
    bench.mkdir(ROOT_INO, "taken");
    let taken = bench.volume(create_volume("taken", VolumeOptions::default(), of_volume));
    assert!(matches!(error(taken), VolumeError::Exists(_)));
    bench.check();
}

#[test]
fn a_snapshot_takes_the_place_of_the_volume() {
    let bench = Bench::new();
    let volume = bench.mkvolume("v", bytes(1000));
    let file = bench.mkfile(volume.root, "file");
    write(&bench, file, 0, 600).unwrap();
    let taken = snapshot(&bench, "v", "s");
    let dir = bench.mkdir(volume.root, "later");
    bench.mkdir(dir, "deep");
    let restore = |force| VolumeOp::Restore {
        volume: "v".into(),
        snapshot: "s".into(),
        force,
    };
    let node = bench.reader().nodes().unwrap()[0].id;
    let hold = VolumeOp::Hold {
        volume: "v".into(),
        node,
        id: "c1".into(),
    };
    bench.volume(hold).unwrap();
    assert!(matches!(
        error(bench.volume(restore(false))),
        VolumeError::InUse { .. }
    ));
    let Ok(Reply::Volume(restored)) = bench.volume(restore(true)) else {
        panic!("not restored");
    };
    bench.check();
    assert_eq!(bench.lookup(ROOT_INO, "v"), Some(restored.root));
    assert_eq!(bench.names(restored.root), ["file"]);
    // What was there does not count any more, and can still be read by who stands in it, but not changed.
    assert_eq!(used(&bench, restored.root), (2, 600));
    assert_eq!(write(&bench, file, 0, 1), refused(Refusal::ReadOnly));
    let deep = bench.rename((dir, "deep"), (volume.root, "x"), RenameMode::Replace);
    assert_eq!(deep, refused(Refusal::ReadOnly));
    bench.prune_all();
    assert_eq!(bench.reader().inode(file).unwrap(), None);
    assert_eq!(used(&bench, taken.root), (2, 600));
}

#[test]
fn holds_are_counted_by_node_and_id() {
    let bench = Bench::new();
    bench.mkvolume("v", bytes(0));
    let node = bench.reader().nodes().unwrap()[0].id;
    let hold = |id: &str| {
        bench.volume(VolumeOp::Hold {
            volume: "v".into(),
            node,
            id: id.into(),
        })
    };
    let release = |id: &str, all| {
        let id = id.into();
        let volume = "v".into();
        bench
            .volume(VolumeOp::Release {
                volume,
                node,
                id,
                all,
            })
            .unwrap()
    };
    let held = || {
        let holds = bench.reader().holds("v").unwrap();
        let held: Vec<_> = holds.into_iter().map(|hold| (hold.id, hold.count)).collect();
        held
    };
    hold("a").unwrap();
    hold("a").unwrap();
    hold("b").unwrap();
    assert_eq!(held(), [("a".to_owned(), 2), ("b".to_owned(), 1)]);
    assert!(matches!(
        error(bench.volume(remove("v"))),
        VolumeError::InUse { .. }
    ));
    release("a", false);
    release("b", false);
    release("b", false);
    release("c", false);
    assert_eq!(held(), [("a".to_owned(), 1)]);
    hold("a").unwrap();
    release("a", true);
    assert_eq!(held(), []);
    hold("a").unwrap();
    bench.check();
    // A node that is removed uses nothing any more.
    bench.local.system(Op::RemoveNode { node }).unwrap().1.unwrap();
    assert_eq!(held(), []);
}

/// What a program still does in a removed tree neither hurts nor stops its removal.
#[test]
fn a_removed_tree_can_be_stood_in() {
    let bench = Bench::new();
    let volume = bench.mkvolume("v", bytes(0));
    let (a, b) = (bench.mkdir(volume.root, "a"), bench.mkdir(volume.root, "b"));
    bench.mkdir(a, "c");
    let file = bench.mkfile(b, "file");
    bench.volume(remove("v")).unwrap();
    bench.check();
    assert_eq!(
        bench.try_make(a, "x", FileKind::Regular),
        refused(Refusal::ReadOnly)
    );
    // As a node's batch that was on its way brings them.
    let flush = Op::Flush {
        ino: file,
        cut: None,
        pieces: vec![],
        state: FileState::from(&bench.inode(file)),
    };
    bench.submit(flush).unwrap();
    bench.prune_all();
    assert_eq!(bench.reader().usage().unwrap().inodes, 1);
}

#[test]
fn trees_that_are_too_large_are_refused_whole() {
    let bench = Bench::new();
    let volume = bench.mkvolume("v", bytes(0));
    let file = bench.mkfile(volume.root, "file");
    bench.scatter(file, TREE_ROWS_MAX as u64);
    let snapshot = VolumeOp::Snapshot {
        volume: "v".into(),
        name: "s".into(),
    };
    let usage = bench.reader().usage().unwrap();
    assert_eq!(error(bench.volume(snapshot)), VolumeError::TooLarge);
    assert_eq!(bench.reader().usage().unwrap(), usage);
    assert_eq!(bench.lookup(ROOT_INO, ".snapshots"), None);
}

/// An inode as earlier programs wrote it has no project.
#[test]
fn inodes_of_the_first_version_are_read() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let inode = bench.inode(file);
    let mut old = value::encode_inode(&inode).unwrap().to_vec();
    assert_eq!(old.pop(), Some(0));
    old[0] = 1;
    bench.local.poke([(keys::inode(file), old.into())]).unwrap();
    assert_eq!(bench.inode(file), inode);
    write(&bench, file, 0, 5).unwrap();
    bench.check();
}
