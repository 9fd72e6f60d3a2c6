//! What runs in the background as long as a node does.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use raftstore::meta::{Event, Observer};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Shared;
use super::open_files::OpenFilesSlot;
use crate::backend::Propose;
use crate::chunk::{Merger, MergerOptions};
use crate::node::backend::NodeBackend;
use crate::node::config::Limits;
use crate::node::housekeeping::{Housekeeping, cut, idle_cut};
use crate::node::idle::Idle;
use crate::node::leader::round::Rounds;
use crate::node::lease_client::{LeaseClient, LeaseHolderSlot};
use crate::node::service::meta::OpenFiles;
use crate::node::session::SessionState;
use crate::node::store::{self, Store};

/// What runs in the background as long as the node does.
pub(super) fn work(
    tasks: &mut JoinSet<()>,
    shared: &Shared,
    store: &Store,
    open_files: &Arc<OpenFilesSlot>,
    (backend, housekeeping_interval): (&Arc<NodeBackend>, Duration),
) {
    let session = Arc::clone(&shared.session);
    tasks.spawn(async move { session.run().await });
    let rounds = Rounds::new(
        shared.id,
        (
            shared.raft.clone(),
            Arc::clone(&shared.duties),
            Arc::clone(&shared.meta),
        ),
        (Arc::clone(&shared.directory), Arc::clone(&shared.peers)),
        Arc::clone(&shared.clock),
        Arc::clone(open_files) as Arc<dyn OpenFiles>,
    );
    tasks.spawn(rounds.run());
    let limits = store.config.limits.clone();
    let housekeeping = Housekeeping::new(
        shared.raft.clone(),
        Arc::clone(&shared.meta),
        Arc::clone(&shared.journal),
        limits.clone(),
        housekeeping_interval,
    );
    tasks.spawn(housekeeping.run());
    merge(tasks, shared, limits, (backend, housekeeping_interval));
    follow_membership(tasks, shared);
    follow_members(tasks, shared, store);
}

/// Moves payload out of the log, and merges sparse files, while this node leads.
fn merge(
    tasks: &mut JoinSet<()>,
    shared: &Shared,
    limits: Limits,
    (backend, every): (&Arc<NodeBackend>, Duration),
) {
    let session = Arc::clone(&shared.session);
    let merger = Merger::new(
        Arc::clone(&shared.plane),
        Arc::clone(backend) as Arc<dyn Propose>,
        Arc::new(move || session.numbers().namer()),
        MergerOptions {
            every,
            ..shared
                .medium
                .as_ref()
                .map_or_else(MergerOptions::default, MergerOptions::for_medium)
        },
    );
    let (duties, journal) = (Arc::clone(&shared.duties), Arc::clone(&shared.journal));
    let (session, clock) = (Arc::clone(&shared.session), Arc::clone(&shared.clock));
    tasks.spawn(async move {
        // Its chunks are named after the session.
        let has_session = || matches!(*session.state().borrow(), SessionState::Open(_));
        let leads = || duties.is_ready() && duties.leads() && has_session();
        let idle = Idle::default();
        let target = || {
            let is_idle = idle.look(duties.proposals(), clock.monotonic());
            if !leads() {
                return None;
            }
            let stats = journal.stats();
            let in_idle_time = is_idle.then(|| idle_cut(&stats, &limits)).flatten();
            cut(&stats, &limits).max(in_idle_time)
        };
        // What is to be purged must not hold payload: one further than the last entry that goes.
        let payloads = merger.run(|| target().map(|last| last + 1));
        tokio::join!(payloads, merger.run_sparse(leads));
    });
}

/// Keeps the directory of members in step with Raft's own idea of who is one.
fn follow_membership(tasks: &mut JoinSet<()>, shared: &Shared) {
    let (directory, mut metrics) = (Arc::clone(&shared.directory), shared.raft.server_metrics());
    tasks.spawn(async move {
        loop {
            let in_raft = {
                let metrics = metrics.borrow_and_update();
                // Who is to leave stays until that is decided.
                let both = [&metrics.committed_membership_config, &metrics.membership_config];
                let nodes = both.iter().flat_map(|config| config.membership().nodes());
                nodes.map(|(id, _)| *id).collect()
            };
            directory.set_in_raft(in_raft);
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });
}

/// Keeps the directory of members, and the list of them in the store, in step with the replicated state.
fn follow_members(tasks: &mut JoinSet<()>, shared: &Shared, store: &Store) {
    let watch = Arc::new(MemberWatch(Notify::new()));
    shared.meta.observe(Arc::clone(&watch) as Arc<dyn Observer>);
    let (directory, meta, peers) = (
        Arc::clone(&shared.directory),
        Arc::clone(&shared.meta),
        Arc::clone(&shared.peers),
    );
    let layout = store.layout.clone();
    tasks.spawn(async move {
        loop {
            match directory.update(&meta.reader()) {
                Ok(false) => {}
                Ok(true) => {
                    let members = directory.members();
                    peers.retain(|listen| members.values().any(|member| member.listen == listen));
                    let list: Vec<_> = members.iter().map(|(id, member)| (*id, member.clone())).collect();
                    if let Err(error) = store::save_members(&layout, &list) {
                        tracing::warn!(%error, "the members could not be written down");
                    }
                }
                Err(error) => tracing::warn!(%error, "the members cannot be read"),
            }
            watch.0.notified().await;
        }
    });
}

/// Leases: this node's link to the leader, and what it does with those of others while it leads.
pub(super) fn lease(tasks: &mut JoinSet<()>, shared: &Shared, holder: &Arc<LeaseHolderSlot>) {
    let desk = Arc::clone(shared.duties.leases());
    let (duties, mut metrics) = (Arc::clone(&shared.duties), shared.raft.server_metrics());
    tasks.spawn(async move {
        loop {
            // Rounds take office; what ends it must not wait for the next.
            drop(metrics.borrow_and_update());
            desk.end_unless(|| duties.leads());
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });
    let client = LeaseClient::new(
        Arc::clone(&shared.leader),
        Arc::clone(&shared.session),
        Arc::clone(&shared.meta),
        shared.raft.clone(),
        Arc::clone(holder),
    );
    tasks.spawn(client.run());
}

/// Keeps the directory of members in step with the replicated state.
struct MemberWatch(Notify);

impl Observer for MemberWatch {
    fn applied(&self, _index: u64, events: &[Event]) {
        if events
            .iter()
            .any(|event| matches!(event, Event::Nodes | Event::Reset))
        {
            self.0.notify_one();
        }
    }
}
