use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

use openraft::Membership;
use openraft::vote::RaftLeaderId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::frame::{Frame, Totals};
use super::*;
use crate::disk::{CrashMode, Disk, RealDisk, SimDisk};
use crate::kv::{Batch, Engine, EngineKind, MemoryEngine, Pair, StoreOptions, test_dir};
use crate::meta::{MetaStore, OpenedStore};
use crate::raft::{LogId, Member, StoredMembership};

type Contents = BTreeMap<Bytes, Bytes>;

fn log_id(index: u64) -> LogId {
    let leader = openraft::impls::leader_id_std::LeaderId {
        term: 3,
        voted_for: 1,
    };
    LogId {
        leader_id: leader.to_committed(),
        index,
    }
}

fn meta(index: u64) -> SnapshotMeta {
    let member = Member {
        name: "one".into(),
        listen: "10.0.0.1:7000".into(),
    };
    let membership = Membership::new(vec![[1].into()], BTreeMap::from([(1, member)])).unwrap();
    SnapshotMeta {
        last_log_id: Some(log_id(index)),
        last_membership: StoredMembership::new(Some(log_id(1)), membership),
    }
}

/// A snapshot with `pairs` random pairs, one of them larger than a frame.
fn live(index: u64, pairs: u32, seed: u64) -> (LiveSnapshot, Contents) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut contents = Contents::new();
    for n in 0..pairs {
        let key = Bytes::from(format!("{:04x}-{n}", rng.random::<u16>()));
        contents.insert(key, Bytes::from(vec![rng.random(); rng.random_range(0..400)]));
    }
    contents.insert(Bytes::from_static(b"large"), Bytes::from(vec![5; 300 << 10]));
    let engine = MemoryEngine::new();
    let mut changes: Vec<_> = contents
        .iter()
        .map(|(key, value)| (key.clone(), Some(value.clone())))
        .collect();
    changes.push((
        Bytes::from_static(b"\0secret of the sender"),
        Some(Bytes::from_static(b"x")),
    ));
    engine.write(Batch { changes }).unwrap();
    (
        LiveSnapshot::new(meta(index), engine.snapshot().unwrap()),
        contents,
    )
}

fn contents(read: &dyn Read) -> Contents {
    read.scan((Bound::Included(vec![1]), Bound::Unbounded), false)
        .map(Result::unwrap)
        .collect()
}

fn frames(snapshot: &LiveSnapshot) -> Vec<Bytes> {
    snapshot.sender().map(Result::unwrap).collect()
}

fn feed(mut receiver: SnapshotReceiver, frames: &[Bytes]) -> Result<ReceivedSnapshot, SnapshotError> {
    frames.iter().try_for_each(|frame| receiver.feed(frame))?;
    receiver.finish()
}

fn install(store: &MetaStore, snapshot: &LiveSnapshot) {
    let received = feed(store.receiver().unwrap(), &frames(snapshot)).unwrap();
    store.install(received).unwrap();
}

fn open(kind: EngineKind, root: &Path) -> MetaStore {
    MetaStore::open(
        Arc::new(RealDisk),
        StoreOptions {
            kind,
            ..StoreOptions::new(root)
        },
    )
    .unwrap()
}

fn names(root: &Path) -> Vec<String> {
    RealDisk.list(root).unwrap()
}

#[test]
fn a_stream_is_the_whole_state_in_bounded_frames() {
    let (snapshot, contents) = live(7, 5000, 1);
    let frames = frames(&snapshot);
    assert!(frames.len() > 5);
    let mut found = Contents::new();
    for (number, frame) in (0..).zip(&frames) {
        match Frame::decode(frame, number).unwrap() {
            Frame::Header(header) => assert_eq!((number, *header), (0, meta(7))),
            Frame::Pairs(pairs) => {
                assert!(frame.len() <= FRAME_BYTES_MAX || pairs.len() == 1);
                found.extend(pairs);
            }
            Frame::End(totals) => assert_eq!(totals.pairs, contents.len() as u64),
        }
    }
    assert_eq!(found, contents);
}

#[test]
fn every_engine_takes_in_what_any_engine_sends() {
    let dir = test_dir();
    for (index, kind) in EngineKind::ALL.into_iter().enumerate() {
        let root = dir.path().join(format!("from-{kind}"));
        let source = open(kind, &root);
        let (seed, expected) = live(7, 1500, index as u64);
        install(&source, &seed);
        let snapshot = source.live_snapshot().unwrap();
        assert_eq!(*snapshot.meta(), meta(7));
        for to in EngineKind::ALL {
            let root = dir.path().join(format!("{kind}-to-{to}"));
            {
                let target = open(to, &root);
                install(&target, &snapshot);
                assert_eq!(contents(&*target.read()), expected, "{kind} to {to}");
                assert_eq!(*target.applied().borrow(), 7);
            }
            let reopened = open(to, &root);
            assert_eq!(contents(&*reopened.read()), expected, "{kind} to {to}, reopened");
            assert_eq!(reopened.applied_state().to_meta(), meta(7));
            assert_eq!(names(&root), ["CURRENT", "gen-2"]);
        }
    }
}

#[test]
fn another_engine_in_the_configuration_converts_the_store() {
    let dir = test_dir();
    let (snapshot, expected) = live(9, 800, 3);
    install(&open(EngineKind::Sled, dir.path()), &snapshot);
    for kind in [EngineKind::Fjall, EngineKind::Memory, EngineKind::Sled] {
        let store = open(kind, dir.path());
        assert_eq!(contents(&*store.read()), expected);
        assert_eq!(store.applied_state().to_meta(), meta(9));
        drop(store);
        assert_eq!(names(dir.path()).len(), 2);
        assert!(
            std::fs::read_to_string(dir.path().join("CURRENT"))
                .unwrap()
                .contains(kind.name())
        );
    }
}

#[test]
fn bad_streams_are_refused_and_change_nothing() {
    let dir = test_dir();
    let store = open(EngineKind::Memory, dir.path());
    let (old, expected) = live(3, 100, 4);
    install(&store, &old);
    let good = frames(&live(8, 3000, 5).0);
    let last = good.len() - 1;
    let refuse = |frames: &[Bytes]| -> SnapshotError {
        let error = feed(store.receiver().unwrap(), frames)
            .err()
            .expect("a bad stream was taken in");
        assert_eq!(contents(&*store.read()), expected);
        assert_eq!(names(dir.path()), ["CURRENT", "gen-2"]);
        error
    };
    for cut in 0..=last {
        assert!(matches!(refuse(&good[..cut]), SnapshotError::Truncated(n) if n as usize == cut));
    }
    let changed = |change: &dyn Fn(&mut Vec<Bytes>)| {
        let mut frames = good.clone();
        change(&mut frames);
        frames
    };
    use SnapshotError as E;
    assert!(matches!(
        refuse(&changed(&|frames| frames.swap(1, 2))),
        E::OutOfOrder {
            expected: 1,
            found: 2
        }
    ));
    assert!(matches!(
        refuse(&changed(&|frames| drop(frames.remove(2)))),
        E::OutOfOrder { .. }
    ));
    assert!(matches!(
        refuse(&changed(&|frames| frames.insert(2, good[2].clone()))),
        E::OutOfOrder { .. }
    ));
    assert!(matches!(
        refuse(&changed(&|frames| frames[1] = Bytes::new())),
        E::Malformed(_)
    ));
    assert!(matches!(
        refuse(&changed(&|frames| frames.push(good[last].clone()))),
        E::OutOfOrder { .. }
    ));
    let mut rng = StdRng::seed_from_u64(6);
    for number in 0..good.len() {
        let at = rng.random_range(0..good[number].len());
        let frames = changed(&|frames| {
            let mut frame = frames[number].to_vec();
            frame[at] ^= 4;
            frames[number] = frame.into();
        });
        assert!(
            matches!(refuse(&frames), E::Corrupted(n) if n as usize == number),
            "byte {at} of {number}"
        );
    }
    // Well-formed frames that make no sense together.
    let pair = |key: &'static str| (Bytes::from_static(key.as_bytes()), Bytes::new());
    let numbered = |frames: Vec<Frame>| -> Vec<Bytes> {
        (0..)
            .zip(frames)
            .map(|(number, frame): (u32, Frame)| frame.encode(number).unwrap())
            .collect()
    };
    let header = || Frame::Header(Box::new(meta(8)));
    for frames in [
        vec![Frame::Pairs(vec![pair("a")])],
        vec![header(), header()],
        vec![header(), Frame::Pairs(vec![pair("b"), pair("a")])],
        vec![
            header(),
            Frame::Pairs(vec![pair("a")]),
            Frame::Pairs(vec![pair("a")]),
        ],
        vec![header(), Frame::Pairs(vec![pair("\0applied")])],
        vec![header(), Frame::Pairs(vec![pair("")])],
        vec![
            header(),
            Frame::Pairs(vec![pair("a")]),
            Frame::End(Totals { pairs: 2, bytes: 1 }),
        ],
        vec![
            header(),
            Frame::End(Totals::default()),
            Frame::Pairs(vec![pair("a")]),
        ],
    ] {
        let error = refuse(&numbered(frames.clone()));
        assert!(matches!(error, E::Malformed(_)), "{frames:?}: {error}");
    }
    install(&store, &live(8, 3000, 5).0);
    assert_eq!(*store.applied().borrow(), 8);
}

#[test]
fn a_later_version_is_refused_by_name() {
    let (snapshot, _) = live(8, 1, 5);
    let mut header = frames(&snapshot)[0].to_vec();
    header.truncate(header.len() - 4);
    header[9] = 9;
    let crc = crc32fast::hash(&header);
    header.extend_from_slice(&crc.to_le_bytes());
    let mut receiver = MetaStore::in_memory().unwrap().receiver().unwrap();
    let error = receiver.feed(&header.into()).unwrap_err();
    assert!(
        matches!(error, SnapshotError::Unsupported { found: 9, known: 1 }),
        "{error}"
    );
}

#[test]
fn decoding_survives_garbage() {
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..20_000 {
        let mut frame: Vec<u8> = (0..rng.random_range(0..80)).map(|_| rng.random()).collect();
        if frame.len() >= 5 && rng.random() {
            frame[0] = rng.random_range(0..5);
            frame[1..5].fill(0);
        }
        if rng.random() {
            let crc = crc32fast::hash(&frame);
            frame.extend_from_slice(&crc.to_le_bytes());
        }
        let frame = Bytes::from(frame);
        if let Ok(Frame::Pairs(pairs)) = Frame::decode(&frame, 0) {
            let bytes: usize = pairs
                .iter()
                .map(|(key, value): &Pair| key.len() + value.len() + 8)
                .sum();
            assert_eq!(bytes + 9, frame.len(), "round {round}");
        }
    }
}

#[test]
fn readers_go_on_while_a_snapshot_is_installed() {
    for kind in EngineKind::ALL {
        let dir = test_dir();
        let store = open(kind, dir.path());
        let states: Vec<(LiveSnapshot, Contents)> = (0..4).map(|n| live(10 + n, 700, n)).collect();
        install(&store, &states[0].0);
        let pinned = store.live_snapshot().unwrap();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let read = store.read();
                        let mut seen = 0;
                        let mut rounds = 0;
                        while seen < 3 {
                            // A scan is of one state, which never goes back.
                            let found = contents(&*read);
                            let state = states.iter().position(|(_, expected)| *expected == found);
                            let state = state.expect("a scan shows none of the states");
                            assert!(state >= seen);
                            seen = state;
                            rounds += 1;
                        }
                        rounds
                    })
                })
                .collect();
            for (snapshot, _) in &states[1..] {
                install(&store, snapshot);
            }
            for reader in readers {
                assert!(reader.join().unwrap() > 0);
            }
        });
        // The old state's files stay for as long as it is read.
        let from_pinned: Contents = frames(&pinned)
            .iter()
            .zip(0..)
            .filter_map(|(frame, number)| match Frame::decode(frame, number).unwrap() {
                Frame::Pairs(pairs) => Some(pairs),
                _ => None,
            })
            .flatten()
            .collect();
        assert!(from_pinned == states[0].1, "{kind}");
        assert_eq!(names(dir.path()), ["CURRENT", "gen-2", "gen-5"]);
        drop(pinned);
        assert_eq!(names(dir.path()), ["CURRENT", "gen-5"]);
    }
}

/// A power cut at every sync of an install, before and after it took effect: the old state or the new one is found,
/// whole.
#[test]
fn a_power_cut_during_an_install_leaves_one_whole_state() {
    let root = Path::new("/meta");
    let options = || StoreOptions {
        kind: EngineKind::Memory,
        ..StoreOptions::new(root)
    };
    let open = |disk: &SimDisk| MetaStore::open(Arc::new(disk.clone()), options());
    let disk = SimDisk::new();
    let ((old, old_contents), (new, new_contents)) = (live(5, 200, 1), live(6, 300, 2));
    {
        let store = open(&disk).unwrap();
        install(&store, &old);
        store.flush().unwrap();
    }
    let attempt = |disk: &SimDisk| -> Result<(), KvError> {
        let store = open(disk)?;
        let received =
            feed(store.receiver()?, &frames(&new)).map_err(|error| KvError::Io(error.to_string()))?;
        store.install(received)
    };
    let whole = disk.fork();
    let before = whole.counters().syncs;
    attempt(&whole).unwrap();
    let syncs = whole.counters().syncs - before;
    assert!(syncs > 4, "{syncs}");
    let mut found = [0, 0];
    for n in 0..syncs {
        for mode in [CrashMode::Before, CrashMode::After] {
            for seed in 0..4 {
                let trial = disk.fork();
                trial.crash_at_sync(n + 1, mode);
                let outcome = attempt(&trial);
                let what = format!("sync {n}, {mode:?}, seed {seed}, {outcome:?}");
                assert!(trial.power_is_off(), "{what}");
                let crashed = trial.crash(seed);
                let store = open(&crashed).unwrap_or_else(|error| panic!("{what}: {error}"));
                let contents = contents(&*store.read());
                let is_new = contents == new_contents;
                assert!(is_new || contents == old_contents, "{what}");
                assert_eq!(
                    store.applied_state().index(),
                    if is_new { 6 } else { 5 },
                    "{what}"
                );
                assert_eq!(crashed.list(root).unwrap().len(), 2, "{what}");
                // It works, and takes the next snapshot.
                drop(store);
                attempt(&crashed).unwrap();
                found[usize::from(is_new)] += 1;
            }
        }
    }
    assert!(found[0] > 0 && found[1] > 0, "{found:?}");
}

#[test]
fn damage_is_told_and_a_peers_state_repairs_it() {
    let (snapshot, _) = live(5, 400, 1);
    let (peers, expected) = live(9, 500, 2);
    for kind in EngineKind::ALL {
        for damage in ["CURRENT", "CURRENT gone", "engine gone", "engine files"] {
            let dir = test_dir();
            let root = dir.path();
            install(&open(kind, root), &snapshot);
            harm(root, damage);
            let what = format!("{kind}, {damage}");
            let options = || StoreOptions {
                kind,
                ..StoreOptions::new(root)
            };
            let opened = MetaStore::open_or_damaged(Arc::new(RealDisk), options()).unwrap();
            let damaged = match opened {
                OpenedStore::Damaged(damaged) => damaged,
                // Nothing is left that could tell: what Raft has purged tells.
                OpenedStore::Ready(store) if damage == "CURRENT gone" => match store.require_applied(4) {
                    OpenedStore::Damaged(damaged) => damaged,
                    OpenedStore::Ready(_) => panic!("{what}: taken for current"),
                },
                OpenedStore::Ready(_) => panic!("{what}: not found"),
            };
            assert!(
                matches!(damaged.why(), KvError::Damaged(_)),
                "{what}: {}",
                damaged.why()
            );
            let received = feed(damaged.receiver().unwrap(), &frames(&peers)).unwrap();
            let store = damaged.replace_with(received).unwrap();
            assert_eq!(contents(&*store.read()), expected, "{what}");
            drop(store);
            assert_eq!(names(root).len(), 2, "{what}: {:?}", names(root));
            assert_eq!(open(kind, root).applied_state().to_meta(), meta(9), "{what}");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the test damages files")]
fn harm(root: &Path, damage: &str) {
    match damage {
        "CURRENT" => std::fs::write(root.join("CURRENT"), "bramble-metadata 1\nengine fjall\n").unwrap(),
        "CURRENT gone" => std::fs::remove_file(root.join("CURRENT")).unwrap(),
        "engine gone" => std::fs::remove_dir_all(root.join("gen-2")).unwrap(),
        _ => overwrite(&root.join("gen-2")),
    }
}

#[expect(clippy::disallowed_methods, reason = "the test damages files")]
fn overwrite(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            overwrite(&path);
        } else {
            let len = std::fs::metadata(&path).unwrap().len().min(1 << 20);
            std::fs::write(&path, vec![0xa5; usize::try_from(len).unwrap()]).unwrap();
        }
    }
}

#[test]
fn a_store_of_a_later_version_is_left_alone() {
    let dir = test_dir();
    install(&open(EngineKind::Memory, dir.path()), &live(5, 10, 1).0);
    let later = "bramble-metadata 99\nengine quantum\n";
    #[expect(clippy::disallowed_methods, reason = "the test forges a file")]
    std::fs::write(dir.path().join("CURRENT"), later).unwrap();
    let opened = MetaStore::open_or_damaged(Arc::new(RealDisk), StoreOptions::new(dir.path()));
    assert!(matches!(opened, Err(KvError::Unsupported(text)) if text.contains("99")));
    assert_eq!(names(dir.path()), ["CURRENT", "gen-2"]);
    assert_eq!(
        std::fs::read_to_string(dir.path().join("CURRENT")).unwrap(),
        later
    );
}

#[tokio::test]
async fn streams_of_frames_carry_a_snapshot() {
    let (snapshot, expected) = live(8, 4000, 3);
    let store = MetaStore::in_memory().unwrap();
    let received = receive(store.receiver().unwrap(), snapshot.frames())
        .await
        .unwrap();
    assert_eq!(*received.meta(), meta(8));
    store.install(received).unwrap();
    assert_eq!(contents(&*store.read()), expected);
    let broken = snapshot.frames().take(3).chain(futures::stream::once(async {
        Err(SnapshotError::Transfer("the link is down".into()))
    }));
    let error = receive(store.receiver().unwrap(), broken).await.err().unwrap();
    assert!(
        matches!(&error, SnapshotError::Transfer(text) if text.contains("link")),
        "{error}"
    );
}
