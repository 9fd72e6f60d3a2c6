//! What ends a node.

use openraft::async_runtime::watch::WatchReceiver;
use raftstore::kv::KvError;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Shared;

/// What the daemon must react to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// This node cannot go on: it has left the quorum.
    Fatal(String),
    /// The key-value store is damaged: the node must start again and repair it.
    MetadataDamaged(String),
}

/// Hears of what ends the node.
pub(super) fn watch_trouble(
    tasks: &mut JoinSet<()>,
    shared: &Shared,
    trouble: &watch::Sender<Option<Trouble>>,
) {
    report_failure(tasks, trouble, shared.journal.poisoned(), |error| {
        Trouble::Fatal(error.to_string())
    });
    report_failure(tasks, trouble, shared.plane.store().poisoned(), |error| {
        Trouble::Fatal(format!("the chunk store has stopped: {error}"))
    });
    report_failure(tasks, trouble, shared.meta.failure(), metadata_trouble);
    let (sender, mut metrics) = (trouble.clone(), shared.raft.metrics());
    let failure = shared.meta.failure();
    tasks.spawn(async move {
        loop {
            let state = metrics.borrow_and_update().running_state.clone();
            if let Err(error) = state {
                let what = match failure.borrow().as_ref() {
                    Some(why) => metadata_trouble(why),
                    None => Trouble::Fatal(error.to_string()),
                };
                report(&sender, what);
                return;
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });
}

/// The first trouble counts.
fn report(trouble: &watch::Sender<Option<Trouble>>, what: Trouble) {
    trouble.send_if_modified(|known| {
        let first = known.is_none();
        if first {
            tracing::error!(?what, "this node leaves the quorum");
            *known = Some(what);
        }
        first
    });
}

/// Reports the failure of a part, once it has failed.
fn report_failure<T: Clone + Send + Sync + 'static>(
    tasks: &mut JoinSet<()>,
    trouble: &watch::Sender<Option<Trouble>>,
    mut failure: watch::Receiver<Option<T>>,
    what: impl Fn(&T) -> Trouble + Send + 'static,
) {
    let trouble = trouble.clone();
    tasks.spawn(async move {
        let failed = failure
            .wait_for(Option::is_some)
            .await
            .map(|failed| failed.clone());
        if let Ok(Some(failed)) = failed {
            report(&trouble, what(&failed));
        }
    });
}

/// Damage is repaired by starting again; a medium that fails is not.
fn metadata_trouble(error: &KvError) -> Trouble {
    match error {
        KvError::Damaged(why) => Trouble::MetadataDamaged(why.clone()),
        other => Trouble::Fatal(other.to_string()),
    }
}
