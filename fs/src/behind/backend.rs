//! The backend that works under leases.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftstore::clock::Clock;
use raftstore::meta::{
    ChunkId, Event, Ino, MetaError, Observer, Op, ProjectId, Reader, Refusal, Reply, SessionId, Usage,
};
use tokio::sync::{Notify, watch};

use super::core::{Attempt, Core, Wish};
use super::dirty::Unflushed;
use super::pending::Files;
use super::pins::{Awaited, Gate, Pins};
use super::{BehindOptions, Upper};
use crate::backend::{
    Backend, BackendError, ChunkGuard, ClusterSpace, Loan, Look, Moment, Propose, SyncWhat,
};
use crate::lease::{Lease, REQUEST_LEASES_MAX};

/// Inode numbers that are reserved at a time.
const NUMBERS: u32 = 4096;
/// Pushes that a write close to a quota's limit waits for, at most.
const PUSHES_MAX: u32 = 8;
/// Who waits looks again after this time at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The kernel counts a loan's time from when the thread that asked goes on, which is after it was answered.
const LENT_MARGIN: Duration = Duration::from_millis(50);

/// What the parts of a leased backend share.
pub(super) struct Shared {
    pub(super) inner: Arc<dyn Backend>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) applied: watch::Receiver<u64>,
    pub(super) options: BehindOptions,
    core: Mutex<Core>,
    /// Something changed that an attempt may have waited for.
    pub(super) changed: Notify,
    /// There is something to flush.
    pub(super) kick: Notify,
    reader: Reader,
    reserving: tokio::sync::Mutex<()>,
    pub(super) upper: OnceLock<Weak<dyn Upper>>,
}

impl Shared {
    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        // Every change of it is complete before anything can panic.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(super) fn upper(&self) -> Option<Arc<dyn Upper>> {
        self.upper.get().and_then(Weak::upgrade)
    }

    fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    async fn wait_applied(&self, index: u64) -> Result<(), BackendError> {
        let reached = self
            .applied
            .clone()
            .wait_for(|applied| *applied >= index)
            .await
            .map(drop);
        reached.map_err(|_| BackendError::Stopped("the daemon is shutting down".into()))
    }

    /// Attempts until something came of it. Between two attempts it gets the leases that are missing, or waits.
    async fn attempt<T>(
        self: &Arc<Self>,
        mut once: impl FnMut(&mut Core, &[Ino]) -> Result<Result<T, Attempt>, BackendError>,
    ) -> Result<T, BackendError> {
        let mut pins: Option<Pins> = None;
        let mut pushes = 0;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the attempt, so that no change is missed.
            changed.as_mut().enable();
            let pinned = pins.as_ref().map_or(&[][..], |pins| &pins.inodes);
            let outcome = once(&mut self.core(), pinned)?;
            match outcome {
                Ok(done) => return Ok(done),
                Err(Attempt::Acquire(leases)) => {
                    // Not held while others are waited for: two nodes could wait for each other.
                    drop(pins.take());
                    pins = self.acquire(leases).await?;
                }
                Err(Attempt::Apply(index)) => self.wait_applied(index).await?,
                Err(Attempt::Numbers) => self.reserve_numbers().await?,
                Err(Attempt::Push(files)) => {
                    drop(pins.take());
                    pushes += 1;
                    if pushes > PUSHES_MAX {
                        // Others keep writing: what they may come to is taken for what they do.
                        return Err(BackendError::Meta(Refusal::QuotaExceeded.into()));
                    }
                    self.flush(&Files::These(files)).await?;
                }
                Err(_) => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
                }
            }
        }
    }

    /// Gets leases, pinned. `None` if the session ended meanwhile.
    async fn acquire(self: &Arc<Self>, leases: Vec<Lease>) -> Result<Option<Pins>, BackendError> {
        let answer = {
            let mut core = self.core();
            let (message, answer) = core.leases.request(leases);
            core.tell(message);
            self.evict(&mut core);
            answer
        };
        let mut awaited = Awaited {
            shared: Arc::clone(self),
            answer,
        };
        let Ok(granted) = (&mut awaited.answer).await else {
            return Ok(None);
        };
        let pins = Pins {
            shared: Arc::clone(self),
            inodes: granted.inodes,
        };
        self.wait_applied(granted.since).await?;
        Ok(Some(pins))
    }

    /// Gives up leases that are too many.
    pub(super) fn evict(&self, core: &mut Core) {
        let upper = self.upper();
        core.evict(self.now(), |ino| {
            upper.as_ref().is_some_and(|upper| upper.may_be_mapped(ino))
        });
    }

    async fn reserve_numbers(&self) -> Result<(), BackendError> {
        let _turn = self.reserving.lock().await;
        if !self.core().needs_numbers() {
            return Ok(());
        }
        let op = Op::ReserveInodes { count: NUMBERS };
        match self.inner.submit(op, Bytes::new()).await? {
            Reply::Reserved { first } => {
                self.core().add_numbers(first, NUMBERS);
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Pushes the queue and these files' bytes; returns once they are committed, or lost: what went wrong with a file
    /// is kept for who asks.
    pub(super) async fn flush(&self, files: &Files) -> Result<(), BackendError> {
        let answer = {
            let mut core = self.core();
            core.failure()?;
            let number = core.pending.number();
            core.requests.ask(number, files.clone())
        };
        self.kick.notify_one();
        // Without an answer, the reason is there.
        let _ = answer.await;
        self.core().failure()
    }

    /// Proposes a change that only the cluster can decide, after all that came before it.
    async fn go_through(
        self: Arc<Self>,
        gate: Gate,
        session: SessionId,
        op: Op,
        payload: Bytes,
    ) -> Result<Reply, BackendError> {
        let files = match op {
            // A snapshot is to show what was done here before.
            Op::Volume(_) => Files::All,
            _ => Files::These(gate.inodes.iter().copied().collect()),
        };
        self.flush(&files).await?;
        let answer = self.inner.submit_within(session, op.clone(), payload).await;
        self.core().unlocked(&op);
        let lent_until = self.core().leases.lent_until(&gate.inodes);
        drop(gate);
        if matches!(op, Op::Volume(_)) {
            // It did not come from the kernel, which may still show what was there.
            tokio::time::sleep(lent_until.saturating_sub(self.now())).await;
        }
        answer
    }

    async fn submit(
        self: &Arc<Self>,
        only: Option<SessionId>,
        op: Op,
        payload: Bytes,
    ) -> Result<Reply, BackendError> {
        let done = self.attempt(|core, pinned| {
            let attempt = core.attempt(&Wish {
                only,
                op: &op,
                payload: &payload,
                pinned,
                time: self.clock.wall(),
                now: self.now(),
                applied: self.applied(),
            })?;
            if core.is_crowded {
                self.kick.notify_one();
            }
            Ok(match attempt {
                Attempt::Acquire(_)
                | Attempt::Apply(_)
                | Attempt::Numbers
                | Attempt::Push(_)
                | Attempt::Wait => Err(attempt),
                done => Ok(done),
            })
        });
        match done.await? {
            Attempt::Done(reply, events) => {
                if let Some(upper) = self.upper() {
                    upper.changed_here(&events);
                }
                if self.core().is_due(self.now()) {
                    self.kick.notify_one();
                }
                Ok(reply)
            }
            Attempt::Refused(error) => Err(BackendError::Meta(error)),
            Attempt::Through(session, inodes) => {
                let gate = Gate {
                    shared: Arc::clone(self),
                    inodes,
                };
                // In a task of its own: a caller that goes away must not leave it half done.
                let task = tokio::spawn(Arc::clone(self).go_through(gate, session, op, payload));
                task.await
                    .unwrap_or_else(|error| Err(BackendError::Stopped(error.to_string())))
            }
            _ => match only {
                Some(session) => self.inner.submit_within(session, op, payload).await,
                None => self.inner.submit(op, payload).await,
            },
        }
    }

    async fn refresh(self: &Arc<Self>, look: Look<'_>) -> Result<(), BackendError> {
        if look.inodes().count() <= REQUEST_LEASES_MAX {
            return self.refresh_part(look).await;
        }
        let whole = look.whole.chunks(REQUEST_LEASES_MAX).map(Look::whole);
        let attributes = look.attributes.chunks(REQUEST_LEASES_MAX);
        for part in whole.chain(attributes.map(Look::attributes)) {
            self.refresh_part(part).await?;
        }
        Ok(())
    }

    /// For as much as can be asked for with one message.
    async fn refresh_part(self: &Arc<Self>, look: Look<'_>) -> Result<(), BackendError> {
        self.attempt(|core, pinned| {
            core.failure()?;
            if !pinned.is_empty() && core.is_valid(self.now()) {
                // Just granted: that is enough for one look.
                return Ok(Ok(()));
            }
            Ok(match core.may_look(look, self.now(), self.applied()) {
                Attempt::Done(..) => Ok(()),
                other => Err(other),
            })
        })
        .await
    }

    async fn sync(&self, what: SyncWhat) -> Result<(), BackendError> {
        let files = match what {
            SyncWhat::Everything => Files::All,
            SyncWhat::Inode(ino) => {
                if !self.core().pending.concerns(ino) {
                    return self.inner.sync(what).await;
                }
                Files::These(BTreeSet::from([ino]))
            }
        };
        self.flush(&files).await?;
        self.inner.sync(what).await
    }
}

fn unexpected(reply: &Reply) -> BackendError {
    BackendError::Meta(MetaError::Malformed(format!("unexpected answer: {reply:?}")))
}

/// A backend that answers and changes on its own what it has leases for, and pushes changes later.
pub struct LeasedBackend {
    shared: Arc<Shared>,
    /// Waits for so long before it says that there is no quorum; `None` for ever.
    patience: Option<Duration>,
}

impl LeasedBackend {
    /// Over `inner`, whose state has applied what `applied` says. [`super::holder`] is to be connected to the leader,
    /// [`LeasedBackend::run`] to be run.
    #[must_use]
    pub fn new(
        inner: Arc<dyn Backend>,
        applied: watch::Receiver<u64>,
        clock: Arc<dyn Clock>,
        (options, patience): (BehindOptions, Option<Duration>),
    ) -> Arc<Self> {
        let core = Core::new(&inner.reader(), options);
        Arc::new(Self {
            shared: Arc::new(Shared {
                reader: core.reader(),
                core: Mutex::new(core),
                inner,
                clock,
                applied,
                options,
                changed: Notify::new(),
                kick: Notify::new(),
                reserving: tokio::sync::Mutex::default(),
                upper: OnceLock::new(),
            }),
            patience,
        })
    }

    /// What stands on this backend, to be told of what happens below.
    pub fn set_upper(&self, upper: Weak<dyn Upper>) {
        let _ = self.shared.upper.set(upper);
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Memory for what is pending, bytes, an estimate.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        let core = self.shared.core();
        u64::try_from(core.pending.dirty_bytes() + core.pending.queue_bytes()).unwrap_or(u64::MAX)
    }

    async fn patiently<T>(
        &self,
        work: impl Future<Output = Result<T, BackendError>> + Send,
    ) -> Result<T, BackendError> {
        let Some(patience) = self.patience else {
            return work.await;
        };
        let no_quorum =
            || BackendError::NoQuorum("too few nodes can be reached; `bramble status` says which".into());
        tokio::time::timeout(patience, work)
            .await
            .unwrap_or_else(|_| Err(no_quorum()))
    }
}

#[async_trait]
impl Propose for LeasedBackend {
    async fn submit(&self, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        self.patiently(self.shared.submit(None, op, payload)).await
    }
}

#[async_trait]
impl Backend for LeasedBackend {
    async fn refresh(&self, look: Look<'_>) -> Result<(), BackendError> {
        self.patiently(self.shared.refresh(look)).await
    }

    fn reader(&self) -> Reader {
        self.shared.reader.clone()
    }

    fn session(&self) -> SessionId {
        self.shared.inner.session()
    }

    async fn submit_within(&self, session: SessionId, op: Op, payload: Bytes) -> Result<Reply, BackendError> {
        self.patiently(self.shared.submit(Some(session), op, payload))
            .await
    }

    async fn write_chunk(&self, data: Bytes) -> Result<ChunkGuard, BackendError> {
        self.shared.inner.write_chunk(data).await
    }

    async fn read_chunk(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, BackendError> {
        self.shared.inner.read_chunk(id, offset, len).await
    }

    async fn space(&self) -> Result<ClusterSpace, BackendError> {
        let space = self.shared.inner.space().await?;
        let pending = u64::try_from(self.shared.core().pending.dirty_bytes()).unwrap_or(u64::MAX);
        Ok(ClusterSpace {
            available_bytes: space.available_bytes.saturating_sub(pending),
            ..space
        })
    }

    async fn sync(&self, what: SyncWhat) -> Result<(), BackendError> {
        self.patiently(self.shared.sync(what)).await
    }

    fn unflushed(&self, ino: Ino, start: u64, end: u64) -> Unflushed {
        self.shared.core().pending.unflushed(ino, start, end)
    }

    fn pending(&self, project: ProjectId) -> Usage {
        self.shared.core().pending.of_project(project)
    }

    fn take_error(&self, ino: Ino) -> Option<BackendError> {
        self.shared.core().take_error(ino)
    }

    fn moment(&self) -> Moment {
        let core = self.shared.core();
        Moment {
            grants: core.leases.grants(),
            number: core.pending.number(),
        }
    }

    fn lend(&self, look: Look<'_>, moment: Moment) -> Loan {
        let shared = &self.shared;
        let (time, leases) = shared.core().lend(look, moment, shared.now());
        if time.is_zero() {
            return Loan::none();
        }
        let shared = Arc::clone(shared);
        let told = move || {
            let until = shared.now() + time + LENT_MARGIN;
            if shared.core().leases.lent(&leases, until) {
                shared.changed.notify_waiters();
            }
        };
        Loan::new(time, Box::new(told))
    }

    fn forget_unreadable(&self, ino: Ino, is_open: &dyn Fn() -> bool) {
        let forgotten = self.shared.core().forget_unreadable(ino, is_open);
        match forgotten {
            // There is room for who waits for it.
            Ok(true) => self.shared.changed.notify_waiters(),
            Ok(false) => {}
            // Then they are pushed.
            Err(error) => tracing::warn!(ino, %error, "cannot tell whether a file's bytes are still needed"),
        }
    }
}

impl Observer for LeasedBackend {
    fn applied(&self, _index: u64, events: &[Event]) {
        let wanted = events.iter().filter_map(|event| match event {
            Event::LockWanted { ino, by } => Some((*ino, *by)),
            _ => None,
        });
        for (ino, by) in wanted {
            let mut core = self.shared.core();
            if core.session != Some(by) {
                core.locks_wanted(ino);
            }
        }
    }
}
