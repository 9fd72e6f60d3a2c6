//! How volumes stand: a document, and its text for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use raftstore::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its directory, seen from the root of the tree; `None` if a directory above it was renamed since it was made.
    pub path: Option<String>,
    /// What it may hold, bytes.
    pub size_bytes: Option<u64>,
    /// What it holds, bytes.
    pub used_bytes: u64,
    /// How many inodes it may hold.
    pub inodes_max: Option<u64>,
    /// How many it holds.
    pub inodes: u64,
    /// Copies of its data.
    pub replicas: u32,
    /// `ok`, or what is wrong with its copies.
    pub health: String,
    /// Whether removing it leaves its directory.
    pub keep: bool,
    /// Whatever its user keeps with it.
    pub labels: BTreeMap<String, String>,
    /// When it was made: RFC 3339, UTC.
    pub created: String,
    /// Who uses it.
    pub users: Vec<UserStatus>,
    /// Its snapshots, by name.
    pub snapshots: Vec<SnapshotStatus>,
}

/// Somebody who uses a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserStatus {
    /// On which node, by name.
    pub node: String,
    /// Who.
    pub id: String,
    /// How many times.
    pub count: u32,
}

/// A snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Of which volume; that may be gone.
    pub volume: String,
    /// Its name.
    pub name: String,
    /// Its directory, seen from the root of the tree.
    pub path: String,
    /// When it was made: RFC 3339, UTC.
    pub created: String,
    /// The size of what it shows, bytes; shared with the volume as long as that has not changed.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What `bramble volume ls --json` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeList {
    /// All volumes, by name.
    pub volumes: Vec<VolumeStatus>,
    /// Snapshots whose volumes are gone.
    pub left_over: Vec<SnapshotStatus>,
}

/// The time as RFC 3339 has it, in UTC, to the second.
pub(super) fn rfc3339(time: Timestamp) -> String {
    const DAY_S: i64 = 86_400;
    let (days, second) = (time.sec.div_euclid(DAY_S), time.sec.rem_euclid(DAY_S));
    // Years are counted from March, so that the leap day is a year's last, in eras of 400 years.
    let from_march_0000 = days.saturating_add(719_468);
    let (era, day_of_era) = (
        from_march_0000.div_euclid(146_097),
        from_march_0000.rem_euclid(146_097),
    );
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z",
        second % 60
    )
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut tenths, mut unit) = (bytes, 0, 0);
    while whole >= 1024 && unit + 1 < UNITS.len() {
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit += 1;
    }
    match unit {
        0 => format!("{whole} B"),
        _ => format!("{whole}.{tenths} {}", UNITS[unit]),
    }
}

const COLUMNS: [&str; 8] = [
    "VOLUME",
    "USED",
    "SIZE",
    "FILES",
    "COPIES",
    "HEALTH",
    "IN USE ON",
    "PATH",
];

fn volume_row(volume: &VolumeStatus) -> [String; 8] {
    let nodes: BTreeSet<&str> = volume.users.iter().map(|user| user.node.as_str()).collect();
    let nodes: Vec<&str> = nodes.into_iter().collect();
    [
        volume.name.clone(),
        size(volume.used_bytes),
        volume.size_bytes.map_or_else(|| "no limit".into(), size),
        volume.inodes.to_string(),
        volume.replicas.to_string(),
        volume.health.clone(),
        if nodes.is_empty() {
            "-".into()
        } else {
            nodes.join(" ")
        },
        volume.path.clone().unwrap_or_else(|| "moved".into()),
    ]
}

fn snapshot_row(snapshot: &SnapshotStatus) -> [String; 8] {
    let [size, files, path] = [
        size(snapshot.bytes),
        snapshot.inodes.to_string(),
        snapshot.path.clone(),
    ];
    let name = format!("  {}@{}", snapshot.volume, snapshot.name);
    let none = || "-".to_owned();
    [name, size, none(), files, none(), none(), none(), path]
}

impl VolumeList {
    /// A table for people: each volume with its snapshots under it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut rows = vec![COLUMNS.map(String::from)];
        for volume in &self.volumes {
            rows.push(volume_row(volume));
            rows.extend(volume.snapshots.iter().map(snapshot_row));
        }
        rows.extend(self.left_over.iter().map(snapshot_row));
        let mut widths = [0; 8];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |sec| rfc3339(Timestamp { sec, nsec: 9 });
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(10 << 30), "10.0 GiB");
    }
}
