//! A bound on the bytes per second that background work moves.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// What may be used at once after a pause, as a time.
const BURST: Duration = Duration::from_millis(500);

/// Lets at most so many bytes through per second.
#[derive(Debug)]
pub(super) struct Budget {
    bytes_per_s_max: u64,
    /// When all that was let through so far is paid for.
    paid_at: Mutex<Option<Instant>>,
}

impl Budget {
    pub(super) fn new(bytes_per_s_max: u64) -> Self {
        Self {
            bytes_per_s_max: bytes_per_s_max.max(1),
            paid_at: Mutex::new(None),
        }
    }

    /// Waits until `bytes` more may pass.
    pub(super) async fn take(&self, bytes: u64) {
        let price = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s_max as f64);
        let wait_until = {
            let mut paid_at = self.paid_at.lock().await;
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let from = paid_at.map_or(earliest, |at| at.max(earliest));
            *paid_at = Some(from + price);
            from
        };
        tokio::time::sleep_until(wait_until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept() {
        let budget = Budget::new(1000);
        let start = Instant::now();
        for _ in 0..20 {
            budget.take(500).await;
        }
        let took = start.elapsed();
        assert!(
            took >= Duration::from_secs(9) && took < Duration::from_secs(11),
            "{took:?}"
        );
    }
}
