//! Which block comes next.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// An endless sequence of block numbers below a bound; the same seed gives the same sequence.
#[derive(Debug)]
pub struct Offsets {
    blocks: u64,
    at: u64,
    rng: StdRng,
    order: Order,
}

#[derive(Debug)]
enum Order {
    Sequential,
    /// Each block once in each pass, as fio's random map sees to.
    Shuffled(Permutation),
    Uniform,
}

impl Offsets {
    /// One block after the other, then again from the first.
    #[must_use]
    pub fn sequential(blocks: u64) -> Self {
        Self::new(blocks, 0, |_| Order::Sequential)
    }

    /// Each block once in random order, then again in another order.
    #[must_use]
    pub fn shuffled(blocks: u64, seed: u64) -> Self {
        Self::new(blocks, seed, |rng| {
            Order::Shuffled(Permutation::new(blocks.max(1), rng))
        })
    }

    /// Any block at any time (fio: `norandommap`).
    #[must_use]
    pub fn uniform(blocks: u64, seed: u64) -> Self {
        Self::new(blocks, seed, |_| Order::Uniform)
    }

    fn new(blocks: u64, seed: u64, order: impl FnOnce(&mut StdRng) -> Order) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let order = order(&mut rng);
        Self {
            blocks: blocks.max(1),
            at: 0,
            rng,
            order,
        }
    }

    /// The next block's number.
    pub fn next_block(&mut self) -> u64 {
        if self.at == self.blocks {
            self.at = 0;
            if let Order::Shuffled(permutation) = &mut self.order {
                *permutation = Permutation::new(self.blocks, &mut self.rng);
            }
        }
        let at = self.at;
        self.at += 1;
        match &self.order {
            Order::Sequential => at,
            Order::Shuffled(permutation) => permutation.at(at),
            Order::Uniform => self.rng.random_range(0..self.blocks),
        }
    }
}

/// A random permutation of the numbers below a bound that takes no memory: a Feistel network over the next even number
/// of bits, walked on from numbers that are too large until one fits (Black and Rogaway, "Ciphers with arbitrary
/// finite domains", 2002).
#[derive(Debug)]
struct Permutation {
    bound: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    fn new(bound: u64, rng: &mut StdRng) -> Self {
        let bits = u64::BITS - (bound - 1).leading_zeros();
        Self {
            bound,
            half_bits: bits.div_ceil(2).clamp(1, 32),
            keys: rng.random(),
        }
    }

    fn at(&self, index: u64) -> u64 {
        let mut value = index;
        loop {
            value = self.step(value);
            if value < self.bound {
                return value;
            }
        }
    }

    fn step(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(mut offsets: Offsets, count: usize) -> Vec<u64> {
        (0..count).map(|_| offsets.next_block()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_offsets_and_another_others() {
        for make in [Offsets::shuffled, Offsets::uniform] {
            assert_eq!(take(make(1000, 7), 2500), take(make(1000, 7), 2500));
            assert_ne!(take(make(1000, 7), 2500), take(make(1000, 8), 2500));
        }
    }

    #[test]
    fn a_shuffled_pass_has_each_block_once_in_another_order_each_time() {
        for blocks in [1, 2, 3, 7, 64, 65, 1000] {
            let all = take(Offsets::shuffled(blocks, 42), 2 * blocks as usize);
            let (first, second) = all.split_at(blocks as usize);
            for pass in [first, second] {
                let mut sorted = pass.to_vec();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..blocks).collect::<Vec<_>>());
            }
            assert!(blocks < 10 || first != second);
        }
    }

    #[test]
    fn sequential_starts_again_at_the_end() {
        assert_eq!(take(Offsets::sequential(3), 7), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn uniform_stays_below_the_bound() {
        assert!(
            take(Offsets::uniform(10, 1), 1000)
                .iter()
                .all(|block| *block < 10)
        );
    }
}
