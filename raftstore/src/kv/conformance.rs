//! One suite that every engine passes, as `kv::open` hands it out.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::disk::RealDisk;

fn open_in(kind: EngineKind, dir: &Path) -> Arc<dyn Engine> {
    let options = EngineOptions {
        write_buffer_bytes_max: 256 << 10,
        ..EngineOptions::default()
    };
    open_with(kind, dir, &options).unwrap()
}

fn open_with(kind: EngineKind, dir: &Path, options: &EngineOptions) -> Result<Arc<dyn Engine>, KvError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    open(
        kind,
        &disk,
        dir,
        options,
        Box::new(|error| eprintln!("engine failed: {error}")),
    )
}

fn batch(changes: &[(&str, Option<&str>)]) -> Batch {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Batch {
        changes: changes
            .iter()
            .map(|(key, value)| (bytes(key), value.map(bytes)))
            .collect(),
    }
}

fn keys(scan: Scan<'_>) -> Vec<String> {
    scan.map(|pair| String::from_utf8(pair.unwrap().0.to_vec()).unwrap())
        .collect()
}

fn all() -> KeyRange {
    (Bound::Unbounded, Bound::Unbounded)
}

fn put_delete_get(engine: &dyn Engine) {
    engine
        .write(batch(&[("a", Some("1")), ("b", Some("2")), ("c", Some("3"))]))
        .unwrap();
    engine
        .write(batch(&[("b", None), ("c", Some("4")), ("missing", None)]))
        .unwrap();
    assert_eq!(engine.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(engine.get(b"b").unwrap(), None);
    assert_eq!(engine.get(b"c").unwrap().as_deref(), Some(&b"4"[..]));
    assert_eq!(engine.get(b"missing").unwrap(), None);
    engine.write(Batch::default()).unwrap();
    // The later of two changes to one key counts.
    engine
        .write(batch(&[
            ("d", Some("1")),
            ("d", Some("2")),
            ("e", Some("1")),
            ("e", None),
        ]))
        .unwrap();
    assert_eq!(engine.get(b"d").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(engine.get(b"e").unwrap(), None);
    engine.write(batch(&[("f", None), ("f", Some(""))])).unwrap();
    assert_eq!(engine.get(b"f").unwrap().as_deref(), Some(&b""[..]));
}

fn scans_and_bounds(engine: &dyn Engine) {
    let names: Vec<String> = (0..300).map(|n| format!("k{n:03}")).collect();
    for chunk in names.chunks(50) {
        let changes: Vec<_> = chunk.iter().map(|name| (name.as_str(), Some("v"))).collect();
        engine.write(batch(&changes)).unwrap();
    }
    assert_eq!(keys(engine.scan(all(), false)), names);
    let mut reversed = names.clone();
    reversed.reverse();
    assert_eq!(keys(engine.scan(all(), true)), reversed);
    assert_eq!(keys(engine.scan(prefix_range(b"k01"), false)), names[10..20]);
    let from_to = |start: Bound<&str>, end: Bound<&str>| {
        (
            start.map(|key| key.as_bytes().to_vec()),
            end.map(|key| key.as_bytes().to_vec()),
        )
    };
    let range = from_to(Bound::Excluded("k100"), Bound::Included("k102"));
    assert_eq!(keys(engine.scan(range.clone(), false)), ["k101", "k102"]);
    assert_eq!(keys(engine.scan(range, true)), ["k102", "k101"]);
    for (start, end) in [
        (Bound::Included("k2"), Bound::Excluded("k1")),
        (Bound::Excluded("k100"), Bound::Excluded("k100")),
        (Bound::Included("k100"), Bound::Excluded("k100")),
        (Bound::Included("z"), Bound::Unbounded),
    ] {
        assert_eq!(
            keys(engine.scan(from_to(start, end), false)),
            Vec::<String>::new()
        );
        assert_eq!(keys(engine.scan(from_to(start, end), true)), Vec::<String>::new());
    }
    // Prefixes at the end of the key space.
    let high = Bytes::from_static(&[0xff, 0xff, 1]);
    engine
        .write(Batch {
            changes: vec![(high.clone(), Some(high.clone()))],
        })
        .unwrap();
    assert_eq!(engine.scan(prefix_range(&[0xff, 0xff]), false).count(), 1);
    assert_eq!(engine.scan(prefix_range(&[0xff]), true).count(), 1);
}

fn snapshots_do_not_change(engine: &Arc<dyn Engine>) {
    let names: Vec<String> = (0..400).map(|n| format!("{n:03}")).collect();
    let put = |value: &'static str| -> Batch {
        batch(
            &names
                .iter()
                .map(|name| (name.as_str(), Some(value)))
                .collect::<Vec<_>>(),
        )
    };
    engine.write(put("old")).unwrap();
    let snapshot = engine.snapshot().unwrap();
    let mut running = engine.scan(all(), false);
    let first = running.next().unwrap().unwrap();
    engine.write(put("new")).unwrap();
    let deletes: Vec<_> = names
        .iter()
        .step_by(2)
        .map(|name| (name.as_str(), None))
        .collect();
    engine.write(batch(&deletes)).unwrap();
    engine
        .write(batch(&[("0005", Some("between")), ("zzz", Some("after"))]))
        .unwrap();
    for scan in [
        snapshot.scan(all(), false),
        snapshot.clone().scan_owned(all(), false),
    ] {
        let pairs: Vec<Pair> = scan.map(Result::unwrap).collect();
        assert_eq!(pairs.len(), 400);
        assert!(pairs.iter().all(|(_, value)| value == "old"));
        assert!(pairs.is_sorted());
    }
    let mut reversed = keys(snapshot.scan(all(), true));
    reversed.reverse();
    assert_eq!(reversed, names);
    assert_eq!(snapshot.get(b"000").unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(snapshot.get(b"0005").unwrap(), None);
    // A scan shows the time at which it began.
    let rest: Vec<Pair> = running.map(Result::unwrap).collect();
    assert_eq!((first.1.as_ref(), rest.len()), (&b"old"[..], 399));
    assert!(rest.iter().all(|(_, value)| value == "old"));
    assert_eq!(engine.clone().scan_owned(all(), false).count(), 202);
    // A snapshot outlives the handle it was taken from.
    let late = engine.snapshot().unwrap();
    drop(snapshot);
    assert_eq!(keys(late.scan(prefix_range(b"000"), false)), ["0005"]);
}

/// One thread writes batches that keep a sum; others check it in snapshots and scans meanwhile.
fn batches_are_seen_whole(engine: &Arc<dyn Engine>) {
    const ACCOUNTS: usize = 150;
    let key = |n: usize| Bytes::from(format!("account{n:04}"));
    let value = |n: u64| Bytes::copy_from_slice(&n.to_le_bytes());
    engine
        .write(Batch {
            changes: (0..ACCOUNTS).map(|n| (key(n), Some(value(100)))).collect(),
        })
        .unwrap();
    let sum = |scan: Scan<'_>| -> u64 {
        scan.map(|pair| u64::from_le_bytes(pair.unwrap().1.as_ref().try_into().unwrap()))
            .sum()
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (engine, done) = (engine.clone(), &done);
                scope.spawn(move || {
                    let mut checks = 0;
                    while !done.load(Ordering::Relaxed) || checks < 3 {
                        let snapshot = engine.snapshot().unwrap();
                        assert_eq!(sum(snapshot.scan(all(), reader == 1)), 100 * ACCOUNTS as u64);
                        assert_eq!(sum(engine.scan(all(), reader == 0)), 100 * ACCOUNTS as u64);
                        checks += 1;
                    }
                })
            })
            .collect();
        let mut balances = vec![100u64; ACCOUNTS];
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..600 {
            let (from, to) = (rng.random_range(0..ACCOUNTS), rng.random_range(0..ACCOUNTS));
            let amount = rng.random_range(0..=balances[from]);
            balances[from] -= amount;
            balances[to] += amount;
            let changes = [from, to].map(|n| (key(n), Some(value(balances[n]))));
            engine
                .write(Batch {
                    changes: changes.to_vec(),
                })
                .unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// Who sees one change of a batch sees the others.
fn gets_see_batches_whole(engine: &Arc<dyn Engine>) {
    let put = |n: u64| {
        let value = Some(Bytes::copy_from_slice(&n.to_be_bytes()));
        let filler = (0..40).map(|m| (Bytes::from(format!("b{m}")), Some(Bytes::from_static(b"filler"))));
        let mut changes = vec![(Bytes::from_static(b"a"), value.clone())];
        changes.extend(filler);
        changes.push((Bytes::from_static(b"c"), value));
        engine.write(Batch { changes }).unwrap();
    };
    put(0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let get = |key: &[u8]| engine.get(key).unwrap().unwrap();
            loop {
                let (first, last) = (get(b"a"), get(b"c"));
                assert!(first <= last, "{first:?} {last:?}");
                if first == 3000u64.to_be_bytes()[..] {
                    return;
                }
            }
        });
        (1..=3000).for_each(put);
        reader.join().unwrap();
    });
}

fn reopens_after_flush(kind: EngineKind, dir: &Path) {
    let large = Bytes::from(vec![7u8; 300 << 10]);
    {
        let engine = open_in(kind, dir);
        engine
            .write(batch(&[("kept", Some("1")), ("gone", Some("1"))]))
            .unwrap();
        engine.write(batch(&[("gone", None)])).unwrap();
        engine
            .write(Batch {
                changes: vec![(Bytes::from_static(b"large"), Some(large.clone()))],
            })
            .unwrap();
        engine.flush().unwrap();
        engine.flush().unwrap();
    }
    for _ in 0..2 {
        let engine = open_in(kind, dir);
        assert_eq!(keys(engine.scan(all(), false)), ["kept", "large"]);
        assert_eq!(engine.get(b"large").unwrap().as_ref(), Some(&large));
    }
}

/// Random changes, reads, flushes and reopens, against a map.
fn agrees_with_a_model(kind: EngineKind, dir: &Path, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut engine = open_in(kind, dir);
    let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    type Frozen = (Arc<dyn Read>, BTreeMap<Bytes, Bytes>);
    let mut frozen: Vec<Frozen> = Vec::new();
    for step in 0..300 {
        match rng.random_range(0..20) {
            0..12 => {
                let changes = (0..rng.random_range(1..12)).map(|_| {
                    let size = if rng.random_ratio(1, 20) { 5_000 } else { 20 };
                    let value = vec![rng.random(); rng.random_range(0..size)];
                    (
                        random_key(&mut rng),
                        rng.random_ratio(2, 3).then(|| Bytes::from(value)),
                    )
                });
                let batch = Batch {
                    changes: changes.collect(),
                };
                for (key, value) in &batch.changes {
                    match value {
                        Some(value) => model.insert(key.clone(), value.clone()),
                        None => model.remove(key),
                    };
                }
                engine.write(batch).unwrap();
            }
            12..14 => frozen.push((engine.snapshot().unwrap(), model.clone())),
            14 => engine.flush().unwrap(),
            15 if frozen.len() > 3 => drop(frozen.remove(rng.random_range(0..frozen.len()))),
            16 if rng.random_ratio(1, 4) => {
                engine.flush().unwrap();
                frozen.clear();
                drop(engine);
                engine = open_in(kind, dir);
            }
            _ => {}
        }
        check(
            &*engine,
            &model,
            &mut rng,
            &format!("{kind}, seed {seed}, step {step}"),
        );
        if let Some((snapshot, model)) = frozen.get(rng.random_range(0..4)) {
            check(
                &**snapshot,
                model,
                &mut rng,
                &format!("{kind}, seed {seed}, step {step}, snapshot"),
            );
        }
    }
}

fn random_key(rng: &mut StdRng) -> Bytes {
    let len = rng.random_range(1..4);
    (0..len)
        .map(|_| *b"ab\xff".get(rng.random_range(0..3)).unwrap())
        .collect()
}

fn check(read: &dyn Read, model: &BTreeMap<Bytes, Bytes>, rng: &mut StdRng, what: &str) {
    let key = random_key(rng);
    assert_eq!(read.get(&key).unwrap(), model.get(&key).cloned(), "{what}");
    let mut bound = || match rng.random_range(0..3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(random_key(rng).to_vec()),
        _ => Bound::Excluded(random_key(rng).to_vec()),
    };
    let range = (bound(), bound());
    let in_range = |key: &Bytes| std::ops::RangeBounds::contains(&range, &key.to_vec());
    let expected: Vec<Pair> = model
        .iter()
        .filter(|(key, _)| in_range(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut found: Vec<Pair> = read.scan(range.clone(), false).map(Result::unwrap).collect();
    assert_eq!(found, expected, "{what}, {range:?}");
    found = read.scan(range.clone(), true).map(Result::unwrap).collect();
    found.reverse();
    assert_eq!(found, expected, "{what}, reversed, {range:?}");
}

/// Far more bytes than the limits: the engine's own account of its memory stays small.
fn memory_is_bounded(kind: EngineKind, dir: &Path) {
    let options = EngineOptions {
        write_buffer_bytes_max: 1 << 20,
        cache_bytes_max: 1 << 20,
        ..EngineOptions::default()
    };
    let engine = open_with(kind, dir, &options).unwrap();
    let value = Bytes::from(vec![1u8; 1000]);
    for n in 0..200u32 {
        let changes = (0..100u32).map(|m| {
            let key = u64::from(n) << 32 | u64::from(m);
            (Bytes::copy_from_slice(&key.to_be_bytes()), Some(value.clone()))
        });
        engine
            .write(Batch {
                changes: changes.collect(),
            })
            .unwrap();
        assert!(
            engine.memory_bytes() < 8 << 20,
            "{} bytes after {n}",
            engine.memory_bytes()
        );
    }
    assert_eq!(engine.scan(all(), false).count(), 20_000);
}

/// Damage to any file is an error or harmless, never a panic, and never a wrong answer to a get.
fn survives_damage(kind: EngineKind, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = test_dir();
    {
        let engine = open_in(kind, dir.path());
        for n in 0..40 {
            let changes = (0..50).map(|m| (Bytes::from(format!("{n}-{m}")), Some(Bytes::from(vec![n; 100]))));
            engine
                .write(Batch {
                    changes: changes.collect(),
                })
                .unwrap();
        }
        engine.flush().unwrap();
    }
    let mut files = Vec::new();
    list_files(dir.path(), &mut files);
    assert!(!files.is_empty());
    files.sort();
    let path = files[rng.random_range(0..files.len())].clone();
    let mut bytes = std::fs::read(&path).unwrap();
    let how = rng.random_range(0..3);
    match how {
        0 => bytes.truncate(rng.random_range(0..=bytes.len())),
        1 if !bytes.is_empty() => {
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 0x10;
        }
        _ => rng.fill(&mut bytes[..]),
    }
    #[expect(clippy::disallowed_methods, reason = "the test damages an engine's own file")]
    std::fs::write(&path, bytes).unwrap();
    let what = format!("{kind}, seed {seed}, {} damaged as {how}", path.display());
    let outcome = contain::contain(|| {
        let engine = match open_with(kind, dir.path(), &EngineOptions::default()) {
            Ok(engine) => engine,
            Err(KvError::Damaged(_) | KvError::Unsupported(_)) => return,
            Err(other) => panic!("{other}"),
        };
        for n in 0..40 {
            for m in [0, 49] {
                match engine.get(format!("{n}-{m}").as_bytes()) {
                    Ok(Some(value)) => assert!(value.len() == 100 && value.iter().all(|byte| *byte == n)),
                    Ok(None) | Err(KvError::Damaged(_)) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        }
        let _ = engine.scan(all(), false).count();
    });
    assert_eq!(outcome, Ok(()), "{what}");
}

fn list_files(dir: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list_files(&path, files)
        } else {
            files.push(path)
        }
    }
}

macro_rules! suite {
    ($engine:ident, $kind:expr) => {
        mod $engine {
            use super::*;

            fn with_engine(test: impl FnOnce(Arc<dyn Engine>)) {
                let dir = test_dir();
                test(open_in($kind, dir.path()));
            }

            #[test]
            fn put_delete_get() {
                with_engine(|engine| super::put_delete_get(&*engine));
            }
            #[test]
            fn scans_and_bounds() {
                with_engine(|engine| super::scans_and_bounds(&*engine));
            }
            #[test]
            fn snapshots_do_not_change() {
                with_engine(|engine| super::snapshots_do_not_change(&engine));
            }
            #[test]
            fn batches_are_seen_whole() {
                with_engine(|engine| super::batches_are_seen_whole(&engine));
            }
            #[test]
            fn gets_see_batches_whole() {
                with_engine(|engine| super::gets_see_batches_whole(&engine));
            }
            #[test]
            fn reopens_after_flush() {
                super::reopens_after_flush($kind, test_dir().path());
            }
            #[test]
            fn agrees_with_a_model() {
                for seed in 0..4 {
                    super::agrees_with_a_model($kind, test_dir().path(), seed);
                }
            }
            #[test]
            fn survives_damage() {
                for seed in 0..24 {
                    super::survives_damage($kind, seed);
                }
            }
        }
    };
}

suite!(memory, EngineKind::Memory);
suite!(fjall, EngineKind::Fjall);
suite!(sled, EngineKind::Sled);

#[test]
fn fjall_memory_is_bounded() {
    memory_is_bounded(EngineKind::Fjall, test_dir().path());
}

#[test]
fn sled_memory_is_bounded() {
    memory_is_bounded(EngineKind::Sled, test_dir().path());
}
