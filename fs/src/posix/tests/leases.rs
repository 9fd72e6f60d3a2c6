//! Nodes that work under leases, with a leader in the same process, and what only they can get wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use raftstore::clock::SystemClock;
use raftstore::meta::{AttrChange, Event, MetaStore, Observer, Op, RenameMode, SessionId, Source};

use super::*;
use crate::backend::{Backend, Look, Propose};
use crate::behind::{self, BehindOptions, LeasedBackend};
use crate::lease::{GrantCount, LINK_MESSAGES_MAX, LeaseHolder, LeaseLink, ToLeader};
use crate::node::leader::lease_table::{LeaseTable, Order};

/// A node that holds leases, and what counts the grants that it has taken in.
type Linked = (Arc<dyn LeaseHolder>, GrantCount);

/// A leader that is always there.
pub(super) struct LocalLeader {
    table: Mutex<LeaseTable>,
    holders: Mutex<BTreeMap<SessionId, Linked>>,
    store: Arc<MetaStore>,
    /// Requests that came, for inodes and for ranges.
    pub(super) requests: AtomicUsize,
}

impl LocalLeader {
    pub(super) fn new(store: Arc<MetaStore>) -> Arc<Self> {
        let leader = Arc::new(Self {
            table: Mutex::new(LeaseTable::begin([])),
            holders: Mutex::default(),
            store: store.clone(),
            requests: AtomicUsize::new(0),
        });
        store.observe(leader.clone());
        leader
    }

    fn holder(&self, session: SessionId) -> Option<Linked> {
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.get(&session).cloned()
    }

    /// Changes the table, and tells the holders what follows.
    fn with(&self, change: impl FnOnce(&mut LeaseTable)) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut table);
        for order in table.take_orders() {
            match order {
                Order::Grant { session, id } => {
                    if let Some((holder, grants)) = self.holder(session) {
                        holder.granted(id, *self.store.applied().borrow());
                        grants.taken_in();
                    }
                }
                Order::Recall { session, leases } => {
                    if let Some((holder, _)) = self.holder(session) {
                        holder.recalled(leases);
                    }
                }
                Order::Refuse { session, inodes } => panic!("{session:?} was refused {inodes:?}"),
            }
        }
    }

    pub(super) fn connect(self: &Arc<Self>, session: SessionId, holder: Arc<dyn LeaseHolder>) {
        let (link, mut receiver) = LeaseLink::new(LINK_MESSAGES_MAX);
        let held = holder.connected(session, link);
        holder.valid_until(session, Duration::MAX);
        self.holders
            .lock()
            .unwrap()
            .insert(session, (holder, receiver.grants()));
        self.with(|table| table.hello(session, held));
        let leader = self.clone();
        tokio::spawn(async move {
            while let Some((message, grants)) = receiver.recv_counted().await {
                if let ToLeader::Acquire { .. } | ToLeader::TryRange { .. } = message {
                    leader.requests.fetch_add(1, Ordering::Relaxed);
                }
                leader.with(|table| match message {
                    ToLeader::Acquire { id, leases } => table.acquire(session, id, &leases).unwrap(),
                    ToLeader::TryRange { id, range } => table.try_range(session, id, range).unwrap(),
                    ToLeader::Release { leases } => table.release(session, &leases, grants),
                    ToLeader::Claim { inodes } => table.claim(session, &inodes),
                });
            }
        });
    }
}

impl Observer for LocalLeader {
    fn applied(&self, _index: u64, events: &[Event]) {
        for event in events {
            if let Event::SessionExpired { session } = event {
                let gone = self.holders.lock().unwrap().remove(session);
                if let Some((holder, _)) = gone {
                    holder.session_over(*session);
                }
                self.with(|table| table.session_over(*session));
            }
        }
    }
}

/// A filesystem under leases on one more node of `cluster`.
pub(super) fn leased_vfs(cluster: &Arc<LocalCluster>, leader: &Arc<LocalLeader>, limits: Limits) -> Arc<Vfs> {
    leased_node(cluster, leader, limits, small_batches()).1
}

fn small_batches() -> BehindOptions {
    BehindOptions {
        inline_bytes_max: 256,
        chunk_bytes_max: 4096,
        background_bytes: 16 << 10,
        leases_max: 64,
        ..BehindOptions::default()
    }
}

fn leased_node(
    cluster: &Arc<LocalCluster>,
    leader: &Arc<LocalLeader>,
    limits: Limits,
    options: BehindOptions,
) -> (Arc<LeasedBackend>, Arc<Vfs>) {
    let inner = cluster.node().unwrap();
    let session = inner.session();
    let store = cluster.store();
    let backend = LeasedBackend::new(
        inner.clone(),
        store.applied(),
        Arc::new(SystemClock),
        (options, None),
    );
    let limits = Limits {
        inline_bytes_max: Limits::behind().inline_bytes_max,
        ..limits
    };
    let vfs = Vfs::new(backend.clone(), Arc::new(SystemClock), limits);
    let weak: std::sync::Weak<Vfs> = Arc::downgrade(&vfs);
    backend.set_upper(weak);
    store.observe(backend.clone());
    store.observe(vfs.clone());
    tokio::spawn(backend.clone().run(|| 0));
    let holder = behind::holder(&backend);
    leader.connect(session, holder.clone());
    let (leader, sessions) = (leader.clone(), inner.clone());
    tokio::spawn(async move {
        let mut last = session;
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if store.reader().session(last).unwrap().is_none() {
                // Opens another one.
                sessions
                    .submit(Op::ReserveInodes { count: 1 }, Bytes::new())
                    .await
                    .unwrap();
            }
            if sessions.session() != last {
                last = sessions.session();
                leader.connect(last, holder.clone());
            }
        }
    });
    (backend, vfs)
}

#[tokio::test]
async fn what_nobody_waits_for_goes_to_chunks_sooner() {
    let cluster = cluster();
    let leader = LocalLeader::new(cluster.store());
    let is_payload = |ino| {
        let extents = cluster.reader().extents(ino, 0, u64::MAX, 10).unwrap();
        assert!(!extents.is_empty());
        extents.iter().any(|extent| match extent.source {
            Source::Chunk { id, .. } => id.payload_index().is_some(),
            Source::Zero => false,
        })
    };
    for (len, age_max, rides) in [
        (100 << 10, Duration::MAX, true),
        (100 << 10, Duration::ZERO, false),
        (10 << 10, Duration::ZERO, true),
    ] {
        let options = BehindOptions {
            age_max,
            ..BehindOptions::default()
        };
        let (backend, vfs) = leased_node(&cluster, &leader, small_limits(), options);
        let (ino, _) = opened(&vfs, &format!("{len} {age_max:?}")).await;
        write(&vfs, ino, 0, &vec![7; len]).await;
        if age_max.is_zero() {
            while behind::holder(&backend).status().pending_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } else {
            vfs.sync(ino).await.unwrap();
        }
        assert_eq!(is_payload(ino), rides, "{len} bytes, {age_max:?}");
    }
}

#[tokio::test]
async fn a_lease_that_comes_when_its_caller_has_gone_can_be_given_back() {
    let (_, backend, _, other) = leased_pair();
    let mut asked = Box::pin(backend.refresh(Look::whole(&[ROOT_INO])));
    assert!(asked.as_mut().now_or_never().is_none());
    while behind::holder(&backend).status().shared == 0 {
        tokio::task::yield_now().await;
    }
    // As after a signal.
    drop(asked);
    let made = tokio::time::timeout(Duration::from_secs(10), opened(&other, "made"));
    made.await.expect("the lease is given back");
}

/// Contents and permission bits of a file as the cluster knows it, without what is pending.
fn committed(cluster: &LocalCluster, ino: Ino) -> (u64, u32, usize) {
    let reader = cluster.reader();
    let inode = reader.inode(ino).unwrap().unwrap();
    let extents = reader.extents(ino, 0, u64::MAX, 10).unwrap();
    (inode.size, inode.mode & 0o777, extents.len())
}

#[tokio::test]
async fn who_syncs_a_little_does_not_wait_for_what_others_write() {
    let (cluster, _, one, other) = leased_pair();
    let (log, _) = opened(&one, "log").await;
    let (table, _) = opened(&one, "table").await;
    cluster.set_chunks_flow(false);
    write(&one, table, 0, &[1; 3000]).await;
    let vfs = one.clone();
    let large = tokio::spawn(async move { vfs.sync(table).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    for round in 1..4_u64 {
        write(&one, log, 50 * (round - 1), &[2; 50]).await;
        one.sync(log).await.unwrap();
        assert_eq!(committed(&cluster, log).0, 50 * round);
    }
    assert!(!large.is_finished());
    assert_eq!(committed(&cluster, table), (0, 0o644, 0));

    // What is done to the file meanwhile comes to the same as ever: its name and mode go ahead, and later bytes do not.
    let mode = AttrChange {
        mode: Some(0o600),
        ..AttrChange::default()
    };
    one.setattr(table, mode).await.unwrap();
    write(&one, table, 3000, &[3; 10]).await;
    write(&one, log, 0, &[4; 10]).await;
    one.sync(log).await.unwrap();
    assert_eq!(committed(&cluster, table), (0, 0o600, 0));
    write(&one, table, 0, &[5; 10]).await;
    let vfs = one.clone();
    let small = tokio::spawn(async move { vfs.sync(table).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(
        !small.is_finished(),
        "a later write must not come before an earlier one"
    );

    cluster.set_chunks_flow(true);
    large.await.unwrap().unwrap();
    small.await.unwrap().unwrap();
    assert_eq!(committed(&cluster, table).0, 3010);
    assert_eq!(committed(&cluster, table).1, 0o600);
    let found = read_all(&other, table).await;
    assert_eq!(found[..], [vec![5; 10], vec![1; 2990], vec![3; 10]].concat());
}

/// A node on which 16 KiB may wait in one file.
fn little_room_in_a_file(options: BehindOptions) -> (Arc<LocalCluster>, Arc<Vfs>) {
    let cluster = cluster();
    let leader = LocalLeader::new(cluster.store());
    let options = BehindOptions {
        large_bytes_max: 16 << 10,
        ..options
    };
    let (_, vfs) = leased_node(&cluster, &leader, small_limits(), options);
    (cluster, vfs)
}

#[tokio::test]
async fn who_writes_much_to_one_file_waits_for_it_and_others_do_not() {
    let (cluster, vfs) = little_room_in_a_file(small_batches());
    let (large, _) = opened(&vfs, "large").await;
    let (other, _) = opened(&vfs, "other").await;
    cluster.set_chunks_flow(false);
    let part = vec![7; 8 << 10];
    let writer = tokio::spawn({
        let (vfs, part) = (vfs.clone(), part.clone());
        async move {
            for index in 0..8 {
                write(&vfs, large, index * part.len() as u64, &part).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!writer.is_finished(), "64 KiB wait, of which 16 may");
    tokio::time::timeout(Duration::from_secs(10), write(&vfs, other, 0, &part))
        .await
        .expect("another file has room");
    cluster.set_chunks_flow(true);
    writer.await.unwrap();
    assert_eq!(read_all(&vfs, large).await[..], vec![7; 64 << 10]);
}

#[tokio::test]
async fn who_waits_for_room_has_what_is_there_pushed() {
    let (cluster, vfs) = little_room_in_a_file(BehindOptions {
        // Neither a batch's bytes nor its age ever makes it leave.
        background_bytes: usize::MAX,
        age_max: Duration::MAX,
        ..small_batches()
    });
    let (large, _) = opened(&vfs, "large").await;
    let part = vec![7; 6 << 10];
    let writer = async {
        for index in 0..8 {
            write(&vfs, large, index * part.len() as u64, &part).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), writer)
        .await
        .expect("there is room again");
    assert!(committed(&cluster, large).0 > 0);
}

#[tokio::test]
async fn a_file_that_goes_while_its_bytes_are_stored_takes_nothing_with_it() {
    let (cluster, _, one, other) = leased_pair();
    let (kept, _) = opened(&one, "kept").await;
    let (gone, handle) = opened(&one, "gone").await;
    cluster.set_chunks_flow(false);
    write(&one, kept, 0, &[1; 300]).await;
    write(&one, gone, 0, &[2; 300]).await;
    let vfs = one.clone();
    let all = tokio::spawn(async move { vfs.sync(ROOT_INO).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    one.unlink(ROOT_INO, b"gone").await.unwrap();
    one.release(gone, handle).await.unwrap();
    cluster.set_chunks_flow(true);
    all.await.unwrap().unwrap();
    assert_eq!(read_all(&other, kept).await[..], [1; 300]);
    assert!(cluster.reader().lookup(ROOT_INO, b"gone").unwrap().is_none());
}

/// Two nodes under leases, the first with its backend.
pub(super) fn leased_pair() -> (Arc<LocalCluster>, Arc<LeasedBackend>, Arc<Vfs>, Arc<Vfs>) {
    let cluster = cluster();
    let leader = LocalLeader::new(cluster.store());
    let (backend, one) = leased_node(&cluster, &leader, small_limits(), small_batches());
    let other = leased_vfs(&cluster, &leader, small_limits());
    (cluster, backend, one, other)
}

pub(super) async fn opened(vfs: &Vfs, name: &str) -> (Ino, u64) {
    let kind = new(FileKind::Regular, 0o644);
    let made = vfs
        .create(ROOT_INO, name.as_bytes(), kind, READ_WRITE)
        .await
        .unwrap();
    (made.inode.ino, made.handle)
}

#[tokio::test]
async fn bytes_that_nobody_can_read_any_more_are_not_pushed() {
    let (cluster, backend, one, _) = leased_pair();
    let before = cluster.stored_bytes();
    let contents = vec![7; 5000];

    // Closed, then removed; removed, then closed; replaced.
    let (first, handle) = opened(&one, "first").await;
    write(&one, first, 0, &contents).await;
    one.release(first, handle).await.unwrap();
    assert!(behind::holder(&backend).status().pending_bytes == contents.len());
    one.unlink(ROOT_INO, b"first").await.unwrap();
    let (second, handle) = opened(&one, "second").await;
    write(&one, second, 0, &contents).await;
    one.unlink(ROOT_INO, b"second").await.unwrap();
    one.release(second, handle).await.unwrap();
    let (third, handle) = opened(&one, "third").await;
    write(&one, third, 0, &contents).await;
    one.release(third, handle).await.unwrap();
    let (fourth, handle) = opened(&one, "fourth").await;
    one.rename(ROOT_INO, b"fourth", ROOT_INO, b"third", RenameMode::Replace)
        .await
        .unwrap();
    one.release(fourth, handle).await.unwrap();
    let status = behind::holder(&backend).status();
    assert_eq!((status.pending_bytes, status.pending_changes), (0, 7));
    assert!(status.oldest.is_some() && status.exclusive > 0);

    // What was done to names goes its way, in order.
    known(&one).await;
    assert_eq!(cluster.stored_bytes(), before);
    let mut orphans = cluster.reader().orphans(0, 10).unwrap();
    orphans.sort_unstable();
    assert_eq!(orphans, [first, second, third]);
    let entry = cluster.reader().lookup(ROOT_INO, b"third").unwrap();
    assert_eq!(entry.unwrap().ino, fourth);
    assert_eq!(behind::holder(&backend).status().oldest, None);
}

#[tokio::test]
async fn bytes_of_a_removed_file_stay_readable_where_it_is_open() {
    let (cluster, backend, one, other) = leased_pair();
    let pending = || behind::holder(&backend).status().pending_bytes;
    // By one of two handles, here.
    let (ino, first) = opened(&one, "twice").await;
    write(&one, ino, 0, b"still here").await;
    let second = one.open(ino, READ_WRITE).await.unwrap();
    one.unlink(ROOT_INO, b"twice").await.unwrap();
    one.release(ino, first).await.unwrap();
    assert_eq!(pending(), 10);
    assert_eq!(&read_all(&one, ino).await[..], b"still here");
    known(&one).await;
    assert_eq!(&read_all(&one, ino).await[..], b"still here");
    write(&one, ino, 0, b"for a moment").await;
    assert_eq!(pending(), 12);
    let stored = cluster.stored_bytes();
    one.release(ino, second.handle).await.unwrap();
    assert_eq!(pending(), 0);
    known(&one).await;
    assert_eq!(cluster.stored_bytes(), stored);

    // By another name.
    let (ino, handle) = opened(&one, "name").await;
    write(&one, ino, 0, b"linked").await;
    one.link(ino, ROOT_INO, b"another").await.unwrap();
    one.unlink(ROOT_INO, b"name").await.unwrap();
    one.release(ino, handle).await.unwrap();
    assert_eq!(pending(), 6);

    // On another node, which has no lease any more when it is written and removed.
    let (ino, handle) = opened(&one, "elsewhere").await;
    known(&one).await;
    let elsewhere = other.open(ino, READ_WRITE).await.unwrap();
    write(&one, ino, 0, b"written here").await;
    one.release(ino, handle).await.unwrap();
    one.unlink(ROOT_INO, b"elsewhere").await.unwrap();
    assert!(pending() >= 12);
    assert_eq!(&read_all(&other, ino).await[..], b"written here");
    other.release(ino, elsewhere.handle).await.unwrap();
}

#[tokio::test]
async fn a_lease_goes_whose_file_lost_its_bytes_before_they_were_pushed() {
    let (_, backend, one, other) = leased_pair();
    let (ino, handle) = opened(&one, "f").await;
    known(&one).await;
    one.unlink(ROOT_INO, b"f").await.unwrap();
    known(&one).await;
    write(&one, ino, 0, b"nobody's").await;
    one.release(ino, handle).await.unwrap();
    assert_eq!(behind::holder(&backend).status().pending_bytes, 0);
    let seen = tokio::time::timeout(Duration::from_secs(10), other.getattr(ino)).await;
    assert_eq!(seen.expect("the lease is given back").unwrap().nlink, 0);
}
