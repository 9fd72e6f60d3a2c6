//! What is measured: latencies in histograms, and operations over time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::Clock;

/// What an operation counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Reads; as in fio, also what fio's file engines do.
    Read,
    /// Writes, and whole operations that write.
    Write,
    /// fsync, fdatasync, syncfs.
    Sync,
}

/// Latencies and bytes of one side.
#[derive(Debug, Clone)]
pub struct Tally {
    /// In nanoseconds, three digits exact.
    pub latency_ns: Histogram<u64>,
    /// Their sum, for the exact mean.
    pub sum_ns: u128,
    /// The shortest.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Bytes read or written.
    pub bytes: u64,
    /// Operations over time.
    pub series: Series,
}

impl Tally {
    fn new() -> Option<Self> {
        Some(Self {
            latency_ns: Histogram::new(3).ok()?,
            sum_ns: 0,
            min_ns: u64::MAX,
            max_ns: 0,
            bytes: 0,
            series: Series::new(),
        })
    }

    /// An operation that took `time` and ended `at` this time after the start.
    fn add(&mut self, at: Duration, time: Duration, bytes: u64) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // Cannot fail: the histogram grows to take any value.
        let _ = self.latency_ns.record(ns.max(1));
        self.sum_ns += u128::from(ns);
        self.min_ns = self.min_ns.min(ns);
        self.max_ns = self.max_ns.max(ns);
        self.bytes += bytes;
        self.series.add(at, 1);
    }

    /// So many operations that were one call: each took its share of the time.
    fn add_many(&mut self, at: Duration, time: Duration, count: u64) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let each = ns / count.max(1);
        // Cannot fail: the histogram grows to take any value.
        let _ = self.latency_ns.record_n(each.max(1), count);
        self.sum_ns += u128::from(ns);
        self.min_ns = self.min_ns.min(each);
        self.max_ns = self.max_ns.max(each);
        self.series.add(at, count);
    }

    /// So many operations that another program has timed; `series` are theirs over time.
    pub fn add_timed(&mut self, latencies: impl Iterator<Item = (Duration, u64)>, series: Series) {
        for (time, count) in latencies {
            let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            // Cannot fail: the histogram grows to take any value.
            let _ = self.latency_ns.record_n(ns.max(1), count);
            self.sum_ns += u128::from(ns) * u128::from(count);
            self.min_ns = self.min_ns.min(ns);
            self.max_ns = self.max_ns.max(ns);
        }
        self.series.merge(&series);
    }

    fn merge(&mut self, other: &Self) {
        // Only fails if `other` had values that this one cannot take, which an auto-resizing one can.
        let _ = self.latency_ns.add(&other.latency_ns);
        self.sum_ns += other.sum_ns;
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.bytes += other.bytes;
        self.series.merge(&other.series);
    }

    /// Number of operations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.latency_ns.len()
    }

    /// The mean latency in nanoseconds; 0 without operations.
    #[must_use]
    pub fn mean_ns(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.sum_ns as f64 / count as f64,
        }
    }
}

/// Operations in each interval of a run. When there are too many intervals, two become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// How long each is.
    pub interval: Duration,
    /// Operations in each.
    pub counts: Vec<u64>,
}

const INTERVALS_MAX: usize = 600;

impl Series {
    fn new() -> Self {
        Self {
            interval: Duration::from_millis(250),
            counts: Vec::new(),
        }
    }

    fn add(&mut self, at: Duration, count: u64) {
        let mut index = index(at, self.interval);
        while index >= INTERVALS_MAX {
            self.halve();
            index /= 2;
        }
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] += count;
    }

    fn halve(&mut self) {
        self.interval *= 2;
        self.counts = self.counts.chunks(2).map(|pair| pair.iter().sum()).collect();
    }

    fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        while self.interval < other.interval {
            self.halve();
        }
        while other.interval < self.interval {
            other.halve();
        }
        for (i, count) in other.counts.iter().enumerate() {
            self.add(self.interval * u32::try_from(i).unwrap_or(u32::MAX), *count);
        }
    }
}

fn index(at: Duration, interval: Duration) -> usize {
    usize::try_from(at.as_nanos() / interval.as_nanos().max(1)).unwrap_or(usize::MAX)
}

/// What one clone of a job, or all together, did.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Reads.
    pub read: Tally,
    /// Writes.
    pub write: Tally,
    /// Syncs.
    pub sync: Tally,
    /// What a caller waits for: an operation and the sync after it, if there is one.
    pub step: Tally,
    /// From the common start to the end of the last clone.
    pub elapsed: Duration,
}

impl Stats {
    /// Nothing yet.
    ///
    /// # Errors
    /// Never, as long as three is a precision that histograms have.
    pub fn new() -> crate::Result<Self> {
        let tally = || Tally::new().ok_or_else(|| crate::Error::Usage("cannot make a histogram".to_owned()));
        Ok(Self {
            read: tally()?,
            write: tally()?,
            sync: tally()?,
            step: tally()?,
            elapsed: Duration::ZERO,
        })
    }

    /// Adds what a clone that ran at the same time did.
    pub fn merge(&mut self, other: &Self) {
        self.read.merge(&other.read);
        self.write.merge(&other.write);
        self.sync.merge(&other.sync);
        self.step.merge(&other.step);
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}

/// What a running job shows of itself.
#[derive(Debug, Default)]
pub struct Live {
    /// Reads and writes so far.
    pub operations: AtomicU64,
    /// Bytes so far.
    pub bytes: AtomicU64,
}

/// Times one clone's operations.
pub struct Recorder<'a> {
    clock: &'a dyn Clock,
    live: &'a Live,
    start: Duration,
    stats: Stats,
}

impl<'a> Recorder<'a> {
    /// Starts now.
    ///
    /// # Errors
    /// As [`Stats::new`].
    pub fn new(clock: &'a dyn Clock, live: &'a Live) -> crate::Result<Self> {
        Ok(Self {
            clock,
            live,
            start: clock.now(),
            stats: Stats::new()?,
        })
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.clock.now().saturating_sub(self.start)
    }

    /// Does something and counts it, if it worked, as an operation of so many bytes.
    ///
    /// # Errors
    /// Those of `operation`.
    pub fn timed<T, E>(
        &mut self,
        side: Side,
        bytes: u64,
        operation: impl FnOnce(&mut Self) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let begin = self.clock.now();
        let answer = operation(self)?;
        let end = self.clock.now();
        let time = end.saturating_sub(begin);
        let at = end.saturating_sub(self.start);
        match side {
            Side::Read => self.stats.read.add(at, time, bytes),
            Side::Write => self.stats.write.add(at, time, bytes),
            Side::Sync => self.stats.sync.add(at, time, bytes),
        }
        if side != Side::Sync {
            self.live.operations.fetch_add(1, Ordering::Relaxed);
            self.live.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(answer)
    }

    /// Does something that is as many reads as it answers, and counts each with its share of the time.
    ///
    /// # Errors
    /// Those of `operation`.
    pub fn timed_reads<E>(
        &mut self,
        operation: impl FnOnce() -> std::result::Result<u64, E>,
    ) -> std::result::Result<u64, E> {
        let begin = self.clock.now();
        let count = operation()?;
        let end = self.clock.now();
        let (at, time) = (end.saturating_sub(self.start), end.saturating_sub(begin));
        if count > 0 {
            self.stats.read.add_many(at, time, count);
            self.live.operations.fetch_add(count, Ordering::Relaxed);
        }
        Ok(count)
    }

    /// Takes the time of an operation with what belongs to it, if there was one: `work` answers true.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn step<E>(
        &mut self,
        work: impl FnOnce(&mut Self) -> std::result::Result<bool, E>,
    ) -> std::result::Result<bool, E> {
        let begin = self.clock.now();
        let done = work(self)?;
        if done {
            let end = self.clock.now();
            let at = end.saturating_sub(self.start);
            self.stats.step.add(at, end.saturating_sub(begin), 0);
        }
        Ok(done)
    }

    /// Ends now.
    #[must_use]
    pub fn finish(mut self) -> Stats {
        self.stats.elapsed = self.elapsed();
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::FakeClock;

    #[test]
    fn latencies_and_times_are_those_of_the_clock() {
        let (clock, live) = (FakeClock::default(), Live::default());
        clock.advance(Duration::from_secs(1000));
        let mut recorder = Recorder::new(&clock, &live).unwrap();
        for ms in 1..=100 {
            let answer: Result<u64, ()> = recorder.timed(Side::Write, 4096, |_| {
                clock.advance(Duration::from_millis(ms));
                Ok(ms)
            });
            assert_eq!(answer, Ok(ms));
        }
        let failed: Result<(), &str> = recorder.timed(Side::Write, 4096, |_| Err("no"));
        assert!(failed.is_err());
        let stats = recorder.finish();
        assert_eq!(stats.write.count(), 100);
        assert_eq!(stats.write.bytes, 409_600);
        assert_eq!(stats.elapsed, Duration::from_millis(5050));
        assert_eq!((stats.write.min_ns, stats.write.max_ns), (1_000_000, 100_000_000));
        assert!((stats.write.mean_ns() - 50_500_000.0).abs() < 1.0);
        let p99 = stats.write.latency_ns.value_at_quantile(0.99);
        assert!((98_900_000..99_200_000).contains(&p99), "{p99}");
        assert_eq!(stats.write.series.counts.iter().sum::<u64>(), 100);
        assert_eq!(stats.write.series.counts[0], 21); // 1 + ... + 21 ms end within the first 250 ms
        assert_eq!(live.operations.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn a_long_series_keeps_its_sum_and_its_bound() {
        let mut series = Series::new();
        for second in 0..10_000 {
            series.add(Duration::from_secs(second), 3);
        }
        assert!(series.counts.len() <= INTERVALS_MAX);
        assert_eq!(series.counts.iter().sum::<u64>(), 30_000);
        let mut other = Series::new();
        other.add(Duration::from_secs(1), 5);
        other.merge(&series);
        assert_eq!(other.counts.iter().sum::<u64>(), 30_005);
        assert_eq!(other.interval, series.interval);
    }

    #[test]
    fn what_one_call_reads_shares_its_time() {
        let (clock, live) = (FakeClock::default(), Live::default());
        let mut recorder = Recorder::new(&clock, &live).unwrap();
        let answer: Result<u64, ()> = recorder.timed_reads(|| {
            clock.advance(Duration::from_millis(20));
            Ok(1000)
        });
        assert_eq!(
            (answer, recorder.timed_reads(|| Ok::<_, ()>(0))),
            (Ok(1000), Ok(0))
        );
        let stats = recorder.finish();
        assert_eq!((stats.read.count(), stats.read.max_ns), (1000, 20_000));
        assert!((stats.read.mean_ns() - 20_000.0).abs() < 1.0);
        assert_eq!(stats.read.series.counts, [1000]);
        assert_eq!(live.operations.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn clones_add_up() {
        let mut all = Stats::new().unwrap();
        for ms in [1, 3] {
            let mut stats = Stats::new().unwrap();
            stats.sync.add(Duration::ZERO, Duration::from_millis(ms), 0);
            stats.elapsed = Duration::from_secs(ms);
            all.merge(&stats);
        }
        assert_eq!(all.sync.count(), 2);
        assert!((all.sync.mean_ns() - 2_000_000.0).abs() < 1.0);
        assert_eq!(all.elapsed, Duration::from_secs(3));
    }
}
