//! Leases between nodes: who is asked, what is granted when, and what becomes of them when a leader or a holder dies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use raftstore::clock::{Clock, SystemClock};
use raftstore::meta::{Ino, Op, ROOT_INO, SessionId};

use super::{Lab, create, show_log, until};
use crate::backend::{Backend, Propose};
use crate::lease::{Kept, Lease, LeaseHolder, LeaseLink, LeaseMode, ToLeader};
use crate::node::leader::liveness::VALIDITY;
use crate::node::running::Running;

/// Does what it is told to, and nothing by itself.
#[derive(Default)]
struct Puppet(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    session: Option<SessionId>,
    link: Option<LeaseLink>,
    connections: usize,
    welcomes: usize,
    held: BTreeMap<Ino, LeaseMode>,
    asked: BTreeMap<u64, Vec<Lease>>,
    /// Log index by request.
    granted: BTreeMap<u64, u64>,
    recalled: Vec<Kept>,
    claimed: Vec<Ino>,
    valid: Option<(SessionId, Duration)>,
    over: Vec<SessionId>,
}

impl Puppet {
    fn on(node: &Running) -> Arc<Self> {
        let puppet = Arc::<Self>::default();
        node.lease_holder()
            .set(Arc::clone(&puppet) as Arc<dyn LeaseHolder>);
        puppet
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, id: u64, leases: &[(Ino, LeaseMode)]) {
        let leases = leases.iter().map(|(ino, mode)| Lease {
            ino: *ino,
            mode: *mode,
        });
        let leases: Vec<Lease> = leases.collect();
        let mut seen = self.seen();
        seen.asked.insert(id, leases.clone());
        if let Some(link) = &seen.link {
            link.send(ToLeader::Acquire { id, leases });
        }
    }

    /// Gives up what was recalled.
    fn obey(&self) {
        let mut seen = self.seen();
        let leases = std::mem::take(&mut seen.recalled);
        for (ino, kept) in &leases {
            match kept {
                Some(mode) => drop(seen.held.insert(*ino, *mode)),
                None => drop(seen.held.remove(ino)),
            }
        }
        if let Some(link) = &seen.link {
            link.send(ToLeader::Release { leases });
        }
    }

    async fn granted(&self, id: u64) -> u64 {
        until("a grant", async || self.seen().granted.contains_key(&id)).await;
        self.seen().granted[&id]
    }

    async fn recalled(&self) -> Vec<Kept> {
        until("a recall", async || !self.seen().recalled.is_empty()).await;
        self.seen().recalled.clone()
    }
}

impl LeaseHolder for Puppet {
    fn connected(&self, session: SessionId, link: LeaseLink) -> Vec<Lease> {
        let mut seen = self.seen();
        for (id, leases) in &seen.asked {
            link.send(ToLeader::Acquire {
                id: *id,
                leases: leases.clone(),
            });
        }
        seen.connections += 1;
        seen.recalled.clear();
        (seen.session, seen.link) = (Some(session), Some(link));
        let held = seen.held.iter();
        held.map(|(ino, mode)| Lease {
            ino: *ino,
            mode: *mode,
        })
        .collect()
    }

    fn welcome(&self) {
        self.seen().welcomes += 1;
    }

    fn refused(&self, inodes: Vec<Ino>) {
        panic!("refused: {inodes:?}");
    }

    fn granted(&self, id: u64, log_index: u64) {
        let mut seen = self.seen();
        for lease in seen.asked.remove(&id).expect("nobody asked") {
            seen.held.insert(lease.ino, lease.mode);
        }
        seen.granted.insert(id, log_index);
    }

    fn recalled(&self, leases: Vec<Kept>) {
        self.seen().recalled.extend(leases);
    }

    fn claimed(&self, inodes: Vec<Ino>) {
        self.seen().claimed.extend(inodes);
    }

    fn valid_until(&self, session: SessionId, at: Duration) {
        self.seen().valid = Some((session, at));
    }

    fn session_over(&self, session: SessionId) {
        let mut seen = self.seen();
        seen.held.clear();
        seen.over.push(session);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_leases_to_itself_until_its_session_is_over() {
    show_log();
    let mut lab = Lab::new();
    lab.init();
    let node = lab.start(0).await;
    let puppet = Puppet::on(&node);
    until("a link", async || puppet.seen().welcomes == 1).await;
    puppet.ask(1, &[(7, LeaseMode::Exclusive), (8, LeaseMode::Shared)]);
    assert!(puppet.granted(1).await > 0);
    let link = puppet.seen().link.clone().unwrap();
    assert!(link.send(ToLeader::Claim { inodes: vec![99] }));
    until("a claim", async || puppet.seen().claimed == [99]).await;
    until("validity", async || puppet.seen().valid.is_some()).await;
    let (session, at) = puppet.seen().valid.unwrap();
    assert_eq!(Some(session), puppet.seen().session);
    assert!(at <= SystemClock.monotonic() + VALIDITY);
    until("it is renewed", async || {
        puppet.seen().valid.is_some_and(|(_, later)| later > at)
    })
    .await;

    let _ = node
        .backend()
        .submit(Op::ExpireSession { session }, Bytes::new())
        .await;
    until("the end of the session", async || puppet.seen().over == [session]).await;
    until("another session", async || {
        puppet.seen().session.is_some_and(|now| now != session) && puppet.seen().welcomes == 2
    })
    .await;
    assert!(!link.send(ToLeader::Claim { inodes: vec![100] }));
    puppet.ask(2, &[(7, LeaseMode::Exclusive)]);
    puppet.granted(2).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_pass_between_nodes_and_outlive_leaders_but_not_sessions() {
    show_log();
    let mut lab = Lab::new();
    lab.init();
    let first = lab.start(0).await;
    lab.join(&first).await;
    lab.join(&first).await;
    let mut nodes = vec![first, lab.start(1).await, lab.start(2).await];
    until("three voters", async || {
        nodes[0].inspector().status().await.raft.voters == 3
    })
    .await;
    let mut puppets: Vec<_> = nodes.iter().map(Puppet::on).collect();
    for puppet in &puppets {
        until("a link", async || puppet.seen().welcomes > 0).await;
    }

    // What one holds, another gets only once it is given up, and then shows what was done meanwhile.
    puppets[1].ask(1, &[(7, LeaseMode::Exclusive), (8, LeaseMode::Shared)]);
    puppets[1].granted(1).await;
    puppets[2].ask(1, &[(7, LeaseMode::Shared), (8, LeaseMode::Shared)]);
    let keep = Some(LeaseMode::Shared);
    assert_eq!(puppets[1].recalled().await, [(7, keep)]);
    create(&nodes[1], "before").await;
    assert!(puppets[2].seen().granted.is_empty());
    puppets[1].obey();
    let index = puppets[2].granted(1).await;
    let mut applied = nodes[2].meta().applied();
    applied.wait_for(|applied| *applied >= index).await.unwrap();
    let reader = nodes[2].backend().reader();
    assert!(reader.lookup(ROOT_INO, b"before").unwrap().is_some());

    // The leader dies, holding leases.
    let leader = nodes.iter().position(Running::leads).expect("one leads");
    puppets[leader].ask(2, &[(9, LeaseMode::Exclusive)]);
    puppets[leader].granted(2).await;
    let (dead, lost) = (nodes.remove(leader), puppets.remove(leader));
    let session = lost.seen().session.unwrap();
    let before: Vec<usize> = puppets.iter().map(|puppet| puppet.seen().welcomes).collect();
    dead.abort().await;
    // Nothing is granted before that one's session is over, also not what nobody has.
    puppets[0].ask(10, &[(9, LeaseMode::Exclusive)]);
    puppets[1].ask(10, &[(1000, LeaseMode::Exclusive)]);
    for (node, puppet) in nodes.iter().zip(&puppets) {
        let index = puppet.granted(10).await;
        let mut applied = node.meta().applied();
        applied.wait_for(|applied| *applied >= index).await.unwrap();
        assert_eq!(node.backend().reader().session(session).unwrap(), None);
    }
    for (puppet, before) in puppets.iter().zip(before) {
        assert!(puppet.seen().welcomes > before, "the new leader was told by all");
    }
    // What the others held they hold.
    let other = puppets[1].seen().held.clone();
    assert!(!other.is_empty());
    let wanted: Vec<_> = other.keys().map(|ino| (*ino, LeaseMode::Exclusive)).collect();
    puppets[0].ask(11, &wanted);
    let recalled: BTreeMap<_, _> = puppets[1].recalled().await.into_iter().collect();
    assert!(recalled.keys().eq(other.keys()) && recalled.values().all(Option::is_none));
    puppets[1].obey();
    puppets[0].granted(11).await;
    assert!(lost.seen().over.is_empty() && puppets.iter().all(|puppet| puppet.seen().over.is_empty()));
    for node in nodes {
        node.stop().await;
    }
}
