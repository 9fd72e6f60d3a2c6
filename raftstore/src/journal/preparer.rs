//! The thread that keeps the next segment ready, so that no append waits for zeros to be written.

use std::cell::Cell;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::SpaceCondition;
use super::core::{Core, Shared};
use super::segment::Life;
use super::writer::wait;

/// How long to wait before another attempt on a full medium.
const RETRY: Duration = Duration::from_secs(1);
/// Segments are made ahead only if this part of the medium is free.
const AHEAD_FREE_PART: u64 = 8;

/// What there is to do.
enum Task {
    /// Begin a life in a segment that was used before.
    Reuse { life: Arc<Life>, generation: u64 },
    /// Make a new segment.
    Create { slot: u32, generation: u64 },
    /// Make one that nothing needs yet, in quiet times, if there is room to spare.
    CreateAhead,
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
                let made = create(shared, slot, generation, &|| {});
                ("prepare a segment".to_owned(), made.map(Some))
            }
            Task::CreateAhead => ("make a segment ahead".to_owned(), create_ahead(shared)),
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
                    retry_later(shared, core);
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
            let generation = core.take_generation();
            if let Some(life) = core.take_free(shared.options.segment_bytes) {
                return Some(Task::Reuse { life, generation });
            }
            let slot = core.take_slot();
            return Some(Task::Create { slot, generation });
        }
        if let Some(slot) = core.take_surplus(&shared.options) {
            return Some(Task::Discard { slot });
        }
        if core.segments() >= shared.options.segments_min || core.closing {
            core = wait(&shared.prepare, core);
            continue;
        }
        let (guard, quiet) = wait_quietly(shared, core);
        core = guard;
        if quiet && core.prepared.len() >= shared.options.spare_segments {
            return Some(Task::CreateAhead);
        }
    }
}

/// Waits before another attempt, or for something to do.
fn retry_later(shared: &Shared, core: MutexGuard<'_, Core>) {
    let waited = shared.prepare.wait_timeout(core, RETRY);
    drop(waited.unwrap_or_else(PoisonError::into_inner));
}

/// Waits for `quiet`, or for something to do; true if nothing was appended meanwhile.
fn wait_quietly<'a>(shared: &'a Shared, core: MutexGuard<'a, Core>) -> (MutexGuard<'a, Core>, bool) {
    let before = core.next_ticket;
    let waited = shared.prepare.wait_timeout(core, shared.options.quiet);
    let (core, waited) = waited.unwrap_or_else(PoisonError::into_inner);
    let quiet = waited.timed_out() && core.next_ticket == before && core.queue.is_empty();
    (core, quiet)
}

/// While a segment is made ahead: lets appends have the medium, unless a segment is needed soon. `seen` is the ticket up
/// to which appends were waited for.
fn let_appends_pass(shared: &Shared, seen: &Cell<u64>) {
    let mut core = shared.lock();
    loop {
        let needed = core.prepared.len() < shared.options.spare_segments;
        let quiet = core.next_ticket == seen.get() && core.queue.is_empty();
        if needed || quiet || core.closing || core.failure.is_some() {
            return;
        }
        seen.set(core.next_ticket);
        core = wait_quietly(shared, core).0;
    }
}

fn reuse(shared: &Shared, life: &Life, generation: u64) -> io::Result<Option<Arc<Life>>> {
    shared
        .workshop
        .begin(Arc::clone(&life.file), life.slot, life.capacity_bytes, generation)
        .map(Some)
}

fn create(shared: &Shared, slot: u32, generation: u64, pause: &dyn Fn()) -> io::Result<Arc<Life>> {
    let capacity_bytes = shared.options.segment_bytes;
    let file = shared.workshop.create(slot, capacity_bytes, pause)?;
    shared.workshop.begin(file, slot, capacity_bytes, generation)
}

/// As [`create`], slowly. A medium that is rather full is left as it is, and costs no numbers.
fn create_ahead(shared: &Shared) -> io::Result<Option<Arc<Life>>> {
    let space = shared.workshop.disk.space(&shared.workshop.dir)?;
    if space.available_bytes < space.capacity_bytes / AHEAD_FREE_PART {
        retry_later(shared, shared.lock());
        return Ok(None);
    }
    let (slot, generation, seen) = {
        let mut core = shared.lock();
        (
            core.take_slot(),
            core.take_generation(),
            Cell::new(core.next_ticket),
        )
    };
    let life = create(shared, slot, generation, &|| let_appends_pass(shared, &seen))?;
    shared.lock().free.push_back(life);
    Ok(None)
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
