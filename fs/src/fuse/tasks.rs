//! Requests on their way: tasks, interrupts, and the memory that they may use.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::reply::Refuse;
use crate::posix::FsError;

/// Bytes of data that requests on their way may hold, for reads and for writes each.
const DATA_BYTES_MAX: usize = 4 << 20;

/// Bytes of data of writes that wait for room. Beyond that nobody reads requests, not even interrupts, until some were
/// carried out or given up.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// When a signal ends a request.
#[derive(Debug, Clone)]
pub(super) enum Patience {
    /// When the request, told of the signal, thinks fit: at once while it waits for a lock that somebody else has. If
    /// it does not end soon, as in the middle of a change that is not committed for want of a quorum, it is ended.
    Waiting(Arc<Notify>),
    /// Only if the request has already lasted unusually long, as without a quorum. Programs do not expect EINTR from
    /// a file on a disk, and it would be a lie about a change that is being committed.
    Some,
    /// Never: nobody sees the answer.
    Endless,
}

/// A request that lasts longer than this can be interrupted.
const PATIENCE: Duration = Duration::from_secs(2);

/// The kernel's number of a request, and whom to tell that it is interrupted; `None` if that was told already.
type Running = HashMap<u64, Option<oneshot::Sender<()>>>;

/// The requests that are being worked on. The kernel bounds their number: one for each thread that waits, and
/// `max_background` others.
pub(super) struct Tasks {
    runtime: Handle,
    running: Arc<Mutex<Running>>,
    read_bytes: Arc<Semaphore>,
    write_bytes: Arc<Semaphore>,
    waiting_bytes: Arc<Semaphore>,
}

impl Tasks {
    pub(super) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            running: Arc::default(),
            read_bytes: Arc::new(Semaphore::new(DATA_BYTES_MAX)),
            write_bytes: Arc::new(Semaphore::new(DATA_BYTES_MAX)),
            waiting_bytes: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
        }
    }

    /// Works on the request `unique` and answers it.
    pub(super) fn serve<R: Refuse, T: Send + 'static>(
        &self,
        unique: u64,
        patience: Patience,
        reply: R,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        // Under leases most requests need nothing but this thread: two changes of threads would cost more than the work.
        let _context = self.runtime.enter();
        let mut work = Box::pin(work);
        if let Some(outcome) = work.as_mut().now_or_never() {
            return finish(reply, outcome, answer);
        }
        let (interrupt, interrupted) = oneshot::channel();
        lock(&self.running).insert(unique, Some(interrupt));
        let running = self.running.clone();
        self.runtime.spawn(async move {
            let outcome = tokio::select! {
                biased;
                outcome = work => outcome,
                () = give_up(interrupted, patience) => Err(FsError::Interrupted),
            };
            // Before the answer: the kernel may use the number again right after it.
            lock(&running).remove(&unique);
            finish(reply, outcome, answer);
        });
    }

    /// A signal came for the caller of `unique`. False if no such request is known.
    pub(super) fn interrupt(&self, unique: u64) -> bool {
        match lock(&self.running).get_mut(&unique) {
            Some(interrupt) => {
                if let Some(interrupt) = interrupt.take() {
                    let _ = interrupt.send(());
                }
                true
            }
            None => false,
        }
    }

    /// Where a write takes room for its data from. Called on a thread that reads requests, before the data is copied:
    /// as a rule the write's own task waits for room, so that interrupts are still read; the thread itself waits only
    /// if too many do.
    pub(super) fn write_room(&self, bytes: usize) -> WriteRoom {
        let bytes = permits(bytes);
        if let Ok(permit) = self.write_bytes.clone().try_acquire_many_owned(bytes) {
            return WriteRoom::Had(permit);
        }
        let waiting = match self.waiting_bytes.clone().try_acquire_many_owned(bytes) {
            Ok(permit) => Some(permit),
            Err(_) => self
                .runtime
                .block_on(self.waiting_bytes.clone().acquire_many_owned(bytes))
                .ok(),
        };
        WriteRoom::Waits {
            waiting,
            bytes,
            of: self.write_bytes.clone(),
        }
    }

    /// Where reads take room for their data from.
    pub(super) fn read_room(&self) -> ReadRoom {
        ReadRoom(self.read_bytes.clone())
    }
}

/// Room for a write.
pub(super) enum WriteRoom {
    /// There was some.
    Had(OwnedSemaphorePermit),
    /// There will be.
    Waits {
        /// The place among those that wait.
        waiting: Option<OwnedSemaphorePermit>,
        /// How many bytes.
        bytes: u32,
        /// Of what.
        of: Arc<Semaphore>,
    },
}

impl WriteRoom {
    /// Waits until there is room; given back when the permit is dropped.
    pub(super) async fn take(self) -> Option<OwnedSemaphorePermit> {
        match self {
            Self::Had(permit) => Some(permit),
            Self::Waits { waiting, bytes, of } => {
                let permit = of.acquire_many_owned(bytes).await.ok();
                drop(waiting);
                permit
            }
        }
    }
}

/// Room for reads.
pub(super) struct ReadRoom(Arc<Semaphore>);

impl ReadRoom {
    /// Waits until there is room for so many bytes; given back when the permit is dropped.
    pub(super) async fn take(self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        let bytes = permits(usize::try_from(bytes).unwrap_or(usize::MAX));
        self.0.acquire_many_owned(bytes).await.ok()
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(DATA_BYTES_MAX)).unwrap_or(u32::MAX)
}

/// Answers a request.
fn finish<R: Refuse, T>(reply: R, outcome: Result<T, FsError>, answer: impl FnOnce(R, T)) {
    match outcome {
        Ok(value) => answer(reply, value),
        Err(error) => {
            let errno = error.errno();
            if errno == libc::EIO {
                tracing::warn!(%error, "a request failed");
            }
            reply.refuse(errno);
        }
    }
}

/// Ends when the request has to.
async fn give_up(interrupted: oneshot::Receiver<()>, patience: Patience) {
    let start = Instant::now();
    if interrupted.await.is_err() {
        return std::future::pending().await;
    }
    match patience {
        Patience::Waiting(told) => {
            told.notify_one();
            tokio::time::sleep(PATIENCE).await;
        }
        Patience::Some => tokio::time::sleep_until(start + PATIENCE).await,
        Patience::Endless => std::future::pending().await,
    }
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands for the kernel.
    struct Answer(oneshot::Sender<i32>);

    impl Refuse for Answer {
        fn refuse(self, errno: i32) {
            let _ = self.0.send(errno);
        }
    }

    /// On a thread that must not block, as the one that reads requests: a wait for room there would panic.
    #[tokio::test]
    async fn a_write_that_waits_for_room_can_be_interrupted() {
        let tasks = Tasks::new(Handle::current());
        let all = tasks.write_room(DATA_BYTES_MAX).take().await;
        let (answer, answered) = oneshot::channel();
        let room = tasks.write_room(1 << 20);
        let work = async move {
            let _room = room.take().await;
            Ok(())
        };
        let told = Arc::new(Notify::new());
        tokio::time::pause();
        tasks.serve(7, Patience::Some, Answer(answer), work, |_, ()| {});
        assert!(tasks.interrupt(7));
        assert_eq!(answered.await, Ok(libc::EINTR));
        assert_eq!(tasks.waiting_bytes.available_permits(), WAITING_BYTES_MAX);
        drop(all);
        // A request that waits for a lock hears of the signal, and has time to end as it sees fit.
        let (answer, answered) = oneshot::channel();
        let heard = told.clone();
        let work = async move {
            heard.notified().await;
            tokio::time::sleep(PATIENCE / 2).await;
            Err::<(), _>(FsError::WouldBlock)
        };
        tasks.serve(8, Patience::Waiting(told), Answer(answer), work, |_, ()| {});
        assert!(tasks.interrupt(8));
        assert_eq!(answered.await, Ok(libc::EAGAIN));
    }
}
