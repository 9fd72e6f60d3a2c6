//! fcntl, open-file-description and flock locks: asking, waiting, giving up.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftstore::meta::{Ino, Lock, LockKind, LockOwner, MetaError, Op, Reply};

use super::lock_table::{Holder, LockTable, Waiting, conflict};
use super::{FsError, LockRange, Vfs};
use crate::backend::{Backend, BackendError};

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
}

impl Vfs {
    /// Takes a lock, or changes the one that is held; waits for it if `wait`. When the future is dropped while it
    /// waits, the lock is not taken.
    pub async fn lock(&self, request: LockRequest, wait: bool) -> Result<(), FsError> {
        let holder = request.holder();
        let is_new = self
            .locks
            .remember(holder, request.handle)
            .ok_or(FsError::NoLocks)?;
        let outcome = if wait {
            self.lock_waiting(&request).await
        } else {
            self.lock_at_once(&request).await
        };
        match &outcome {
            // Again: what the owner gave up meanwhile may have made the table forget it.
            Ok(()) => {
                self.locks.remember(holder, request.handle);
            }
            Err(_) if is_new => {
                self.locks.forget(holder);
            }
            Err(_) => {}
        }
        outcome
    }

    async fn lock_at_once(&self, request: &LockRequest) -> Result<(), FsError> {
        let lock = self.lock_of(request);
        // Programs that poll must not fill the log: ask the cluster only if it may say yes.
        if self.conflicting(request.ino, &lock)?.is_some() {
            self.backend.refresh(&[request.ino]).await?;
            if self.conflicting(request.ino, &lock)?.is_some() {
                return Err(FsError::WouldBlock);
            }
        }
        match self.ask(request.ino, lock).await? {
            None => Ok(()),
            Some(_) => Err(FsError::WouldBlock),
        }
    }

    async fn lock_waiting(&self, request: &LockRequest) -> Result<(), FsError> {
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
            let _ = tokio::time::timeout(poll, wake).await;
        }
    }

    /// One try of someone who waits. False if the lock cannot be had now.
    async fn try_in_turn(&self, request: &LockRequest, waiting: &Waiting) -> Result<bool, FsError> {
        if !waiting.is_next() {
            return Ok(false);
        }
        // The session may have changed while this one waited. The cluster is asked even if a conflict can be seen
        // from here: so the holder's node learns that somebody waits.
        let lock = self.lock_of(request);
        let Some(blocker) = self.ask(request.ino, lock).await? else {
            return Ok(true);
        };
        if lock.owner.kind == LockKind::Posix && waiting.blocked_by(lock.owner, blocker.owner) {
            return Err(FsError::Deadlock);
        }
        Ok(false)
    }

    /// A lock that would be in the way of `request`, as far as the whole cluster knows.
    pub async fn get_lock(&self, request: &LockRequest) -> Result<Option<Lock>, FsError> {
        self.backend.refresh(&[request.ino]).await?;
        self.conflicting(request.ino, &self.lock_of(request))
    }

    /// Gives up what the owner holds on the range. Goes on in the background if the future is dropped.
    pub async fn unlock(&self, request: &LockRequest) -> Result<(), FsError> {
        let holder = request.holder();
        if !self.locks.may_hold(holder) {
            return Ok(());
        }
        self.give_up(holder, request.range).await
    }

    /// A process closed one of its descriptors of the file: all its fcntl locks on it go, as POSIX wants.
    pub async fn unlock_process(&self, ino: Ino, token: u64) -> Result<(), FsError> {
        let holder = Holder {
            ino,
            kind: LockKind::Posix,
            token,
        };
        if !self.locks.may_hold(holder) {
            return Ok(());
        }
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
    async fn ask(&self, ino: Ino, lock: Lock) -> Result<Option<Lock>, FsError> {
        if self.locks.take_wanted(ino) && !self.holds(ino, lock.owner)? {
            // The others hear later that the lock is free than this node does.
            tokio::time::sleep(Duration::from_millis(self.limits.lock_handoff_ms)).await;
        }
        let backend = self.backend.clone();
        let answer = detached(async move {
            let reply = backend.submit(Op::Lock { ino, lock }, Bytes::new()).await?;
            Ok::<_, FsError>(match reply {
                Reply::Done => Answer::Granted(Grant {
                    backend: Some(backend),
                    ino,
                    lock,
                }),
                Reply::Blocked(by) => Answer::Blocked(by),
                other => return Err(FsError::unexpected(&other)),
            })
        })
        .await?;
        match answer {
            Answer::Granted(grant) => {
                grant.keep();
                Ok(None)
            }
            Answer::Blocked(by) => Ok(Some(by)),
        }
    }

    async fn give_up(&self, holder: Holder, range: LockRange) -> Result<(), FsError> {
        let owner = LockOwner {
            session: self.backend.session(),
            token: holder.token,
            kind: holder.kind,
        };
        let backend = self.backend.clone();
        let locks = self.locks.clone();
        detached(async move {
            propose_unlock(&*backend, holder.ino, owner, range).await?;
            if range == LockRange::WHOLE {
                forget_if_free(&*backend, &locks, holder, owner)?;
            }
            Ok(())
        })
        .await
    }

    fn lock_of(&self, request: &LockRequest) -> Lock {
        Lock {
            owner: LockOwner {
                session: self.backend.session(),
                token: request.token,
                kind: request.kind,
            },
            pid: request.pid,
            exclusive: request.exclusive,
            start: request.range.start,
            end: request.range.end,
        }
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

/// A lock just granted. If nobody takes it over, it is given back.
struct Grant {
    backend: Option<Arc<dyn Backend>>,
    ino: Ino,
    lock: Lock,
}

impl Grant {
    fn keep(mut self) {
        self.backend = None;
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let (Some(backend), Ok(runtime)) = (self.backend.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (ino, lock) = (self.ino, self.lock);
        runtime.spawn(async move {
            let range = LockRange {
                start: lock.start,
                end: lock.end,
            };
            let _ = propose_unlock(&*backend, ino, lock.owner, range).await;
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
    match backend.submit(op, Bytes::new()).await {
        // Whatever the reason, an expired session and a freed inode have no locks.
        Ok(_)
        | Err(BackendError::Meta(
            MetaError::SessionExpired(_) | MetaError::Refused(raftstore::meta::Refusal::Stale),
        )) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Another thread of the owner may have taken a new lock meanwhile.
fn forget_if_free(
    backend: &dyn Backend,
    locks: &LockTable,
    holder: Holder,
    owner: LockOwner,
) -> Result<(), FsError> {
    let held = backend.reader().locks(holder.ino)?;
    if !held.iter().any(|held| held.owner == owner) {
        locks.forget(holder);
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
