//! Leases of attributes by the range.
//!
//! Inodes that were made together have numbers that follow each other. A range of them has a number of its own, which
//! stands in the place of an inode's wherever leases are kept or spoken of.

use std::ops::RangeInclusive;

use raftstore::meta::Ino;

/// Set in the number of a range and in no inode's.
const MARK: Ino = 1 << 63;
/// 4,096 inodes: as many as a node reserves numbers for at a time.
const BITS: u32 = 12;

/// Stands for the attributes of all inodes whose numbers are close to `ino`'s; a range stands for itself.
#[must_use]
pub const fn range_of(ino: Ino) -> Ino {
    if is_range(ino) { ino } else { MARK | ino >> BITS }
}

/// Whether this stands for a range, and not for one inode.
#[must_use]
pub const fn is_range(ino: Ino) -> bool {
    ino & MARK != 0
}

/// The inodes of a range; an inode stands for itself.
#[must_use]
pub const fn inodes_of(ino: Ino) -> RangeInclusive<Ino> {
    if !is_range(ino) {
        return ino..=ino;
    }
    let first = (ino & !MARK) << BITS & !MARK;
    first..=first | ((1 << BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_the_inodes_that_have_it() {
        for ino in [0, 1, 4095, 4096, 70_000, MARK - 1] {
            let range = range_of(ino);
            assert!(is_range(range) && !is_range(ino));
            let inodes = inodes_of(range);
            assert!(
                inodes.contains(&ino) && !is_range(*inodes.end()),
                "{ino} in {inodes:?}"
            );
            assert_eq!(
                (range_of(*inodes.start()), range_of(*inodes.end())),
                (range, range)
            );
            assert_eq!(inodes.count(), 4096);
            assert_eq!((inodes_of(ino), range_of(range)), (ino..=ino, range));
        }
    }
}
