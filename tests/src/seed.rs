//! Random choices that can be repeated.

use std::ops::{Deref, DerefMut};
use std::time::{SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// A random generator that prints its seed, which a failing test shows; `BRAMBLE_TEST_SEED` sets it.
pub struct Seed {
    /// The seed itself, for programs that take one.
    pub value: u64,
    rng: StdRng,
}

impl Seed {
    /// The seed from the environment, or a new one.
    #[must_use]
    pub fn new() -> Self {
        let value = match std::env::var("BRAMBLE_TEST_SEED") {
            Ok(text) => text.parse().expect("BRAMBLE_TEST_SEED is a number"),
            Err(_) => u64::from(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap()
                    .subsec_nanos(),
            ),
        };
        eprintln!("seed: BRAMBLE_TEST_SEED={value}");
        Self {
            value,
            rng: StdRng::seed_from_u64(value),
        }
    }
}

impl Default for Seed {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Seed {
    type Target = StdRng;
    fn deref(&self) -> &StdRng {
        &self.rng
    }
}

impl DerefMut for Seed {
    fn deref_mut(&mut self) -> &mut StdRng {
        &mut self.rng
    }
}
