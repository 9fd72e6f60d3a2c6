//! Time, injected. No decision rests on the wall clock (Pis have no clock battery): it only stamps files.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point of the wall clock, as `struct timespec`: seconds since 1970 and nanoseconds below one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since the epoch; negative before 1970.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

impl Timestamp {
    /// The next representable instant, one nanosecond later.
    #[must_use]
    pub fn successor(self) -> Self {
        if self.nsec >= 999_999_999 {
            Self {
                sec: self.sec.saturating_add(1),
                nsec: 0,
            }
        } else {
            Self {
                sec: self.sec,
                nsec: self.nsec + 1,
            }
        }
    }
}

/// Where a node takes time from.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock: for file times only.
    fn wall(&self) -> Timestamp;
    /// A clock that never goes back and does not stop while the machine runs, since an arbitrary start.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp {
            sec: now.tv_sec,
            nsec: u32::try_from(now.tv_nsec).unwrap_or(0),
        }
    }

    fn monotonic(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Duration::new(
            u64::try_from(now.tv_sec).unwrap_or(0),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        )
    }
}
