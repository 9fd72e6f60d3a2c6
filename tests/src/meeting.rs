//! Where threads meet.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A barrier that does not wait for ever for a thread whose assertion has failed.
pub struct Meeting {
    threads: usize,
    // Threads that have arrived, counted over all meetings.
    arrived: Mutex<usize>,
    changed: Condvar,
}

impl Meeting {
    /// A meeting of so many threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            arrived: Mutex::new(0),
            changed: Condvar::new(),
        }
    }

    /// Waits until all are here.
    ///
    /// # Panics
    /// If one does not come within a minute.
    pub fn wait(&self) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        *arrived += 1;
        let goal = arrived.div_ceil(self.threads) * self.threads;
        self.changed.notify_all();
        let waiting = self
            .changed
            .wait_timeout_while(arrived, Duration::from_secs(60), |arrived| *arrived < goal);
        assert!(
            !waiting.is_ok_and(|(_, timeout)| timeout.timed_out()),
            "another thread has failed or hangs"
        );
    }
}
