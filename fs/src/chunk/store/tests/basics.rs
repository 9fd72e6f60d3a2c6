use super::*;

#[tokio::test]
async fn what_was_put_is_read_back_also_after_a_restart() {
    let (disk, lens) = filled().await;
    for _ in 0..2 {
        let store = open(&disk).expect("reopen");
        for (seq, len) in lens.iter().enumerate() {
            let whole = body(seq as u64, *len);
            assert_eq!(store.read(id(seq as u64), 0, 0), Ok(whole.clone()));
            let (from, to) = (len / 3, len / 3 + (len / 2).max(1));
            let part = store.read(id(seq as u64), from as u32, (to - from) as u32);
            assert_eq!(part, Ok(whole.slice(from..to)));
        }
        assert_eq!(store.stats().chunks, lens.len() as u64);
        assert_eq!(store.stats().bad_blocks, 0);
        assert!(matches!(
            store.read(id(0), 0, 2),
            Err(ReadError::Range { len: 1, .. })
        ));
        assert!(matches!(
            store.read(id(0), u32::MAX, u32::MAX),
            Err(ReadError::Range { .. })
        ));
        assert_eq!(store.read(id(99), 0, 0), Err(ReadError::Missing(id(99))));
    }
    assert!(packs(&disk).len() > 2, "the chunks span several packs");
}

#[tokio::test]
async fn a_restart_goes_on_with_the_last_pack() {
    let disk = SimDisk::new();
    for seq in 0..6 {
        let store = open(&disk).expect("open");
        store.put(id(seq), body(seq, 3000)).await.expect("put");
    }
    assert_eq!(packs(&disk).len(), 1);
    assert_eq!(open(&disk).expect("open").stats().chunks, 6);
}

#[tokio::test]
async fn pending_puts_share_a_sync_and_repeats_cost_nothing() {
    let disk = SimDisk::new();
    let options = StoreOptions {
        reserve_bytes: 0,
        ..StoreOptions::default()
    };
    let store = ChunkStore::open(Arc::new(disk.clone()), Path::new(DIR), IDENTITY, options).expect("open");
    store.put(id(0), body(0, 10)).await.expect("first");
    let before = disk.counters();
    let puts = (0..100).map(|seq| store.put(id(seq % 50), body(seq % 50, 5000)));
    for put in futures::future::join_all(puts).await {
        put.expect("put");
    }
    let syncs = disk.counters().syncs - before.syncs;
    assert!((1..=50).contains(&syncs), "{syncs} syncs for 100 puts");
    let written = disk.counters().written_bytes;
    store.put(id(7), body(7, 5000)).await.expect("repeat");
    assert_eq!(disk.counters().written_bytes, written);
    assert_eq!(store.stats().chunks, 50);
    assert_eq!(store.stats().dead_bytes, 4096, "nothing was written twice");
}

#[tokio::test]
async fn room_returns_when_a_pack_is_dead() {
    let (disk, lens) = filled().await;
    let store = open(&disk).expect("open");
    let before = packs(&disk).len();
    for seq in 0..lens.len() as u64 {
        assert!(store.remove(id(seq)));
        assert!(!store.remove(id(seq)));
    }
    assert_eq!(store.stats().live_bytes, 0);
    drop(store);
    let after = packs(&disk).len();
    assert!(
        before > 2 && after == 1,
        "{before} packs, then {after}: all but the one that may still grow"
    );
}

#[tokio::test]
async fn compaction_empties_sparse_packs_and_keeps_what_is_in_use() {
    let disk = SimDisk::new();
    let store = open(&disk).expect("open");
    for seq in 0..60 {
        store.put(id(seq), body(seq, 7000)).await.expect("put");
    }
    for seq in (0..60).filter(|seq| seq % 5 != 0) {
        store.remove(id(seq));
    }
    let before = store.stats();
    let mut copied = 0;
    loop {
        let step = store.compact_step(20_000).await.expect("step");
        assert_eq!(step.damaged, []);
        if step.copied_bytes == 0 {
            break;
        }
        copied += step.copied_bytes;
    }
    let after = store.stats();
    assert!(
        copied > 0 && after.dead_bytes < before.dead_bytes / 2,
        "{before:?} {after:?}"
    );
    drop(store);
    let store = open(&disk).expect("reopen");
    for seq in (0..60).step_by(5) {
        assert_eq!(store.read(id(seq), 0, 0), Ok(body(seq, 7000)));
    }
}

#[tokio::test]
async fn the_index_of_100_000_chunks_is_small() {
    // Counted, not measured: what a chunk costs in the tree, at its nodes' worst fill.
    let per_chunk = (size_of::<ChunkId>() + size_of::<Location>()) * 2;
    assert!(per_chunk * 100_000 < 6 << 20);
}

#[tokio::test]
async fn compaction_comes_to_an_end_on_a_nearly_full_medium() {
    let disk = SimDisk::new();
    let store = open(&disk).expect("open");
    for seq in 0..60 {
        store.put(id(seq), body(seq, 7000)).await.expect("put");
    }
    for seq in (0..60).filter(|seq| seq % 5 == 0) {
        store.remove(id(seq));
    }
    let roomy = store.compact_step(1 << 20).await.expect("step");
    assert_eq!(roomy.copied_bytes, 0, "most of each pack is in use");
    let stats = store.stats();
    disk.set_capacity_bytes(stats.live_bytes + stats.dead_bytes + (150 << 10));
    let mut steps = 0;
    while store.compact_step(1 << 20).await.expect("step").copied_bytes > 0 {
        steps += 1;
        assert!(steps < 40, "it goes on for ever");
    }
    assert!(steps > 2);
    for seq in (0..60).filter(|seq| seq % 5 != 0) {
        assert_eq!(store.read(id(seq), 0, 0), Ok(body(seq, 7000)));
    }
}

#[tokio::test]
async fn a_pack_that_a_batch_has_just_sealed_is_not_taken_for_dead() {
    let disk = SimDisk::new();
    let store = open(&disk).expect("open");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Every removal looks for dead packs.
    let remover = {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                store.remove(id(u64::MAX));
            }
        })
    };
    for round in 0..20 {
        let puts = (0..24)
            .map(|n| round * 24 + n)
            .map(|seq| store.put(id(seq), body(seq, 9000)));
        for put in futures::future::join_all(puts).await {
            put.expect("put");
        }
    }
    stop.store(true, Ordering::Relaxed);
    remover.join().expect("remover");
    for seq in 0..480 {
        assert_eq!(store.read(id(seq), 0, 0), Ok(body(seq, 9000)), "chunk {seq}");
    }
}

#[tokio::test]
async fn it_works_on_a_real_disk() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let open = || {
        let disk = Arc::new(raftstore::disk::RealDisk);
        ChunkStore::open(disk, &dir.path().join("chunks"), IDENTITY, options())
            .map(Arc::new)
            .expect("open")
    };
    let store = open();
    for seq in 0..40 {
        store.put(id(seq), body(seq, 7000)).await.expect("put");
    }
    for seq in (0..40).filter(|seq| seq % 4 != 0) {
        store.remove(id(seq));
    }
    while store.compact_step(1 << 20).await.expect("step").copied_bytes > 0 {}
    drop(store);
    let store = open();
    for seq in (0..40).step_by(4) {
        assert_eq!(store.read(id(seq), 0, 0), Ok(body(seq, 7000)));
    }
}
