//! Damaging a node's files while it is down.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rand::Rng as _;
use rand::rngs::StdRng;

/// All files below `dir` with their sizes, largest first; none if there is no such directory.
#[must_use]
pub fn files_below(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                dirs.push(entry.path());
            } else {
                files.push((entry.path(), meta.len()));
            }
        }
    }
    files.sort_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
    files
}

/// Flips one bit at each of `count` random places of `range` in `file`; returns the places.
///
/// # Panics
/// If the file is shorter, or cannot be written.
pub fn flip_bits(rng: &mut StdRng, file: &Path, range: std::ops::Range<u64>, count: usize) -> Vec<u64> {
    let handle = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut places = Vec::new();
    for _ in 0..count {
        let at = rng.random_range(range.clone());
        let mut byte = [0];
        handle.read_exact_at(&mut byte, at).unwrap();
        byte[0] ^= 1 << rng.random_range(0..8);
        handle.write_all_at(&byte, at).unwrap();
        places.push(at);
    }
    handle.sync_all().unwrap();
    eprintln!("flipped bits in {} at {places:?}", file.display());
    places
}

/// Flips bits in every place where `needle` stands in a file below `dir`; returns how many there were.
///
/// # Panics
/// If a file cannot be read or written.
#[must_use]
pub fn damage_bytes(dir: &Path, needle: &[u8]) -> usize {
    let mut found = 0;
    for (path, _) in files_below(dir) {
        let bytes = fs::read(&path).unwrap();
        let places: Vec<_> = bytes
            .windows(needle.len())
            .enumerate()
            .filter(|(_, window)| *window == needle)
            .map(|(at, _)| at)
            .collect();
        if places.is_empty() {
            continue;
        }
        let handle = OpenOptions::new().write(true).open(&path).unwrap();
        for at in &places {
            handle.write_all_at(&[needle[0] ^ 0x10], *at as u64).unwrap();
        }
        handle.sync_all().unwrap();
        eprintln!("damaged {} at {places:?}", path.display());
        found += places.len();
    }
    found
}
