//! What the medium under a store takes: measured once, at the first start, and kept. Sizes of batches and rates of
//! background work follow from it, where they are defined ([`crate::behind`], [`crate::chunk`]).

mod measure;
#[cfg(test)]
pub mod testing;

use std::ops::RangeInclusive;
use std::time::Duration;

pub use measure::measure;

/// What a medium was found to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Medium {
    /// Of a small write over bytes that were written before, with its fdatasync: what the journal needs for a batch.
    pub sync_latency: Duration,
    /// Of large sequential writes.
    pub write_bytes_per_s: u64,
}

/// First line of the text, with the version of what follows.
const TITLE: &str = "bramble-medium 1";
/// What is slower than this was no measurement.
const SYNC_LATENCY_MAX: Duration = Duration::from_secs(600);

impl Medium {
    /// Bytes that it writes in `time`, if they are written together.
    #[must_use]
    pub fn bytes_in(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.write_bytes_per_s) * time.as_nanos() / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// One part in so many of what it writes in a second, within bounds: a rate for work in the background.
    #[must_use]
    pub fn share(&self, parts: u64, bounds: RangeInclusive<u64>) -> u64 {
        (self.write_bytes_per_s / parts.max(1)).clamp(*bounds.start(), *bounds.end())
    }

    /// As text: a title with the version, two numbers, and the crc32 of all that.
    #[must_use]
    pub fn encode(&self) -> String {
        let sync_ns = self.sync_latency.as_nanos();
        let rate = self.write_bytes_per_s;
        let text = format!("{TITLE}\nsync_ns {sync_ns}\nwrite_bytes_per_s {rate}\n");
        let crc = crc32fast::hash(text.as_bytes());
        format!("{text}crc32 {crc:08x}\n")
    }

    /// The opposite; `None` if it is damaged, of another version, or nonsense.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (text, crc) = text.split_at(text.rfind("crc32 ")?);
        if crc != format!("crc32 {:08x}\n", crc32fast::hash(text.as_bytes())) {
            return None;
        }
        let mut lines = text.lines();
        if lines.next()? != TITLE {
            return None;
        }
        let mut number = |name: &str| lines.next()?.strip_prefix(name)?.trim_start().parse::<u64>().ok();
        let medium = Self {
            sync_latency: Duration::from_nanos(number("sync_ns")?),
            write_bytes_per_s: number("write_bytes_per_s")?,
        };
        let sensible = !medium.sync_latency.is_zero()
            && medium.sync_latency <= SYNC_LATENCY_MAX
            && medium.write_bytes_per_s > 0;
        sensible.then_some(medium)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, RngCore, SeedableRng};

    const STICK: Medium = Medium {
        sync_latency: Duration::from_micros(33_300),
        write_bytes_per_s: 10 << 20,
    };

    #[test]
    fn what_was_kept_is_read_back() {
        assert_eq!(Medium::decode(STICK.encode().as_bytes()), Some(STICK));
        assert_eq!(STICK.bytes_in(Duration::from_millis(100)), 1 << 20);
    }

    #[test]
    fn work_in_the_background_gets_its_share() {
        use crate::chunk::{KeeperOptions, MergerOptions};
        let rates = |write_bytes_per_s| {
            let medium = Medium {
                write_bytes_per_s,
                ..STICK
            };
            let keeper = KeeperOptions::for_medium(&medium);
            let merger = MergerOptions::for_medium(&medium);
            let rates = [
                merger.merge_bytes_per_s_max,
                keeper.repair_bytes_per_s_max,
                keeper.compact_bytes_per_s_max,
            ];
            rates.map(|rate| rate >> 10)
        };
        assert_eq!(rates(10 << 20), [5 << 10, 5 << 10, 1280]);
        assert_eq!(rates(1), [1 << 10, 1 << 10, 256]);
        assert_eq!(rates(u64::MAX), [32 << 10, 32 << 10, 8 << 10]);
    }

    #[test]
    fn what_is_damaged_or_nonsense_is_none() {
        let good = STICK.encode().into_bytes();
        for seed in 0..2000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut bytes = good.clone();
            match rng.random_range(0..3) {
                0 => {
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] ^= rng.random_range(1..=255_u8);
                }
                1 => bytes.truncate(rng.random_range(0..bytes.len())),
                _ => {
                    bytes = vec![0; rng.random_range(0..200)];
                    rng.fill_bytes(&mut bytes);
                }
            }
            assert_eq!(Medium::decode(&bytes), None, "seed {seed}");
        }
        let timeless = Medium {
            sync_latency: Duration::ZERO,
            ..STICK
        };
        assert_eq!(Medium::decode(timeless.encode().as_bytes()), None);
    }
}
