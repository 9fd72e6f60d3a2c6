//! Random operations on volumes and on what is in them: the counters stay exact, and snapshots stay what they were.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::*;
use crate::meta::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What a tree shows: by path the size, the number of names, and where the bytes are.
type Shown = BTreeMap<String, (FileKind, u64, u32, Vec<Extent>)>;

fn show(bench: &Bench, root: Ino) -> Shown {
    let mut shown = Shown::new();
    let mut directories = vec![(root, String::new())];
    while let Some((directory, path)) = directories.pop() {
        for item in bench.reader().list(directory, 0, usize::MAX).unwrap() {
            let path = format!("{path}/{}", item.name.escape_ascii());
            let inode = bench.inode(item.entry.ino);
            let what = (inode.kind, inode.size, inode.nlink, bench.extents(inode.ino));
            if inode.kind == FileKind::Directory {
                directories.push((inode.ino, path.clone()));
            }
            shown.insert(path, what);
        }
    }
    shown
}

struct Random {
    rng: StdRng,
    bench: Bench,
    inodes: Vec<Ino>,
    snapshots: BTreeMap<(String, String), Shown>,
    /// How often each kind of refusal was given.
    refusals: BTreeMap<String, u32>,
}

impl Random {
    fn name(&mut self) -> String {
        NAMES[self.rng.random_range(0..NAMES.len())].into()
    }

    fn ino(&mut self) -> Ino {
        self.inodes[self.rng.random_range(0..self.inodes.len())]
    }

    fn source(&mut self) -> TreeSource {
        let (volume, name) = (self.name(), self.name());
        if self.rng.random() {
            TreeSource::Volume(name)
        } else {
            TreeSource::Snapshot { volume, name }
        }
    }

    fn volume_op(&mut self) -> VolumeOp {
        let (name, other) = (self.name(), self.name());
        match self.rng.random_range(0..12) {
            0..4 => {
                let limits = ProjectLimits {
                    bytes: self.rng.random_range(0..3) * 3000,
                    inodes: self.rng.random_range(0..2) * 8,
                };
                let source = self.rng.random_ratio(1, 3).then(|| self.source());
                let options = VolumeOptions {
                    limits,
                    keep: self.rng.random_ratio(1, 4),
                    ..VolumeOptions::default()
                };
                create_volume(&name, options, source)
            }
            4 => VolumeOp::Change {
                name,
                change: VolumeChange {
                    bytes: Some(self.rng.random_range(0..2000)),
                    ..VolumeChange::default()
                },
            },
            5 => VolumeOp::Remove {
                name,
                keep: None,
                force: self.rng.random(),
            },
            6 | 7 => VolumeOp::Snapshot {
                volume: name,
                name: other,
            },
            8 => VolumeOp::RemoveSnapshot {
                volume: name,
                name: other,
            },
            9 => VolumeOp::Restore {
                volume: name,
                snapshot: other,
                force: true,
            },
            10 => VolumeOp::SetQuota {
                directory: self.ino(),
                limits: ProjectLimits {
                    bytes: self.rng.random_range(0..3000),
                    inodes: 0,
                },
            },
            _ => VolumeOp::Hold {
                volume: name,
                node: 1,
                id: other,
            },
        }
    }

    fn op(&mut self) -> (Op, Bytes) {
        let mut payload = Bytes::new();
        let op = match self.rng.random_range(0..100) {
            0..25 => Op::Create {
                parent: self.ino(),
                name: self.name().into(),
                new: NewInode {
                    kind: if self.rng.random_ratio(2, 5) {
                        FileKind::Directory
                    } else {
                        FileKind::Regular
                    },
                    mode: 0o755,
                    umask: 0,
                    uid: 0,
                    gid: 0,
                    rdev: 0,
                    target: Bytes::new(),
                },
                exclusive: true,
                ino: None,
            },
            25..45 => {
                payload = Bytes::from(vec![1; self.rng.random_range(0..900)]);
                Op::Write {
                    ino: self.ino(),
                    at: WriteAt::Offset(self.rng.random_range(0..1000)),
                    data: Data::Inline,
                    kill_suid_sgid: false,
                }
            }
            45..52 => Op::SetAttr {
                ino: self.ino(),
                change: AttrChange {
                    size: Some(self.rng.random_range(0..1200)),
                    ..AttrChange::default()
                },
            },
            52..60 => Op::Rename {
                parent: self.ino(),
                name: self.name().into(),
                new_parent: self.ino(),
                new_name: self.name().into(),
                mode: [RenameMode::Replace, RenameMode::Exchange][self.rng.random_range(0..2)],
            },
            60..64 => Op::Link {
                ino: self.ino(),
                parent: self.ino(),
                name: self.name().into(),
            },
            64..68 => Op::Unlink {
                parent: self.ino(),
                name: self.name().into(),
            },
            68..70 => Op::Rmdir {
                parent: self.ino(),
                name: self.name().into(),
            },
            70..73 => Op::CopyRange {
                source: self.ino(),
                source_offset: self.rng.random_range(0..500),
                target: self.ino(),
                target_offset: self.rng.random_range(0..900),
                len: 300,
            },
            _ => Op::Volume(self.volume_op()),
        };
        (op, payload)
    }

    fn step(&mut self) {
        if self.rng.random_ratio(1, 20) {
            let entries_max = self.rng.random_range(0..4);
            let prune = Op::Volume(VolumeOp::Prune { entries_max });
            self.bench.local.system(prune).unwrap().1.unwrap();
            let inodes = self.bench.reader().orphans(0, 3).unwrap();
            self.bench.local.system(Op::Reap { inodes }).unwrap().1.unwrap();
            return;
        }
        let (op, payload) = self.op();
        match self.bench.local.submit(op.clone(), payload).unwrap().1 {
            Ok(Reply::Inode(inode)) => self.inodes.push(inode.ino),
            Ok(Reply::Volume(volume)) => {
                self.inodes.push(volume.root);
                let below = self.bench.reader().list(volume.root, 0, 9).unwrap();
                self.inodes.extend(below.iter().map(|item| item.entry.ino));
            }
            Ok(Reply::Snapshot(snapshot)) => {
                let volume = self.bench.reader().volume(&snapshot.volume).unwrap().unwrap();
                let shown = show(&self.bench, snapshot.root);
                // Names that a file has elsewhere do not count in a copy.
                let without_links = |shown: &Shown| -> Vec<_> {
                    let part = |(path, what): (&String, &(FileKind, u64, u32, Vec<Extent>))| {
                        (path.clone(), what.0, what.1, what.3.clone())
                    };
                    shown.iter().map(part).collect()
                };
                let volume_shown = show(&self.bench, volume.root);
                assert_eq!(without_links(&shown), without_links(&volume_shown));
                self.inodes.push(snapshot.root);
                self.snapshots.insert((snapshot.volume, snapshot.name), shown);
            }
            Ok(_) => {
                if let Op::Volume(VolumeOp::RemoveSnapshot { volume, name }) = op {
                    self.snapshots.remove(&(volume, name));
                }
            }
            Err(MetaError::Malformed(what)) => panic!("{op:?}: {what}"),
            Err(error) => {
                let kind = format!("{error:?}");
                let kind = kind.split(['{', '"']).next().unwrap_or_default().to_owned();
                *self.refusals.entry(kind).or_default() += 1;
            }
        }
    }

    fn check(&self) {
        self.bench.check();
        for ((volume, name), shown) in &self.snapshots {
            let snapshot = self.bench.reader().snapshot(volume, name).unwrap().unwrap();
            assert_eq!(show(&self.bench, snapshot.root), *shown, "{volume}/{name}");
        }
    }
}

struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with the seed {}", self.0);
        }
    }
}

#[test]
fn counters_stay_exact_and_snapshots_stay_what_they_were() {
    let mut refusals: BTreeMap<String, u32> = BTreeMap::new();
    let mut snapshots = 0;
    for seed in 0..60 {
        let _seed = Seed(seed);
        let mut random = Random {
            rng: StdRng::seed_from_u64(seed),
            bench: Bench::new(),
            inodes: vec![ROOT_INO],
            snapshots: BTreeMap::new(),
            refusals: BTreeMap::new(),
        };
        for step in 0..250 {
            random.step();
            if step % 10 == 0 {
                random.check();
            }
        }
        random.check();
        snapshots += random.snapshots.len();
        for (kind, count) in random.refusals {
            *refusals.entry(kind).or_default() += count;
        }
    }
    for kind in [
        "QuotaExceeded",
        "CrossesProjects",
        "ReadOnly",
        "Busy",
        "BadPlace",
        "InUse",
    ] {
        let given: u32 = refusals
            .iter()
            .filter(|(refusal, _)| refusal.contains(kind))
            .map(|(_, count)| count)
            .sum();
        assert!(given > 0, "{kind} was never given: {refusals:?}");
    }
    assert!(snapshots > 10, "only {snapshots} snapshots");
}
