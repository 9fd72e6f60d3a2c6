//! What the random tests try.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::meta::{Fallocate, FileKind, RenameMode};

/// Something to try; inodes are picked from all that ever were.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Create {
        parent: Index,
        name: u8,
        kind: FileKind,
    },
    Link {
        ino: Index,
        parent: Index,
        name: u8,
    },
    Unlink {
        parent: Index,
        name: u8,
    },
    Rmdir {
        parent: Index,
        name: u8,
    },
    Rename {
        from: Index,
        name: u8,
        to: Index,
        new_name: u8,
        mode: RenameMode,
    },
    Truncate {
        ino: Index,
        size: u64,
    },
    Write {
        ino: Index,
        offset: Option<u64>,
        len: usize,
        in_chunk: bool,
    },
    Space {
        ino: Index,
        what: Fallocate,
        offset: u64,
        len: u64,
    },
    Copy {
        source: Index,
        source_offset: u64,
        target: Index,
        target_offset: u64,
        len: u64,
    },
    SetTimes {
        ino: Index,
        sec: i64,
    },
    SetXattr {
        ino: Index,
        name: u8,
    },
    RemoveXattr {
        ino: Index,
        name: u8,
    },
    Reap {
        inodes: Vec<Index>,
    },
    /// Looks at a file's extents, for a merge to come.
    Plan {
        ino: Index,
    },
    /// Merges what was planned, whatever has become of it.
    Merge,
    /// Proposes an earlier proposal again.
    Repeat {
        which: Index,
    },
}

pub(super) fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    let ino = any::<Index>;
    let name = || 0..4u8;
    let offset = || 0..2000u64;
    let kind = prop_oneof![
        4 => Just(FileKind::Regular),
        3 => Just(FileKind::Directory),
        1 => Just(FileKind::Symlink)
    ];
    let mode = prop_oneof![4 => Just(RenameMode::Replace), 1 => Just(RenameMode::NoReplace), 3 => Just(RenameMode::Exchange)];
    let what = prop_oneof![
        Just(Fallocate::Allocate),
        Just(Fallocate::AllocateKeepSize),
        Just(Fallocate::PunchHole),
        Just(Fallocate::ZeroRange),
        Just(Fallocate::ZeroRangeKeepSize)
    ];
    prop_oneof![
        6 => (ino(), name(), kind).prop_map(|(parent, name, kind)| Create { parent, name, kind }),
        2 => (ino(), ino(), name()).prop_map(|(ino, parent, name)| Link { ino, parent, name }),
        2 => (ino(), name()).prop_map(|(parent, name)| Unlink { parent, name }),
        2 => (ino(), name()).prop_map(|(parent, name)| Rmdir { parent, name }),
        6 => (ino(), name(), ino(), name(), mode)
            .prop_map(|(from, name, to, new_name, mode)| Rename { from, name, to, new_name, mode }),
        2 => (ino(), offset()).prop_map(|(ino, size)| Truncate { ino, size }),
        10 => (ino(), prop::option::of(offset()), 0..300usize, any::<bool>())
            .prop_map(|(ino, offset, len, in_chunk)| Write { ino, offset, len, in_chunk }),
        4 => (ino(), what, offset(), 0..600u64)
            .prop_map(|(ino, what, offset, len)| Space { ino, what, offset, len }),
        5 => (ino(), offset(), ino(), offset(), 0..900u64).prop_map(
            |(source, source_offset, target, target_offset, len)| Copy {
                source, source_offset, target, target_offset, len
            }
        ),
        1 => (ino(), 0..100i64).prop_map(|(ino, sec)| SetTimes { ino, sec }),
        1 => (ino(), name()).prop_map(|(ino, name)| SetXattr { ino, name }),
        1 => (ino(), name()).prop_map(|(ino, name)| RemoveXattr { ino, name }),
        1 => prop::collection::vec(ino(), 0..4).prop_map(|inodes| Reap { inodes }),
        2 => ino().prop_map(|ino| Plan { ino }),
        2 => Just(Merge),
        2 => ino().prop_map(|which| Repeat { which }),
    ]
}

pub(super) fn file_name(name: u8) -> String {
    ["a", "bb", "ccc", "\u{fe}d"][usize::from(name)].into()
}
