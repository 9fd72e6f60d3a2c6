//! This node's links for leases: to whoever leads, again and again, as long as the node lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use openraft::async_runtime::watch::WatchReceiver;
use raftstore::meta::{Ino, MetaStore, NodeId, SessionId};
use tokio::sync::{mpsc, watch};

use super::raft::{self, Raft};
use super::session::{SessionKeeper, SessionState};
use super::transport::leader_client::LeaderClient;
use super::transport::lease_wire::{FromHolder, Said, ToHolder};
use super::transport::wire::WireError;
use crate::lease::{
    GrantCount, HolderStatus, Kept, LINK_MESSAGES_MAX, Lease, LeaseHolder, LeaseLink, LinkReceiver,
};

/// Messages between the link and the connection.
const OUTGOING_MAX: usize = 16;
/// Leases in one part of the hello.
const HELLO_PART_LEASES: usize = 4096;

/// Who holds leases on this node; set once the tree is about to be mounted. Until then nothing is held.
pub struct LeaseHolderSlot(watch::Sender<Option<Arc<dyn LeaseHolder>>>);

impl Default for LeaseHolderSlot {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl LeaseHolderSlot {
    /// From now on `holder` does. It is called from one task only, but for its status.
    pub fn set(&self, holder: Arc<dyn LeaseHolder>) {
        self.0.send_replace(Some(holder));
    }

    /// What it holds now.
    #[must_use]
    pub fn status(&self) -> HolderStatus {
        let holder = self.0.borrow().clone();
        holder.map_or_else(HolderStatus::default, |holder| holder.status())
    }
}

/// Says that nothing is held: a leader waits for every session to say so.
struct Nobody;

impl LeaseHolder for Nobody {
    fn connected(&self, _: SessionId, _: LeaseLink) -> Vec<Lease> {
        Vec::new()
    }
    fn refused(&self, _: Vec<Ino>) {}
    fn granted(&self, _: u64, _: u64) {}
    fn recalled(&self, _: Vec<Kept>) {}
    fn valid_until(&self, _: SessionId, _: Duration) {}
    fn session_over(&self, _: SessionId) {}
}

/// Keeps this node's holder linked to the leader.
pub struct LeaseClient {
    leader: Arc<LeaderClient>,
    session: Arc<SessionKeeper>,
    meta: Arc<MetaStore>,
    raft: Raft,
    holder: Arc<LeaseHolderSlot>,
    /// The latest in which a leader has welcomed this node. One of an earlier term does not know yet that it leads no
    /// more: it would give out what the later one may have given to another node.
    term: AtomicU64,
}

impl LeaseClient {
    /// For the holder in `holder`.
    #[must_use]
    pub fn new(
        leader: Arc<LeaderClient>,
        session: Arc<SessionKeeper>,
        meta: Arc<MetaStore>,
        raft: Raft,
        holder: Arc<LeaseHolderSlot>,
    ) -> Self {
        Self {
            leader,
            session,
            meta,
            raft,
            holder,
            term: AtomicU64::new(0),
        }
    }

    /// Runs until the node is removed. All calls of the holder come from here, one at a time.
    pub async fn run(self) {
        while let Ok(session) = self.session.open_session().await {
            let mut state = self.session.state();
            let over = state.wait_for(|state| *state != SessionState::Open(session));
            tokio::select! {
                biased;
                _ = over => {}
                () = self.keep(session) => {}
            }
            let holder = self.holder.0.borrow().clone();
            if let Some(holder) = holder {
                holder.session_over(session);
            }
        }
    }

    async fn keep(&self, session: SessionId) {
        let mut slot = self.holder.0.subscribe();
        loop {
            let holder = slot.borrow_and_update().clone();
            let holder = holder.unwrap_or_else(|| Arc::new(Nobody));
            tokio::select! {
                biased;
                _ = slot.changed() => {}
                () = self.tell_validity(session, &*holder) => {}
                () = self.stay_linked(session, &*holder) => {}
            }
        }
    }

    async fn tell_validity(&self, session: SessionId, holder: &dyn LeaseHolder) {
        let mut validity = self.session.validity();
        loop {
            let valid = *validity.borrow_and_update();
            if let Some((of, at)) = valid
                && of == session
            {
                holder.valid_until(session, at);
            }
            if validity.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn stay_linked(&self, session: SessionId, holder: &dyn LeaseHolder) {
        loop {
            if let Err(error) = self.leader.learn(self.link(session, holder).await) {
                tracing::debug!(%error, "no link for leases");
            }
            self.leader.long_pause().await;
        }
    }

    /// One link, from its beginning to its end.
    async fn link(&self, session: SessionId, holder: &dyn LeaseHolder) -> Result<(), WireError> {
        let (to_leader, outgoing) = mpsc::channel(OUTGOING_MAX);
        let leader = raft::leader(&self.raft);
        let mut orders = self.leader.leases(outgoing).await?;
        let (link, said) = LeaseLink::new(LINK_MESSAGES_MAX);
        let grants = said.grants();
        let held = holder.connected(session, link);
        tokio::select! {
            () = self.talk(session, held, said, to_leader) => Ok(()),
            end = self.listen(&mut orders, holder, &grants) => end,
            () = another_leads(&self.raft, leader) => Ok(()),
        }
    }

    /// Sends what the holder says. Ends if that cannot be sent.
    async fn talk(
        &self,
        session: SessionId,
        held: Vec<Lease>,
        mut said: LinkReceiver,
        to_leader: mpsc::Sender<FromHolder>,
    ) {
        let applied = self.meta.applied();
        let send = async |said| {
            // Read after the holder has given up what it gives up here.
            let log_index = *applied.borrow();
            to_leader.send(FromHolder { log_index, said }).await.is_ok()
        };
        for part in parts(session, &held) {
            if !send(part).await {
                return;
            }
        }
        drop(held);
        while let Some((message, grants_seen)) = said.recv_counted().await {
            if !send(Said::Message { message, grants_seen }).await {
                return;
            }
        }
        if !said.is_down() {
            // A holder that has nothing to say.
            std::future::pending().await
        }
    }

    /// Hands orders to the holder.
    async fn listen(
        &self,
        orders: &mut BoxStream<'static, Result<ToHolder, WireError>>,
        holder: &dyn LeaseHolder,
        grants: &GrantCount,
    ) -> Result<(), WireError> {
        while let Some(order) = orders.next().await {
            match order? {
                ToHolder::Welcome { term } => {
                    if self.term.fetch_max(term, Ordering::SeqCst) > term {
                        return Err(WireError::NotNow(format!(
                            "the leader of term {term} is outdated"
                        )));
                    }
                    holder.welcome();
                }
                ToHolder::Granted { id, log_index } => {
                    holder.granted(id, log_index);
                    grants.taken_in();
                }
                ToHolder::Recalled(leases) => holder.recalled(leases),
                ToHolder::Claimed(inodes) => holder.claimed(inodes),
                ToHolder::Refused(inodes) => holder.refused(inodes),
            }
        }
        Ok(())
    }
}

/// What is held, in parts of which there is at least one.
fn parts(session: SessionId, held: &[Lease]) -> impl Iterator<Item = Said> {
    let count = held.len().div_ceil(HELLO_PART_LEASES).max(1);
    (0..count).map(move |part| {
        let rest = held.iter().skip(part * HELLO_PART_LEASES);
        Said::Hello {
            session,
            held: rest.take(HELLO_PART_LEASES).copied().collect(),
            last: part + 1 == count,
        }
    })
}

/// Ends once this node hears of another leader than `before`.
async fn another_leads(raft: &Raft, before: Option<NodeId>) {
    let mut metrics = raft.server_metrics();
    loop {
        let leader = metrics.borrow_and_update().current_leader;
        if leader.is_some() && leader != before {
            return;
        }
        if metrics.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::LeaseMode;

    #[test]
    fn a_long_hello_comes_in_parts_that_lose_nothing() {
        for count in [0, 1, HELLO_PART_LEASES, 2 * HELLO_PART_LEASES + 1] {
            let mode = LeaseMode::Shared;
            let held: Vec<Lease> = (0..count as u64).map(|ino| Lease { ino, mode }).collect();
            let (mut said, mut ends) = (Vec::new(), Vec::new());
            for part in parts(SessionId(1), &held) {
                let Said::Hello { held, last, .. } = part else {
                    panic!("{part:?}")
                };
                assert!(held.len() <= HELLO_PART_LEASES);
                said.extend(held);
                ends.push(last);
            }
            assert_eq!(said, held);
            assert_eq!(ends.iter().position(|last| *last), Some(ends.len() - 1));
        }
    }
}
