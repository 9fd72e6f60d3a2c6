//! fcntl, open-file-description and flock locks: asking, waiting, giving up.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftstore::meta::{Ino, Lock, LockKind, LockOwner, MetaError, Op, Reply, SessionId};
use tokio::sync::OwnedMutexGuard;

use super::lock_table::{Edge, Holder, Using, Waiting, conflict};
use super::{FsError, LockRange, Vfs};
use crate::backend::{Backend, BackendError, Look};

/// A lock that a process on this node asks for, or asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockRequest {
    /// On which file.
    pub ino: Ino,
    /// Through which handle.
    pub handle: u64,
    /// For whom: the kernel's token.
    pub token: u64,
    /// flock or fcntl.
    pub kind: LockKind,
    /// The process, for F_GETLK.
    pub pid: u32,
    /// Exclusive or shared.
    pub exclusive: bool,
    /// Which bytes.
    pub range: LockRange,
}

impl LockRequest {
    fn holder(&self) -> Holder {
        Holder {
            ino: self.ino,
            kind: self.kind,
            token: self.token,
        }
    }

    pub(super) fn lock(&self, session: SessionId) -> Lock {
        Lock {
            owner: LockOwner {
                session,
                token: self.token,
                kind: self.kind,
            },
            pid: self.pid,
            exclusive: self.exclusive,
            start: self.range.start,
            end: self.range.end,
        }
    }
}

impl Vfs {
    /// Takes a lock, or changes the one that is held; waits for it if `wait`. When the future is dropped while it
    /// waits, the lock is not taken.
    pub async fn lock(&self, request: LockRequest, wait: bool) -> Result<(), FsError> {
        if wait {
            self.lock_waiting(&request, std::future::pending()).await
        } else {
            self.lock_at_once(&request).await
        }
    }

    /// Takes a lock and waits for it, until `interrupted` ends. That counts only while somebody else has the lock: a
    /// request that the cluster is deciding on is waited for, and if it was granted, there is nothing to interrupt.
    pub async fn lock_until(
        &self,
        request: LockRequest,
        interrupted: impl Future<Output = ()>,
    ) -> Result<(), FsError> {
        self.lock_waiting(&request, interrupted).await
    }

    async fn lock_at_once(&self, request: &LockRequest) -> Result<(), FsError> {
        let lock = self.lock_of(request);
        // Programs that poll must not fill the log: ask the cluster only if it may say yes.
        if self.conflicting(request.ino, &lock)?.is_some() {
            self.backend.refresh(Look::whole(&[request.ino])).await?;
            if self.conflicting(request.ino, &lock)?.is_some() {
                return Err(FsError::WouldBlock);
            }
        }
        match self.ask(request).await? {
            None => Ok(()),
            Some(_) => Err(FsError::WouldBlock),
        }
    }

    async fn lock_waiting(
        &self,
        request: &LockRequest,
        interrupted: impl Future<Output = ()>,
    ) -> Result<(), FsError> {
        let mut interrupted = std::pin::pin!(interrupted);
        let waiting = self.locks.wait(request.ino, self.lock_of(request));
        let changed = waiting.changed.clone();
        loop {
            // Registered before looking, so that no wake-up is missed.
            let mut wake = std::pin::pin!(changed.notified());
            wake.as_mut().enable();
            if self.try_in_turn(request, &waiting).await? {
                return Ok(());
            }
            let poll = Duration::from_millis(self.limits.lock_poll_ms);
            tokio::select! {
                biased;
                () = &mut interrupted => return Err(FsError::Interrupted),
                _ = tokio::time::timeout(poll, wake) => {}
            }
        }
    }

    /// One try of someone who waits. False if the lock cannot be had now.
    async fn try_in_turn(&self, request: &LockRequest, waiting: &Waiting) -> Result<bool, FsError> {
        if !waiting.is_next() {
            return Ok(false);
        }
        // The cluster is asked even if a conflict can be seen from here: so the holder's node learns that somebody
        // waits.
        let Some(blocker) = self.ask(request).await? else {
            return Ok(true);
        };
        let lock = self.lock_of(request);
        if lock.owner.kind == LockKind::Posix
            && let Some(steps) = waiting.blocked_by(lock, blocker.owner)
            && self.all_still_block(&steps)?
        {
            return Err(FsError::Deadlock);
        }
        Ok(false)
    }

    /// Whether who waits on each step is still kept from it. Who was told to wait may have been passed by: the other
    /// one has unlocked, and waits for something else. All on a cycle are of this node, so its state is not behind.
    fn all_still_block(&self, steps: &[Edge]) -> Result<bool, FsError> {
        for step in steps {
            let held = self.backend.reader().locks(step.ino)?;
            let blocks = |held: &Lock| held.owner == step.blocker && conflict(held, &step.lock);
            if !held.iter().any(blocks) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A lock that would be in the way of `request`, as far as the whole cluster knows.
    pub async fn get_lock(&self, request: &LockRequest) -> Result<Option<Lock>, FsError> {
        self.backend.refresh(Look::whole(&[request.ino])).await?;
        self.conflicting(request.ino, &self.lock_of(request))
    }

    /// Gives up what the owner holds on the range. Goes on in the background if the future is dropped.
    pub async fn unlock(&self, request: &LockRequest) -> Result<(), FsError> {
        self.give_up(request.holder(), request.range).await
    }

    /// A process closed one of its descriptors of the file: all its fcntl locks on it go, as POSIX wants.
    pub async fn unlock_process(&self, ino: Ino, token: u64) -> Result<(), FsError> {
        let holder = Holder {
            ino,
            kind: LockKind::Posix,
            token,
        };
        self.locks.owner_let_go(ino, token);
        self.give_up(holder, LockRange::WHOLE).await
    }

    /// The last descriptor of a handle is gone: what was locked through it and is still held belongs to the open file
    /// itself.
    pub(super) async fn unlock_handle(&self, ino: Ino, handle: u64) -> Result<(), FsError> {
        for holder in self.locks.holders_through(ino, handle) {
            self.give_up(holder, LockRange::WHOLE).await?;
        }
        Ok(())
    }

    /// Proposes the lock. Returns the one in the way, if there is one. A lock that is granted after this future was
    /// dropped is given back.
    async fn ask(&self, request: &LockRequest) -> Result<Option<Lock>, FsError> {
        let ino = request.ino;
        if self.locks.take_wanted(ino) && !self.holds(ino, self.lock_of(request).owner)? {
            // The others hear later that the lock is free than this node does.
            tokio::time::sleep(Duration::from_millis(self.limits.lock_handoff_ms)).await;
        }
        let using = self
            .locks
            .begin(request.holder(), request.handle)
            .ok_or(FsError::NoLocks)?;
        let asking = Asking {
            _turn: using.turn().await,
            using,
            backend: self.backend.clone(),
            request: *request,
        };
        match detached(asking.run()).await? {
            Answer::Granted(grant) => {
                grant.keep();
                Ok(None)
            }
            Answer::Blocked(by) => Ok(Some(by)),
        }
    }

    async fn give_up(&self, holder: Holder, range: LockRange) -> Result<(), FsError> {
        let Some(using) = self.locks.begin_unlock(holder) else {
            return Ok(());
        };
        let backend = self.backend.clone();
        detached(async move {
            let _turn = using.turn().await;
            let Some(session) = using.session() else {
                return Ok(());
            };
            let owner = LockOwner {
                session,
                token: holder.token,
                kind: holder.kind,
            };
            propose_unlock(&*backend, holder.ino, owner, range).await?;
            forget_if_free(&*backend, &using, holder.ino, owner)
        })
        .await
    }

    fn lock_of(&self, request: &LockRequest) -> Lock {
        request.lock(self.backend.session())
    }

    fn conflicting(&self, ino: Ino, lock: &Lock) -> Result<Option<Lock>, FsError> {
        let held = self.backend.reader().locks(ino)?;
        Ok(held.into_iter().find(|held| conflict(held, lock)))
    }

    fn holds(&self, ino: Ino, owner: LockOwner) -> Result<bool, FsError> {
        let held = self.backend.reader().locks(ino)?;
        Ok(held.iter().any(|held| held.owner == owner))
    }
}

enum Answer {
    Granted(Grant),
    Blocked(Lock),
}

/// A request on its way, in its holder's turn.
struct Asking {
    backend: Arc<dyn Backend>,
    request: LockRequest,
    _turn: OwnedMutexGuard<()>,
    using: Using,
}

impl Asking {
    /// Asks until it is decided. If the session ends meanwhile, so do its locks: what was asked for is asked for again
    /// under the next one, unless the file had others to lose.
    async fn run(self) -> Result<Answer, FsError> {
        let ino = self.request.ino;
        loop {
            self.using.check(self.request.handle)?;
            let session = self.backend.session();
            let lock = self.request.lock(session);
            let before = self.held_within(&lock)?;
            let op = Op::Lock { ino, lock };
            match self.backend.submit_within(session, op, Bytes::new()).await {
                Ok(Reply::Done) if self.using.granted(session) => {
                    return Ok(Answer::Granted(Grant {
                        given: Some((self, lock, before)),
                    }));
                }
                Ok(Reply::Done) | Err(BackendError::Meta(MetaError::SessionExpired(_))) => {}
                Ok(Reply::Blocked(by)) => return Ok(Answer::Blocked(by)),
                Ok(other) => return Err(FsError::unexpected(&other)),
                Err(error) => {
                    if !matches!(error, BackendError::Meta(_)) {
                        // It may still be granted; closing the file gives it up then.
                        self.using.granted(session);
                    }
                    return Err(error.into());
                }
            }
        }
    }

    /// What the owner holds of the bytes that `lock` is about.
    fn held_within(&self, lock: &Lock) -> Result<Vec<Lock>, FsError> {
        let held = self.backend.reader().locks(self.request.ino)?;
        let mut within: Vec<_> = held
            .into_iter()
            .filter(|held| held.owner == lock.owner && held.start <= lock.end && lock.start <= held.end)
            .map(|held| Lock {
                start: held.start.max(lock.start),
                end: held.end.min(lock.end),
                ..held
            })
            .collect();
        within.sort_by_key(|held| held.start);
        Ok(within)
    }

    /// Makes it as it was before `lock` was granted. A stronger lock that was held before may have gone to somebody
    /// else in the meantime; the weaker one stays then.
    async fn restore(self, lock: Lock, before: Vec<Lock>) -> Result<(), FsError> {
        let ino = self.request.ino;
        let mut free_from = Some(lock.start);
        for held in before {
            if let (Some(start), Some(end)) = (free_from, held.start.checked_sub(1))
                && start <= end
            {
                propose_unlock(&*self.backend, ino, lock.owner, LockRange { start, end }).await?;
            }
            free_from = held.end.checked_add(1);
            let op = Op::Lock { ino, lock: held };
            self.backend
                .submit_within(lock.owner.session, op, Bytes::new())
                .await?;
        }
        if let Some(start) = free_from.filter(|start| *start <= lock.end) {
            let range = LockRange { start, end: lock.end };
            propose_unlock(&*self.backend, ino, lock.owner, range).await?;
        }
        forget_if_free(&*self.backend, &self.using, ino, lock.owner)
    }
}

/// A lock just granted, and what was held before. If nobody takes it over, it is given back, still in the holder's
/// turn: whoever repeats the request must not lose what it is granted then.
struct Grant {
    given: Option<(Asking, Lock, Vec<Lock>)>,
}

impl Grant {
    fn keep(mut self) {
        self.given = None;
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let (Some((asking, lock, before)), Ok(runtime)) =
            (self.given.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            if let Err(error) = asking.restore(lock, before).await {
                tracing::debug!(%error, "a lock that nobody waits for any more was not given back");
            }
        });
    }
}

async fn propose_unlock(
    backend: &dyn Backend,
    ino: Ino,
    owner: LockOwner,
    range: LockRange,
) -> Result<(), FsError> {
    let op = Op::Unlock {
        ino,
        owner,
        start: range.start,
        end: range.end,
    };
    match backend.submit_within(owner.session, op, Bytes::new()).await {
        // Whatever the reason, an expired session and a freed inode have no locks.
        Ok(_)
        | Err(BackendError::Meta(
            MetaError::SessionExpired(_) | MetaError::Refused(raftstore::meta::Refusal::Stale),
        )) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// In the holder's turn, so that no lock is granted between the look and the forgetting.
fn forget_if_free(backend: &dyn Backend, using: &Using, ino: Ino, owner: LockOwner) -> Result<(), FsError> {
    let held = backend.reader().locks(ino)?;
    if !held.iter().any(|held| held.owner == owner) {
        using.freed();
    }
    Ok(())
}

/// Runs a future to its end even if the one who waits for it is dropped.
async fn detached<T: Send + 'static>(
    future: impl Future<Output = Result<T, FsError>> + Send + 'static,
) -> Result<T, FsError> {
    tokio::spawn(future)
        .await
        .map_err(|error| FsError::UnexpectedReply(error.to_string()))?
}
