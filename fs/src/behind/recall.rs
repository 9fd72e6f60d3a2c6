//! The holder's side of leases: what the leader grants, wants back, and says of time.

use std::sync::Arc;
use std::time::Duration;

use raftstore::meta::{Ino, SessionId};

use super::backend::{LeasedBackend, Shared};
use super::leases::Closing;
use super::pending::Files;
use crate::lease::{HolderStatus, Kept, Lease, LeaseHolder, LeaseLink, ToLeader};

/// Looks at the kernel's cache before a lease goes while programs keep reading mapped pages into it.
const FORGET_TRIES: u32 = 8;

/// Connects a [`LeasedBackend`] to the leader.
pub struct Holder(Arc<LeasedBackend>);

/// The holder's side of `backend`.
#[must_use]
pub fn holder(backend: &Arc<LeasedBackend>) -> Arc<Holder> {
    Arc::new(Holder(Arc::clone(backend)))
}

impl Holder {
    fn shared(&self) -> &Arc<Shared> {
        self.0.shared()
    }
}

impl LeaseHolder for Holder {
    fn connected(&self, session: SessionId, link: LeaseLink) -> Vec<Lease> {
        let held = self.shared().core().connected(session, link);
        self.shared().changed.notify_waiters();
        held
    }

    fn refused(&self, inodes: Vec<Ino>) {
        tracing::error!(?inodes, "the leader has given leases of this node to others");
        self.shared().core().leases.drop_held(&inodes);
        self.shared().changed.notify_waiters();
    }

    fn granted(&self, id: u64, log_index: u64) {
        let now = self.shared().now();
        self.shared().core().leases.granted(id, log_index, now);
        self.shared().changed.notify_waiters();
    }

    fn recalled(&self, leases: Vec<Kept>) {
        for (ino, keep) in leases {
            let mut core = self.shared().core();
            if !core.leases.holds(ino) {
                // It went already, and the leader took that for older than it is.
                core.tell(ToLeader::Release {
                    leases: vec![(ino, None)],
                });
            } else if core.leases.recalled(ino, keep) {
                tokio::spawn(give_up(Arc::clone(self.shared()), ino));
            }
        }
    }

    fn valid_until(&self, session: SessionId, at: Duration) {
        let lapsed = {
            let mut core = self.shared().core();
            let was_valid = core.is_valid(self.shared().now());
            core.renew(session, at);
            !was_valid && core.is_valid(self.shared().now())
        };
        if lapsed {
            self.shared().changed.notify_waiters();
        }
    }

    fn session_over(&self, session: SessionId) {
        {
            let mut core = self.shared().core();
            if core.session != Some(session) {
                return;
            }
            core.session_over();
        }
        if let Some(upper) = self.shared().upper() {
            upper.forget_everything();
        }
        self.shared().changed.notify_waiters();
        self.shared().kick.notify_one();
    }

    fn status(&self) -> HolderStatus {
        let now = self.shared().now();
        self.shared().core().status(now)
    }
}

/// Sees a recalled lease to its end: the kernel forgets its pages (which may make it write some back, so the lease can
/// still be used then), nobody begins to use it, what was done under it is committed; then it goes.
async fn give_up(shared: Arc<Shared>, ino: Ino) {
    let mut tries = 0;
    loop {
        let upper = shared.upper();
        if let Some(upper) = upper.filter(|upper| upper.may_have_pages(ino)) {
            upper.forget_pages(ino).await;
        }
        let mut changed = std::pin::pin!(shared.changed.notified());
        changed.as_mut().enable();
        match shared.step_down(ino, tries < FORGET_TRIES) {
            Step::Gone => break,
            Step::Again => tries += 1,
            Step::InUse => changed.await,
            Step::Lent(time) => tokio::time::sleep(time).await,
            Step::Flush => {
                let files = Files::These(std::iter::once(ino).collect());
                if let Err(error) = shared.flush(&files).await {
                    tracing::warn!(ino, %error, "a lease goes before its changes were committed");
                    return;
                }
            }
        }
    }
    shared.changed.notify_waiters();
}

/// What is to be done before a recalled lease can go.
enum Step {
    /// Nothing: it is gone.
    Gone,
    /// The kernel has got pages again.
    Again,
    /// Whoever relies on it must end.
    InUse,
    /// The kernel relies on it for so long.
    Lent(Duration),
    /// What was done under it must be committed.
    Flush,
}

impl Shared {
    /// Gives a recalled lease back, if nothing stands against it.
    fn step_down(&self, ino: Ino, mind_pages: bool) -> Step {
        let now = self.now();
        let mut core = self.core();
        let number = match core.leases.close(ino, now) {
            Closing::Gone => return Step::Gone,
            Closing::InUse => return Step::InUse,
            Closing::Lent(time) => return Step::Lent(time),
            Closing::Ready(number) => number,
        };
        // Nobody can get more of them now.
        let pages = self.upper().is_some_and(|upper| upper.may_have_pages(ino));
        if pages && mind_pages {
            core.leases.reopen(ino);
            drop(core);
            self.changed.notify_waiters();
            return Step::Again;
        }
        if core.pending.has_any_of(ino, number) {
            return Step::Flush;
        }
        // Before anyone can find them by a name that this lease has covered.
        if let Some(claim) = core.leases.claim() {
            core.tell(claim);
        }
        if let Some(release) = core.leases.release(ino, now) {
            core.tell(release);
        }
        Step::Gone
    }
}
