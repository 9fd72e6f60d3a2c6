//! Nodes that work under leases, with a leader in the same process, and what only they can get wrong.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use raftstore::clock::SystemClock;
use raftstore::meta::{Event, MetaStore, Observer, Op, SessionId};

use super::*;
use crate::backend::{Backend, Propose};
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
}

impl LocalLeader {
    pub(super) fn new(store: Arc<MetaStore>) -> Arc<Self> {
        let leader = Arc::new(Self {
            table: Mutex::new(LeaseTable::begin([])),
            holders: Mutex::default(),
            store: store.clone(),
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
                leader.with(|table| match message {
                    ToLeader::Acquire { id, leases } => table.acquire(session, id, &leases).unwrap(),
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
    leased_node(cluster, leader, limits).1
}

fn leased_node(
    cluster: &Arc<LocalCluster>,
    leader: &Arc<LocalLeader>,
    limits: Limits,
) -> (Arc<LeasedBackend>, Arc<Vfs>) {
    let inner = cluster.node().unwrap();
    let session = inner.session();
    let options = BehindOptions {
        inline_bytes_max: 256,
        chunk_bytes_max: 4096,
        leases_max: 64,
        ..BehindOptions::default()
    };
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
    tokio::spawn(backend.clone().run());
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
