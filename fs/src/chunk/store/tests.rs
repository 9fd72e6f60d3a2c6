//! Tests of the chunk store on the simulated disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use raftstore::disk::{CrashMode, Open, SimDisk};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::format::{encode_pack_header, pack_name};
use super::*;

const IDENTITY: StoreIdentity = StoreIdentity([3; 16]);
const DIR: &str = "/store/chunks";

/// Small packs, so that a few chunks fill many.
fn options() -> StoreOptions {
    StoreOptions {
        pack_bytes: 64 << 10,
        reserve_bytes: 0,
        ..StoreOptions::default()
    }
}

fn open(disk: &SimDisk) -> Result<Arc<ChunkStore>, StoreError> {
    ChunkStore::open(Arc::new(disk.clone()), Path::new(DIR), IDENTITY, options()).map(Arc::new)
}

fn id(seq: u64) -> ChunkId {
    ChunkId { session: 1, seq }
}

/// Bytes that tell chunk and place.
fn body(seq: u64, len: usize) -> Bytes {
    let mut rng = StdRng::seed_from_u64(seq);
    (0..len).map(|_| rng.random::<u8>()).collect()
}

fn packs(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.list(Path::new(DIR)).expect("list");
    names.iter().map(|name| Path::new(DIR).join(name)).collect()
}

#[tokio::test]
async fn what_was_put_is_read_back_also_after_a_restart() {
    let disk = SimDisk::new();
    let store = open(&disk).expect("open");
    let lens = [1, 4095, 4096, 4097, 30_000, 9000, 50_000, 12];
    for (seq, len) in lens.iter().enumerate() {
        store
            .put(id(seq as u64), body(seq as u64, *len))
            .await
            .expect("put");
    }
    for round in 0..2 {
        let store = if round == 0 {
            Arc::clone(&store)
        } else {
            open(&disk).expect("reopen")
        };
        for (seq, len) in lens.iter().enumerate() {
            let whole = body(seq as u64, *len);
            assert_eq!(store.read(id(seq as u64), 0, 0), Ok(whole.clone()));
            let (from, to) = (len / 3, len / 3 + (len / 2).max(1));
            let part = store.read(id(seq as u64), from as u32, (to - from) as u32);
            assert_eq!(part, Ok(whole.slice(from..to)));
        }
        assert_eq!(store.stats().chunks, lens.len() as u64);
        assert!(matches!(
            store.read(id(0), 0, 2),
            Err(ReadError::Range { len: 1, .. })
        ));
        assert_eq!(store.read(id(99), 0, 0), Err(ReadError::Missing(id(99))));
    }
    assert!(packs(&disk).len() > 2, "the chunks span several packs");
}

#[tokio::test]
async fn pending_puts_share_a_sync_and_repeats_cost_nothing() {
    let disk = SimDisk::new();
    let options = StoreOptions {
        reserve_bytes: 0,
        ..StoreOptions::default()
    };
    let store = ChunkStore::open(Arc::new(disk.clone()), Path::new(DIR), IDENTITY, options).expect("open");
    let store = Arc::new(store);
    store.put(id(0), body(0, 10)).await.expect("first");
    let before = disk.counters();
    let puts = (0..100).map(|seq| store.put(id(seq % 50), body(seq % 50, 5000)));
    for put in futures::future::join_all(puts).await {
        put.expect("put");
    }
    let syncs = disk.counters().syncs - before.syncs;
    assert!((1..=20).contains(&syncs), "{syncs} syncs for 100 puts");
    let written = disk.counters().written_bytes;
    store.put(id(7), body(7, 5000)).await.expect("repeat");
    assert_eq!(disk.counters().written_bytes, written);
    assert_eq!(store.stats().chunks, 50);
    assert_eq!(store.stats().dead_bytes, 4096, "nothing was written twice");
}
