//! Reading changes and what is below them as one.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::layers::{Changes, Layers, Row};
use crate::kv::{Batch, Engine, MemoryEngine, Pair, Read};
use crate::meta::Txn;

fn random_key(rng: &mut StdRng) -> Bytes {
    Bytes::copy_from_slice(&rng.random_range(0..700u16).to_be_bytes())
}

/// Few or many changes (so that a scan takes several pages), over an engine: the same as a transaction's view of them.
#[test]
fn scans_see_the_base_with_the_changes_on_top() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let engine = Arc::new(MemoryEngine::new());
        let below = (0..400).map(|_| (random_key(&mut rng), Some(Bytes::from_static(b"below"))));
        engine
            .write(Batch {
                changes: below.collect(),
            })
            .unwrap();
        let layers = Arc::new(Layers::new(engine.clone()));
        let mut txn = Txn::new(&*engine);
        for number in 0..rng.random_range(0..900u64) {
            let key = random_key(&mut rng);
            let value = rng.random_ratio(1, 2).then(|| Bytes::from(vec![seed as u8]));
            match value.clone() {
                Some(value) => txn.put(key.clone(), value),
                None => txn.delete(key.clone()),
            }
            layers.write().put(key, Row { number, value });
        }
        for _ in 0..20 {
            let mut bound = || match rng.random_range(0..3) {
                0 => Bound::Unbounded,
                1 => Bound::Included(random_key(&mut rng).to_vec()),
                _ => Bound::Excluded(random_key(&mut rng).to_vec()),
            };
            let range = (bound(), bound());
            for reverse in [false, true] {
                let expected: Vec<Pair> = txn.scan(range.clone(), reverse).map(Result::unwrap).collect();
                let found: Vec<Pair> = layers.scan(range.clone(), reverse).map(Result::unwrap).collect();
                assert_eq!(found, expected, "seed {seed}, {range:?}, {reverse}");
                let owned: Vec<Pair> = layers
                    .clone()
                    .scan_owned(range.clone(), reverse)
                    .map(Result::unwrap)
                    .collect();
                assert_eq!(owned, expected, "seed {seed}, {range:?}, {reverse}");
            }
            let key = random_key(&mut rng);
            assert_eq!(layers.get(&key).unwrap(), txn.get(&key).unwrap(), "seed {seed}");
        }
    }
}

#[test]
fn counts_its_bytes() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut changes = Changes::default();
    for number in 0..500 {
        let value = Some(Bytes::from(vec![0; rng.random_range(0..50)]));
        changes.put(random_key(&mut rng), Row { number, value });
    }
    assert!(changes.bytes > 100 * changes.rows.len());
    let keys: Vec<Bytes> = changes.rows.keys().cloned().collect();
    for key in keys {
        changes.remove(&key);
    }
    assert_eq!(changes.bytes, 0);
}
