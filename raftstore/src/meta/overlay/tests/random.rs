//! Random operations on two stores, one of which is behind an overlay.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::twin::Twin;
use crate::clock::Timestamp;
use crate::meta::*;

/// Tells the seed if the test fails while it is held.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with the seed {}", self.0);
        }
    }
}

struct Random {
    rng: StdRng,
    sec: i64,
    filler: u8,
}

impl Random {
    /// Clocks that run, stand still, and are set back.
    fn time(&mut self) -> Timestamp {
        self.sec += match self.rng.random_range(0..10) {
            0..6 => 0,
            6..9 => 1,
            _ => -2,
        };
        let nsec = self.rng.random_range(0..1000);
        Timestamp { sec: self.sec, nsec }
    }

    fn name(&mut self) -> Bytes {
        let names = ["a", "b", "c", "dd", "\u{fe}", "longer name"];
        Bytes::from_static(names.choose(&mut self.rng).unwrap().as_bytes())
    }

    fn ino(&mut self, twin: &Twin) -> Ino {
        self.rng.random_range(twin.inodes())
    }

    /// An inode that is a directory as a rule.
    fn parent(&mut self, twin: &Twin) -> Ino {
        let reader = twin.first.local.reader();
        for _ in 0..20 {
            let ino = self.ino(twin);
            if matches!(reader.inode(ino), Ok(Some(inode)) if inode.kind == FileKind::Directory) {
                return ino;
            }
        }
        ROOT_INO
    }

    /// An inode that is a file as a rule.
    fn file(&mut self, twin: &Twin) -> Ino {
        let reader = twin.first.local.reader();
        let mut ino = self.ino(twin);
        for _ in 0..20 {
            if matches!(reader.inode(ino), Ok(Some(inode)) if inode.kind == FileKind::Regular) {
                break;
            }
            ino = self.ino(twin);
        }
        ino
    }

    fn mode(&mut self) -> u32 {
        let special = [0, 0o1000, 0o2000, 0o4000, 0o6000].choose(&mut self.rng);
        self.rng.random_range(0..=0o777) | special.unwrap()
    }

    fn create(&mut self, twin: &mut Twin) -> Op {
        let kind = match self.rng.random_range(0..10) {
            0..5 => FileKind::Regular,
            5..9 => FileKind::Directory,
            _ => FileKind::Symlink,
        };
        let target = if kind == FileKind::Symlink { "x" } else { "" };
        let new = NewInode {
            kind,
            mode: self.mode(),
            umask: 0o022,
            uid: self.rng.random_range(0..3),
            gid: self.rng.random_range(0..3),
            rdev: 0,
            target: target.into(),
        };
        Op::Create {
            parent: self.parent(twin),
            name: self.name(),
            new,
            exclusive: self.rng.random(),
            ino: Some(twin.reserved()),
        }
    }

    fn set_attr(&mut self, twin: &Twin) -> Op {
        let some_time = |this: &mut Self| match this.rng.random_range(0..4) {
            0 => Some(SetTime::Now),
            1 => Some(SetTime::At(this.time())),
            _ => None,
        };
        let change = AttrChange {
            mode: self.rng.random_ratio(1, 2).then(|| self.mode()),
            uid: self.rng.random_ratio(1, 4).then_some(7),
            gid: self.rng.random_ratio(1, 4).then_some(8),
            size: None,
            atime: some_time(self),
            mtime: some_time(self),
            kill_suid_sgid: self.rng.random_ratio(1, 4),
        };
        Op::SetAttr {
            ino: self.ino(twin),
            change,
        }
    }

    /// A list of owner, a named user, group, mask and other.
    fn acl(&mut self) -> Bytes {
        let mut coded = 2u32.to_le_bytes().to_vec();
        for (tag, id) in [
            (1u16, u32::MAX),
            (2, 5),
            (4, u32::MAX),
            (16, u32::MAX),
            (32, u32::MAX),
        ] {
            let perm = self.rng.random_range(0..8u16);
            coded.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
            coded.extend(id.to_le_bytes());
        }
        coded.into()
    }

    fn xattr(&mut self, twin: &Twin) -> Op {
        let names = [
            "user.a",
            "user.b",
            "system.posix_acl_access",
            "system.posix_acl_default",
        ];
        let name = *names.choose(&mut self.rng).unwrap();
        let value = if name.starts_with("user") {
            Bytes::from(vec![self.rng.random(); 3])
        } else {
            self.acl()
        };
        let (ino, name) = (self.ino(twin), Bytes::from_static(name.as_bytes()));
        if self.rng.random_ratio(1, 3) {
            return Op::RemoveXattr { ino, name };
        }
        let mode = [XattrMode::Set, XattrMode::Create, XattrMode::Replace];
        Op::SetXattr {
            ino,
            name,
            value,
            mode: *mode.choose(&mut self.rng).unwrap(),
            kill_sgid: self.rng.random(),
        }
    }

    fn lock(&mut self, twin: &Twin) -> Op {
        let kind = if self.rng.random() {
            LockKind::Posix
        } else {
            LockKind::Flock
        };
        let owner = LockOwner {
            session: twin.first.local.session(),
            token: self.rng.random_range(0..3),
            kind,
        };
        let (mut start, mut end) = (self.rng.random_range(0..20), self.rng.random_range(0..22));
        if kind == LockKind::Flock {
            (start, end) = (0, u64::MAX);
        }
        let ino = self.file(twin);
        if self.rng.random_ratio(1, 3) {
            return Op::Unlock {
                ino,
                owner,
                start,
                end,
            };
        }
        let lock = Lock {
            owner,
            pid: 1,
            exclusive: self.rng.random(),
            start,
            end,
        };
        Op::Lock { ino, lock }
    }

    fn rename(&mut self, twin: &Twin) -> Op {
        let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
        let parent = self.parent(twin);
        let new_parent = if self.rng.random() {
            parent
        } else {
            self.parent(twin)
        };
        Op::Rename {
            parent,
            name: self.name(),
            new_parent,
            new_name: self.name(),
            mode: *modes.choose(&mut self.rng).unwrap(),
        }
    }

    fn write(&mut self, twin: &Twin) -> (Op, Bytes) {
        let at = if self.rng.random_ratio(1, 3) {
            WriteAt::Append
        } else {
            WriteAt::Offset(self.rng.random_range(0..300))
        };
        self.filler = self.filler.wrapping_add(1).max(1);
        let payload = vec![self.filler; self.rng.random_range(0..80)];
        let op = Op::Write {
            ino: self.file(twin),
            at,
            data: Data::Inline,
            kill_suid_sgid: self.rng.random(),
        };
        (op, payload.into())
    }

    fn truncate(&mut self, twin: &Twin) -> Op {
        let change = AttrChange {
            size: Some(self.rng.random_range(0..400)),
            ..AttrChange::default()
        };
        Op::SetAttr {
            ino: self.file(twin),
            change,
        }
    }

    /// Projects without limits: those are looked at before the overlay is asked.
    fn volume(&mut self, twin: &Twin) -> VolumeOp {
        let name = ["v", "w"].choose(&mut self.rng).unwrap().to_string();
        match self.rng.random_range(0..6) {
            0..3 => VolumeOp::Create {
                name,
                parent: self.parent(twin),
                entry: self.name(),
                options: VolumeOptions::default(),
                labels: Default::default(),
                source: None,
            },
            3 => VolumeOp::SetQuota {
                directory: self.parent(twin),
                limits: ProjectLimits::default(),
            },
            4 => VolumeOp::Remove {
                name,
                keep: Some(self.rng.random()),
                force: true,
            },
            _ => VolumeOp::Prune { entries_max: 5 },
        }
    }

    fn step(&mut self, twin: &mut Twin) {
        let mut payload = Bytes::new();
        let op = match self.rng.random_range(0..102) {
            0..24 => self.create(twin),
            24..30 => Op::Link {
                ino: self.ino(twin),
                parent: self.parent(twin),
                name: self.name(),
            },
            30..37 => Op::Unlink {
                parent: self.parent(twin),
                name: self.name(),
            },
            37..41 => Op::Rmdir {
                parent: self.parent(twin),
                name: self.name(),
            },
            41..52 => self.rename(twin),
            52..59 => self.set_attr(twin),
            59..65 => self.xattr(twin),
            65..71 => self.lock(twin),
            71..85 => {
                let (op, written) = self.write(twin);
                payload = written;
                op
            }
            85..89 => self.truncate(twin),
            89..93 => return twin.commit(self.rng.random_range(0..=twin.queued()), &[], |_| true),
            93..98 => return twin.commit_with_flushes(&mut self.rng),
            98 => {
                let inodes = vec![self.ino(twin), self.ino(twin)];
                let time = self.time();
                twin.run_in_the_log(time, Op::Reap { inodes }).unwrap();
                return;
            }
            99 | 100 => {
                let (time, op) = (self.time(), self.volume(twin));
                let _ = twin.run_in_the_log(time, Op::Volume(op));
                return;
            }
            _ => return twin.commit_all(),
        };
        let _ = twin.run(self.time(), op, payload);
    }
}

/// Whatever is done, and however it is cut into batches: at each moment the overlay shows what the log would come to,
/// and in the end the log comes to it.
#[test]
fn an_overlay_and_its_log_come_to_what_each_operation_would() {
    let (mut batches, mut flushes) = (0, 0);
    for seed in 0..100 {
        let _seed = Seed(seed);
        let mut random = Random {
            rng: StdRng::seed_from_u64(seed),
            sec: 2_000_000_000,
            filler: 0,
        };
        let mut twin = Twin::new();
        for _ in 0..150 {
            random.step(&mut twin);
            twin.compare_visible();
        }
        twin.compare_stores();
        batches += twin.batches;
        flushes += twin.flushes;
    }
    assert!(
        batches > 500 && flushes > 500,
        "only {batches} batches and {flushes} flushes"
    );
}
