//! Where the leader keeps its lease table, and the links to those who hold leases.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use raftstore::kv::KvError;
use raftstore::meta::{Event, MetaStore, NodeId, Observer, SessionId};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::lease_table::{LeaseTable, Order};
use crate::lease::{Lease, ToLeader};
use crate::node::transport::lease_wire::ToHolder;
use crate::node::transport::wire::WireError;

/// Orders that may wait to be sent to one holder. A link on which more pile up is cut: the holder begins again.
pub const ORDERS_MAX: usize = 4096;

/// What goes to a holder.
pub type Orders = mpsc::Sender<Result<ToHolder, WireError>>;

/// A holder's first words, put together.
#[derive(Debug)]
pub struct Hello {
    /// Its session.
    pub session: SessionId,
    /// What it holds.
    pub held: Vec<Lease>,
    /// What its node has applied.
    pub log_index: u64,
}

/// A link that the desk knows.
#[derive(Debug)]
pub struct Link {
    session: SessionId,
    number: u64,
    /// Cancelled when the desk has given the link up.
    pub ended: CancellationToken,
}

/// Leases, while this node leads.
pub struct LeaseDesk {
    meta: Arc<MetaStore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// None while this node is not in office.
    table: Option<LeaseTable>,
    term: u64,
    links: BTreeMap<SessionId, Outgoing>,
    next_number: u64,
    /// What holders did before they gave leases up is in the log up to here: this node may not have applied that yet,
    /// if they did it through a newer leader than this one.
    log_floor: u64,
}

struct Outgoing {
    number: u64,
    orders: Orders,
    _ended: DropGuard,
}

impl LeaseDesk {
    /// Not in office yet. Hears from `meta` of sessions that end.
    #[must_use]
    pub fn new(meta: Arc<MetaStore>) -> Arc<Self> {
        Arc::new_cyclic(|desk| {
            meta.observe(Arc::new(Ends(desk.clone())));
            Self {
                meta,
                state: Mutex::default(),
            }
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node takes office in `term`; its state shows all that earlier leaders committed. Every session that there is has to
    /// say what it holds before anything is given out.
    ///
    /// # Errors
    /// If this node's state cannot be read.
    pub fn begin(&self, term: u64) -> Result<(), KvError> {
        // Under the lock: a session that ends from here on is heard of.
        let mut state = self.state();
        state.links.clear();
        let sessions = self.meta.reader().sessions()?;
        state.table = Some(LeaseTable::begin(sessions.into_iter().map(|session| session.id)));
        state.log_floor = *self.meta.applied().borrow();
        state.term = term;
        Ok(())
    }

    /// This node leads no more: all links end.
    pub fn end(&self) {
        self.end_unless(|| false);
    }

    /// As [`LeaseDesk::end`], unless `leads` says, asked while nobody can [begin](LeaseDesk::begin), that it does lead.
    pub fn end_unless(&self, leads: impl FnOnce() -> bool) {
        let mut state = self.state();
        if leads() {
            return;
        }
        state.table = None;
        state.links.clear();
    }

    /// Sessions of which it is not known yet what they hold; empty also while this node is not in office.
    #[must_use]
    pub fn awaited(&self) -> Vec<SessionId> {
        let state = self.state();
        let awaited = state.table.iter().flat_map(|table| table.awaited());
        awaited.copied().collect()
    }

    /// True if there is a link to this session.
    #[must_use]
    pub fn is_linked(&self, session: SessionId) -> bool {
        self.state().links.contains_key(&session)
    }

    /// A link to a session of the node `caller` is up; an earlier one is cut.
    ///
    /// # Errors
    /// [`WireError::NotNow`] if this node is not in office, or has no such session.
    pub fn hello(&self, caller: NodeId, hello: Hello, orders: Orders) -> Result<Link, WireError> {
        let mut guard = self.state();
        let state = &mut *guard;
        let session = self.meta.reader().session(hello.session);
        let session = session.map_err(|error| WireError::NotNow(error.to_string()))?;
        if session.is_none_or(|session| session.node != caller) {
            return Err(WireError::NotNow("this node has no such session".into()));
        }
        let Some(table) = &mut state.table else {
            return Err(WireError::NotNow("this node does not lead now".into()));
        };
        let number = state.next_number;
        state.next_number += 1;
        state.log_floor = state.log_floor.max(hello.log_index);
        let ended = CancellationToken::new();
        let _ = orders.try_send(Ok(ToHolder::Welcome { term: state.term }));
        let outgoing = Outgoing {
            number,
            orders,
            _ended: ended.clone().drop_guard(),
        };
        state.links.insert(hello.session, outgoing);
        table.hello(hello.session, hello.held);
        self.dispatch(state);
        Ok(Link {
            session: hello.session,
            number,
            ended,
        })
    }

    /// A holder says something.
    ///
    /// # Errors
    /// [`WireError::Malformed`] if it asks for more than it may: the link is to be cut.
    pub fn heard(
        &self,
        link: &Link,
        log_index: u64,
        message: ToLeader,
        grants_seen: u64,
    ) -> Result<(), WireError> {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(table) = state.table.as_mut() else {
            return Ok(());
        };
        let outgoing = state.links.get(&link.session);
        let Some(outgoing) = outgoing.filter(|outgoing| outgoing.number == link.number) else {
            // Said before a later hello, or to a leader that is none any more.
            return Ok(());
        };
        state.log_floor = state.log_floor.max(log_index);
        match message {
            ToLeader::Acquire { id, leases } => table
                .acquire(link.session, id, &leases)
                .map_err(|error| WireError::Malformed(error.to_string()))?,
            ToLeader::TryRange { id, range } => table
                .try_range(link.session, id, range)
                .map_err(|error| WireError::Malformed(error.to_string()))?,
            ToLeader::Release { leases } => table.release(link.session, &leases, grants_seen),
            ToLeader::Claim { inodes } => {
                table.claim(link.session, &inodes);
                // One that has no room for this has none for what follows either, and is cut then.
                let _ = outgoing.orders.try_send(Ok(ToHolder::Claimed(inodes)));
            }
        }
        self.dispatch(state);
        Ok(())
    }

    /// A link is down. What the session holds it keeps.
    pub fn closed(&self, link: &Link) {
        let mut guard = self.state();
        let state = &mut *guard;
        let is_current = |outgoing: &Outgoing| outgoing.number == link.number;
        if !state.links.get(&link.session).is_some_and(is_current) {
            return;
        }
        state.links.remove(&link.session);
        if let Some(table) = &mut state.table {
            table.link_down(link.session);
        }
        self.dispatch(state);
    }

    fn session_over(&self, session: SessionId, index: u64) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.links.remove(&session);
        let Some(table) = &mut state.table else { return };
        state.log_floor = state.log_floor.max(index);
        table.session_over(session);
        self.dispatch(state);
    }

    /// Sends what the table orders.
    fn dispatch(&self, state: &mut State) {
        let Some(table) = &mut state.table else { return };
        let log_index = state.log_floor.max(*self.meta.applied().borrow());
        loop {
            let orders = table.take_orders();
            if orders.is_empty() {
                return;
            }
            for order in orders {
                let (session, order) = match order {
                    Order::Grant { session, id } => (session, ToHolder::Granted { id, log_index }),
                    Order::Recall { session, leases } => (session, ToHolder::Recalled(leases)),
                    Order::Refuse { session, inodes } => {
                        tracing::error!(
                            session = session.0,
                            ?inodes,
                            "leases are held that are another's: a defect"
                        );
                        (session, ToHolder::Refused(inodes))
                    }
                };
                // To one that cannot be told: it says hello before it is told anything else.
                let Some(outgoing) = state.links.get(&session) else {
                    continue;
                };
                if outgoing.orders.try_send(Ok(order)).is_err() {
                    state.links.remove(&session);
                    table.link_down(session);
                }
            }
        }
    }
}

/// Tells the desk of sessions that end. The store keeps its observers, and the desk the store: so this one must not keep
/// the desk.
struct Ends(Weak<LeaseDesk>);

impl Observer for Ends {
    fn applied(&self, index: u64, events: &[Event]) {
        let Some(desk) = self.0.upgrade() else { return };
        for event in events {
            match event {
                Event::SessionExpired { session } => desk.session_over(*session, index),
                // A leader is sent no snapshots.
                Event::Reset => desk.end(),
                _ => {}
            }
        }
    }
}
