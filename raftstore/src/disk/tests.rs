use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::{CrashMode, Disk, Open, RealDisk, SimDisk};

fn p(path: &str) -> &Path {
    Path::new(path)
}

/// What both disks must do, run in `dir`.
fn conforms(disk: &dyn Disk, dir: &Path) {
    let sub = dir.join("x/y");
    disk.create_dir_all(&sub).unwrap();
    disk.create_dir_all(&sub).unwrap();
    let path = sub.join("f");
    assert_eq!(
        disk.open(&path, Open::Existing).err().unwrap().kind(),
        io::ErrorKind::NotFound
    );
    let file = disk.open(&path, Open::New).unwrap();
    assert_eq!(
        disk.open(&path, Open::New).err().unwrap().kind(),
        io::ErrorKind::AlreadyExists
    );
    assert!(file.is_empty().unwrap());
    file.write_all_at(b"hello", 10_000).unwrap();
    assert_eq!(file.len().unwrap(), 10_005);
    let mut buf = [1; 7];
    file.read_exact_at(&mut buf, 9_998).unwrap();
    assert_eq!(&buf, b"\0\0hello");
    assert_eq!(
        file.read_exact_at(&mut buf, 9_999).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    file.set_len(10_002).unwrap();
    file.set_len(10_010).unwrap();
    file.read_exact_at(&mut buf, 9_998).unwrap();
    assert_eq!(&buf, b"\0\0he\0\0\0");
    file.sync_data().unwrap();
    disk.sync_dir(&sub).unwrap();

    disk.open(&sub.join("g"), Open::Any).unwrap();
    disk.rename(&path, &sub.join("g")).unwrap();
    assert_eq!(disk.list(&sub).unwrap(), ["g"]);
    assert_eq!(
        disk.open(&sub.join("g"), Open::Existing).unwrap().len().unwrap(),
        10_010
    );
    disk.rename(&sub, &dir.join("z")).unwrap();
    assert_eq!(disk.list(&dir.join("z")).unwrap(), ["g"]);
    assert_eq!(disk.list(&sub).unwrap_err().kind(), io::ErrorKind::NotFound);
    disk.remove(&dir.join("z/g")).unwrap();
    assert_eq!(disk.list(&dir.join("z")).unwrap(), [""; 0]);
    disk.remove_dir_all(&dir.join("x")).unwrap();
    disk.remove_dir_all(&dir.join("x")).unwrap();
    assert_eq!(disk.list(dir).unwrap(), ["z"]);
    let space = disk.space(dir).unwrap();
    assert!(space.available_bytes <= space.capacity_bytes && space.capacity_bytes > 0);
}

#[test]
fn room_that_was_reserved_is_given_back() {
    use std::os::unix::fs::MetadataExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let file = RealDisk.open(&path, Open::New).unwrap();
    file.reserve(1 << 20);
    assert_eq!(file.len().unwrap(), 0, "its length stays");
    file.write_all_at(&[7; 4096], 0).unwrap();
    file.set_len(4096).unwrap();
    let held_bytes = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(held_bytes < 1 << 20, "{held_bytes} bytes are held for 4096");
}

#[test]
fn real_disk_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(&RealDisk, dir.path());
}

#[test]
fn sim_disk_conforms() {
    conforms(&SimDisk::new(), p("/"));
}

#[test]
fn synced_bytes_survive_and_unsynced_ones_tear_in_sectors() {
    let disk = SimDisk::new();
    let file = disk.open(p("/f"), Open::New).unwrap();
    disk.sync_dir(p("/")).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.sync_data().unwrap();
    file.write_all_at(&[2; 2048], 1024).unwrap();
    file.write_all_at(&[3; 512], 2048).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let bytes = disk.crash(seed).contents(p("/f")).unwrap();
        assert_eq!(bytes.len(), 4096);
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        assert!(
            bytes
                .chunks(512)
                .all(|sector| sector.iter().all(|byte| *byte == sector[0]))
        );
        assert!(sectors[..2] == [1, 1] && sectors[6..] == [1, 1]);
        seen.insert(sectors);
    }
    assert!(seen.contains(&vec![1; 8]), "all lost");
    assert!(seen.contains(&vec![1, 1, 2, 2, 3, 2, 1, 1]), "all kept");
    assert!(
        seen.contains(&vec![1, 1, 1, 1, 3, 1, 1, 1]),
        "only the later write kept"
    );
    assert!(seen.iter().any(|sectors| sectors[2] != sectors[3]), "torn");
}

#[test]
fn names_need_their_directory_synced() {
    let disk = SimDisk::new();
    disk.create_dir_all(p("/d")).unwrap();
    disk.create_dir_all(p("/e")).unwrap();
    let file = disk.open(p("/d/a"), Open::New).unwrap();
    file.write_all_at(b"a", 0).unwrap();
    file.sync_data().unwrap();
    let outcomes = |disk: &SimDisk, path: &str| -> BTreeSet<bool> {
        (0..64)
            .map(|seed| disk.crash(seed).contents(p(path)).is_ok())
            .collect()
    };
    assert_eq!(outcomes(&disk, "/d/a"), BTreeSet::from([false, true]));
    disk.sync_dir(p("/d")).unwrap();
    assert_eq!(outcomes(&disk, "/d/a"), BTreeSet::from([true]));

    disk.rename(p("/d/a"), p("/e/b")).unwrap();
    for seed in 0..64 {
        let after = disk.crash(seed);
        let (old, new) = (
            after.contents(p("/d/a")).is_ok(),
            after.contents(p("/e/b")).is_ok(),
        );
        assert!(old != new, "a rename is atomic (seed {seed})");
    }
    disk.sync_dir(p("/e")).unwrap();
    assert_eq!(outcomes(&disk, "/e/b"), BTreeSet::from([true]));
    assert_eq!(outcomes(&disk, "/d/a"), BTreeSet::from([false]));
    disk.remove(p("/e/b")).unwrap();
    assert_eq!(outcomes(&disk, "/e/b"), BTreeSet::from([false, true]));
}

#[test]
fn a_failed_sync_loses_its_bytes_for_good() {
    let disk = SimDisk::new();
    let file = disk.open(p("/f"), Open::New).unwrap();
    disk.sync_dir(p("/")).unwrap();
    file.write_all_at(b"one", 0).unwrap();
    disk.fail_sync_at(1);
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
    assert_eq!(disk.contents(p("/f")).unwrap(), b"one");
    file.sync_data().unwrap();
    assert_eq!(disk.crash(3).contents(p("/f")).unwrap(), b"");
    file.write_all_at(b"one", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.crash(3).contents(p("/f")).unwrap(), b"one");
}

#[test]
fn power_goes_before_or_after_the_named_sync() {
    for mode in [CrashMode::Before, CrashMode::After] {
        let disk = SimDisk::new();
        let file = disk.open(p("/f"), Open::New).unwrap();
        disk.sync_dir(p("/")).unwrap();
        disk.crash_at_sync(2, mode);
        file.write_all_at(b"1", 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(b"2", 0).unwrap();
        assert!(file.sync_data().is_err());
        assert!(disk.power_is_off());
        assert!(file.write_all_at(b"3", 0).is_err() && file.read_exact_at(&mut [0], 0).is_err());
        let seen: BTreeSet<_> = (0..64)
            .map(|seed| disk.crash(seed).contents(p("/f")).unwrap())
            .collect();
        let expected = match mode {
            CrashMode::Before => BTreeSet::from([b"1".to_vec(), b"2".to_vec()]),
            CrashMode::After => BTreeSet::from([b"2".to_vec()]),
        };
        assert_eq!(seen, expected, "{mode:?}");
    }
}

#[test]
fn full_disk_refuses_growth_only() {
    let disk = SimDisk::new();
    disk.set_capacity_bytes(8192);
    let file = disk.open(p("/f"), Open::New).unwrap();
    file.write_all_at(&[1; 8192], 0).unwrap();
    assert_eq!(
        file.write_all_at(&[1], 8192).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    file.write_all_at(&[2; 4096], 4096).unwrap();
    assert_eq!(disk.space(p("/")).unwrap().available_bytes, 0);
    disk.remove(p("/f")).unwrap();
    assert_eq!(disk.space(p("/")).unwrap().available_bytes, 8192);
}

#[test]
fn forks_are_independent_and_corruption_is_silent() {
    let disk = SimDisk::new();
    let file = disk.open(p("/f"), Open::New).unwrap();
    disk.sync_dir(p("/")).unwrap();
    file.write_all_at(&[7; 10], 0).unwrap();
    file.sync_data().unwrap();
    let fork = disk.fork();
    fork.flip_bits(p("/f"), 9, 0b11).unwrap();
    assert_eq!(fork.crash(1).contents(p("/f")).unwrap()[9], 4);
    assert_eq!(disk.contents(p("/f")).unwrap()[9], 7);
    assert!(fork.flip_bits(p("/f"), 10, 1).is_err());
}
