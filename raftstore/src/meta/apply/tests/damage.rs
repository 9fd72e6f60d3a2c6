//! What is read back may be anything.

use bytes::Bytes;
use proptest::prelude::*;

use super::support::*;
use crate::kv::{Batch, Engine, KvError, MemoryEngine, prefix_range};
use crate::meta::*;

/// A state with at least a row in every table but the one of answers.
pub(super) fn full() -> Bench {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    bench.write(file, WriteAt::Append, b"bytes").1.unwrap();
    bench.submit(set_xattr(file, "user.x", b"y")).unwrap();
    bench.mkfile(ROOT_INO, "gone");
    bench.unlink(ROOT_INO, "gone").unwrap();
    let owner = LockOwner {
        session: bench.local.session(),
        token: 1,
        kind: LockKind::Posix,
    };
    let lock = Lock {
        owner,
        pid: 1,
        exclusive: true,
        start: 0,
        end: 9,
    };
    bench.submit(Op::Lock { ino: file, lock }).unwrap();
    bench
        .local
        .system(Op::SetPlacement {
            group: 0,
            nodes: vec![1],
        })
        .unwrap()
        .1
        .unwrap();
    bench
        .local
        .system(Op::AddToken {
            hash: [1; 32],
            valid_s: 5,
        })
        .unwrap()
        .1
        .unwrap();
    let limits = ProjectLimits {
        bytes: 1 << 20,
        inodes: 7,
    };
    for name in ["volume", "removed"] {
        let volume = bench.mkvolume(name, limits);
        let inside = bench.mkfile(volume.root, "inside");
        bench.write(inside, WriteAt::Append, b"more").1.unwrap();
    }
    let (volume, node) = ("volume".to_owned(), 1);
    let (name, id) = ("snapshot".to_owned(), "user".to_owned());
    bench
        .volume(VolumeOp::Snapshot {
            volume: volume.clone(),
            name,
        })
        .unwrap();
    bench.volume(VolumeOp::Hold { volume, node, id }).unwrap();
    let name = "removed".to_owned();
    let (keep, force) = (None, false);
    bench.volume(VolumeOp::Remove { name, keep, force }).unwrap();
    bench
}

/// Asks for everything; what fails must say that the store is damaged.
fn ask(reader: &Reader) -> Vec<KvError> {
    let mut errors = Vec::new();
    let mut note = |error: Option<KvError>| errors.extend(error);
    for ino in 0..4 {
        note(reader.inode(ino).err());
        note(reader.list(ino, 0, 9).err());
        note(reader.xattr_names(ino).err());
        note(reader.xattr(ino, b"user.x").err());
        note(reader.extents(ino, 0, u64::MAX, 9).err());
        note(reader.locks(ino).err());
    }
    note(reader.lookup(ROOT_INO, b"file").err());
    note(reader.usage().err());
    note(reader.cluster().err());
    note(reader.nodes().err());
    note(reader.placement(0).err());
    note(reader.sessions().err());
    note(reader.chunks(None, 9).err());
    note(reader.live_payloads(0, 9).err());
    note(reader.orphans(0, 9).err());
    note(reader.tokens().err());
    note(reader.projects().err());
    note(reader.project(1).err());
    note(reader.volume("volume").err());
    note(reader.volumes().err());
    note(reader.snapshot("volume", "snapshot").err());
    note(reader.snapshots(None).err());
    note(reader.holds("volume").err());
    note(reader.has_doomed().err());
    errors
}

fn copy_of(bench: &Bench, change: impl Fn(usize, Bytes, Bytes) -> (Bytes, Bytes)) -> Reader {
    let engine = MemoryEngine::new();
    let mut batch = Batch::default();
    for (i, pair) in bench.reader().kv().scan(prefix_range(b""), false).enumerate() {
        let (key, value) = pair.unwrap();
        let (key, value) = change(i, key, value);
        batch.changes.push((key, Some(value)));
    }
    engine.write(batch).unwrap();
    Reader::new(engine.snapshot().unwrap())
}

#[test]
fn whole_values_decode() {
    assert_eq!(ask(&copy_of(&full(), |_, key, value| (key, value))).len(), 0);
}

#[test]
fn a_value_of_an_unknown_version_is_told_apart() {
    let reader = copy_of(&full(), |_, key, value| {
        let mut value = value.to_vec();
        value[0] = 200;
        (key, value.into())
    });
    match reader.inode(ROOT_INO) {
        Err(KvError::Damaged(what)) => assert!(what.contains("version 200"), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn cut_values_are_damage() {
    let bench = full();
    let reader = copy_of(&bench, |_, key, value| (key, value.slice(..value.len() - 1)));
    assert!(ask(&reader).len() > 10);
    let reader = copy_of(&bench, |_, key, value| (key, [&value[..], &[0]].concat().into()));
    assert!(ask(&reader).len() > 10);
}

proptest! {
    #![proptest_config(config())]

    /// No panic, no endless work: an answer or a typed error, from the reader, from `apply` and from the checker.
    #[test]
    fn garbage_is_survived(noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..40)) {
        let bench = full();
        let reader = copy_of(&bench, |i, key, value| {
            let noise = &noise[i % noise.len()];
            match noise.first() {
                Some(first) if first % 4 == 0 => (key, Bytes::copy_from_slice(&noise[1..])),
                Some(first) if first % 4 == 1 => (key, [&[1], &noise[1..]].concat().into()),
                Some(first) if first % 4 == 2 => {
                    let mut flipped = value.to_vec();
                    for (at, bits) in noise[1..].iter().zip(noise.iter().rev()) {
                        let at = usize::from(*at) % value.len();
                        flipped[at] ^= bits;
                    }
                    (key, flipped.into())
                }
                _ => (key, value),
            }
        });
        for error in ask(&reader) {
            prop_assert!(matches!(error, KvError::Damaged(_)), "{:?}", error);
        }
        let _ = testing::broken_rules(&reader);
        let damaged = reader.kv();
        for op in [
            Op::Unlink { parent: ROOT_INO, name: "file".into() },
            Op::Rmdir { parent: ROOT_INO, name: "file".into() },
            Op::SetAttr { ino: 2, change: AttrChange { size: Some(1), ..AttrChange::default() } },
            Op::Reap { inodes: vec![2, 3] },
            Op::RemoveNode { node: 1 },
            Op::OpenSession { node: 1 },
            Op::AddNode { name: "local".into(), listen: "x".into(), token_hash: Some([1; 32]) },
            Op::Link { ino: 2, parent: ROOT_INO, name: "y".into() },
            Op::Fallocate { ino: 2, what: Fallocate::Allocate, offset: 0, len: 1 << 40 },
            Op::Fallocate { ino: 2, what: Fallocate::PunchHole, offset: 1, len: 2 },
            Op::CopyRange { source: 2, source_offset: 1, target: 2, target_offset: 100, len: u64::MAX },
            set_xattr(2, "user.x", b"z"),
            Op::Volume(VolumeOp::Prune { entries_max: 9 }),
            Op::Volume(VolumeOp::Snapshot { volume: "volume".into(), name: "x".into() }),
            Op::Volume(VolumeOp::RemoveSnapshot { volume: "volume".into(), name: "snapshot".into() }),
            Op::Volume(VolumeOp::Restore { volume: "volume".into(), snapshot: "snapshot".into(), force: true }),
            Op::Volume(VolumeOp::Remove { name: "volume".into(), keep: None, force: true }),
            Op::Volume(VolumeOp::ReleaseAll { node: 1 }),
            Op::Volume(create_volume("x", VolumeOptions::default(), Some(TreeSource::Volume("volume".into())))),
            Op::Rename {
                parent: ROOT_INO,
                name: "file".into(),
                new_parent: ROOT_INO,
                new_name: "x".into(),
                mode: RenameMode::Replace,
            },
        ] {
            let proposal = Proposal {
                session: SessionId::SYSTEM,
                seq: 0,
                ack_floor: 0,
                chunk_floor: 0,
                time: Default::default(),
                op,
                payload: Bytes::new(),
            };
            let answer = crate::meta::apply::apply(&mut Txn::new(damaged), 99, &proposal, &mut Vec::new());
            if let Err(error) = answer {
                prop_assert!(matches!(error, KvError::Damaged(_)), "{:?}", error);
            }
        }
    }

    #[test]
    fn any_bytes_may_come_as_a_list(list in prop::collection::vec(any::<u8>(), 0..60), versioned in any::<bool>()) {
        let bench = Bench::new();
        let list = if versioned { [&[2, 0, 0, 0], &list[..]].concat() } else { list };
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            let _ = bench.submit(set_xattr(ROOT_INO, name, &list));
        }
        bench.check();
    }
}
