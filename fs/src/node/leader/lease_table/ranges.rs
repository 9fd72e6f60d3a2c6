//! Leases of the attributes of whole ranges of inodes.

use std::collections::BTreeSet;

use raftstore::meta::{Ino, SessionId};

use super::{Holder, LeaseTable, Order, Overrun, Place, Ticket, hold};
use crate::lease::{Lease, LeaseMode, inodes_of, is_range, range_of};

impl LeaseTable {
    /// A session would like to have a range, shared. It is granted now or not at all.
    ///
    /// # Errors
    /// [`Overrun::Range`] if it is none.
    pub fn try_range(&mut self, session: SessionId, id: u64, range: Ino) -> Result<(), Overrun> {
        if !is_range(range) {
            return Err(Overrun::Range);
        }
        if !self.awaited.is_empty() || self.is_owned_elsewhere(session, range) {
            return Ok(());
        }
        let Some(granted) = self.sessions.get_mut(&session) else {
            return Ok(());
        };
        granted.grants += 1;
        let (count, mode) = (granted.grants, LeaseMode::Shared);
        hold(
            &mut self.places,
            granted,
            session,
            Lease { ino: range, mode },
            count,
        );
        self.orders.push(Order::Grant { session, id });
        self.recall_excess(session);
        Ok(())
    }

    /// Whether another session has, or waits for, an inode of this range exclusively.
    fn is_owned_elsewhere(&self, session: SessionId, range: Ino) -> bool {
        let is_wanted = |(ino, place): (&Ino, &Place)| {
            let waits = |ticket: &Ticket| {
                self.requests.get(ticket).is_some_and(|request| {
                    request.session != session && request.leases.get(ino) == Some(&LeaseMode::Exclusive)
                })
            };
            let is_exclusive =
                |holder: &Holder| holder.session != session && holder.mode == LeaseMode::Exclusive;
            place.holders.iter().any(is_exclusive) || place.waiting.iter().any(waits)
        };
        self.places.range(inodes_of(range)).any(is_wanted)
    }

    /// Tells who holds a range to give it up, if another session holds one of its inodes exclusively; `touched` are inodes
    /// and ranges that a session has come to hold otherwise than by asking.
    pub(super) fn recall_ranges(&mut self, touched: &[Ino]) {
        let ranges: BTreeSet<Ino> = touched.iter().map(|ino| range_of(*ino)).collect();
        for range in ranges {
            let place = self.places.get(&range);
            let holders = place.map(|place| place.holders.iter().map(|holder| holder.session).collect());
            let holders: Vec<SessionId> = holders.unwrap_or_default();
            for session in holders {
                if self.is_owned_elsewhere(session, range) {
                    self.recall_range(session, range);
                }
            }
        }
    }

    /// Tells a session to give a range up, unless it has been told.
    fn recall_range(&mut self, session: SessionId, range: Ino) {
        let holders = self.places.get_mut(&range).map(|place| place.holders.iter_mut());
        let mut holders = holders.into_iter().flatten();
        let holder = holders.find(|holder| holder.session == session);
        if holder.is_some_and(|holder| holder.tell(&mut self.sessions)) {
            let leases = vec![(range, None)];
            self.orders.push(Order::Recall { session, leases });
        }
    }
}
