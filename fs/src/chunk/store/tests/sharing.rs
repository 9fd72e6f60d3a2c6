//! What arrives while the medium takes a batch shares the batch's sync.

use super::*;

#[test]
fn what_arrives_while_the_medium_takes_a_batch_shares_its_sync() {
    let disk = SimDisk::new();
    let options = StoreOptions {
        reserve_bytes: 0,
        ..StoreOptions::default()
    };
    let store = ChunkStore::open(Arc::new(disk.clone()), Path::new(DIR), IDENTITY, options).expect("open");
    let store = Arc::new(store);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let put = |seq| {
        let store = Arc::clone(&store);
        runtime.spawn(async move { store.put(id(seq), body(seq, 5000)).await })
    };
    let idle = disk.counters();
    let held = disk.hold_medium();
    let first = put(0);
    while disk.counters().writes == idle.writes {
        std::thread::yield_now();
    }
    let before = disk.counters();
    let others = [put(1), put(2), put(3)];
    while store.shared.queue.waiting() < others.len() {
        std::thread::yield_now();
    }
    drop(held);
    for put in std::iter::once(first).chain(others) {
        runtime.block_on(put).expect("join").expect("put");
    }
    assert_eq!(disk.counters().syncs - before.syncs, 1, "one sync for all four");
    for seq in 0..4 {
        assert_eq!(store.read(id(seq), 0, 0), Ok(body(seq, 5000)));
    }
}
