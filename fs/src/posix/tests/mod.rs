//! The POSIX layer without a kernel: one or more nodes on an in-process cluster.

mod copies;
mod files;
mod leases;
mod locks;
mod model;
mod names;
mod orphans;
mod projects;
mod ranges;
mod xattrs;

use std::sync::Arc;

use bytes::Bytes;
use raftstore::meta::{FileKind, Ino, Inode, NewInode, ROOT_INO};

use super::testing::LocalCluster;
use super::{Caller, FsError, Limits, OpenFlags, Vfs, WriteRequest, Written};

/// These tests are compiled twice: straight on the node's backend, and under leases.
const LEASED: bool = {
    let path = module_path!().as_bytes();
    path[path.len() - 1] == b'd'
};
/// Room of a test's filesystem, bytes.
const CAPACITY_BYTES: u64 = 1 << 30;
const USER: Caller = Caller {
    uid: 1000,
    gid: 1000,
    handle: None,
};
const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    handle: None,
};

/// Small pieces, so that tests cross their edges.
fn small_limits() -> Limits {
    Limits {
        inline_bytes_max: 64,
        piece_bytes_max: 256,
        extents_max: 4,
        lock_poll_ms: 60_000,
        lock_handoff_ms: 1,
        ..Limits::default()
    }
}

fn cluster() -> Arc<LocalCluster> {
    LocalCluster::new(CAPACITY_BYTES).unwrap()
}

fn two_nodes() -> (Arc<LocalCluster>, Arc<Vfs>, Arc<Vfs>) {
    let cluster = cluster();
    if LEASED {
        let leader = leases::LocalLeader::new(cluster.store());
        let [one, other] = [(), ()].map(|()| leases::leased_vfs(&cluster, &leader, small_limits()));
        return (cluster, one, other);
    }
    let one = cluster.vfs(small_limits()).unwrap();
    let other = cluster.vfs(small_limits()).unwrap();
    (cluster, one, other)
}

fn new(kind: FileKind, mode: u32) -> NewInode {
    NewInode {
        kind,
        mode,
        umask: 0o022,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Bytes::new(),
    }
}

/// A new regular file in the root directory.
async fn file(vfs: &Vfs, name: &str) -> Ino {
    let made = vfs
        .make(ROOT_INO, name.as_bytes(), new(FileKind::Regular, 0o644))
        .await;
    known(vfs).await;
    made.unwrap().ino
}

/// Lets the cluster know of all that was done on a node. Tests hand inode numbers to other nodes, which would otherwise
/// get to know them from a directory only.
async fn known(vfs: &Vfs) {
    vfs.sync(ROOT_INO).await.unwrap();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn directory(vfs: &Vfs, name: &str) -> Ino {
    let made = vfs
        .make(ROOT_INO, name.as_bytes(), new(FileKind::Directory, 0o755))
        .await;
    known(vfs).await;
    made.unwrap().ino
}

fn at(ino: Ino, offset: u64, data: &[u8]) -> WriteRequest {
    WriteRequest {
        ino,
        handle: 0,
        owner: None,
        offset,
        data: Bytes::copy_from_slice(data),
        append: false,
        from_mapping: false,
        kill_suid_sgid: false,
    }
}

async fn write(vfs: &Vfs, ino: Ino, offset: u64, data: &[u8]) -> Written {
    let written = vfs.write(at(ino, offset, data)).await.unwrap();
    assert_eq!(written.len, data.len());
    written
}

async fn read_all(vfs: &Vfs, ino: Ino) -> Bytes {
    vfs.read(ino, 0, 1 << 20).await.unwrap()
}

async fn stat(vfs: &Vfs, ino: Ino) -> Inode {
    vfs.getattr(ino).await.unwrap()
}

const READ_WRITE: OpenFlags = OpenFlags {
    read: true,
    write: true,
    truncate: false,
    exclusive: false,
    kill_suid_sgid: false,
};

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, FsError>, errno: i32) {
    match outcome {
        Err(error) => assert_eq!(error.errno(), errno, "{error}"),
        Ok(value) => panic!("should have been refused, but: {value:?}"),
    }
}
