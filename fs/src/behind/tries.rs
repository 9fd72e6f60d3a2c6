//! When to ask for the attributes of a whole range of inodes.

use std::collections::HashMap;

use raftstore::meta::Ino;

use crate::lease::{ToLeader, range_of};

/// Ranges that are remembered.
const RANGES_MAX: usize = 1024;
/// With so many inodes asked for one by one, the range is worth a message. After each that was in vain, with twice as many.
const MISSES_MIN: u32 = 4;

/// Inodes whose attributes had to be asked for, by range, and the range that was asked for last.
#[derive(Debug, Default)]
pub(super) struct RangeTries {
    misses: HashMap<Ino, u32>,
    /// Its request's id. What is granted later than the next is asked for is not known here: the leader is told so when
    /// it wants it back.
    tried: Option<(u64, Ino)>,
}

impl RangeTries {
    /// These are asked for one by one. The range to ask for besides, if that is worth it.
    pub(super) fn missed(&mut self, inodes: &[Ino]) -> Option<Ino> {
        let mut worth_it = None;
        for ino in inodes {
            let range = range_of(*ino);
            if self.misses.len() >= RANGES_MAX && !self.misses.contains_key(&range) {
                self.misses.clear();
            }
            let misses = self.misses.entry(range).or_default();
            *misses = misses.saturating_add(1);
            if *misses >= MISSES_MIN && misses.is_power_of_two() {
                worth_it = Some(range);
            }
        }
        worth_it
    }

    /// What to tell the leader.
    pub(super) fn request(&mut self, id: u64, range: Ino) -> ToLeader {
        self.tried = Some((id, range));
        ToLeader::TryRange { id, range }
    }

    /// The range that was asked for with this id.
    pub(super) fn granted(&mut self, id: u64) -> Option<Ino> {
        let (_, range) = self.tried.take_if(|(tried, _)| *tried == id)?;
        self.misses.remove(&range);
        Some(range)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_asked_for_ever_more_seldom_until_it_is_granted() {
        let mut tries = RangeTries::default();
        let asked = |tries: &mut RangeTries| (1..=64).find(|_| tries.missed(&[7]).is_some());
        assert_eq!(asked(&mut tries), Some(4));
        assert_eq!(asked(&mut tries), Some(4));
        assert_eq!(asked(&mut tries), Some(8));
        assert_eq!(tries.missed(&[4096, 4097, 8, 4098, 4099]), Some(range_of(4096)));
        let range = range_of(7);
        assert_eq!(tries.request(3, range), ToLeader::TryRange { id: 3, range });
        assert_eq!(tries.granted(2), None);
        assert_eq!(tries.granted(3), Some(range));
        assert_eq!(tries.granted(3), None);
        assert_eq!(asked(&mut tries), Some(4));
    }
}
