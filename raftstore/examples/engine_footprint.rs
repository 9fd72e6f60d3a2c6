//! What an engine costs: memory and bytes written for many small files.
//!
//! `cargo run --release -p bramble-raftstore --example engine_footprint -- [fjall|sled|memory] [FILES] [DIR]`

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use raftstore::clock::Timestamp;
use raftstore::disk::RealDisk;
use raftstore::kv::StoreOptions;
use raftstore::meta::{
    ClusterInfo, Data, FileKind, Ino, MetaStore, NewInode, Op, Proposal, ROOT_INO, Reply, SessionId, WriteAt,
};
use raftstore::raft::{Entry, LogId};

/// Entries applied together.
const GROUP_ENTRIES: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let kind = args.next().unwrap_or_else(|| "fjall".into()).parse()?;
    let files: u64 = args.next().map_or(Ok(100_000), |files| files.parse())?;
    let dir = args
        .next()
        .map_or_else(|| std::env::temp_dir().join("engine_footprint"), PathBuf::from);
    if dir.exists() {
        return Err(format!("{} exists: name a directory that does not", dir.display()).into());
    }
    report("start")?;
    let store = MetaStore::open(
        Arc::new(RealDisk),
        StoreOptions {
            kind,
            ..StoreOptions::new(&dir)
        },
    )?;
    report("empty store")?;
    let mut log = Log {
        store,
        index: 0,
        session: SessionId::SYSTEM,
        seq: 0,
        group: Vec::new(),
    };
    let mut parent = log.begin()?;
    for n in 0..files {
        if n % 1000 == 0 {
            parent = log.make(ROOT_INO, &format!("dir{n}"), FileKind::Directory)?;
        }
        let ino = log.make(parent, &format!("file-{n:08}.dat"), FileKind::Regular)?;
        let at = WriteAt::Offset(0);
        log.push(
            Op::Write {
                ino,
                at,
                data: Data::Inline,
                kill_suid_sgid: false,
            },
            vec![0; 4096],
        )?;
        if (n + 1) % (files / 5).max(1) == 0 {
            report(&format!("{} files", n + 1))?;
        }
    }
    log.store.flush()?;
    report("flushed")?;
    let bytes: usize = log
        .store
        .live_snapshot()?
        .sender()
        .map(|frame| frame.map(|f| f.len()))
        .sum::<Result<_, _>>()?;
    report(&format!("read as a snapshot of {} KiB", bytes >> 10))?;
    println!("the engine's own account: {} KiB", log.store.memory_bytes() >> 10);
    drop(log);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

struct Log {
    store: MetaStore,
    index: u64,
    session: SessionId,
    seq: u64,
    group: Vec<Entry>,
}

impl Log {
    fn begin(&mut self) -> Result<Ino, Box<dyn Error>> {
        self.now(Op::InitCluster(ClusterInfo {
            cluster_id: "measured".into(),
            replicas: 1,
        }))?;
        let add = Op::AddNode {
            name: "one".into(),
            listen: "127.0.0.1:1".into(),
            token_hash: None,
        };
        let Reply::Node(node) = self.now(add)? else {
            return Err("no node".into());
        };
        let Reply::Session(session) = self.now(Op::OpenSession { node: node.id })? else {
            return Err("no session".into());
        };
        self.session = session;
        Ok(ROOT_INO)
    }

    fn make(&mut self, parent: Ino, name: &str, kind: FileKind) -> Result<Ino, Box<dyn Error>> {
        let new = NewInode {
            kind,
            mode: 0o755,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
        };
        let name = Bytes::copy_from_slice(name.as_bytes());
        match self.now(Op::Create {
            parent,
            name,
            new,
            exclusive: true,
            ino: None,
        })? {
            Reply::Inode(inode) => Ok(inode.ino),
            other => Err(format!("{other:?}").into()),
        }
    }

    /// Applies all that is waiting and this, and answers this.
    fn now(&mut self, op: Op) -> Result<Reply, Box<dyn Error>> {
        self.queue(op, Vec::new());
        self.apply()
    }

    /// Applies with the others of a group.
    fn push(&mut self, op: Op, payload: Vec<u8>) -> Result<(), Box<dyn Error>> {
        self.queue(op, payload);
        if self.group.len() >= GROUP_ENTRIES {
            self.apply()?;
        }
        Ok(())
    }

    fn queue(&mut self, op: Op, payload: Vec<u8>) {
        self.index += 1;
        self.seq += u64::from(self.session != SessionId::SYSTEM);
        let proposal = Proposal {
            session: self.session,
            seq: self.seq,
            ack_floor: self.seq,
            chunk_floor: 0,
            time: Timestamp {
                sec: self.index.cast_signed(),
                nsec: 0,
            },
            op,
            payload: payload.into(),
        };
        let log_id = LogId::new_term_index(1, self.index);
        self.group
            .push(Entry::new(log_id, EntryPayload::Normal(proposal)));
    }

    fn apply(&mut self) -> Result<Reply, Box<dyn Error>> {
        let mut answers = self.store.apply(&std::mem::take(&mut self.group))?;
        Ok(answers.pop().flatten().ok_or("no answer")??)
    }
}

fn report(what: &str) -> Result<(), Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let io = std::fs::read_to_string("/proc/self/io")?;
    let field = |text: &str, name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0)
    };
    println!(
        "{what:40} resident {:6} KiB, at most {:6} KiB, written {:7} KiB",
        field(&status, "VmRSS:"),
        field(&status, "VmHWM:"),
        field(&io, "write_bytes:") >> 10
    );
    Ok(())
}
