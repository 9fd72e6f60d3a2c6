//! A cluster to try operations on, with short names for them.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::ProptestConfig;

use crate::clock::Timestamp;
use crate::kv::prefix_range;
use crate::meta::testing::{LocalMeta, broken_rules};
use crate::meta::*;

/// What the state machine answered.
pub(super) type Answer = Result<Reply, MetaError>;

pub(super) struct Bench {
    pub(super) local: LocalMeta,
    heard: Arc<Heard>,
}

/// All events so far.
#[derive(Default)]
struct Heard(Mutex<Vec<Event>>);

impl Observer for Heard {
    fn applied(&self, _index: u64, events: &[Event]) {
        self.0.lock().unwrap().extend_from_slice(events);
    }
}

impl Bench {
    pub(super) fn new() -> Self {
        let (local, heard) = (LocalMeta::new().unwrap(), Arc::new(Heard::default()));
        local.store().observe(heard.clone());
        Self { local, heard }
    }

    /// What `act` does, and the events that it causes.
    pub(super) fn listen<T>(&self, act: impl FnOnce() -> T) -> (T, Vec<Event>) {
        self.heard.0.lock().unwrap().clear();
        let done = act();
        (done, std::mem::take(&mut self.heard.0.lock().unwrap()))
    }

    /// Checks that the state hangs together.
    pub(super) fn check(&self) {
        assert_eq!(broken_rules(&self.reader()).unwrap(), Vec::<String>::new());
    }

    /// Removes a name from the root without the session's doing.
    pub(super) fn unlink_as_system(&self, name: &'static str) {
        self.local
            .system(Op::Unlink {
                parent: ROOT_INO,
                name: name.into(),
            })
            .unwrap()
            .1
            .unwrap();
    }

    /// Sequence numbers whose answers are kept.
    pub(super) fn kept_answers(&self, session: SessionId) -> Vec<u64> {
        let reader = self.reader();
        let rows = reader.kv().scan(prefix_range(&keys::answers(session)), false);
        rows.map(|pair| keys::u64_at(&pair.unwrap().0, 9).unwrap())
            .collect()
    }

    /// Changes an inode behind the state machine's back.
    pub(super) fn poke(&self, ino: Ino, change: impl FnOnce(&mut Inode)) {
        let mut inode = self.inode(ino);
        change(&mut inode);
        self.local
            .poke([(keys::inode(ino), value::encode_inode(&inode).unwrap())])
            .unwrap();
    }

    /// Writes `count` bytes that do not touch each other.
    pub(super) fn scatter(&self, ino: Ino, count: u64) {
        let session = self.local.session().0;
        let proposals = (0..count).map(|i| Proposal {
            session: SessionId::SYSTEM,
            seq: 0,
            ack_floor: 0,
            chunk_floor: 0,
            time: Timestamp::default(),
            op: Op::Write {
                ino,
                at: WriteAt::Offset(2 * i),
                data: Data::Chunk {
                    id: ChunkId {
                        session,
                        seq: 1 + i / 1000,
                    },
                    offset: 0,
                    len: 1,
                },
                kill_suid_sgid: false,
            },
            payload: Bytes::new(),
        });
        let answers = self.local.propose_all(proposals).unwrap();
        assert!(answers.iter().all(Result::is_ok));
    }

    pub(super) fn reader(&self) -> Reader {
        self.local.reader()
    }

    pub(super) fn submit(&self, op: Op) -> Answer {
        self.local.submit(op, Bytes::new()).unwrap().1
    }

    pub(super) fn volume(&self, op: VolumeOp) -> Answer {
        self.submit(Op::Volume(op))
    }

    /// Makes a volume in the root directory.
    pub(super) fn mkvolume(&self, name: &str, limits: ProjectLimits) -> Volume {
        let options = VolumeOptions {
            limits,
            ..VolumeOptions::default()
        };
        match self.volume(create_volume(name, options, None)) {
            Ok(Reply::Volume(volume)) => volume,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn project(&self, ino: Ino) -> Project {
        let project = self.inode(ino).project;
        self.reader().project(project).unwrap().unwrap()
    }

    /// Removes all that is to go, as the leader does.
    pub(super) fn prune_all(&self) {
        while self.reader().has_doomed().unwrap() {
            let prune = Op::Volume(VolumeOp::Prune { entries_max: 7 });
            self.local.system(prune).unwrap().1.unwrap();
            self.check();
        }
        let inodes = self.reader().orphans(0, usize::MAX).unwrap();
        self.local.system(Op::Reap { inodes }).unwrap().1.unwrap();
        self.check();
    }

    pub(super) fn at(&self, sec: i64) {
        self.local.set_time(Timestamp { sec, nsec: 0 });
    }

    pub(super) fn inode(&self, ino: Ino) -> Inode {
        self.reader().inode(ino).unwrap().unwrap()
    }

    pub(super) fn lookup(&self, parent: Ino, name: &str) -> Option<Ino> {
        self.reader()
            .lookup(parent, name.as_bytes())
            .unwrap()
            .map(|entry| entry.ino)
    }

    pub(super) fn names(&self, parent: Ino) -> Vec<String> {
        let items = self.reader().list(parent, 0, usize::MAX).unwrap();
        items
            .into_iter()
            .map(|item| String::from_utf8(item.name.to_vec()).unwrap())
            .collect()
    }

    pub(super) fn try_make(&self, parent: Ino, name: &str, kind: FileKind) -> Answer {
        let target = if kind == FileKind::Symlink { "target" } else { "" };
        let mode = if kind == FileKind::Directory { 0o777 } else { 0o666 };
        let new = NewInode {
            kind,
            mode,
            umask: 0o022,
            uid: 1000,
            gid: 1001,
            rdev: 0,
            target: target.into(),
        };
        self.submit(Op::Create {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
            new,
            exclusive: true,
            ino: None,
        })
    }

    pub(super) fn open_or_create(&self, parent: Ino, name: &str) -> Answer {
        let new = NewInode {
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
        };
        self.submit(Op::Create {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
            new,
            exclusive: false,
            ino: None,
        })
    }

    pub(super) fn mkdir(&self, parent: Ino, name: &str) -> Ino {
        made(self.try_make(parent, name, FileKind::Directory))
    }

    pub(super) fn mkfile(&self, parent: Ino, name: &str) -> Ino {
        made(self.try_make(parent, name, FileKind::Regular))
    }

    pub(super) fn link(&self, ino: Ino, parent: Ino, name: &str) -> Answer {
        self.submit(Op::Link {
            ino,
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
        })
    }

    pub(super) fn unlink(&self, parent: Ino, name: &str) -> Answer {
        self.submit(Op::Unlink {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
        })
    }

    pub(super) fn rmdir(&self, parent: Ino, name: &str) -> Answer {
        self.submit(Op::Rmdir {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
        })
    }

    pub(super) fn rename(&self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Answer {
        self.submit(Op::Rename {
            parent: from.0,
            name: Bytes::copy_from_slice(from.1.as_bytes()),
            new_parent: to.0,
            new_name: Bytes::copy_from_slice(to.1.as_bytes()),
            mode,
        })
    }

    pub(super) fn set_attr(&self, ino: Ino, change: AttrChange) -> Answer {
        self.submit(Op::SetAttr { ino, change })
    }

    /// Writes inline; the log index, which names the bytes.
    pub(super) fn write(&self, ino: Ino, at: WriteAt, bytes: &[u8]) -> (u64, Answer) {
        let op = Op::Write {
            ino,
            at,
            data: Data::Inline,
            kill_suid_sgid: false,
        };
        self.local.submit(op, Bytes::copy_from_slice(bytes)).unwrap()
    }

    pub(super) fn extents(&self, ino: Ino) -> Vec<Extent> {
        self.reader().extents(ino, 0, u64::MAX, usize::MAX).unwrap()
    }
}

/// Makes a volume of a directory in the root directory that has its name.
pub(super) fn create_volume(name: &str, options: VolumeOptions, source: Option<TreeSource>) -> VolumeOp {
    VolumeOp::Create {
        name: name.into(),
        parent: ROOT_INO,
        entry: Bytes::copy_from_slice(name.as_bytes()),
        options,
        labels: Default::default(),
        source,
    }
}

/// The inode of an answer that has one.
pub(super) fn inode_of(answer: Answer) -> Inode {
    match answer {
        Ok(
            Reply::Inode(inode)
            | Reply::Existing(inode)
            | Reply::Written { inode, .. }
            | Reply::Copied { inode, .. },
        ) => inode,
        other => panic!("no inode in {other:?}"),
    }
}

pub(super) fn made(answer: Answer) -> Ino {
    inode_of(answer).ino
}

pub(super) fn refused(refusal: Refusal) -> Answer {
    Err(MetaError::Refused(refusal))
}

pub(super) fn set_xattr(ino: Ino, name: &str, value: &[u8]) -> Op {
    Op::SetXattr {
        ino,
        name: Bytes::copy_from_slice(name.as_bytes()),
        value: Bytes::copy_from_slice(value),
        mode: XattrMode::Set,
        kill_sgid: false,
    }
}

/// For random tests: a quarter of the usual count of cases, or of what `PROPTEST_CASES` asks for. proptest prints the
/// input of a failing case, cut down to what is needed.
pub(super) fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: config.cases.div_ceil(4),
        failure_persistence: None,
        ..config
    }
}
