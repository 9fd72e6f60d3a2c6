//! Every case of rename.

use super::support::*;
use crate::meta::RenameMode::{Exchange, NoReplace, Replace};
use crate::meta::*;

const DONE: Answer = Ok(Reply::Done);

#[test]
fn moves_and_touches_what_it_must() {
    let bench = Bench::new();
    let (a, b) = (bench.mkdir(ROOT_INO, "a"), bench.mkdir(ROOT_INO, "b"));
    let file = bench.mkfile(a, "file");
    let before = bench.inode(file);
    bench.at(2_000_000_000);
    assert_eq!(bench.rename((a, "file"), (b, "moved"), Replace), DONE);
    for dir in [a, b] {
        let inode = bench.inode(dir);
        assert_eq!((inode.mtime.sec, inode.ctime.sec), (2_000_000_000, 2_000_000_000));
    }
    let after = bench.inode(file);
    assert_eq!(after.ctime.sec, 2_000_000_000);
    assert_eq!(
        (after.mtime, after.atime, after.nlink),
        (before.mtime, before.atime, 1)
    );
    assert_eq!((bench.inode(a).size, bench.inode(b).size), (0, 1));
    assert_eq!(
        (bench.lookup(a, "file"), bench.lookup(b, "moved")),
        (None, Some(file))
    );
    bench.check();
}

#[test]
fn replaces_a_file() {
    let bench = Bench::new();
    let (old, new) = (bench.mkfile(ROOT_INO, "old"), bench.mkfile(ROOT_INO, "new"));
    let cookie = bench.reader().lookup(ROOT_INO, b"new").unwrap().unwrap().cookie;
    assert_eq!(bench.rename((ROOT_INO, "old"), (ROOT_INO, "new"), Replace), DONE);
    let entry = bench.reader().lookup(ROOT_INO, b"new").unwrap().unwrap();
    assert_eq!((entry.ino, entry.cookie), (old, cookie));
    assert_eq!(
        (bench.names(ROOT_INO), bench.inode(ROOT_INO).size),
        (vec!["new".to_string()], 1)
    );
    assert_eq!(bench.reader().orphans(0, 9).unwrap(), [new]);
    bench.check();
}

#[test]
fn replacing_one_of_two_names_leaves_the_other() {
    let bench = Bench::new();
    bench.mkfile(ROOT_INO, "old");
    let new = bench.mkfile(ROOT_INO, "new");
    bench.link(new, ROOT_INO, "kept").unwrap();
    assert_eq!(bench.rename((ROOT_INO, "old"), (ROOT_INO, "new"), Replace), DONE);
    assert_eq!(
        (bench.inode(new).nlink, bench.lookup(ROOT_INO, "kept")),
        (1, Some(new))
    );
    assert_eq!(bench.reader().orphans(0, 9).unwrap(), []);
}

#[test]
fn two_names_of_one_inode_stay() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "a");
    bench.link(file, ROOT_INO, "b").unwrap();
    let before = (bench.inode(ROOT_INO), bench.inode(file));
    for mode in [Replace, Exchange] {
        assert_eq!(bench.rename((ROOT_INO, "a"), (ROOT_INO, "b"), mode), DONE);
        assert_eq!(bench.rename((ROOT_INO, "a"), (ROOT_INO, "a"), mode), DONE);
    }
    assert_eq!(
        bench.rename((ROOT_INO, "a"), (ROOT_INO, "b"), NoReplace),
        refused(Refusal::Exists)
    );
    assert_eq!((bench.inode(ROOT_INO), bench.inode(file)), before);
    assert_eq!(bench.names(ROOT_INO), ["a", "b"]);
}

#[test]
fn no_replace_refuses_only_a_taken_name() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "a");
    bench.mkfile(ROOT_INO, "b");
    assert_eq!(
        bench.rename((ROOT_INO, "a"), (ROOT_INO, "b"), NoReplace),
        refused(Refusal::Exists)
    );
    assert_eq!(bench.rename((ROOT_INO, "a"), (ROOT_INO, "c"), NoReplace), DONE);
    assert_eq!(bench.lookup(ROOT_INO, "c"), Some(file));
    assert_eq!(
        bench.rename((ROOT_INO, "none"), (ROOT_INO, "d"), NoReplace),
        refused(Refusal::NotFound)
    );
}

#[test]
fn kinds_must_fit() {
    let bench = Bench::new();
    let (file, dir) = (bench.mkfile(ROOT_INO, "file"), bench.mkdir(ROOT_INO, "dir"));
    let full = bench.mkdir(ROOT_INO, "full");
    bench.mkfile(full, "x");
    let rename = |from, to| bench.rename((ROOT_INO, from), (ROOT_INO, to), Replace);
    assert_eq!(rename("file", "dir"), refused(Refusal::IsDirectory));
    assert_eq!(rename("dir", "file"), refused(Refusal::NotDirectory));
    assert_eq!(rename("dir", "full"), refused(Refusal::NotEmpty));
    assert_eq!(
        (bench.lookup(ROOT_INO, "file"), bench.lookup(ROOT_INO, "dir")),
        (Some(file), Some(dir))
    );
    // The full one over the empty one.
    assert_eq!(rename("full", "dir"), DONE);
    assert_eq!(bench.lookup(ROOT_INO, "dir"), Some(full));
    assert_eq!(bench.inode(ROOT_INO).nlink, 3);
    assert_eq!(bench.reader().orphans(0, 9).unwrap(), [dir]);
    assert_eq!((bench.inode(dir).nlink, bench.inode(dir).parent), (0, 0));
    bench.check();
}

#[test]
fn moves_a_directory_between_parents() {
    let bench = Bench::new();
    let (a, b) = (bench.mkdir(ROOT_INO, "a"), bench.mkdir(ROOT_INO, "b"));
    let dir = bench.mkdir(a, "dir");
    assert_eq!(bench.rename((a, "dir"), (b, "dir"), Replace), DONE);
    assert_eq!(
        (
            bench.inode(a).nlink,
            bench.inode(b).nlink,
            bench.inode(dir).parent
        ),
        (2, 3, b)
    );
    // Over an empty one in another parent.
    let empty = bench.mkdir(a, "empty");
    assert_eq!(bench.rename((b, "dir"), (a, "empty"), Replace), DONE);
    assert_eq!(
        (
            bench.inode(a).nlink,
            bench.inode(b).nlink,
            bench.inode(dir).parent
        ),
        (3, 2, a)
    );
    assert_eq!(bench.inode(empty).nlink, 0);
    bench.check();
}

#[test]
fn no_directory_moves_into_itself() {
    let bench = Bench::new();
    let a = bench.mkdir(ROOT_INO, "a");
    let b = bench.mkdir(a, "b");
    let c = bench.mkdir(b, "c");
    for into in [a, b, c] {
        assert_eq!(
            bench.rename((ROOT_INO, "a"), (into, "x"), Replace),
            refused(Refusal::Invalid)
        );
        assert_eq!(
            bench.rename((ROOT_INO, "a"), (into, "x"), NoReplace),
            refused(Refusal::Invalid)
        );
    }
    // Either side of an exchange may be the one that would swallow itself.
    bench.mkfile(c, "file");
    assert_eq!(
        bench.rename((ROOT_INO, "a"), (c, "file"), Exchange),
        refused(Refusal::Invalid)
    );
    assert_eq!(
        bench.rename((c, "file"), (ROOT_INO, "a"), Exchange),
        refused(Refusal::Invalid)
    );
    // Up the tree is no problem, onto what it is in is.
    assert_eq!(
        bench.rename((b, "c"), (ROOT_INO, "a"), Replace),
        refused(Refusal::NotEmpty)
    );
    assert_eq!(bench.rename((b, "c"), (ROOT_INO, "c"), Replace), DONE);
    bench.check();
}

#[test]
fn exchanges_whatever_the_kinds() {
    let bench = Bench::new();
    let (a, b) = (bench.mkdir(ROOT_INO, "a"), bench.mkdir(ROOT_INO, "b"));
    let (dir, file) = (bench.mkdir(a, "x"), bench.mkfile(b, "y"));
    bench.mkfile(dir, "inside");
    bench.at(2_000_000_000);
    assert_eq!(bench.rename((a, "x"), (b, "y"), Exchange), DONE);
    assert_eq!(
        (bench.lookup(a, "x"), bench.lookup(b, "y")),
        (Some(file), Some(dir))
    );
    assert_eq!(
        (
            bench.inode(a).nlink,
            bench.inode(b).nlink,
            bench.inode(dir).parent
        ),
        (2, 3, b)
    );
    for ino in [a, b, dir, file] {
        assert_eq!(bench.inode(ino).ctime.sec, 2_000_000_000, "ctime of {ino}");
    }
    assert_eq!(
        bench.rename((a, "x"), (b, "none"), Exchange),
        refused(Refusal::NotFound)
    );
    let other = bench.mkdir(a, "other");
    assert_eq!(bench.rename((a, "other"), (b, "y"), Exchange), DONE);
    assert_eq!((bench.inode(dir).parent, bench.inode(other).parent), (a, b));
    // In one directory.
    bench.mkfile(b, "z");
    assert_eq!(bench.rename((b, "y"), (b, "z"), Exchange), DONE);
    assert_eq!(bench.lookup(b, "z"), Some(other));
    bench.check();
}
