//! Files and directories of a simulated disk: what is on the medium, what the running system sees, and what lies
//! between the two.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;

use super::pages::Pages;

/// The unit in which a write is torn, bytes.
const SECTOR_BYTES: usize = 512;

/// How much of what was not synced a power cut spares.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spare {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// Each write or name change with this probability, and of a write that is torn each sector so.
    Some(f64),
}

impl Spare {
    /// One of many patterns, so that the extremes come up often too.
    pub(super) fn pick(rng: &mut impl Rng) -> Self {
        match rng.random_range(0..8_u32) {
            0 => Self::None,
            1 => Self::All,
            _ => Self::Some(rng.random_range(0.05..0.95)),
        }
    }

    pub(super) fn keeps(self, rng: &mut impl Rng) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(probability) => rng.random_bool(probability),
        }
    }
}

/// A change of a file's contents that is not on the medium yet.
#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

/// A file.
#[derive(Debug, Clone, Default)]
pub(super) struct SimInode {
    /// What a power cut leaves for sure.
    durable: Pages,
    /// What the running system sees.
    pub(super) current: Pages,
    /// What was done since the last sync, in order.
    unsynced: Vec<Change>,
}

impl SimInode {
    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        self.current.write(data, offset);
        self.unsynced.push(Change::Write {
            offset,
            data: data.to_vec(),
        });
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.current.set_len(len);
        self.unsynced.push(Change::SetLen(len));
    }

    /// Puts what is unsynced onto the medium. (Not simply all that is visible: see [`SimInode::lose_unsynced`].)
    pub(super) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write { offset, data } => self.durable.write(&data, offset),
                Change::SetLen(len) => self.durable.set_len(len),
            }
        }
    }

    /// What Linux does after a failed fsync: the bytes stay readable, are taken for clean, and never reach the
    /// medium.
    pub(super) fn lose_unsynced(&mut self) {
        self.unsynced.clear();
    }

    /// Overwrites bytes on the medium and in the cache behind the program's back; `false` past the end.
    pub(super) fn corrupt(&mut self, data: &[u8], offset: u64) -> bool {
        if offset.saturating_add(data.len() as u64) > self.current.len() {
            return false;
        }
        self.current.write(data, offset);
        if offset.saturating_add(data.len() as u64) <= self.durable.len() {
            self.durable.write(data, offset);
        }
        true
    }

    /// The file as a power cut may leave it. Of each sector some earlier version survives: the durable one or any
    /// later one. Adds the bytes written that do not to `lost_bytes`.
    pub(super) fn crashed(&self, spare: Spare, rng: &mut impl Rng, lost_bytes: &mut u64) -> Self {
        let mut durable = self.durable.clone();
        for change in &self.unsynced {
            match change {
                Change::SetLen(len) => {
                    if spare.keeps(rng) {
                        durable.set_len(*len);
                    }
                }
                Change::Write { offset, data } => {
                    let kept_bytes = tear(&mut durable, data, *offset, spare, rng);
                    *lost_bytes += (data.len() - kept_bytes) as u64;
                }
            }
        }
        Self {
            current: durable.clone(),
            durable,
            unsynced: Vec::new(),
        }
    }
}

/// Writes all, nothing, or some sectors of `data`; answers how many bytes.
fn tear(target: &mut Pages, data: &[u8], offset: u64, spare: Spare, rng: &mut impl Rng) -> usize {
    if rng.random_bool(0.5) {
        if spare.keeps(rng) {
            target.write(data, offset);
            return data.len();
        }
        return 0;
    }
    let (mut done, mut kept_bytes) = (0, 0);
    while done < data.len() {
        let at = offset + done as u64;
        let in_sector = SECTOR_BYTES - (at % SECTOR_BYTES as u64) as usize;
        let take = in_sector.min(data.len() - done);
        if spare.keeps(rng) {
            target.write(&data[done..done + take], at);
            kept_bytes += take;
        }
        done += take;
    }
    kept_bytes
}

/// A change of names in a directory that is not on the medium yet.
#[derive(Debug, Clone)]
pub(super) struct NameChange {
    /// The changes of one rename (in one directory or two) share a number: they happen together or not at all.
    pub(super) group: u64,
    pub(super) name: String,
    /// What the name stands for from now on; `None` if it is gone.
    pub(super) inode: Option<u64>,
}

/// A directory.
#[derive(Debug, Clone, Default)]
pub(super) struct SimDir {
    durable: BTreeMap<String, u64>,
    pub(super) current: BTreeMap<String, u64>,
    unsynced: Vec<NameChange>,
}

impl SimDir {
    pub(super) fn change(&mut self, group: u64, name: &str, inode: Option<u64>) {
        set(&mut self.current, name, inode);
        self.unsynced.push(NameChange {
            group,
            name: name.to_owned(),
            inode,
        });
    }

    /// Makes all changes durable; answers the groups that are done with.
    pub(super) fn sync(&mut self) -> BTreeSet<u64> {
        let mut groups = BTreeSet::new();
        for change in self.unsynced.drain(..) {
            set(&mut self.durable, &change.name, change.inode);
            groups.insert(change.group);
        }
        groups
    }

    /// Makes the changes of `groups` durable: the other half of renames across directories.
    pub(super) fn sync_groups(&mut self, groups: &BTreeSet<u64>) {
        for change in &self.unsynced {
            if groups.contains(&change.group) {
                set(&mut self.durable, &change.name, change.inode);
            }
        }
        self.unsynced.retain(|change| !groups.contains(&change.group));
    }

    pub(super) fn lose_unsynced(&mut self) {
        self.unsynced.clear();
    }

    /// Groups of changes that are not durable.
    pub(super) fn unsynced_groups(&self) -> impl Iterator<Item = u64> + '_ {
        self.unsynced.iter().map(|change| change.group)
    }

    /// The directory as a power cut leaves it that spares the changes of `spared`.
    pub(super) fn crashed(&self, spared: &BTreeSet<u64>) -> Self {
        let mut durable = self.durable.clone();
        for change in self
            .unsynced
            .iter()
            .filter(|change| spared.contains(&change.group))
        {
            set(&mut durable, &change.name, change.inode);
        }
        Self {
            current: durable.clone(),
            durable,
            unsynced: Vec::new(),
        }
    }
}

fn set(names: &mut BTreeMap<String, u64>, name: &str, inode: Option<u64>) {
    match inode {
        Some(inode) => names.insert(name.to_owned(), inode),
        None => names.remove(name),
    };
}
