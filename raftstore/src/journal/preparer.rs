//! The thread that keeps the next segment ready, so that no append waits for zeros to be written.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::SpaceCondition;
use super::core::Shared;
use super::segment::Life;
use super::writer::wait;

/// How long to wait before another attempt on a full medium.
const RETRY: Duration = Duration::from_secs(1);

/// What there is to do.
enum Task {
    /// Begin a life in a segment that was used before.
    Reuse { life: Arc<Life>, generation: u64 },
    /// Make a new segment.
    Create { slot: u32, generation: u64 },
    /// Give up a segment that is not needed.
    Discard { slot: u32 },
}

/// Runs until the journal stops.
pub(super) fn run(shared: &Shared) {
    while let Some(task) = next_task(shared) {
        let (what, result) = match task {
            Task::Reuse { life, generation } => (
                format!("prepare {}", life.name()),
                reuse(shared, &life, generation),
            ),
            Task::Create { slot, generation } => {
                ("prepare a segment".to_owned(), create(shared, slot, generation))
            }
            Task::Discard { slot } => (
                "remove a segment".to_owned(),
                shared.workshop.discard(slot).map(|()| None),
            ),
        };
        match result {
            Ok(prepared) => {
                let mut core = shared.lock();
                if let Some(life) = prepared {
                    core.prepared.push_back(life);
                    core.space = SpaceCondition::Ok;
                }
                shared.work.notify_all();
            }
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, "the medium has no room for another journal segment");
                let mut core = shared.lock();
                core.space = SpaceCondition::NoRoom {
                    error: error.to_string(),
                };
                shared.work.notify_all();
                if core.failure.is_none() {
                    drop(
                        shared
                            .prepare
                            .wait_timeout(core, RETRY)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                }
            }
            Err(error) => return shared.poison(format!("{what}: {error}")),
        }
    }
}

fn next_task(shared: &Shared) -> Option<Task> {
    let mut core = shared.lock();
    loop {
        if core.failure.is_some() {
            return None;
        }
        if core.prepared.len() < shared.options.spare_segments {
            let generation = core.next_generation;
            core.next_generation += 1;
            if let Some(life) = core.take_free(shared.options.segment_bytes) {
                return Some(Task::Reuse { life, generation });
            }
            let slot = core.next_slot;
            core.next_slot += 1;
            return Some(Task::Create { slot, generation });
        }
        if let Some(slot) = core.take_surplus(&shared.options) {
            return Some(Task::Discard { slot });
        }
        core = wait(&shared.prepare, core);
    }
}

fn reuse(shared: &Shared, life: &Life, generation: u64) -> io::Result<Option<Arc<Life>>> {
    shared
        .workshop
        .begin(Arc::clone(&life.file), life.slot, life.capacity_bytes, generation)
        .map(Some)
}

fn create(shared: &Shared, slot: u32, generation: u64) -> io::Result<Option<Arc<Life>>> {
    let capacity_bytes = shared.options.segment_bytes;
    let file = shared.workshop.create(slot, capacity_bytes)?;
    shared
        .workshop
        .begin(file, slot, capacity_bytes, generation)
        .map(Some)
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
