//! Time, injected: the same trait idea as in the daemon, kept here so that the benchmark depends on none of its crates.

use std::time::Duration;

/// Where a benchmark takes time from.
pub trait Clock: Send + Sync {
    /// Time since an arbitrary start; never goes back.
    fn now(&self) -> Duration;
    /// The wall clock, in milliseconds since 1970: only to date a report.
    fn unix_ms(&self) -> u64;
    /// Waits.
    fn sleep(&self, time: Duration);
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        read(rustix::time::ClockId::Monotonic)
    }

    fn unix_ms(&self) -> u64 {
        u64::try_from(read(rustix::time::ClockId::Realtime).as_millis()).unwrap_or(0)
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

fn read(clock: rustix::time::ClockId) -> Duration {
    let now = rustix::time::clock_gettime(clock);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// A clock that moves only when it is told to, for tests.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct FakeClock(std::sync::atomic::AtomicU64);

#[cfg(test)]
impl FakeClock {
    /// Moves the clock on.
    pub fn advance(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap();
        self.0.fetch_add(ns, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
impl Clock for FakeClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn unix_ms(&self) -> u64 {
        1_700_000_000_000
    }

    fn sleep(&self, time: Duration) {
        self.advance(time);
    }
}
