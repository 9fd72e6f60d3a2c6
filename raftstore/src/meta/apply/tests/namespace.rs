//! Making, linking and removing names.

use bytes::Bytes;

use super::support::*;
use crate::meta::*;

#[test]
fn creates_links_renames_and_removes() {
    let bench = Bench::new();
    let dir = bench.mkdir(ROOT_INO, "dir");
    let file = bench.mkfile(dir, "file");
    assert_eq!(bench.lookup(dir, "file"), Some(file));
    assert_eq!(inode_of(bench.link(file, ROOT_INO, "other")).nlink, 2);
    let (index, written) = bench.write(file, WriteAt::Append, b"hello");
    assert_eq!(inode_of(written).size, 5);
    let source = Source::Chunk {
        id: ChunkId::payload(index),
        offset: 0,
    };
    assert_eq!(
        bench.extents(file),
        [Extent {
            offset: 0,
            len: 5,
            source
        }]
    );
    assert_eq!(
        bench.rename((dir, "file"), (ROOT_INO, "moved"), RenameMode::Replace),
        Ok(Reply::Done)
    );
    assert_eq!(bench.names(ROOT_INO), ["dir", "other", "moved"]);
    assert_eq!(bench.rmdir(ROOT_INO, "dir"), Ok(Reply::Done));
    assert_eq!(inode_of(bench.unlink(ROOT_INO, "moved")).nlink, 1);
    assert_eq!(inode_of(bench.unlink(ROOT_INO, "other")).nlink, 0);
    assert_eq!(bench.reader().orphans(0, 10).unwrap(), [dir, file]);
    assert_eq!(
        bench.reader().usage().unwrap(),
        Usage {
            inodes: 3,
            allocated_bytes: 5
        }
    );
    assert_eq!(
        bench.submit(Op::Reap {
            inodes: vec![dir, file]
        }),
        Ok(Reply::Done)
    );
    assert_eq!(
        bench.reader().usage().unwrap(),
        Usage {
            inodes: 1,
            allocated_bytes: 0
        }
    );
    assert!(!bench.reader().chunk_is_live(ChunkId::payload(index)).unwrap());
}

#[test]
fn refuses_names_that_cannot_be() {
    let bench = Bench::new();
    for name in ["", ".", "..", "a/b", "a\0b"] {
        let answer = bench.try_make(ROOT_INO, name, FileKind::Regular);
        assert!(
            matches!(answer, Err(MetaError::Malformed(_))),
            "{name:?}: {answer:?}"
        );
    }
    let longest = "n".repeat(NAME_BYTES_MAX);
    bench.mkfile(ROOT_INO, &longest);
    let longer = longest.clone() + "n";
    assert_eq!(
        bench.try_make(ROOT_INO, &longer, FileKind::Regular),
        refused(Refusal::NameTooLong)
    );
    let moved = bench.rename((ROOT_INO, &longest), (ROOT_INO, &longer), RenameMode::Replace);
    assert_eq!(moved, refused(Refusal::NameTooLong));
    assert_eq!(bench.unlink(ROOT_INO, &longer), refused(Refusal::NameTooLong));
    assert_eq!(bench.rmdir(ROOT_INO, &longer), refused(Refusal::NameTooLong));
    assert_eq!(bench.names(ROOT_INO), [longest]);
}

#[test]
fn names_may_be_any_other_bytes() {
    let bench = Bench::new();
    let name = Bytes::from_static(b"\xff\xfe \n\x01*");
    let file = bench.mkfile(ROOT_INO, "plain");
    assert!(
        bench
            .submit(Op::Link {
                ino: file,
                parent: ROOT_INO,
                name: name.clone()
            })
            .is_ok()
    );
    assert_eq!(bench.reader().lookup(ROOT_INO, &name).unwrap().unwrap().ino, file);
    assert_eq!(bench.reader().list(ROOT_INO, 0, 9).unwrap()[1].name, name);
}

#[test]
fn a_new_inode_is_as_asked_for() {
    let bench = Bench::new();
    bench.at(2_000_000_000);
    let new = NewInode {
        kind: FileKind::CharDevice,
        mode: 0o4664,
        umask: 0o027,
        uid: 7,
        gid: 8,
        rdev: 0x1234,
        target: Bytes::new(),
    };
    let op = Op::Create {
        parent: ROOT_INO,
        name: "null".into(),
        new,
        exclusive: true,
        ino: None,
    };
    let inode = inode_of(bench.submit(op));
    assert_eq!(
        (inode.mode, inode.uid, inode.gid, inode.rdev),
        (0o4640, 7, 8, 0x1234)
    );
    assert_eq!(
        (inode.nlink, inode.size, inode.allocated_bytes, inode.parent),
        (1, 0, 0, 0)
    );
    assert_eq!(inode.mtime.sec, 2_000_000_000);
    assert!(
        [inode.atime, inode.ctime, inode.btime]
            .iter()
            .all(|time| *time == inode.mtime)
    );
    assert_eq!(bench.inode(inode.ino), inode);
    let root = bench.inode(ROOT_INO);
    assert_eq!(
        (root.mtime, root.ctime, root.size, root.nlink),
        (inode.mtime, inode.mtime, 1, 2)
    );
}

#[test]
fn create_says_what_has_the_name() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    assert_eq!(
        bench.try_make(ROOT_INO, "file", FileKind::Directory),
        refused(Refusal::Exists)
    );
    let before = bench.inode(ROOT_INO);
    assert_eq!(
        bench.open_or_create(ROOT_INO, "file"),
        Ok(Reply::Existing(bench.inode(file)))
    );
    assert_eq!(bench.inode(ROOT_INO), before);
    assert!(matches!(
        bench.open_or_create(ROOT_INO, "new"),
        Ok(Reply::Inode(_))
    ));
}

#[test]
fn a_parent_must_be_a_directory_that_is_there() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let dir = bench.mkdir(ROOT_INO, "dir");
    bench.rmdir(ROOT_INO, "dir").unwrap();
    for (parent, refusal) in [
        (file, Refusal::NotDirectory),
        (dir, Refusal::NotFound),
        (999, Refusal::NotFound),
    ] {
        assert_eq!(bench.try_make(parent, "x", FileKind::Regular), refused(refusal));
        assert_eq!(bench.try_make(parent, "x", FileKind::Directory), refused(refusal));
        assert_eq!(bench.open_or_create(parent, "x"), refused(refusal));
        assert_eq!(bench.link(file, parent, "x"), refused(refusal));
        assert_eq!(bench.unlink(parent, "x"), refused(refusal));
        assert_eq!(bench.rmdir(parent, "x"), refused(refusal));
        assert_eq!(
            bench.rename((parent, "x"), (ROOT_INO, "y"), RenameMode::Replace),
            refused(refusal)
        );
        assert_eq!(
            bench.rename((ROOT_INO, "file"), (parent, "y"), RenameMode::Replace),
            refused(refusal)
        );
    }
    // A removed directory can still be looked at by who has it open, as long as it is not reaped.
    assert_eq!((bench.inode(dir).nlink, bench.inode(dir).parent), (0, 0));
}

#[test]
fn symlinks() {
    let bench = Bench::new();
    let new = |target: Bytes| NewInode {
        kind: FileKind::Symlink,
        mode: 0o600,
        umask: 0o77,
        uid: 0,
        gid: 0,
        rdev: 0,
        target,
    };
    let make = |name: &'static str, target: Vec<u8>| {
        bench.submit(Op::Create {
            parent: ROOT_INO,
            name: name.into(),
            new: new(target.into()),
            exclusive: true,
            ino: None,
        })
    };
    let inode = inode_of(make("link", b"../to/where".to_vec()));
    assert_eq!(
        (inode.mode, inode.size, &inode.target[..]),
        (0o777, 11, &b"../to/where"[..])
    );
    assert!(make("longest", vec![b'x'; SYMLINK_BYTES_MAX]).is_ok());
    assert_eq!(
        make("longer", vec![b'x'; SYMLINK_BYTES_MAX + 1]),
        refused(Refusal::NameTooLong)
    );
    assert_eq!(make("empty", Vec::new()), refused(Refusal::NotFound));
    // A symlink can have several names too.
    assert_eq!(inode_of(bench.link(inode.ino, ROOT_INO, "again")).nlink, 2);
    let chmod = AttrChange {
        mode: Some(0o644),
        ..AttrChange::default()
    };
    assert_eq!(bench.set_attr(inode.ino, chmod), refused(Refusal::NotSupported));
}

#[test]
fn directories_count_their_subdirectories() {
    let bench = Bench::new();
    let dir = bench.mkdir(ROOT_INO, "dir");
    let sub = bench.mkdir(dir, "sub");
    bench.mkfile(dir, "file");
    assert_eq!(
        (
            bench.inode(dir).nlink,
            bench.inode(dir).size,
            bench.inode(sub).nlink
        ),
        (3, 2, 2)
    );
    assert_eq!(
        (bench.inode(sub).parent, bench.inode(dir).parent),
        (dir, ROOT_INO)
    );
    assert_eq!(bench.rmdir(ROOT_INO, "dir"), refused(Refusal::NotEmpty));
    assert_eq!(bench.rmdir(dir, "file"), refused(Refusal::NotDirectory));
    assert_eq!(bench.unlink(dir, "sub"), refused(Refusal::IsDirectory));
    assert_eq!(bench.rmdir(dir, "none"), refused(Refusal::NotFound));
    assert_eq!(bench.unlink(dir, "none"), refused(Refusal::NotFound));
    bench.rmdir(dir, "sub").unwrap();
    bench.unlink(dir, "file").unwrap();
    assert_eq!((bench.inode(dir).nlink, bench.inode(dir).size), (2, 0));
    bench.rmdir(ROOT_INO, "dir").unwrap();
    assert_eq!(bench.inode(ROOT_INO).nlink, 2);
}

#[test]
fn links_have_their_limits() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let dir = bench.mkdir(ROOT_INO, "dir");
    assert_eq!(bench.link(dir, ROOT_INO, "hard"), refused(Refusal::NotPermitted));
    assert_eq!(bench.link(dir, ROOT_INO, "file"), refused(Refusal::Exists));
    assert_eq!(bench.link(999, ROOT_INO, "none"), refused(Refusal::NotFound));
    bench.poke(file, |inode| inode.nlink = LINKS_MAX - 1);
    assert_eq!(inode_of(bench.link(file, ROOT_INO, "last")).nlink, LINKS_MAX);
    assert_eq!(bench.link(file, ROOT_INO, "over"), refused(Refusal::TooManyLinks));
    let other = bench.mkdir(ROOT_INO, "other");
    bench.mkdir(dir, "sub");
    bench.poke(other, |inode| inode.nlink = LINKS_MAX);
    assert_eq!(
        bench.try_make(other, "sub", FileKind::Directory),
        refused(Refusal::TooManyLinks)
    );
    let moved = bench.rename((dir, "sub"), (other, "sub"), RenameMode::Replace);
    assert_eq!(moved, refused(Refusal::TooManyLinks));
    bench.mkfile(other, "file");
    let swapped = bench.rename((dir, "sub"), (other, "file"), RenameMode::Exchange);
    assert_eq!(swapped, refused(Refusal::TooManyLinks));
    assert!(bench.lookup(dir, "sub").is_some());
}

#[test]
fn an_unlinked_file_lives_until_it_is_reaped() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    bench.write(file, WriteAt::Append, b"bytes").1.unwrap();
    bench.submit(set_xattr(file, "user.x", b"v")).unwrap();
    bench.at(2_000_000_000);
    let left = inode_of(bench.unlink(ROOT_INO, "file"));
    assert_eq!((left.nlink, left.ctime.sec), (0, 2_000_000_000));
    assert_eq!(bench.link(file, ROOT_INO, "back"), refused(Refusal::NotFound));
    // Who has it open goes on.
    assert_eq!(inode_of(bench.write(file, WriteAt::Append, b" more").1).size, 10);
    bench.submit(set_xattr(file, "user.y", b"w")).unwrap();
    let named = bench.mkfile(ROOT_INO, "named");
    bench
        .submit(Op::Reap {
            inodes: vec![named, 999, file, file],
        })
        .unwrap();
    assert_eq!(bench.reader().inode(file).unwrap(), None);
    assert_eq!(bench.reader().xattr(file, b"user.x").unwrap(), None);
    assert_eq!(bench.extents(file), []);
    assert_eq!(bench.lookup(ROOT_INO, "named"), Some(named));
    assert_eq!(
        bench.write(file, WriteAt::Append, b"!").1,
        refused(Refusal::Stale)
    );
    assert_eq!(
        bench.set_attr(file, AttrChange::default()),
        refused(Refusal::Stale)
    );
    bench.check();
}

#[test]
fn reaping_is_done_in_bounded_steps() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "big");
    bench.scatter(file, 20_000);
    bench.unlink(ROOT_INO, "big").unwrap();
    bench.submit(Op::Reap { inodes: vec![file] }).unwrap();
    assert_eq!(bench.reader().orphans(0, 9).unwrap(), [file]);
    let left = bench.extents(file).len();
    assert!(left > 0 && left < 20_000, "{left} left");
    bench.check();
    bench.submit(Op::Reap { inodes: vec![file] }).unwrap();
    assert_eq!(bench.reader().orphans(0, 9).unwrap(), []);
    assert_eq!(
        bench.reader().usage().unwrap(),
        Usage {
            inodes: 1,
            allocated_bytes: 0
        }
    );
    bench.check();
}

#[test]
fn listing_is_stable_while_the_directory_changes() {
    let bench = Bench::new();
    for i in 0..100 {
        bench.mkfile(ROOT_INO, &format!("f{i}"));
    }
    let mut seen = Vec::new();
    let mut after = 0;
    let mut step = 0;
    loop {
        let page = bench.reader().list(ROOT_INO, after, 7).unwrap();
        let Some(last) = page.last() else { break };
        assert!(
            page.iter()
                .all(|item| item.entry.cookie > after.max(FIRST_COOKIE - 1))
        );
        after = last.entry.cookie;
        seen.extend(
            page.into_iter()
                .map(|item| String::from_utf8(item.name.to_vec()).unwrap()),
        );
        // Behind and before the reader, names come and go.
        if step < 10 {
            bench.unlink(ROOT_INO, &format!("f{step}")).unwrap();
            bench.unlink(ROOT_INO, &format!("f{}", 99 - step)).unwrap();
            bench.mkfile(ROOT_INO, &format!("f{step}"));
            step += 1;
        }
    }
    assert_eq!(step, 10);
    for i in step..100 - step {
        let name = format!("f{i}");
        assert_eq!(seen.iter().filter(|seen| **seen == name).count(), 1, "{name}");
    }
    assert_eq!(bench.reader().list(ROOT_INO, u64::MAX, 9).unwrap(), []);
}

#[test]
fn setgid_directories_hand_on_their_group() {
    let bench = Bench::new();
    let dir = bench.mkdir(ROOT_INO, "dir");
    let change = AttrChange {
        mode: Some(0o2775),
        gid: Some(77),
        ..AttrChange::default()
    };
    bench.set_attr(dir, change).unwrap();
    let (file, sub) = (bench.mkfile(dir, "file"), bench.mkdir(dir, "sub"));
    assert_eq!((bench.inode(file).gid, bench.inode(file).mode), (77, 0o644));
    assert_eq!((bench.inode(sub).gid, bench.inode(sub).mode), (77, 0o2755));
}

#[test]
fn tells_what_happened() {
    let bench = Bench::new();
    let by = bench.local.session();
    let (file, events) = bench.listen(|| bench.mkfile(ROOT_INO, "file"));
    let entry = |name: &'static str| Event::Entry {
        parent: ROOT_INO,
        name: name.into(),
        by,
    };
    let root = Event::Attr { ino: ROOT_INO, by };
    assert_eq!(events, [entry("file"), root.clone()]);
    let (_, events) = bench.listen(|| bench.write(file, WriteAt::Append, b"x"));
    assert_eq!(events, [Event::Data { ino: file, by }]);
    let change = AttrChange {
        uid: Some(1),
        ..AttrChange::default()
    };
    let (_, events) = bench.listen(|| bench.set_attr(file, change));
    assert_eq!(events, [Event::Attr { ino: file, by }]);
    let (_, events) = bench.listen(|| bench.unlink(ROOT_INO, "none"));
    assert_eq!(events, []);
    let (_, events) =
        bench.listen(|| bench.rename((ROOT_INO, "file"), (ROOT_INO, "moved"), RenameMode::Replace));
    assert_eq!(
        events,
        [
            entry("file"),
            entry("moved"),
            root.clone(),
            Event::Attr { ino: file, by }
        ]
    );
    let (_, events) = bench.listen(|| bench.unlink(ROOT_INO, "moved"));
    let last = [
        entry("moved"),
        Event::Orphaned { ino: file },
        root,
        Event::Attr { ino: file, by },
    ];
    assert_eq!(events, last);
}
