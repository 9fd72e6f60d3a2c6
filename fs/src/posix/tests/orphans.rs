//! Files that are open but have no name any more.

use raftstore::meta::Op;

use super::*;

/// What the leader does about unlinked inodes.
fn reap(cluster: &LocalCluster, nodes: &[&Vfs]) -> Vec<Ino> {
    let orphans = cluster.reader().orphans(0, 100).unwrap();
    let open: Vec<Ino> = nodes
        .iter()
        .flat_map(|vfs| vfs.open_inodes().open_among(&orphans))
        .collect();
    let inodes: Vec<Ino> = orphans.into_iter().filter(|ino| !open.contains(ino)).collect();
    cluster
        .system(Op::Reap {
            inodes: inodes.clone(),
        })
        .unwrap();
    inodes
}

#[tokio::test]
async fn an_open_file_survives_its_unlinking_by_another_node() {
    let (cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    write(&one, ino, 0, b"still here").await;
    let opened = one.open(ino, READ_WRITE).await.unwrap();
    other.unlink(ROOT_INO, b"f").await.unwrap();
    assert!(reap(&cluster, &[&one, &other]).is_empty());
    assert_eq!(stat(&one, ino).await.nlink, 0);
    assert_eq!(&read_all(&one, ino).await[..], b"still here");
    write(&one, ino, 10, b", and growing").await;
    assert_eq!(stat(&one, ino).await.size, 23);
    // As through /proc/self/fd: it is open here, so it cannot go; elsewhere it is too late.
    let again = one.open(ino, READ_WRITE).await.unwrap();
    refused(other.open(ino, READ_WRITE).await, libc::ESTALE);
    one.release(ino, again.handle).await.unwrap();
    assert!(reap(&cluster, &[&one, &other]).is_empty());
    one.release(ino, opened.handle).await.unwrap();
    assert_eq!(reap(&cluster, &[&one, &other]), [ino]);
    refused(one.getattr(ino).await, libc::ESTALE);
    refused(one.write(at(ino, 0, b"x")).await, libc::ESTALE);
    refused(one.read(ino, 0, 1).await, libc::ESTALE);
}

#[tokio::test]
async fn a_removed_directory_can_still_be_listed_by_who_has_it_open() {
    let (cluster, one, other) = two_nodes();
    let dir = directory(&one, "d").await;
    let opened = one.open_dir(dir).await.unwrap();
    other.rmdir(ROOT_INO, b"d").await.unwrap();
    assert!(reap(&cluster, &[&one, &other]).is_empty());
    assert!(one.read_dir(dir, 0, 10).await.unwrap().is_empty());
    let kind = new(FileKind::Regular, 0o644);
    refused(one.make(dir, b"f", kind).await, libc::ENOENT);
    assert_eq!(opened.inode.ino, dir);
    one.release_dir(dir);
    assert_eq!(reap(&cluster, &[&one, &other]), [dir]);
}

/// However opens, unlinks and the leader's rounds interleave: whoever got a file open can use it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_open_file_is_ever_freed() {
    let (cluster, one, other) = two_nodes();
    let mut opened_in_time = 0;
    for round in 0..300 {
        let name = format!("f{round}");
        let ino = file(&one, &name).await;
        other.lookup(ROOT_INO, name.as_bytes()).await.unwrap();
        let unlink = tokio::spawn({
            let (one, name) = (one.clone(), name.clone());
            async move { one.unlink(ROOT_INO, name.as_bytes()).await }
        });
        let open = tokio::spawn({
            let other = other.clone();
            async move { other.open(ino, READ_WRITE).await }
        });
        let leader = tokio::task::spawn_blocking({
            let (cluster, one, other) = (cluster.clone(), one.clone(), other.clone());
            move || {
                for _ in 0..3 {
                    reap(&cluster, &[&one, &other]);
                }
            }
        });
        unlink.await.unwrap().unwrap();
        let opened = open.await.unwrap();
        leader.await.unwrap();
        match opened {
            Ok(opened) => {
                opened_in_time += 1;
                reap(&cluster, &[&one, &other]);
                write(&other, ino, 0, b"mine").await;
                other.release(ino, opened.handle).await.unwrap();
            }
            Err(error) => assert_eq!(error.errno(), libc::ESTALE),
        }
        known(&one).await;
        known(&other).await;
        reap(&cluster, &[&one, &other]);
        refused(one.getattr(ino).await, libc::ESTALE);
    }
    assert!(cluster.reader().orphans(0, 100).unwrap().is_empty());
    println!("{opened_in_time} of 300 opened in time");
}

#[tokio::test]
async fn a_new_file_is_open_as_soon_as_it_exists() {
    let (cluster, one, other) = two_nodes();
    let kind = new(FileKind::Regular, 0o644);
    let made = one.create(ROOT_INO, b"f", kind, READ_WRITE).await.unwrap();
    other.unlink(ROOT_INO, b"f").await.unwrap();
    assert!(reap(&cluster, &[&one, &other]).is_empty());
    write(&one, made.inode.ino, 0, b"x").await;
    one.release(made.inode.ino, made.handle).await.unwrap();
    assert_eq!(reap(&cluster, &[&one, &other]), [made.inode.ino]);
}
