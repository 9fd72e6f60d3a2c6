//! Who holds which leases, and who waits for them: what the leader decides by, without a clock or a network.
//!
//! A request is granted as a whole, once no other session holds anything that conflicts with it, and no earlier request
//! of another session waits for anything that does. So the oldest request waits for holders only, and these are told
//! to give way.
//!
//! Grants and releases cross on their way: a release that its sender wrote before it knew of a grant of the same inode
//! is about what it held before, and is void. Grants are counted for that, and a release says how many were known.
//!
//! A [range](range_of) of inodes is given out only if nobody is in the way, and never waited for. Inodes that were made in one
//! meanwhile are their maker's all the same: who holds the range is told to give it up, and hears that before it can be
//! granted the directory in which it would find them.

use std::collections::{BTreeMap, BTreeSet};

use raftstore::meta::{Ino, SessionId};

use crate::lease::{
    Kept, Lease, LeaseMode, REQUEST_LEASES_MAX, SESSION_LEASES_MAX, SESSION_REQUESTS_MAX, inodes_of,
    is_range, range_of,
};

mod ranges;

/// What a session is to be told. Orders to one session must reach it in the order in which they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Its request is granted.
    Grant {
        /// Whose.
        session: SessionId,
        /// The request's id.
        id: u64,
    },
    /// Give these up, or keep less.
    Recall {
        /// Who.
        session: SessionId,
        /// What may be kept of each.
        leases: Vec<Kept>,
    },
    /// What it says that it holds, another session holds.
    Refuse {
        /// Who.
        session: SessionId,
        /// Which.
        inodes: Vec<Ino>,
    },
}

/// A session asks for more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overrun {
    /// Leases in one request.
    #[error("a request for more than {REQUEST_LEASES_MAX} leases")]
    Leases,
    /// Requests that wait.
    #[error("more than {SESSION_REQUESTS_MAX} requests for leases wait")]
    Requests,
    /// A range that is to be waited for, or for changing.
    #[error("a range of inodes is asked for as if it were one")]
    Range,
}

/// Place in the queue of requests.
type Ticket = u64;

#[derive(Debug)]
struct Holder {
    session: SessionId,
    mode: LeaseMode,
    /// The session's count of grants with the last one that covered this.
    grant: u64,
    /// Key in [`Session::by_age`].
    age: u64,
    /// Told to give way, and not answered yet. Counted in [`Session::recalled`].
    recalled: bool,
}

impl Holder {
    /// Counts as told to give way from now on; false if it did before.
    fn tell(&mut self, sessions: &mut BTreeMap<SessionId, Session>) -> bool {
        if self.recalled {
            return false;
        }
        self.recalled = true;
        if let Some(state) = sessions.get_mut(&self.session) {
            state.recalled += 1;
        }
        true
    }
}

#[derive(Debug, Default)]
struct Place {
    holders: Vec<Holder>,
    waiting: BTreeSet<Ticket>,
}

#[derive(Debug, Default)]
struct Session {
    /// Since it said hello.
    grants: u64,
    next_age: u64,
    /// Every inode of which it holds a lease, in the order in which it was given or last looked at.
    by_age: BTreeMap<u64, Ino>,
    /// Of these, how many it was told to give up.
    recalled: usize,
    /// Those that wait, by id.
    requests: BTreeMap<u64, Ticket>,
}

#[derive(Debug)]
struct Request {
    session: SessionId,
    id: u64,
    leases: BTreeMap<Ino, LeaseMode>,
}

/// All leases of one leader's time in office.
#[derive(Debug)]
pub struct LeaseTable {
    /// By inode or range.
    places: BTreeMap<Ino, Place>,
    sessions: BTreeMap<SessionId, Session>,
    requests: BTreeMap<Ticket, Request>,
    next_ticket: Ticket,
    /// Nothing is granted before these have said what they hold.
    awaited: BTreeSet<SessionId>,
    orders: Vec<Order>,
    session_leases_max: usize,
}

impl LeaseTable {
    /// Nothing is known, and nothing is granted until each of `awaited`, the sessions that there are, has said what it
    /// holds, or is over.
    #[must_use]
    pub fn begin(awaited: impl IntoIterator<Item = SessionId>) -> Self {
        Self::bounded(awaited, SESSION_LEASES_MAX)
    }

    fn bounded(awaited: impl IntoIterator<Item = SessionId>, session_leases_max: usize) -> Self {
        Self {
            places: BTreeMap::new(),
            sessions: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_ticket: 0,
            awaited: awaited.into_iter().collect(),
            orders: Vec::new(),
            session_leases_max,
        }
    }

    /// What is to be told since the last call.
    #[must_use]
    pub fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// Sessions that have not said yet what they hold.
    #[must_use]
    pub fn awaited(&self) -> &BTreeSet<SessionId> {
        &self.awaited
    }

    /// A session says what it holds, on a new link: that replaces what was known of it, and its requests are to come
    /// again.
    pub fn hello(&mut self, session: SessionId, held: impl IntoIterator<Item = Lease>) {
        let mut touched = self.forget(session);
        let mut entered = Session::default();
        let mut refused = BTreeSet::new();
        for mut lease in held {
            if is_range(lease.ino) {
                lease.mode = LeaseMode::Shared;
            }
            if self.is_held(session, lease.ino, lease.mode) {
                refused.insert(lease.ino);
            } else {
                hold(&mut self.places, &mut entered, session, lease, 0);
            }
        }
        // Who waits for any of these is looked at again.
        for ino in entered.by_age.values() {
            touched.extend(self.waiting(*ino));
        }
        let held: Vec<Ino> = entered.by_age.values().copied().collect();
        self.sessions.insert(session, entered);
        self.recall_ranges(&held);
        if !refused.is_empty() {
            let inodes = refused.into_iter().collect();
            self.orders.push(Order::Refuse { session, inodes });
        }
        if self.awaited.remove(&session) && self.awaited.is_empty() {
            touched.extend(self.requests.keys());
        }
        self.recall_excess(session);
        self.settle(touched);
    }

    /// A session asks for leases. The same id again is the same request.
    ///
    /// # Errors
    /// [`Overrun`]; nothing was changed.
    pub fn acquire(&mut self, session: SessionId, id: u64, leases: &[Lease]) -> Result<(), Overrun> {
        if leases.len() > REQUEST_LEASES_MAX {
            return Err(Overrun::Leases);
        }
        if leases.iter().any(|lease| is_range(lease.ino)) {
            return Err(Overrun::Range);
        }
        let Some(asking) = self.sessions.get_mut(&session) else {
            return Ok(());
        };
        if asking.requests.contains_key(&id) {
            return Ok(());
        }
        if asking.requests.len() >= SESSION_REQUESTS_MAX {
            return Err(Overrun::Requests);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        asking.requests.insert(id, ticket);
        let mut wanted = BTreeMap::new();
        for lease in leases {
            let mode = wanted.entry(lease.ino).or_insert(lease.mode);
            *mode = lease.mode.max(*mode);
        }
        for ino in wanted.keys() {
            self.places.entry(*ino).or_default().waiting.insert(ticket);
        }
        let leases = wanted;
        self.requests.insert(ticket, Request { session, id, leases });
        self.settle(BTreeSet::from([ticket]));
        Ok(())
    }

    /// A session gives leases up, or keeps less, and knew of its first `grants_seen` grants when it said so. What it
    /// does not hold is ignored.
    pub fn release(&mut self, session: SessionId, leases: &[Kept], grants_seen: u64) {
        let mut touched = BTreeSet::new();
        for (ino, kept) in leases {
            let Some(place) = self.places.get_mut(ino) else {
                continue;
            };
            let Some(at) = place.holders.iter().position(|h| h.session == session) else {
                continue;
            };
            let Some(holder) = place.holders.get_mut(at) else {
                continue;
            };
            if holder.grant > grants_seen || kept.is_some_and(|kept| kept >= holder.mode) {
                continue;
            }
            if let Some(state) = self.sessions.get_mut(&session) {
                state.recalled -= usize::from(holder.recalled);
                if kept.is_none() {
                    state.by_age.remove(&holder.age);
                }
            }
            match kept {
                Some(kept) => (holder.mode, holder.recalled) = (*kept, false),
                None => drop(place.holders.swap_remove(at)),
            }
            touched.extend(self.waiting(*ino));
            self.tidy(*ino);
        }
        self.settle(touched);
    }

    /// A session has made these inodes, and holds them exclusively.
    pub fn claim(&mut self, session: SessionId, inodes: &[Ino]) {
        let Some(mut claiming) = self.sessions.remove(&session) else {
            return;
        };
        let (mut touched, mut refused) = (BTreeSet::new(), Vec::new());
        for ino in inodes {
            let (ino, mode) = (*ino, LeaseMode::Exclusive);
            if self.is_held(session, ino, mode) {
                refused.push(ino);
            } else {
                hold(&mut self.places, &mut claiming, session, Lease { ino, mode }, 0);
                touched.extend(self.waiting(ino));
            }
        }
        self.sessions.insert(session, claiming);
        self.recall_ranges(inodes);
        if !refused.is_empty() {
            let inodes = refused;
            self.orders.push(Order::Refuse { session, inodes });
        }
        self.recall_excess(session);
        self.settle(touched);
    }

    /// The session cannot be told anything for now. It keeps what it holds; what it waits for it must ask for again.
    pub fn link_down(&mut self, session: SessionId) {
        let touched = self.drop_requests(session);
        self.settle(touched);
    }

    /// The session is over: what it held is free.
    pub fn session_over(&mut self, session: SessionId) {
        let mut touched = self.forget(session);
        if self.awaited.remove(&session) && self.awaited.is_empty() {
            touched.extend(self.requests.keys());
        }
        self.settle(touched);
    }

    /// Looks at requests that may have become grantable, the oldest first, and at those that follow from that.
    fn settle(&mut self, mut touched: BTreeSet<Ticket>) {
        if !self.awaited.is_empty() {
            return;
        }
        while let Some(ticket) = touched.pop_first() {
            let Some(request) = self.requests.get(&ticket) else {
                continue;
            };
            if self.may_grant(ticket, request) {
                touched.extend(self.grant(ticket));
            } else {
                self.recall_for(ticket);
            }
        }
    }

    fn may_grant(&self, ticket: Ticket, request: &Request) -> bool {
        request.leases.iter().all(|(ino, mode)| {
            let earlier = self.places.get(ino).map(|place| place.waiting.range(..ticket));
            let in_the_way = |other: &Request| {
                other.session != request.session
                    && other
                        .leases
                        .get(ino)
                        .is_some_and(|wanted| !wanted.is_compatible(*mode))
            };
            !self.is_held(request.session, *ino, *mode)
                && !self.is_held(request.session, range_of(*ino), *mode)
                && !earlier
                    .into_iter()
                    .flatten()
                    .any(|earlier| self.requests.get(earlier).is_some_and(in_the_way))
        })
    }

    /// Returns who has to be looked at again: whoever waits for the same inodes. Those before it, too, which a session
    /// may pass with what it holds already: what it was told to give up counts as not told any more.
    fn grant(&mut self, ticket: Ticket) -> BTreeSet<Ticket> {
        let Some((request, touched)) = self.remove_request(ticket) else {
            return BTreeSet::new();
        };
        let (session, id) = (request.session, request.id);
        let Some(granted) = self.sessions.get_mut(&session) else {
            return touched;
        };
        granted.grants += 1;
        let count = granted.grants;
        for (ino, mode) in request.leases {
            hold(&mut self.places, granted, session, Lease { ino, mode }, count);
        }
        self.orders.push(Order::Grant { session, id });
        self.recall_excess(session);
        touched
    }

    /// Tells all who are in the way of a request, and have not been told.
    fn recall_for(&mut self, ticket: Ticket) {
        let Some(request) = self.requests.get(&ticket) else {
            return;
        };
        let mut recalls: BTreeMap<SessionId, Vec<Kept>> = BTreeMap::new();
        let leases = request.leases.iter();
        for (ino, wanted) in leases.flat_map(|(ino, wanted)| [(*ino, wanted), (range_of(*ino), wanted)]) {
            let holders = self.places.get_mut(&ino).map(|place| place.holders.iter_mut());
            for holder in holders.into_iter().flatten() {
                let conflict = holder.session != request.session && !holder.mode.is_compatible(*wanted);
                if conflict && holder.tell(&mut self.sessions) {
                    let keep = (*wanted == LeaseMode::Shared).then_some(LeaseMode::Shared);
                    recalls.entry(holder.session).or_default().push((ino, keep));
                }
            }
        }
        let recalls = recalls.into_iter();
        self.orders
            .extend(recalls.map(|(session, leases)| Order::Recall { session, leases }));
    }

    /// Tells a session that holds too many to give up the oldest.
    fn recall_excess(&mut self, session: SessionId) {
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        let too_many = |state: &Session| state.by_age.len() - state.recalled > self.session_leases_max;
        let mut leases = Vec::new();
        while too_many(state) {
            let Some((_, ino)) = state.by_age.pop_first() else {
                break;
            };
            // The others come first at the next look.
            let age = state.next_age;
            state.next_age += 1;
            state.by_age.insert(age, ino);
            let holders = self.places.get_mut(&ino).map(|place| place.holders.iter_mut());
            for holder in holders.into_iter().flatten().filter(|h| h.session == session) {
                holder.age = age;
                if !holder.recalled {
                    holder.recalled = true;
                    state.recalled += 1;
                    leases.push((ino, None));
                }
            }
        }
        if !leases.is_empty() {
            self.orders.push(Order::Recall { session, leases });
        }
    }

    /// Whether another session holds this inode, or range, in a mode that excludes this one.
    fn is_held(&self, session: SessionId, ino: Ino, mode: LeaseMode) -> bool {
        let excludes = |holder: &Holder| holder.session != session && !holder.mode.is_compatible(mode);
        self.places
            .get(&ino)
            .is_some_and(|place| place.holders.iter().any(excludes))
    }

    /// Who waits for an inode, or any of a range.
    fn waiting(&self, ino: Ino) -> impl Iterator<Item = Ticket> {
        let places = self.places.range(inodes_of(ino));
        places.flat_map(|(_, place)| place.waiting.iter().copied())
    }

    /// Removes all that is known of a session. Returns who has to be looked at again.
    fn forget(&mut self, session: SessionId) -> BTreeSet<Ticket> {
        let mut touched = self.drop_requests(session);
        let Some(gone) = self.sessions.remove(&session) else {
            return touched;
        };
        for ino in gone.by_age.into_values() {
            if let Some(place) = self.places.get_mut(&ino) {
                place.holders.retain(|holder| holder.session != session);
            }
            touched.extend(self.waiting(ino));
            self.tidy(ino);
        }
        touched
    }

    fn drop_requests(&mut self, session: SessionId) -> BTreeSet<Ticket> {
        let waiting = self.sessions.get(&session).map(|s| s.requests.values().copied());
        let waiting: Vec<Ticket> = waiting.into_iter().flatten().collect();
        let mut touched = BTreeSet::new();
        for ticket in waiting {
            touched.extend(
                self.remove_request(ticket)
                    .into_iter()
                    .flat_map(|(_, touched)| touched),
            );
        }
        touched
    }

    /// Takes a request out of the queue. Returns it, and who else waits for the same.
    fn remove_request(&mut self, ticket: Ticket) -> Option<(Request, BTreeSet<Ticket>)> {
        let request = self.requests.remove(&ticket)?;
        if let Some(session) = self.sessions.get_mut(&request.session) {
            session.requests.remove(&request.id);
        }
        let mut touched = BTreeSet::new();
        for ino in request.leases.keys() {
            if let Some(place) = self.places.get_mut(ino) {
                place.waiting.remove(&ticket);
                touched.extend(&place.waiting);
            }
            self.tidy(*ino);
        }
        Some((request, touched))
    }

    fn tidy(&mut self, ino: Ino) {
        let idle = |place: &Place| place.holders.is_empty() && place.waiting.is_empty();
        if self.places.get(&ino).is_some_and(idle) {
            self.places.remove(&ino);
        }
    }
}

/// Enters a lease, given with the session's grant `grant`. What was held before is kept if it is more.
fn hold(
    places: &mut BTreeMap<Ino, Place>,
    state: &mut Session,
    session: SessionId,
    lease: Lease,
    grant: u64,
) {
    let place = places.entry(lease.ino).or_default();
    let age = state.next_age;
    state.next_age += 1;
    state.by_age.insert(age, lease.ino);
    match place.holders.iter_mut().find(|holder| holder.session == session) {
        Some(holder) => {
            state.by_age.remove(&holder.age);
            // The answer to a recall that was sent before this grant will be void: it is asked for again if need be.
            let (mode, recalled) = (
                holder.mode.max(lease.mode),
                holder.recalled && grant <= holder.grant,
            );
            state.recalled -= usize::from(holder.recalled && !recalled);
            let grant = grant.max(holder.grant);
            *holder = Holder {
                session,
                mode,
                grant,
                age,
                recalled,
            };
        }
        None => place.holders.push(Holder {
            session,
            mode: lease.mode,
            grant,
            age,
            recalled: false,
        }),
    }
}

#[cfg(test)]
mod tests;
