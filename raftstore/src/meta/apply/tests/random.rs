//! Random operations, against the model.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;

use super::actions::{Action, action, file_name};
use super::model::{File, Model, Node};
use super::support::*;
use crate::clock::Timestamp;
use crate::meta::testing::{LocalMeta, broken_rules};
use crate::meta::*;

/// The state machine and the model, side by side.
struct Pair {
    local: LocalMeta,
    model: Model,
    /// All inodes that ever were.
    inodes: Vec<Ino>,
    /// What stands in which chunk or payload.
    chunks: BTreeMap<ChunkId, Vec<u8>>,
    /// All proposals, with their answers.
    log: Vec<(Proposal, Answer)>,
    /// The last known extents of a file.
    plan: Option<(Ino, Vec<Extent>)>,
    next_chunk: u64,
    filler: u8,
}

fn dump(reader: &Reader) -> Vec<(Bytes, Bytes)> {
    let all = (std::ops::Bound::Included(vec![1]), std::ops::Bound::Unbounded);
    reader.kv().scan(all, false).map(Result::unwrap).collect()
}

impl Pair {
    fn new() -> Self {
        Self {
            local: LocalMeta::new().unwrap(),
            model: Model::new(),
            inodes: vec![ROOT_INO],
            chunks: BTreeMap::new(),
            log: Vec::new(),
            plan: None,
            next_chunk: 1,
            filler: 0,
        }
    }

    fn pick(&self, index: Index) -> Ino {
        *index.get(&self.inodes)
    }

    /// Bytes that no other write has.
    fn fill(&mut self, len: usize) -> Vec<u8> {
        self.filler = self.filler.wrapping_add(1).max(1);
        let start = self.filler;
        (0..len)
            .map(|i| start.wrapping_add((i % 7) as u8).max(1))
            .collect()
    }

    fn submit(&mut self, op: Op, payload: &[u8]) -> Answer {
        let seq = self.log.len() as u64 + 1;
        // Clocks of different nodes, some fast, some slow.
        let sec = 1000 + (seq * 7919 % 13) as i64;
        let proposal = Proposal {
            session: self.local.session(),
            seq,
            ack_floor: seq.saturating_sub(seq % 5).max(1),
            chunk_floor: self.next_chunk.saturating_sub(1),
            time: Timestamp { sec, nsec: 5 },
            op,
            payload: Bytes::copy_from_slice(payload),
        };
        let (index, answer) = self.local.propose(proposal.clone()).unwrap();
        self.chunks.insert(ChunkId::payload(index), payload.to_vec());
        self.log.push((proposal, answer.clone()));
        answer
    }

    fn new_chunk(&mut self, bytes: Vec<u8>) -> ChunkId {
        let id = ChunkId {
            session: self.local.session().0,
            seq: self.next_chunk,
        };
        self.next_chunk += 1;
        self.chunks.insert(id, bytes);
        id
    }

    fn bytes_of(&self, extent: &Extent) -> Vec<u8> {
        let len = usize::try_from(extent.len).unwrap();
        match extent.source {
            Source::Zero => vec![0; len],
            Source::Chunk { id, offset } => self.chunks[&id][offset as usize..][..len].to_vec(),
        }
    }

    fn run(&mut self, action: &Action) {
        use Action::*;
        match action.clone() {
            Create { parent, name, kind } => self.create(self.pick(parent), &file_name(name), kind),
            Link { ino, parent, name } => {
                let (ino, parent, name) = (self.pick(ino), self.pick(parent), file_name(name));
                let expected = self.model.link(ino, parent, &name);
                let answer = self.submit(
                    Op::Link {
                        ino,
                        parent,
                        name: name.into(),
                    },
                    b"",
                );
                compare(answer, expected);
            }
            Unlink { parent, name } => {
                let (parent, name) = (self.pick(parent), file_name(name));
                let expected = self.model.unlink(parent, &name);
                let answer = self.submit(
                    Op::Unlink {
                        parent,
                        name: name.into(),
                    },
                    b"",
                );
                compare(answer, expected);
            }
            Rmdir { parent, name } => {
                let (parent, name) = (self.pick(parent), file_name(name));
                let expected = self.model.rmdir(parent, &name);
                let answer = self.submit(
                    Op::Rmdir {
                        parent,
                        name: name.into(),
                    },
                    b"",
                );
                compare(answer, expected);
            }
            Rename {
                from,
                name,
                to,
                new_name,
                mode,
            } => {
                let (parent, name) = (self.pick(from), file_name(name));
                let (new_parent, new_name) = (self.pick(to), file_name(new_name));
                let expected = self.model.rename((parent, &name), (new_parent, &new_name), mode);
                let op = Op::Rename {
                    parent,
                    name: name.into(),
                    new_parent,
                    new_name: new_name.into(),
                    mode,
                };
                compare(self.submit(op, b""), expected);
            }
            SetTimes { ino, sec } => self.set_times(self.pick(ino), sec),
            SetXattr { ino, name } => {
                let op = Op::SetXattr {
                    ino: self.pick(ino),
                    name: format!("user.{name}").into(),
                    value: Bytes::from(vec![name]),
                    mode: XattrMode::Set,
                    kill_sgid: false,
                };
                let _ = self.submit(op, b"");
            }
            RemoveXattr { ino, name } => {
                let op = Op::RemoveXattr {
                    ino: self.pick(ino),
                    name: format!("user.{name}").into(),
                };
                let _ = self.submit(op, b"");
            }
            Reap { inodes } => {
                let inodes: Vec<Ino> = inodes.into_iter().map(|index| self.pick(index)).collect();
                self.model.reap(&inodes);
                compare(self.submit(Op::Reap { inodes }, b""), Ok(()));
            }
            Repeat { which } => self.repeat(which),
            data => self.run_data(data),
        }
    }

    fn run_data(&mut self, action: Action) {
        use Action::*;
        match action {
            Truncate { ino, size } => {
                let ino = self.pick(ino);
                let expected = self.model.truncate(ino, size);
                let change = AttrChange {
                    size: Some(size),
                    ..AttrChange::default()
                };
                let answer = self.submit(Op::SetAttr { ino, change }, b"");
                self.contents_changed(ino, &answer);
                compare(answer, expected);
            }
            Write {
                ino,
                offset,
                len,
                in_chunk,
            } => self.write(self.pick(ino), offset, len, in_chunk),
            Space {
                ino,
                what,
                offset,
                len,
            } => {
                let ino = self.pick(ino);
                let expected = self.model.fallocate(ino, what, offset, len);
                let answer = self.submit(
                    Op::Fallocate {
                        ino,
                        what,
                        offset,
                        len,
                    },
                    b"",
                );
                compare(answer, expected);
            }
            Copy {
                source,
                source_offset,
                target,
                target_offset,
                len,
            } => {
                let (source, target) = (self.pick(source), self.pick(target));
                let expected = self
                    .model
                    .copy((source, source_offset), (target, target_offset), len);
                let op = Op::CopyRange {
                    source,
                    source_offset,
                    target,
                    target_offset,
                    len,
                };
                let answer = self.submit(op, b"");
                if let (Ok(Reply::Copied { len, .. }), Ok(expected)) = (&answer, expected) {
                    assert_eq!(*len, expected);
                }
                if expected.is_ok_and(|copied| copied > 0) {
                    self.contents_changed(target, &answer);
                }
                compare(answer, expected.map(|_| ()));
            }
            Plan { ino } => {
                let ino = self.pick(ino);
                self.plan = Some((ino, self.extents(ino)));
            }
            Merge => self.merge(),
            other => panic!("not about data: {other:?}"),
        }
    }

    fn create(&mut self, parent: Ino, name: &str, kind: FileKind) {
        let target = if kind == FileKind::Symlink { "x" } else { "" };
        let new = NewInode {
            kind,
            mode: 0o755,
            umask: 0,
            uid: 1,
            gid: 1,
            rdev: 0,
            target: target.into(),
        };
        let expected = self.model.can_create(parent, name);
        let op = Op::Create {
            parent,
            name: name.to_string().into(),
            new,
            exclusive: true,
            ino: None,
        };
        let answer = self.submit(op, b"");
        if expected.is_ok() {
            let ino = made(answer.clone());
            assert!(!self.inodes.contains(&ino), "inode {ino} was there before");
            self.inodes.push(ino);
            self.model.create(parent, name, kind, ino);
        }
        compare(answer, expected);
    }

    fn set_times(&mut self, ino: Ino, sec: i64) {
        let time = SetTime::At(Timestamp {
            sec: 950 + sec,
            nsec: 5,
        });
        let change = AttrChange {
            mtime: Some(time),
            ..AttrChange::default()
        };
        let answer = self.submit(Op::SetAttr { ino, change }, b"");
        let exists = self.model.nodes.contains_key(&ino);
        compare(answer, if exists { Ok(()) } else { Err(Refusal::Stale) });
    }

    fn write(&mut self, ino: Ino, offset: Option<u64>, len: usize, in_chunk: bool) {
        let bytes = self.fill(len);
        let expected = self.model.write(ino, offset, &bytes);
        let at = offset.map_or(WriteAt::Append, WriteAt::Offset);
        let op = |data| Op::Write {
            ino,
            at,
            data,
            kill_suid_sgid: false,
        };
        let answer = if in_chunk {
            let id = self.new_chunk([b"head", &bytes[..]].concat());
            let len = u32::try_from(len).unwrap();
            self.submit(op(Data::Chunk { id, offset: 4, len }), b"")
        } else {
            self.submit(op(Data::Inline), &bytes)
        };
        if len > 0 {
            self.contents_changed(ino, &answer);
        }
        if let (Ok(Reply::Written { offset, .. }), Ok(expected)) = (&answer, expected) {
            assert_eq!(*offset, expected);
        }
        compare(answer, expected.map(|_| ()));
    }

    /// Checks that the mtime is one that no other contents had.
    fn contents_changed(&mut self, ino: Ino, answer: &Answer) {
        if answer.is_ok() {
            let mtime = inode_of(answer.clone()).mtime;
            assert!(
                self.model.mtimes.entry(ino).or_default().insert(mtime),
                "mtime {mtime:?} again"
            );
        }
    }

    fn merge(&mut self) {
        let Some((ino, expected)) = self.plan.take() else {
            return;
        };
        let bytes: Vec<u8> = expected.iter().flat_map(|extent| self.bytes_of(extent)).collect();
        let chunk = self.new_chunk(bytes);
        let before = self.local.reader().inode(ino).unwrap();
        let answer = self.submit(
            Op::Merge {
                ino,
                runs: vec![Merge { expected, chunk }],
            },
            b"",
        );
        compare(answer, Ok(()));
        assert_eq!(self.local.reader().inode(ino).unwrap(), before);
    }

    fn repeat(&mut self, which: Index) {
        if self.log.is_empty() {
            return;
        }
        let (proposal, answer) = which.get(&self.log).clone();
        let floor = self
            .log
            .iter()
            .map(|(proposal, _)| proposal.ack_floor)
            .max()
            .unwrap();
        let before = dump(&self.local.reader());
        let again = self.local.propose(proposal.clone()).unwrap().1;
        assert_eq!(
            again,
            if proposal.seq < floor {
                Err(MetaError::Stale)
            } else {
                answer
            }
        );
        assert_eq!(dump(&self.local.reader()), before, "a repeat changed something");
    }

    fn extents(&self, ino: Ino) -> Vec<Extent> {
        self.local.reader().extents(ino, 0, u64::MAX, usize::MAX).unwrap()
    }

    fn check(&self) {
        let reader = self.local.reader();
        assert_eq!(broken_rules(&reader).unwrap(), Vec::<String>::new());
        assert_eq!(reader.usage().unwrap().inodes, self.model.nodes.len() as u64);
        for (ino, node) in &self.model.nodes {
            let inode = reader.inode(*ino).unwrap().unwrap();
            match node {
                Node::Directory(entries) => {
                    let listed = reader.list(*ino, 0, usize::MAX).unwrap();
                    let mut names: BTreeMap<String, Ino> = BTreeMap::new();
                    for item in listed {
                        names.insert(String::from_utf8(item.name.to_vec()).unwrap(), item.entry.ino);
                    }
                    assert_eq!(names, *entries, "directory {ino}");
                }
                Node::File(file) => {
                    assert_eq!(inode.size, file.bytes.len() as u64, "size of {ino}");
                    self.check_bytes(*ino, file);
                }
                Node::Symlink => assert_eq!(inode.kind, FileKind::Symlink),
            }
        }
    }

    fn check_bytes(&self, ino: Ino, file: &File) {
        let mut read = vec![0; file.bytes.len()];
        let mut allocated = std::collections::BTreeSet::new();
        for extent in self.extents(ino) {
            allocated.extend(extent.offset..extent.end());
            let start = usize::try_from(extent.offset).unwrap();
            for (i, byte) in self.bytes_of(&extent).into_iter().enumerate() {
                if let Some(place) = read.get_mut(start + i) {
                    *place = byte;
                }
            }
        }
        assert!(read == file.bytes, "bytes of {ino} differ");
        assert!(allocated == file.allocated, "allocation of {ino} differs");
    }
}

fn compare(answer: Answer, expected: Result<(), Refusal>) {
    match (answer, expected) {
        (Ok(_), Ok(())) => {}
        (Err(MetaError::Refused(refusal)), Err(expected)) => assert_eq!(refusal, expected),
        (answer, expected) => panic!("answered {answer:?}, should be {expected:?}"),
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn behaves_as_the_model(actions in prop::collection::vec(action(), 1..200)) {
        let mut pair = Pair::new();
        for (i, action) in actions.iter().enumerate() {
            pair.run(action);
            if i % 16 == 0 {
                pair.check();
            }
        }
        pair.check();
    }

    /// The same log gives the same bytes, however it is cut into batches.
    #[test]
    fn is_deterministic(
        actions in prop::collection::vec(action(), 1..80),
        batches in prop::collection::vec(1..9usize, 1..20),
    ) {
        let mut pair = Pair::new();
        for action in &actions {
            if !matches!(action, Action::Repeat { .. }) {
                pair.run(action);
            }
        }
        let again = LocalMeta::new().unwrap();
        let mut proposals = pair.log.iter().map(|(proposal, _)| proposal.clone()).peekable();
        let mut answers = Vec::new();
        for batch in batches.iter().cycle() {
            if proposals.peek().is_none() {
                break;
            }
            answers.extend(again.propose_all(proposals.by_ref().take(*batch)).unwrap());
        }
        let first: Vec<Answer> = pair.log.into_iter().map(|(_, answer)| answer).collect();
        prop_assert_eq!(answers, first);
        prop_assert!(dump(&again.reader()) == dump(&pair.local.reader()));
    }
}
