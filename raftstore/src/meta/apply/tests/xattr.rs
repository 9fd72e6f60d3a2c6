//! Extended attributes and access control lists.

use bytes::Bytes;

use super::support::*;
use crate::meta::*;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// A list as Linux passes it, from tags and permissions; all named entries are of id 1234.
fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
    let mut coded = 2u32.to_le_bytes().to_vec();
    for (tag, perm) in entries {
        let id: u32 = if *tag == USER { 1234 } else { u32::MAX };
        coded.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        coded.extend(id.to_le_bytes());
    }
    coded
}

fn get(bench: &Bench, ino: Ino, name: &str) -> Option<Bytes> {
    bench.reader().xattr(ino, name.as_bytes()).unwrap()
}

fn set_with(ino: Ino, name: &str, value: &[u8], with: XattrMode) -> Op {
    match set_xattr(ino, name, value) {
        Op::SetXattr {
            ino,
            name,
            value,
            kill_sgid,
            ..
        } => Op::SetXattr {
            ino,
            name,
            value,
            mode: with,
            kill_sgid,
        },
        other => other,
    }
}

fn remove(ino: Ino, name: &str) -> Op {
    Op::RemoveXattr {
        ino,
        name: Bytes::copy_from_slice(name.as_bytes()),
    }
}

fn chmod(mode: u32) -> AttrChange {
    AttrChange {
        mode: Some(mode),
        ..AttrChange::default()
    }
}

#[test]
fn are_set_listed_and_removed() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let other = bench.mkfile(ROOT_INO, "other");
    let before = bench.inode(file);
    for name in ["user.b", "user.a", "security.selinux"] {
        assert_eq!(
            bench.submit(set_xattr(file, name, name.as_bytes())),
            Ok(Reply::Done)
        );
    }
    bench.submit(set_xattr(other, "user.empty", b"")).unwrap();
    let inode = bench.inode(file);
    assert!(inode.has_xattrs && inode.ctime > before.ctime && inode.mtime == before.mtime);
    let names = bench.reader().xattr_names(file).unwrap();
    assert_eq!(names, ["security.selinux", "user.a", "user.b"]);
    assert_eq!(get(&bench, file, "user.a").unwrap(), "user.a");
    assert_eq!(get(&bench, other, "user.empty").unwrap(), "");
    assert_eq!(get(&bench, file, "user"), None);
    for name in ["user.a", "user.b", "security.selinux"] {
        assert!(bench.inode(file).has_xattrs);
        assert_eq!(bench.submit(remove(file, name)), Ok(Reply::Done));
    }
    assert!(!bench.inode(file).has_xattrs);
    assert_eq!(
        bench.submit(remove(file, "user.a")),
        refused(Refusal::NoAttribute)
    );
    assert_eq!(bench.submit(remove(999, "user.a")), refused(Refusal::Stale));
    bench.check();
}

#[test]
fn may_have_to_be_there_or_not() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let set = |value: &[u8], mode| bench.submit(set_with(file, "user.x", value, mode));
    assert_eq!(set(b"1", XattrMode::Replace), refused(Refusal::NoAttribute));
    assert_eq!(set(b"2", XattrMode::Create), Ok(Reply::Done));
    assert_eq!(set(b"3", XattrMode::Create), refused(Refusal::Exists));
    assert_eq!(get(&bench, file, "user.x").unwrap(), "2");
    assert_eq!(set(b"4", XattrMode::Replace), Ok(Reply::Done));
    assert_eq!(get(&bench, file, "user.x").unwrap(), "4");
}

#[test]
fn have_limits() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let set = |name: &str, len| bench.submit(set_xattr(file, name, &vec![7; len]));
    assert_eq!(set("user.big", XATTR_BYTES_MAX), Ok(Reply::Done));
    assert_eq!(
        set("user.big", XATTR_BYTES_MAX + 1),
        refused(Refusal::AttributeTooLarge)
    );
    assert_eq!(get(&bench, file, "user.big").unwrap().len(), XATTR_BYTES_MAX);
    assert_eq!(set(&"n".repeat(256), 1), refused(Refusal::AttributeTooLarge));
    for name in ["", "user.\0"] {
        assert!(matches!(set(name, 1), Err(MetaError::Malformed(_))));
    }
    // listxattr can return 64 KiB of names.
    let mut count = 0;
    let refusal = loop {
        match set(&format!("user.{count:0>200}"), 0) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(Err(refusal), refused(Refusal::NoSpace));
    assert_eq!(count, (65_536 - 9) / 206);
    // One that is there can still be replaced.
    assert_eq!(set("user.big", 1), Ok(Reply::Done));
}

#[test]
fn an_access_list_sets_the_mode() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    bench.set_attr(file, chmod(0o2640)).unwrap();
    let list = acl(&[(USER_OBJ, 7), (USER, 5), (GROUP_OBJ, 1), (MASK, 6), (OTHER, 2)]);
    assert_eq!(bench.submit(set_xattr(file, ACCESS, &list)), Ok(Reply::Done));
    assert_eq!(bench.inode(file).mode, 0o2762);
    assert_eq!(get(&bench, file, ACCESS).unwrap(), list);
    // chmod moves the mask, not the group's entry.
    bench.set_attr(file, chmod(0o2514)).unwrap();
    let changed = acl(&[(USER_OBJ, 5), (USER, 5), (GROUP_OBJ, 1), (MASK, 1), (OTHER, 4)]);
    assert_eq!(get(&bench, file, ACCESS).unwrap(), changed);
    // Removing the list leaves the mode.
    assert_eq!(bench.submit(remove(file, ACCESS)), Ok(Reply::Done));
    assert_eq!(bench.inode(file).mode, 0o2514);
    assert_eq!(bench.submit(remove(file, ACCESS)), Ok(Reply::Done));
    // The caller may not be one who keeps setgid.
    let Op::SetXattr {
        ino,
        name,
        value,
        mode,
        ..
    } = set_xattr(file, ACCESS, &list)
    else {
        panic!()
    };
    bench
        .submit(Op::SetXattr {
            ino,
            name,
            value,
            mode,
            kill_sgid: true,
        })
        .unwrap();
    assert_eq!(bench.inode(file).mode, 0o762);
}

#[test]
fn a_list_that_says_no_more_than_the_mode_is_not_kept() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let long = acl(&[(USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 7), (MASK, 7), (OTHER, 7)]);
    bench.submit(set_xattr(file, ACCESS, &long)).unwrap();
    bench
        .submit(set_xattr(
            file,
            ACCESS,
            &acl(&[(USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0)]),
        ))
        .unwrap();
    assert_eq!((bench.inode(file).mode, get(&bench, file, ACCESS)), (0o640, None));
    assert!(!bench.inode(file).has_xattrs);
    // An empty one stands for none.
    bench.submit(set_xattr(file, ACCESS, &long)).unwrap();
    bench.submit(set_xattr(file, ACCESS, &acl(&[]))).unwrap();
    assert_eq!((bench.inode(file).mode, get(&bench, file, ACCESS)), (0o777, None));
    bench.check();
}

#[test]
fn refuses_lists_that_make_no_sense() {
    let bench = Bench::new();
    let dir = bench.mkdir(ROOT_INO, "dir");
    let mut cut = acl(&[(USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 7)]);
    cut.pop();
    let bad = [
        vec![2],
        vec![2, 0, 0, 0, 1],
        cut,
        acl(&[(USER_OBJ, 7), (GROUP_OBJ, 7)]),
        acl(&[(USER_OBJ, 7), (USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 7)]),
        acl(&[(USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 7), (OTHER, 7)]),
        acl(&[(USER_OBJ, 7), (GROUP_OBJ, 7), (MASK, 7), (MASK, 7), (OTHER, 7)]),
        acl(&[(GROUP_OBJ, 7), (USER_OBJ, 7), (OTHER, 7)]),
        acl(&[(USER_OBJ, 8), (GROUP_OBJ, 7), (OTHER, 7)]),
        acl(&[(USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 7), (64, 7)]),
    ];
    for list in bad {
        for name in [ACCESS, DEFAULT] {
            let answer = bench.submit(set_xattr(dir, name, &list));
            assert_eq!(answer, refused(Refusal::Invalid), "{list:?}");
        }
    }
    let mut newer = acl(&[(USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 7)]);
    newer[0] = 3;
    assert_eq!(
        bench.submit(set_xattr(dir, ACCESS, &newer)),
        refused(Refusal::NotSupported)
    );
    let good = acl(&[(USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 7)]);
    let file = bench.mkfile(ROOT_INO, "file");
    assert_eq!(
        bench.submit(set_xattr(file, DEFAULT, &good)),
        refused(Refusal::Invalid)
    );
    let link = made(bench.try_make(ROOT_INO, "link", FileKind::Symlink));
    assert_eq!(
        bench.submit(set_xattr(link, ACCESS, &good)),
        refused(Refusal::NotSupported)
    );
    assert_eq!(bench.inode(dir).mode, 0o755);
    bench.check();
}

#[test]
fn what_is_made_inherits_the_default_list() {
    let bench = Bench::new();
    let dir = bench.mkdir(ROOT_INO, "dir");
    let list = acl(&[(USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 5)]);
    bench.submit(set_xattr(dir, DEFAULT, &list)).unwrap();
    assert_eq!(bench.inode(dir).mode, 0o755);
    // Asked for 0666 and 0777; the umask of 022 does not count here.
    let file = bench.mkfile(dir, "file");
    assert_eq!(bench.inode(file).mode, 0o664);
    let expected = acl(&[(USER_OBJ, 6), (USER, 7), (GROUP_OBJ, 5), (MASK, 6), (OTHER, 4)]);
    assert_eq!(get(&bench, file, ACCESS).unwrap(), expected);
    assert_eq!(get(&bench, file, DEFAULT), None);
    let sub = bench.mkdir(dir, "sub");
    assert_eq!(bench.inode(sub).mode, 0o775);
    assert_eq!(get(&bench, sub, ACCESS).unwrap(), list);
    assert_eq!(get(&bench, sub, DEFAULT).unwrap(), list);
    let link = made(bench.try_make(dir, "link", FileKind::Symlink));
    assert_eq!(
        (bench.inode(link).mode, bench.inode(link).has_xattrs),
        (0o777, false)
    );
    bench.check();
}

#[test]
fn a_minimal_default_list_is_only_a_mode() {
    let bench = Bench::new();
    let dir = bench.mkdir(ROOT_INO, "dir");
    let list = acl(&[(USER_OBJ, 7), (GROUP_OBJ, 4), (OTHER, 0)]);
    bench.submit(set_xattr(dir, DEFAULT, &list)).unwrap();
    let file = bench.mkfile(dir, "file");
    assert_eq!(
        (bench.inode(file).mode, bench.inode(file).has_xattrs),
        (0o640, false)
    );
    assert_eq!(bench.submit(remove(dir, DEFAULT)), Ok(Reply::Done));
    let next = bench.mkfile(dir, "next");
    assert_eq!(bench.inode(next).mode, 0o644);
}
