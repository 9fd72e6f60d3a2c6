//! Requests on their way: tasks, interrupts, and the memory that they may use.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::reply::Refuse;
use crate::posix::FsError;

/// Bytes of data that requests on their way may hold, for reads and for writes each.
const DATA_BYTES_MAX: usize = 32 << 20;

/// When a signal ends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// At once: nothing has happened yet, as when waiting for a lock.
    None,
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
}

impl Tasks {
    pub(super) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            running: Arc::default(),
            read_bytes: Arc::new(Semaphore::new(DATA_BYTES_MAX)),
            write_bytes: Arc::new(Semaphore::new(DATA_BYTES_MAX)),
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

    /// Room for a write's data. Called on a thread that reads requests, which waits if there is none: backpressure.
    pub(super) fn room_for_write(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = permits(bytes);
        match self.write_bytes.clone().try_acquire_many_owned(bytes) {
            Ok(permit) => Some(permit),
            Err(_) => self
                .runtime
                .block_on(self.write_bytes.clone().acquire_many_owned(bytes))
                .ok(),
        }
    }

    /// Where reads take room for their data from.
    pub(super) fn read_room(&self) -> ReadRoom {
        ReadRoom(self.read_bytes.clone())
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

/// Ends when the request has to.
async fn give_up(interrupted: oneshot::Receiver<()>, patience: Patience) {
    let start = Instant::now();
    if interrupted.await.is_err() {
        return std::future::pending().await;
    }
    match patience {
        Patience::None => {}
        Patience::Some => tokio::time::sleep_until(start + PATIENCE).await,
        Patience::Endless => std::future::pending().await,
    }
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}
