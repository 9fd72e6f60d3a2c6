use super::*;

#[tokio::test]
async fn a_full_medium_is_told_and_everything_stays_readable() {
    let disk = SimDisk::new();
    let store = open(&disk).expect("open");
    disk.set_capacity_bytes(150_000);
    let mut stored = Vec::new();
    let mut refused = 0;
    for seq in 0..40 {
        match store.put(id(seq), body(seq, 9000)).await {
            Ok(()) => stored.push(seq),
            Err(StoreError::NoSpace) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(stored.len() > 5 && refused > 5);
    assert_eq!(*store.poisoned().borrow(), None);
    for seq in &stored {
        assert_eq!(store.read(id(*seq), 0, 0), Ok(body(*seq, 9000)));
    }
    // Deleting makes room.
    for seq in stored.drain(..stored.len() / 2) {
        store.remove(id(seq));
    }
    disk.set_capacity_bytes(170_000);
    while store
        .compact_step(1 << 20)
        .await
        .expect("compaction")
        .copied_bytes
        > 0
    {}
    drop(store);
    let store = open(&disk).expect("reopen");
    store.put(id(100), body(100, 9000)).await.expect("room again");
    for seq in stored {
        assert_eq!(store.read(id(seq), 0, 0), Ok(body(seq, 9000)));
    }
}

#[tokio::test]
async fn a_write_that_runs_out_of_room_half_way_leaves_no_trace() {
    let disk = SimDisk::new();
    let store = open(&disk).expect("open");
    for capacity in (20_000..60_000).step_by(700) {
        let before = store.stats();
        disk.set_capacity_bytes(capacity);
        // The store's own look at the free room is too coarse to see this coming.
        let job = store.write(
            id(capacity),
            body(capacity, 30_000),
            Purpose::Move(Location::new(9, 9, 9)),
        );
        match job.await {
            Ok(()) => assert!(
                !store.contains(id(capacity)),
                "a move of what is not there is void"
            ),
            Err(error) => {
                assert_eq!(error, StoreError::NoSpace);
                assert_eq!(store.stats().live_bytes, before.live_bytes);
            }
        }
        disk.set_capacity_bytes(1 << 30);
        store.put(id(1), body(1, 5000)).await.expect("put");
        assert_eq!(store.read(id(1), 0, 0), Ok(body(1, 5000)));
    }
    drop(store);
    let store = open(&disk).expect("reopen");
    assert_eq!(store.read(id(1), 0, 0), Ok(body(1, 5000)));
    assert_eq!(store.stats().bad_blocks, 0);
}

#[tokio::test]
async fn the_reserve_is_kept_for_others() {
    let disk = SimDisk::new();
    disk.set_capacity_bytes(1 << 20);
    let options = StoreOptions {
        reserve_bytes: 900 << 10,
        ..options()
    };
    let store = ChunkStore::open(Arc::new(disk.clone()), Path::new(DIR), IDENTITY, options).expect("open");
    store.put(id(1), body(1, 50_000)).await.expect("within");
    assert_eq!(store.put(id(2), body(2, 90_000)).await, Err(StoreError::NoSpace));
}

#[tokio::test]
async fn a_failed_sync_or_write_poisons() {
    for fail_sync in [true, false] {
        let disk = SimDisk::new();
        let store = open(&disk).expect("open");
        store.put(id(0), body(0, 5000)).await.expect("put");
        let mut poisoned = store.poisoned();
        assert_eq!(*poisoned.borrow_and_update(), None);
        if fail_sync {
            disk.fail_sync_at(1);
        } else {
            disk.fail_write_at(2);
        }
        assert!(matches!(
            store.put(id(1), body(1, 5000)).await,
            Err(StoreError::Poisoned(_))
        ));
        poisoned.changed().await.expect("told");
        assert!(poisoned.borrow().is_some());
        assert!(!store.contains(id(1)));
        assert!(matches!(
            store.put(id(2), body(2, 5000)).await,
            Err(StoreError::Poisoned(_))
        ));
        assert_eq!(store.read(id(0), 0, 0), Ok(body(0, 5000)), "reading goes on");
    }
}

#[tokio::test]
async fn lengths_are_checked() {
    let store = open(&SimDisk::new()).expect("open");
    let too_long = Bytes::from(vec![0; CHUNK_BYTES_MAX as usize + 1]);
    for data in [Bytes::new(), too_long] {
        let len = data.len();
        assert_eq!(store.put(id(1), data).await, Err(StoreError::BadLength(len)));
    }
    store
        .put(id(1), Bytes::from(vec![7; CHUNK_BYTES_MAX as usize]))
        .await
        .expect("the largest fits");
    assert_eq!(
        store.read(id(1), CHUNK_BYTES_MAX - 1, 1),
        Ok(Bytes::from_static(&[7]))
    );
}
