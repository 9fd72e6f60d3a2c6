//! Whether anybody needs the cluster at the moment.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A pause of so long is a good time for work that can wait.
const PAUSE: Duration = Duration::from_secs(3);

/// Watches a counter of what is done for programs.
#[derive(Debug, Default)]
pub struct Idle {
    /// What the counter said, and since when it has.
    seen: Mutex<(u64, Duration)>,
}

impl Idle {
    /// Whether the counter has stood at `count` for a while, at `now` of the monotonic clock.
    pub fn look(&self, count: u64, now: Duration) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != count {
            *seen = (count, now);
        }
        now.saturating_sub(seen.1) >= PAUSE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_who_has_done_nothing_for_a_while() {
        let idle = Idle::default();
        assert!(!idle.look(7, PAUSE / 2));
        assert!(!idle.look(8, PAUSE));
        assert!(!idle.look(8, PAUSE * 3 / 2));
        assert!(idle.look(8, PAUSE * 2));
        assert!(!idle.look(9, PAUSE * 2));
    }
}
