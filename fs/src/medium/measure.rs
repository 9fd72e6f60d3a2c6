//! Trying a medium out.

use std::io;
use std::path::Path;
use std::time::Duration;

use raftstore::clock::Clock;
use raftstore::disk::{Disk, DiskFile, Open};

use super::Medium;

/// A small write, bytes: the least that the journal writes.
const SMALL_BYTES: usize = 4096;
/// Small writes, each with a sync: at most so many, and none after this time. Their mean counts, since many a medium takes
/// a few at once and then stands still for the rest.
const SMALL_WRITES_MAX: usize = 64;
const SMALL_ENOUGH: Duration = Duration::from_millis(500);
/// Small writes go over this much, which was written before.
const RECYCLED_BYTES: usize = 64 << 10;
/// Large writes, each with one sync at its end, bytes: the next only if the one before was over too soon to tell.
const LARGE_WRITES: [usize; 4] = [256 << 10, 1 << 20, 4 << 20, 16 << 20];
/// A large write that took so long tells enough. The next would take four times as long.
const LARGE_ENOUGH: Duration = Duration::from_millis(250);
/// Large writes are made of pieces of this size, bytes.
const PIECE_BYTES: usize = 1 << 20;
/// Of the room that there is, a trial takes one part in so many.
const ROOM_SHARE: u64 = 16;

/// Tries the medium out with a file at `trial`, which is gone afterwards. It writes 22 MiB at most, on a slow medium
/// much less: on one with 60 requests and 10 MiB a second, 5 MiB within one and a half seconds. Nothing else should use the medium
/// meanwhile. Blocks.
///
/// # Errors
/// Those of the medium; `StorageFull` also if there is not room enough to tell anything.
pub fn measure(disk: &dyn Disk, clock: &dyn Clock, trial: &Path) -> io::Result<Medium> {
    let dir = trial.parent().unwrap_or(Path::new("."));
    let room = disk.space(dir)?.available_bytes / ROOM_SHARE;
    if room < LARGE_WRITES[0] as u64 {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let file = disk.open(trial, Open::Any)?;
    let tried = file.set_len(0).and_then(|()| try_out(&*file, clock, room));
    drop(file);
    // Also after a failure: it takes room.
    let removed = disk.remove(trial);
    let medium = tried?;
    removed.map(|()| medium)
}

fn try_out(file: &dyn DiskFile, clock: &dyn Clock, room: u64) -> io::Result<Medium> {
    let bytes = noise(PIECE_BYTES);
    file.write_all_at(&bytes[..RECYCLED_BYTES], 0)?;
    file.sync_data()?;
    let timed = |work: &dyn Fn() -> io::Result<()>| {
        let start = clock.monotonic();
        work()?;
        let took = clock.monotonic().saturating_sub(start);
        Ok::<_, io::Error>(took.max(Duration::from_micros(1)))
    };

    let (mut small_writes, mut took) = (0, Duration::ZERO);
    while small_writes < SMALL_WRITES_MAX && took < SMALL_ENOUGH {
        let at = small_writes * SMALL_BYTES % RECYCLED_BYTES;
        took += timed(&|| {
            file.write_all_at(&bytes[RECYCLED_BYTES + at..][..SMALL_BYTES], at as u64)?;
            file.sync_data()
        })?;
        small_writes += 1;
    }
    let sync_latency = took / u32::try_from(small_writes).unwrap_or(1);

    let mut write_bytes_per_s = 1;
    let mut offset = RECYCLED_BYTES as u64;
    for large in LARGE_WRITES.into_iter().filter(|large| *large as u64 <= room) {
        let took = timed(&|| {
            for done in (0..large).step_by(PIECE_BYTES) {
                let piece = &bytes[..PIECE_BYTES.min(large - done)];
                file.write_all_at(piece, offset + done as u64)?;
            }
            file.sync_data()
        })?;
        offset += large as u64;
        // The sync's own share does not grow with the bytes; it is never taken for most of the time.
        let writing = took.saturating_sub(sync_latency).max(took / 2);
        write_bytes_per_s = (large as f64 / writing.as_secs_f64()) as u64;
        if took >= LARGE_ENOUGH {
            break;
        }
    }
    Ok(Medium {
        sync_latency,
        write_bytes_per_s: write_bytes_per_s.max(1),
    })
}

/// Bytes that no medium can compress; the same each time. (The generator is Marsaglia's xorshift64.)
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::testing::SlowDisk;
    use super::*;

    const TRIAL: &str = "/store/trial";

    fn measured(sync: Duration, bytes_per_s: u64) -> (Medium, SlowDisk) {
        let disk = SlowDisk::new(sync, bytes_per_s);
        disk.create_dir_all(Path::new("/store")).unwrap();
        let medium = measure(&disk, &*disk.clock(), Path::new(TRIAL)).unwrap();
        (medium, disk)
    }

    #[test]
    fn slow_and_fast_media_are_told_apart_in_bounded_time() {
        for (sync_ms, bytes_per_s) in [(33, 10 << 20), (4, 15 << 20), (100, 1 << 20), (1, 400 << 20)] {
            let sync = Duration::from_millis(sync_ms);
            let (medium, disk) = measured(sync, bytes_per_s);
            let about = |found: f64, real: f64| (found / real - 1.0).abs() < 0.15;
            let rate = medium.write_bytes_per_s as f64;
            assert!(about(rate, bytes_per_s as f64), "{medium:?} for {bytes_per_s}");
            let small = sync + Duration::from_secs_f64(SMALL_BYTES as f64 / bytes_per_s as f64);
            assert!(
                about(medium.sync_latency.as_secs_f64(), small.as_secs_f64()),
                "{medium:?} for {small:?}"
            );
            let took = disk.clock().monotonic();
            assert!(took < Duration::from_secs(3), "{took:?} for {bytes_per_s}");
            assert!(disk.sim().counters().written_bytes < 22 << 20);
            assert!(
                disk.list(Path::new("/store")).unwrap().is_empty(),
                "nothing is left"
            );
        }
    }

    #[test]
    fn small_writes_go_over_bytes_that_were_written_before() {
        let (_, disk) = measured(Duration::from_millis(1), 1 << 30);
        let counters = disk.sim().counters();
        let large = LARGE_WRITES.iter().sum::<usize>() as u64;
        let small = (SMALL_WRITES_MAX * SMALL_BYTES) as u64;
        assert_eq!(counters.written_bytes, RECYCLED_BYTES as u64 + small + large);
        assert_eq!(counters.syncs, 1 + (SMALL_WRITES_MAX + LARGE_WRITES.len()) as u64);
    }

    #[test]
    fn a_medium_without_room_or_that_fails_is_not_measured() {
        let disk = SlowDisk::new(Duration::from_millis(1), 1 << 30);
        disk.create_dir_all(Path::new("/store")).unwrap();
        disk.sim().set_capacity_bytes(1 << 20);
        let error = measure(&disk, &*disk.clock(), Path::new(TRIAL)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        disk.sim().set_capacity_bytes(1 << 30);
        disk.sim().fail_sync_at(4);
        measure(&disk, &*disk.clock(), Path::new(TRIAL)).unwrap_err();
        assert!(
            disk.list(Path::new("/store")).unwrap().is_empty(),
            "nothing is left"
        );
    }
}
