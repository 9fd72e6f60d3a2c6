//! Copying by reference.

use super::*;

#[tokio::test]
async fn a_copy_shares_bytes_and_then_goes_its_own_way() {
    let (cluster, one, other) = two_nodes();
    let (source, target) = (file(&one, "a").await, file(&one, "b").await);
    let data: Vec<u8> = (0..1000_u32).map(|i| (i % 250) as u8).collect();
    write(&one, source, 0, &data).await;
    known(&one).await;
    let stored = cluster.chunk_count();
    let copied = other
        .copy_range((source, 0), (target, 0), 5000, ROOT)
        .await
        .unwrap();
    assert_eq!(copied, 1000);
    assert_eq!(cluster.chunk_count(), stored);
    assert_eq!(read_all(&one, target).await, data);
    write(&one, source, 0, b"changed").await;
    assert_eq!(read_all(&one, target).await, data);
}

#[tokio::test]
async fn ranges_of_one_file_must_not_overlap() {
    let (_cluster, one, _) = two_nodes();
    let ino = file(&one, "a").await;
    write(&one, ino, 0, b"0123456789").await;
    refused(one.copy_range((ino, 0), (ino, 5), 6, ROOT).await, libc::EINVAL);
    assert_eq!(one.copy_range((ino, 0), (ino, 5), 5, ROOT).await.unwrap(), 5);
    assert_eq!(&read_all(&one, ino).await[..], b"0123401234");
    assert_eq!(one.copy_range((ino, 10), (ino, 20), 5, ROOT).await.unwrap(), 0);
    refused(
        one.copy_range((ino, u64::MAX), (ino, 0), 5, ROOT).await,
        libc::EINVAL,
    );
}
