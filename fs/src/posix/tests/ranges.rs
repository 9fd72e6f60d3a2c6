//! Nodes that look at more inodes than they hold leases of.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::leases::{LocalLeader, leased_pair, leased_vfs, opened};
use super::*;
use crate::behind;
use crate::lease::LeaseHolder as _;

/// More than may be held.
const FILES: usize = 400;

/// Files that the cluster knows, and that hardly anybody holds a lease of.
async fn many_files(vfs: &Vfs) -> Vec<Ino> {
    let mut files = Vec::with_capacity(FILES);
    for index in 0..FILES {
        let (ino, handle) = opened(vfs, &format!("f{index}")).await;
        vfs.release(ino, handle).await.unwrap();
        files.push(ino);
    }
    vfs.sync(ROOT_INO).await.unwrap();
    files
}

#[tokio::test]
async fn attributes_of_many_files_are_asked_for_together_and_never_old() {
    let cluster = cluster();
    let leader = LocalLeader::new(cluster.store());
    let one = leased_vfs(&cluster, &leader, small_limits());
    let other = leased_vfs(&cluster, &leader, small_limits());
    let files = many_files(&one).await;
    let before = leader.requests.load(Ordering::Relaxed);
    for ino in &files {
        assert_eq!(one.getattr(*ino).await.unwrap().size, 0);
    }
    let asked = leader.requests.load(Ordering::Relaxed) - before;
    assert!(asked < FILES / 10, "{asked} requests for {FILES} files");
    // Another node changes some, and makes some: what the first holds of the range goes.
    for (index, ino) in files.iter().enumerate().step_by(29) {
        write(&other, *ino, 0, b"changed").await;
        assert_eq!(one.getattr(*ino).await.unwrap().size, 7, "file {index}");
        let (made, _) = opened(&other, &format!("made{index}")).await;
        write(&other, made, 0, b"made").await;
        let name = format!("made{index}");
        let found = one.lookup(ROOT_INO, name.as_bytes()).await.unwrap();
        assert_eq!((found.ino, found.size), (made, 4));
        write(&other, made, 0, b"longer").await;
        assert_eq!(one.getattr(made).await.unwrap().size, 6);
        for near in &files[index..(index + 20).min(FILES)] {
            let size = if ino == near { 7 } else { 0 };
            assert_eq!(one.getattr(*near).await.unwrap().size, size);
        }
    }
}

#[tokio::test]
async fn the_lease_of_a_mapped_file_stays_however_many_others_come() {
    let (_, backend, one, other) = leased_pair();
    let files = many_files(&other).await;
    // In the kernel's place.
    one.invalidations().attach();
    let forgotten = Arc::new(Mutex::new(Vec::new()));
    let kernel = std::thread::spawn({
        let (one, forgotten) = (one.clone(), forgotten.clone());
        move || {
            while let Some(next) = one.invalidations().next() {
                let mut forgotten = forgotten.lock().unwrap_or_else(PoisonError::into_inner);
                forgotten.extend(next.inodes);
                one.invalidations().delivered(next.serial);
            }
        }
    });
    let mapped = files[0];
    let handle = one.open(mapped, READ_WRITE).await.unwrap().handle;
    one.invalidations().cached(mapped);
    for ino in &files {
        let opened = one.open(*ino, READ_WRITE).await.unwrap();
        one.release(*ino, opened.handle).await.unwrap();
    }
    assert!(
        behind::holder(&backend).status().shared < FILES / 2,
        "leases were given up"
    );
    // It is in nobody's log yet, and the mapping must show it.
    let written = write(&other, mapped, 0, b"new");
    tokio::time::timeout(Duration::from_secs(10), written)
        .await
        .unwrap();
    assert_eq!(*forgotten.lock().unwrap(), [mapped]);
    one.release(mapped, handle).await.unwrap();
    one.invalidations().detach();
    kernel.join().unwrap();
}
