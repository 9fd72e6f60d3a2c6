//! Names: creating, linking, renaming, listing.

use std::collections::BTreeSet;

use raftstore::meta::{NAME_BYTES_MAX, RenameMode, SYMLINK_BYTES_MAX};

use super::*;

async fn listing(vfs: &Vfs, dir: Ino, page: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let entries = vfs.read_dir(dir, cookie, page).await.unwrap();
        let Some(last) = entries.last() else {
            return names;
        };
        cookie = last.cookie;
        names.extend(
            entries
                .iter()
                .map(|entry| String::from_utf8_lossy(&entry.name).into_owned()),
        );
    }
}

#[tokio::test]
async fn exclusive_creation_has_one_winner() {
    let (_cluster, one, other) = two_nodes();
    for round in 0..50 {
        let name = format!("f{round}");
        let flags = OpenFlags {
            exclusive: true,
            ..READ_WRITE
        };
        let create = |vfs: Arc<Vfs>, name: String| async move {
            vfs.create(ROOT_INO, name.as_bytes(), new(FileKind::Regular, 0o600), flags)
                .await
        };
        let (a, b) = tokio::join!(
            tokio::spawn(create(one.clone(), name.clone())),
            tokio::spawn(create(other.clone(), name))
        );
        let (won, lost): (Vec<_>, Vec<_>) = [a.unwrap(), b.unwrap()].into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 1));
        refused(lost.into_iter().next().unwrap(), libc::EEXIST);
    }
}

#[tokio::test]
async fn what_another_node_created_meanwhile_is_not_opened_unchecked() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "secret").await;
    let open = |caller: Caller| {
        let user = NewInode {
            uid: caller.uid,
            gid: caller.gid,
            ..new(FileKind::Regular, 0o600)
        };
        other.create(ROOT_INO, b"secret", user, READ_WRITE)
    };
    // The kernel looks again, and checks.
    refused(open(USER).await, libc::ESTALE);
    assert_eq!(open(ROOT).await.unwrap().inode.ino, ino);
    assert_eq!(other.open_inodes().len(), 1);
}

#[tokio::test]
async fn lookups_find_dots_and_refuse_what_cannot_be() {
    let (_cluster, one, other) = two_nodes();
    let dir = directory(&one, "d").await;
    let file = file(&one, "f").await;
    assert_eq!(other.lookup(ROOT_INO, b"d").await.unwrap().ino, dir);
    assert_eq!(other.lookup(dir, b".").await.unwrap().ino, dir);
    assert_eq!(other.lookup(dir, b"..").await.unwrap().ino, ROOT_INO);
    refused(other.lookup(dir, b"x").await, libc::ENOENT);
    refused(other.lookup(file, b"x").await, libc::ENOTDIR);
    refused(other.lookup(999_999, b"x").await, libc::ESTALE);
    let long = [b'n'; NAME_BYTES_MAX + 1];
    refused(other.lookup(dir, &long).await, libc::ENAMETOOLONG);
    refused(one.unlink(dir, &long).await, libc::ENAMETOOLONG);
}

#[tokio::test]
async fn symlinks_keep_their_targets() {
    let (_cluster, one, other) = two_nodes();
    let symlink = |target: Vec<u8>| NewInode {
        target: target.into(),
        ..new(FileKind::Symlink, 0o777)
    };
    let made = one.make(ROOT_INO, b"l", symlink(b"a/b".to_vec())).await.unwrap();
    known(&one).await;
    assert_eq!(&other.readlink(made.ino).await.unwrap()[..], b"a/b");
    refused(one.readlink(ROOT_INO).await, libc::EINVAL);
    let long = one
        .make(ROOT_INO, b"m", symlink(vec![b'x'; SYMLINK_BYTES_MAX + 1]))
        .await;
    refused(long, libc::ENAMETOOLONG);
}

#[tokio::test]
async fn renames_replace_refuse_or_swap() {
    let (_cluster, one, other) = two_nodes();
    let (a, b) = (file(&one, "a").await, file(&one, "b").await);
    let rename = |vfs: Arc<Vfs>, mode| async move { vfs.rename(ROOT_INO, b"a", ROOT_INO, b"b", mode).await };
    refused(rename(other.clone(), RenameMode::NoReplace).await, libc::EEXIST);
    rename(other.clone(), RenameMode::Exchange).await.unwrap();
    assert_eq!(one.lookup(ROOT_INO, b"a").await.unwrap().ino, b);
    assert_eq!(one.lookup(ROOT_INO, b"b").await.unwrap().ino, a);
    rename(one.clone(), RenameMode::Replace).await.unwrap();
    refused(other.lookup(ROOT_INO, b"a").await, libc::ENOENT);
    assert_eq!(other.lookup(ROOT_INO, b"b").await.unwrap().ino, b);
    assert_eq!(stat(&other, a).await.nlink, 0);
}

#[tokio::test]
async fn of_two_nodes_that_rename_one_name_one_wins() {
    let (_cluster, one, other) = two_nodes();
    for round in 0..50 {
        let source = format!("s{round}");
        let ino = file(&one, &source).await;
        let rename = |vfs: Arc<Vfs>, to: &'static str| {
            let source = source.clone();
            tokio::spawn(async move {
                vfs.rename(
                    ROOT_INO,
                    source.as_bytes(),
                    ROOT_INO,
                    to.as_bytes(),
                    RenameMode::Replace,
                )
                .await
            })
        };
        let (a, b) = tokio::join!(rename(one.clone(), "x"), rename(other.clone(), "y"));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert!(a.is_ok() != b.is_ok());
        let winner: &[u8] = if a.is_ok() { b"x" } else { b"y" };
        assert_eq!(one.lookup(ROOT_INO, winner).await.unwrap().ino, ino);
    }
}

#[tokio::test]
async fn a_listing_sees_each_lasting_name_once_while_others_come_and_go() {
    let (_cluster, one, other) = two_nodes();
    let dir = directory(&one, "d").await;
    for i in 0..300 {
        let name = format!("keep{i}");
        let kind = new(FileKind::Regular, 0o644);
        one.make(dir, name.as_bytes(), kind).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut cookie = 0;
    let mut turn = 0;
    loop {
        let entries = one.read_dir(dir, cookie, 7).await.unwrap();
        let Some(last) = entries.last() else {
            break;
        };
        cookie = last.cookie;
        seen.extend(entries.into_iter().map(|entry| entry.name));
        // Meanwhile, on the other node.
        let (come, gone) = (format!("t{turn}"), format!("t{}", turn - 1));
        if turn < 60 {
            let kind = new(FileKind::Regular, 0o644);
            other.make(dir, come.as_bytes(), kind).await.unwrap();
        }
        let _ = other.unlink(dir, gone.as_bytes()).await;
        turn += 1;
    }
    let kept: Vec<_> = seen.iter().filter(|name| name.starts_with(b"keep")).collect();
    assert_eq!(kept.len(), 300);
    assert_eq!(kept.iter().collect::<BTreeSet<_>>().len(), 300);
    assert_eq!(&seen[0][..], b".");
    assert_eq!(&seen[1][..], b"..");
}

#[tokio::test]
async fn a_cookie_leads_back_to_the_same_place() {
    let (_cluster, one, _) = two_nodes();
    let dir = directory(&one, "d").await;
    for i in 0..20 {
        let kind = new(FileKind::Regular, 0o644);
        one.make(dir, format!("f{i}").as_bytes(), kind).await.unwrap();
    }
    let all = one.read_dir(dir, 0, 100).await.unwrap();
    assert_eq!(all.len(), 22);
    for (place, entry) in all.iter().enumerate() {
        let rest = one.read_dir(dir, entry.cookie, 100).await.unwrap();
        assert_eq!(rest, all[place + 1..]);
    }
    assert_eq!(listing(&one, dir, 1).await, listing(&one, dir, 100).await);
    let plus = one.read_dir_plus(dir, 0, 100).await.unwrap();
    assert!(plus.iter().all(|(entry, inode)| entry.ino == inode.ino));
    assert_eq!(plus.len(), 22);
}

#[tokio::test]
async fn statfs_counts_what_is_there() {
    let (_cluster, one, _) = two_nodes();
    let before = one.statfs(ROOT_INO).await.unwrap();
    file(&one, "f").await;
    let after = one.statfs(ROOT_INO).await.unwrap();
    assert_eq!(after.inodes, before.inodes + 1);
    assert_eq!(after.blocks * u64::from(after.block_bytes), CAPACITY_BYTES);
    assert_eq!(after.name_bytes_max, 255);
}
