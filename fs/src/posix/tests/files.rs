//! Reading, writing, truncating, allocating.

use raftstore::meta::{AttrChange, FILE_BYTES_MAX, Fallocate};

use super::super::Seek;
use super::*;
use crate::backend::ClusterSpace;

fn size(size: u64) -> AttrChange {
    AttrChange {
        size: Some(size),
        ..AttrChange::default()
    }
}

#[tokio::test]
async fn what_one_node_wrote_another_reads() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    write(&one, ino, 0, b"hello").await;
    assert_eq!(&read_all(&other, ino).await[..], b"hello");
    write(&other, ino, 5, b" world").await;
    assert_eq!(&read_all(&one, ino).await[..], b"hello world");
    assert_eq!(stat(&one, ino).await.size, 11);
}

#[tokio::test]
async fn a_large_write_goes_to_chunks_in_pieces_and_reads_back() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    let data: Vec<u8> = (0..2000_u32).map(|i| (i % 251) as u8).collect();
    write(&one, ino, 100, &data).await;
    let read = read_all(&other, ino).await;
    assert_eq!(&read[..100], [0; 100]);
    assert_eq!(&read[100..], data);
    // Any window of it too, across the edges of pieces and of pages of extents.
    for offset in (0..2100).step_by(97) {
        let window = other.read(ino, offset, 300).await.unwrap();
        let offset = usize::try_from(offset).unwrap();
        assert_eq!(window, read.slice(offset..read.len().min(offset + 300)));
    }
}

#[tokio::test]
async fn reads_end_at_the_end_of_the_file() {
    let (_cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    write(&one, ino, 0, b"abc").await;
    assert_eq!(&one.read(ino, 1, 100).await.unwrap()[..], b"bc");
    assert!(one.read(ino, 3, 100).await.unwrap().is_empty());
    assert!(one.read(ino, u64::MAX, 100).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_cut_off_does_not_come_back() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    write(&one, ino, 0, b"secret").await;
    other.setattr(ino, size(2)).await.unwrap();
    one.setattr(ino, size(6)).await.unwrap();
    assert_eq!(&read_all(&other, ino).await[..], b"se\0\0\0\0");
}

#[tokio::test]
async fn opening_with_truncation_empties_the_file() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    write(&one, ino, 0, b"old").await;
    let before = stat(&one, ino).await;
    let flags = OpenFlags {
        truncate: true,
        ..READ_WRITE
    };
    let opened = other.open(ino, flags).await.unwrap();
    assert_eq!(opened.inode.size, 0);
    assert!(stat(&one, ino).await.mtime > before.mtime);
    assert!(read_all(&one, ino).await.is_empty());
}

#[tokio::test]
async fn appends_of_two_nodes_all_arrive_whole() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "log").await;
    let append = |vfs: Arc<Vfs>, tag: u8| async move {
        for number in 0..200_u8 {
            // What the kernel believes to be the end is of no account.
            let request = WriteRequest {
                append: true,
                ..at(ino, 0, &[tag, number, b'\n'])
            };
            assert_eq!(vfs.write(request).await.unwrap().len, 3);
        }
    };
    let tasks = [
        tokio::spawn(append(one.clone(), b'a')),
        tokio::spawn(append(other.clone(), b'b')),
    ];
    for task in tasks {
        task.await.unwrap();
    }
    let log = read_all(&one, ino).await;
    assert_eq!(log.len(), 1200);
    for tag in [b'a', b'b'] {
        let numbers: Vec<u8> = log
            .chunks(3)
            .filter(|line| line[0] == tag)
            .map(|line| line[1])
            .collect();
        assert_eq!(numbers, (0..200).collect::<Vec<u8>>());
    }
}

#[tokio::test]
async fn mapped_pages_never_make_a_file_longer() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    write(&one, ino, 0, &[b'x'; 50]).await;
    other.setattr(ino, size(10)).await.unwrap();
    let request = WriteRequest {
        from_mapping: true,
        append: true,
        ..at(ino, 5, &[b'y'; 40])
    };
    one.write(request).await.unwrap();
    assert_eq!(&read_all(&one, ino).await[..], b"xxxxxyyyyy");
    let request = WriteRequest {
        from_mapping: true,
        ..at(ino, 30, b"zz")
    };
    assert_eq!(one.write(request).await.unwrap().len, 0);
    assert_eq!(stat(&one, ino).await.size, 10);
}

#[tokio::test]
async fn holes_and_data_are_told_apart() {
    let (_cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    one.setattr(ino, size(5000)).await.unwrap();
    for block in [1, 3, 4, 5, 6, 7, 8] {
        write(&one, ino, block * 100, &[1; 100]).await;
    }
    one.fallocate(ino, Fallocate::Allocate, 2000, 100, ROOT)
        .await
        .unwrap();
    let seek = |offset, what| one.seek(ino, offset, what);
    assert_eq!(seek(0, Seek::Hole).await.unwrap(), 0);
    assert_eq!(seek(0, Seek::Data).await.unwrap(), 100);
    assert_eq!(seek(150, Seek::Data).await.unwrap(), 150);
    assert_eq!(seek(150, Seek::Hole).await.unwrap(), 200);
    assert_eq!(seek(300, Seek::Hole).await.unwrap(), 900);
    refused(seek(900, Seek::Data).await, libc::ENXIO);
    assert_eq!(seek(2000, Seek::Hole).await.unwrap(), 2000);
    refused(seek(5000, Seek::Hole).await, libc::ENXIO);
    write(&one, ino, 4990, &[1; 10]).await;
    assert_eq!(seek(4990, Seek::Hole).await.unwrap(), 5000);
}

#[tokio::test]
async fn nothing_is_allocated_on_a_full_cluster() {
    let (cluster, _, _) = two_nodes();
    cluster.set_space(ClusterSpace {
        capacity_bytes: 1000,
        available_bytes: 5,
    });
    let vfs = cluster.vfs(small_limits()).unwrap();
    let ino = file(&vfs, "f").await;
    write(&vfs, ino, 0, b"12345").await;
    refused(vfs.write(at(ino, 5, b"123456")).await, libc::ENOSPC);
    let allocate = vfs.fallocate(ino, Fallocate::Allocate, 0, 6, ROOT).await;
    refused(allocate, libc::ENOSPC);
    vfs.fallocate(ino, Fallocate::PunchHole, 0, 6, ROOT)
        .await
        .unwrap();
    assert_eq!(stat(&vfs, ino).await.size, 5);

    // Names and attributes need room, too; removing needs none.
    let full = cluster.vfs(small_limits()).unwrap();
    cluster.set_space(ClusterSpace {
        capacity_bytes: 1000,
        available_bytes: 0,
    });
    refused(full.link(ino, ROOT_INO, b"g").await, libc::ENOSPC);
    let set = full.set_xattr(
        ino,
        b"user.a",
        Bytes::from_static(b"b"),
        raftstore::meta::XattrMode::Set,
        false,
    );
    refused(set.await, libc::ENOSPC);
    full.unlink(ROOT_INO, b"f").await.unwrap();
}

#[tokio::test]
async fn offsets_end_where_files_must() {
    let (_cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    refused(one.write(at(ino, FILE_BYTES_MAX, b"x")).await, libc::EFBIG);
    refused(one.setattr(ino, size(FILE_BYTES_MAX + 1)).await, libc::EFBIG);
    write(&one, ino, FILE_BYTES_MAX - 1, b"x").await;
    assert_eq!(stat(&one, ino).await.size, FILE_BYTES_MAX);
    let end = one.read(ino, FILE_BYTES_MAX - 1, 10).await.unwrap();
    assert_eq!(&end[..], b"x");
}

#[tokio::test]
async fn writing_takes_setuid_away_if_the_kernel_says_so() {
    let (_cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    let suid = AttrChange {
        mode: Some(0o6755),
        ..AttrChange::default()
    };
    one.setattr(ino, suid).await.unwrap();
    write(&one, ino, 0, b"by root").await;
    assert_eq!(stat(&one, ino).await.mode, 0o6755);
    let request = WriteRequest {
        kill_suid_sgid: true,
        ..at(ino, 0, b"by a user")
    };
    one.write(request).await.unwrap();
    assert_eq!(stat(&one, ino).await.mode, 0o755);
    one.setattr(ino, suid).await.unwrap();
    one.fallocate(ino, Fallocate::Allocate, 0, 100, USER)
        .await
        .unwrap();
    assert_eq!(stat(&one, ino).await.mode, 0o755);
    one.setattr(ino, suid).await.unwrap();
    let chown = AttrChange {
        uid: Some(5),
        ..AttrChange::default()
    };
    assert_eq!(one.setattr(ino, chown).await.unwrap().mode, 0o755);
}

#[tokio::test]
async fn without_a_quorum_everything_waits_and_then_goes_on() {
    if LEASED {
        // Under a lease that lives, a write does not need the quorum.
        return;
    }
    let (cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    cluster.set_quorum(false);
    let waiting = tokio::spawn({
        let one = one.clone();
        async move { one.write(at(ino, 0, b"late")).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    cluster.set_quorum(true);
    assert_eq!(waiting.await.unwrap().unwrap().len, 4);
    assert_eq!(&read_all(&one, ino).await[..], b"late");
}
