//! Volumes as programs meet them: quotas, places that are a filesystem of their own, snapshots.

use raftstore::meta::{
    AttrChange, Op, ProjectLimits, RenameMode, Reply, Volume, VolumeChange, VolumeOp, VolumeOptions,
    XattrMode,
};

use super::*;
use crate::backend::BackendError;

async fn submit(vfs: &Vfs, op: VolumeOp) -> Result<Reply, BackendError> {
    vfs.backend.submit(Op::Volume(op), Bytes::new()).await
}

async fn volume(vfs: &Vfs, name: &str, bytes: u64, inodes: u64) -> Volume {
    let op = VolumeOp::Create {
        name: name.into(),
        parent: ROOT_INO,
        entry: Bytes::copy_from_slice(name.as_bytes()),
        options: VolumeOptions {
            limits: ProjectLimits { bytes, inodes },
            ..VolumeOptions::default()
        },
        labels: Default::default(),
        source: None,
    };
    match submit(vfs, op).await {
        Ok(Reply::Volume(volume)) => volume,
        other => panic!("{other:?}"),
    }
}

async fn file_in(vfs: &Vfs, parent: Ino, name: &str) -> Ino {
    let new = new(FileKind::Regular, 0o644);
    let made = vfs.make(parent, name.as_bytes(), new).await.unwrap();
    made.ino
}

/// Writes it all, in as many calls as that takes.
async fn try_write(vfs: &Vfs, ino: Ino, offset: u64, len: usize) -> Result<(), FsError> {
    let mut done = 0;
    while done < len {
        let data = vec![7; len - done];
        done += vfs.write(at(ino, offset + done as u64, &data)).await?.len;
    }
    Ok(())
}

#[tokio::test]
async fn a_quota_is_kept_whatever_is_not_pushed_yet() {
    let (cluster, one, _) = two_nodes();
    let volume = volume(&one, "v", 10_000, 0).await;
    let file = file_in(&one, volume.root, "file").await;
    try_write(&one, file, 0, 6000).await.unwrap();
    refused(try_write(&one, file, 6000, 5000).await, libc::EDQUOT);
    let size = stat(&one, file).await.size;
    assert!((6000..=10_000).contains(&size), "{size}");
    try_write(&one, file, 6000, 4000).await.unwrap();
    // What takes the place of other bytes always fits.
    for _ in 0..3 {
        try_write(&one, file, 100, 9000).await.unwrap();
        known(&one).await;
    }
    try_write(&one, file, 0, 10_000).await.unwrap();
    refused(try_write(&one, file, 10_000, 1).await, libc::EDQUOT);
    // A hole takes nothing.
    let grow = AttrChange {
        size: Some(1 << 30),
        ..AttrChange::default()
    };
    one.setattr(file, grow).await.unwrap();
    refused(try_write(&one, file, 1 << 20, 1).await, libc::EDQUOT);
    let cut = AttrChange {
        size: Some(4000),
        ..AttrChange::default()
    };
    one.setattr(file, cut).await.unwrap();
    known(&one).await;
    try_write(&one, file, 4000, 6000).await.unwrap();
    known(&one).await;
    let project = cluster.reader().project(volume.project).unwrap().unwrap();
    assert_eq!(project.usage.allocated_bytes, 10_000);
    refused(
        one.fallocate(file, super::super::FallocateMode::Allocate, 20_000, 100, USER)
            .await,
        libc::EDQUOT,
    );
}

/// Rewritten bytes look like new ones until they are pushed: a write that might not fit waits for that.
#[tokio::test]
async fn what_is_rewritten_does_not_count_twice() {
    let (_cluster, one, _) = two_nodes();
    let volume = volume(&one, "v", 10_000, 0).await;
    let file = file_in(&one, volume.root, "file").await;
    try_write(&one, file, 0, 6000).await.unwrap();
    known(&one).await;
    try_write(&one, file, 0, 6000).await.unwrap();
    try_write(&one, file, 6000, 3000).await.unwrap();
    try_write(&one, file, 0, 9000).await.unwrap();
    try_write(&one, file, 9000, 1000).await.unwrap();
    refused(try_write(&one, file, 10_000, 1).await, libc::EDQUOT);
}

#[tokio::test]
async fn a_quota_counts_what_other_nodes_have_written() {
    let (cluster, one, other) = two_nodes();
    let volume = volume(&one, "v", 10_000, 0).await;
    let mine = file_in(&one, volume.root, "mine").await;
    known(&one).await;
    try_write(&one, mine, 0, 6000).await.unwrap();
    known(&one).await;
    let yours = file_in(&other, volume.root, "yours").await;
    refused(try_write(&other, yours, 0, 5000).await, libc::EDQUOT);
    try_write(&other, yours, 0, 4000).await.unwrap();
    known(&other).await;
    refused(try_write(&one, mine, 6000, 1).await, libc::EDQUOT);
    other.unlink(volume.root, b"mine").await.unwrap();
    known(&other).await;
    cluster.system(Op::Reap { inodes: vec![mine] }).unwrap();
    try_write(&one, yours, 4000, 6000).await.unwrap();
    let change = VolumeChange {
        bytes: Some(20_000),
        ..VolumeChange::default()
    };
    let name = "v".into();
    submit(&other, VolumeOp::Change { name, change }).await.unwrap();
    try_write(&one, yours, 10_000, 1).await.unwrap();
}

#[tokio::test]
async fn files_are_limited_too() {
    let (cluster, one, _) = two_nodes();
    let volume = volume(&one, "v", 0, 4).await;
    for name in ["a", "b", "c"] {
        file_in(&one, volume.root, name).await;
    }
    let one_more = || one.make(volume.root, b"d", new(FileKind::Directory, 0o755));
    refused(one_more().await, libc::EDQUOT);
    let gone = one.lookup(volume.root, b"a").await.unwrap().ino;
    one.unlink(volume.root, b"a").await.unwrap();
    known(&one).await;
    cluster.system(Op::Reap { inodes: vec![gone] }).unwrap();
    one_more().await.unwrap();
    // What has the name is opened all the same.
    let opened = one
        .create(volume.root, b"b", new(FileKind::Regular, 0o644), READ_WRITE)
        .await
        .unwrap();
    assert_eq!(opened.inode.kind, FileKind::Regular);
}

#[tokio::test]
async fn a_volume_is_a_filesystem_of_its_own() {
    let (_cluster, one, other) = two_nodes();
    let volume = volume(&one, "v", 1 << 20, 100).await;
    let inside = file_in(&one, volume.root, "inside").await;
    let outside = file(&one, "outside").await;
    let replace = RenameMode::Replace;
    for vfs in [&one, &other] {
        refused(
            vfs.rename(ROOT_INO, b"outside", volume.root, b"x", replace).await,
            libc::EXDEV,
        );
        refused(
            vfs.rename(volume.root, b"inside", ROOT_INO, b"x", replace).await,
            libc::EXDEV,
        );
        refused(vfs.link(inside, ROOT_INO, b"x").await, libc::EXDEV);
        refused(vfs.link(outside, volume.root, b"x").await, libc::EXDEV);
        refused(vfs.rmdir(ROOT_INO, b"v").await, libc::EBUSY);
        refused(
            vfs.rename(ROOT_INO, b"v", ROOT_INO, b"w", replace).await,
            libc::EBUSY,
        );
        known(vfs).await;
    }
    try_write(&one, inside, 0, 300_000).await.unwrap();
    // What is pending on the node itself counts at once.
    for ino in [volume.root, inside] {
        let space = one.statfs(ino).await.unwrap();
        let block = u64::from(space.block_bytes);
        assert_eq!(space.blocks * block, 1 << 20);
        assert_eq!(space.blocks_free, ((1 << 20) - 300_000) / block);
        assert_eq!((space.inodes, space.inodes_free), (2, 98));
    }
    let whole = one.statfs(ROOT_INO).await.unwrap();
    assert_eq!(whole.blocks * u64::from(whole.block_bytes), CAPACITY_BYTES);
    known(&one).await;
    assert_eq!(
        other.statfs(inside).await.unwrap(),
        one.statfs(volume.root).await.unwrap()
    );
}

#[tokio::test]
async fn a_snapshot_shows_what_was_there_and_cannot_be_changed() {
    let (_cluster, one, other) = two_nodes();
    let volume = volume(&one, "v", 0, 0).await;
    let file = file_in(&one, volume.root, "file").await;
    write(&one, file, 0, b"before").await;
    // Not pushed yet: what this node has acknowledged is in it all the same.
    let (of, name) = ("v".to_owned(), "s".to_owned());
    let taken = submit(&one, VolumeOp::Snapshot { volume: of, name }).await;
    let Ok(Reply::Snapshot(taken)) = taken else {
        panic!("{taken:?}");
    };
    write(&one, file, 0, b"after!").await;
    known(&one).await;
    for vfs in [&one, &other] {
        let top = vfs.lookup(ROOT_INO, b".snapshots").await.unwrap();
        let of_volume = vfs.lookup(top.ino, b"v").await.unwrap();
        assert_eq!(vfs.lookup(of_volume.ino, b"s").await.unwrap().ino, taken.root);
        let copied = vfs.lookup(taken.root, b"file").await.unwrap().ino;
        assert_eq!(read_all(vfs, copied).await, "before");
        assert_eq!(read_all(vfs, file).await, "after!");
        let erofs = libc::EROFS;
        refused(vfs.open(copied, READ_WRITE).await, erofs);
        let reading = OpenFlags {
            read: true,
            ..OpenFlags::default()
        };
        let opened = vfs.open(copied, reading).await.unwrap();
        refused(try_write(vfs, copied, 0, 1).await, erofs);
        refused(
            vfs.make(taken.root, b"x", new(FileKind::Regular, 0o644)).await,
            erofs,
        );
        refused(vfs.unlink(taken.root, b"file").await, erofs);
        refused(vfs.rmdir(of_volume.ino, b"s").await, erofs);
        refused(
            vfs.make(of_volume.ino, b"x", new(FileKind::Directory, 0o755))
                .await,
            erofs,
        );
        refused(vfs.rmdir(ROOT_INO, b".snapshots").await, erofs);
        let mode = AttrChange {
            mode: Some(0),
            ..AttrChange::default()
        };
        refused(vfs.setattr(copied, mode).await, erofs);
        let set = vfs.set_xattr(copied, b"user.a", Bytes::new(), XattrMode::Set, false);
        refused(set.await, erofs);
        vfs.release(copied, opened.handle).await.unwrap();
    }
}
