use std::collections::BTreeMap;

use raftstore::disk::CrashMode;

use super::*;

/// Chunks by whether their put was acknowledged, and not removed since.
type Acknowledged = BTreeMap<u64, usize>;

fn len_of(seq: u64) -> usize {
    [3000, 17, 4096, 9000, 20_000, 40_000, 1][(seq % 7) as usize]
}

/// Puts, alone and many at a time, removals and compaction; stops when the power goes.
async fn workload(store: &Arc<ChunkStore>) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    let mut seq = 0;
    for round in 0..8_u64 {
        let together = 1 + round % 4;
        let puts = (seq..seq + together).map(|seq| store.put(id(seq), body(seq, len_of(seq))));
        let results = futures::future::join_all(puts).await;
        for (seq, result) in (seq..).zip(&results) {
            if result.is_ok() {
                acknowledged.insert(seq, len_of(seq));
            }
        }
        if results.iter().any(Result::is_err) {
            break;
        }
        seq += together;
        if round % 2 == 1 {
            for old in (0..seq).filter(|old| old % 3 == round % 3) {
                store.remove(id(old));
                acknowledged.remove(&old);
            }
            if store.compact_step(30_000).await.is_err() {
                break;
            }
        }
    }
    acknowledged
}

/// Everything acknowledged is there, and nothing that is there is wrong.
fn check(store: &ChunkStore, acknowledged: &Acknowledged, what: &str) {
    for (seq, len) in acknowledged {
        assert_eq!(
            store.read(id(*seq), 0, 0),
            Ok(body(*seq, *len)),
            "{what}: chunk {seq}"
        );
    }
    for (found, len) in store.chunks(None, 1000) {
        let expected = body(found.seq, len_of(found.seq));
        assert_eq!(
            store.read(found, 0, 0),
            Ok(expected),
            "{what}: unacknowledged chunk {found} of {len}"
        );
    }
    assert_eq!(store.stats().bad_blocks, 0, "{what}: a torn tail is no damage");
}

#[tokio::test]
async fn a_power_cut_at_any_sync_loses_nothing_acknowledged() {
    let mut cuts = 0;
    for mode in [CrashMode::Before, CrashMode::After] {
        for at in 1.. {
            let disk = SimDisk::new();
            disk.crash_at_sync(at, mode);
            let acknowledged = match open(&disk) {
                Ok(store) => workload(&store).await,
                Err(_) => Acknowledged::new(),
            };
            if !disk.power_is_off() {
                break;
            }
            cuts += 1;
            for seed in 0..6 {
                let what = format!("{mode:?} sync {at}, seed {seed}");
                let after = disk.crash(seed);
                let store = open(&after).expect(&what);
                check(&store, &acknowledged, &what);
                // And it goes on, also after a restart without a crash.
                store.put(id(1000), body(1000, len_of(1000))).await.expect(&what);
                drop(store);
                let mut acknowledged = acknowledged.clone();
                acknowledged.insert(1000, len_of(1000));
                check(&open(&after).expect(&what), &acknowledged, &what);
            }
        }
    }
    assert!(cuts > 20, "the power was cut {cuts} times only");
}

#[tokio::test]
async fn a_second_power_cut_during_recovery_loses_nothing_either() {
    let mut cuts = 0;
    for at in (3..24).step_by(2) {
        let disk = SimDisk::new();
        disk.crash_at_sync(at, CrashMode::Before);
        let acknowledged = workload(&open(&disk).expect("open")).await;
        for seed in 0..8 {
            let again = disk.crash(seed);
            again.crash_at_sync(1 + seed % 2, CrashMode::Before);
            if open(&again).is_ok() {
                continue;
            }
            assert!(again.power_is_off());
            cuts += 1;
            let what = format!("sync {at}, seed {seed}");
            check(&open(&again.crash(seed)).expect(&what), &acknowledged, &what);
        }
    }
    assert!(cuts > 20, "the power was cut {cuts} times only");
}

#[tokio::test]
async fn what_a_killed_daemon_left_in_the_page_cache_is_made_durable_before_it_counts() {
    let disk = SimDisk::new();
    let store = open(&disk).expect("open");
    store.put(id(0), body(0, 5000)).await.expect("put");
    // The process dies after its write and before its sync: the bytes are in the kernel's memory only.
    disk.fail_sync_at(1);
    assert!(matches!(
        store.put(id(1), body(1, 5000)).await,
        Err(StoreError::Poisoned(_))
    ));
    drop(store);
    let store = open(&disk).expect("reopen");
    if store.put(id(1), body(1, 5000)).await.is_ok() {
        drop(store);
        let store = open(&disk.crash(0)).expect("after the power cut");
        assert_eq!(store.read(id(0), 0, 0), Ok(body(0, 5000)));
    }
}
