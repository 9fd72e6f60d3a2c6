//! Who waits for what was done on this node to be committed.

use std::time::Duration;

use tokio::sync::oneshot;

use super::pending::{Files, Pending};

/// A batch waits for those who synced last for this part of the time that the last one took.
const GATHER_SHARE: u32 = 4;
/// But not for longer.
const GATHER_MAX: Duration = Duration::from_millis(8);
/// Timers are not finer.
const GATHER_MIN: Duration = Duration::from_millis(1);

/// A flush that somebody waits for: of all changes up to a number, but of bytes only those of some files.
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) files: Files,
    /// Whether a batch was made since it came.
    seen: bool,
    done: oneshot::Sender<()>,
}

/// All of them, in the order in which they came.
#[derive(Default)]
pub(super) struct Requests {
    waiting: Vec<Request>,
    /// How many will ask again soon.
    expected: usize,
    /// They are waited for until then.
    gather_until: Duration,
}

impl Requests {
    /// One more; the answer comes once all of it is committed. It never comes if nothing can be committed any more.
    pub(super) fn ask(&mut self, number: u64, files: Files) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        self.waiting.push(Request {
            number,
            files,
            seen: false,
            done,
        });
        answer
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Request> {
        self.waiting.iter()
    }

    /// A batch was made of what they ask for.
    pub(super) fn see(&mut self) {
        self.waiting.iter_mut().for_each(|request| request.seen = true);
    }

    /// Answers those who have what they asked for. How many.
    pub(super) fn settle(&mut self, pending: &Pending) -> usize {
        let before = self.waiting.len();
        let settled = |request: &mut Request| pending.is_settled(&request.files, request.number);
        for request in self.waiting.extract_if(.., settled) {
            // Who asked may have gone.
            let _ = request.done.send(());
        }
        before - self.waiting.len()
    }

    /// Nobody will be answered.
    pub(super) fn abandon(&mut self) {
        self.waiting.clear();
    }

    /// A batch that took so long has answered so many.
    pub(super) fn answered(&mut self, count: usize, took: Duration, now: Duration) {
        let unseen = self.waiting.iter().filter(|request| !request.seen).count();
        self.expected = count + unseen;
        let gather = (took / GATHER_SHARE).min(GATHER_MAX);
        self.gather_until = if gather < GATHER_MIN { now } else { now + gather };
    }

    /// For how long to wait for more of those whom the last batch has answered: threads that sync again and again would
    /// else divide between two batches that take turns, and each wait for both. `None` if nobody is expected.
    pub(super) fn gather(&self, now: Duration) -> Option<Duration> {
        let asking = self.waiting.iter().filter(|request| !request.seen).count();
        let left = self.gather_until.saturating_sub(now);
        (asking > 0 && asking < self.expected && !left.is_zero()).then_some(left)
    }
}
