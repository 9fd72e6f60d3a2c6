//! Tests of the chunk store on the simulated disk.

mod basics;
mod crash;
mod damage;
mod limits;
mod sharing;

use std::path::PathBuf;

use raftstore::disk::SimDisk;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

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

/// Random bytes, always the same for a chunk.
fn body(seq: u64, len: usize) -> Bytes {
    let mut rng = StdRng::seed_from_u64(seq);
    let mut bytes = vec![0; len];
    rng.fill(bytes.as_mut_slice());
    bytes.into()
}

fn packs(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.list(Path::new(DIR)).expect("list");
    names.iter().map(|name| Path::new(DIR).join(name)).collect()
}

/// A disk with chunks 0 to 11 of these lengths, in several packs, the last of which is not sealed.
async fn filled() -> (SimDisk, Vec<usize>) {
    let lens = vec![
        1, 4095, 4096, 4097, 30_000, 9000, 50_000, 12, 20_000, 8192, 5000, 6000,
    ];
    let disk = SimDisk::new();
    let store = open(&disk).expect("open");
    for (seq, len) in lens.iter().enumerate() {
        store
            .put(id(seq as u64), body(seq as u64, *len))
            .await
            .expect("put");
    }
    drop(store);
    (disk, lens)
}
