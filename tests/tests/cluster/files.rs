//! Calls that the suites do not cover, checked from two nodes.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::time::Duration;

use bramble_tests::sys::{Map, fallocate, rename_with};
use bramble_tests::{Cluster, run, sh, wait_for};
use rustix::fs::{FallocateFlags, RenameFlags, SeekFrom, seek};

#[test]
fn renameat2_takes_its_flags() {
    let cluster = Cluster::shared("renameat2");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    fs::write(a.join("one"), "1").unwrap();
    fs::write(b.join("two"), "2").unwrap();
    let error = rename_with(&b.join("one"), &b.join("two"), RenameFlags::NOREPLACE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    rename_with(&b.join("one"), &b.join("two"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(a.join("one")).unwrap(), "2");
    assert_eq!(fs::read_to_string(a.join("two")).unwrap(), "1");
    rename_with(&a.join("one"), &a.join("three"), RenameFlags::NOREPLACE).unwrap();
    assert!(!b.join("one").exists());
    // A file and a directory change places, too.
    fs::create_dir_all(a.join("dir/inner")).unwrap();
    rename_with(&a.join("dir"), &a.join("two"), RenameFlags::EXCHANGE).unwrap();
    assert!(b.join("two/inner").is_dir() && b.join("dir").is_file());
    let error = rename_with(&a.join("missing"), &a.join("two"), RenameFlags::EXCHANGE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn sparse_files_tell_their_holes() {
    let cluster = Cluster::shared("sparse");
    let [a, b] = [0, 1].map(|node| cluster.node(node).open("sparse/file"));
    a.write_all_at(&[1; 4096], 1 << 20).unwrap();
    a.set_len(4 << 20).unwrap();
    assert_eq!(seek(&b, SeekFrom::Data(0)).unwrap(), 1 << 20);
    assert_eq!(seek(&b, SeekFrom::Hole(1 << 20)).unwrap(), (1 << 20) + 4096);
    assert_eq!(seek(&b, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(
        seek(&b, SeekFrom::Data((1 << 20) + 4096)).unwrap_err(),
        rustix::io::Errno::NXIO
    );
    assert_eq!(
        seek(&b, SeekFrom::Data(4 << 20)).unwrap_err(),
        rustix::io::Errno::NXIO
    );
    assert!(
        b.metadata().unwrap().blocks() * 512 < 100_000,
        "holes take no room"
    );
    let mut start = vec![9; 1 << 20];
    b.read_exact_at(&mut start, 0).unwrap();
    assert!(start.iter().all(|byte| *byte == 0));
}

#[test]
fn fallocate_allocates_punches_and_zeroes() {
    let cluster = Cluster::shared("fallocate");
    let [a, b] = [0, 1].map(|node| cluster.node(node).open("fallocate/file"));
    let read = |at: u64, len: usize| {
        let mut bytes = vec![9; len];
        b.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    fallocate(&a, FallocateFlags::empty(), 0, 100_000).unwrap();
    assert_eq!(b.metadata().unwrap().len(), 100_000);
    assert!(b.metadata().unwrap().blocks() * 512 >= 100_000);
    fallocate(&a, FallocateFlags::KEEP_SIZE, 0, 300_000).unwrap();
    assert_eq!(b.metadata().unwrap().len(), 100_000);
    a.write_all_at(&[7; 100_000], 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&a, punch, 10_000, 20_000).unwrap();
    assert_eq!(read(9_999, 2), [7, 0]);
    assert_eq!(read(29_999, 2), [0, 7]);
    fallocate(&a, FallocateFlags::ZERO_RANGE, 50_000, 10).unwrap();
    assert_eq!(read(49_999, 12), [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    // Past the end: grows, unless told not to.
    fallocate(
        &a,
        FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        90_000,
        20_000,
    )
    .unwrap();
    assert_eq!(b.metadata().unwrap().len(), 100_000);
    fallocate(&a, FallocateFlags::ZERO_RANGE, 90_000, 20_000).unwrap();
    assert_eq!(b.metadata().unwrap().len(), 110_000);
}

#[test]
fn ranges_and_whole_files_are_copied() {
    let cluster = Cluster::shared("copy");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 253) as u8).collect();
    fs::write(a.join("source"), &data).unwrap();
    let source = File::open(b.join("source")).unwrap();
    let target = cluster.node(1).open("copy/target");
    let (mut from, mut to) = (1_000, 5);
    while from < 2_900_000 {
        let len = usize::try_from(2_900_000 - from).unwrap();
        let copied =
            rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), len).unwrap();
        assert!(copied > 0);
    }
    let found = fs::read(a.join("target")).unwrap();
    assert!(found[..5] == [0; 5] && found[5..] == data[1_000..2_900_000]);
    // The copy is another file: neither sees the other's changes.
    sh(&b, "cp --reflink=auto source clone");
    cluster
        .node(0)
        .open("copy/clone")
        .write_all_at(b"changed", 0)
        .unwrap();
    assert!(fs::read(b.join("source")).unwrap() == data);
    fs::remove_file(a.join("source")).unwrap();
    let clone = fs::read(b.join("clone")).unwrap();
    assert!(&clone[..7] == b"changed" && clone[7..] == data[7..]);
}

#[test]
fn whole_files_are_cloned_by_reference() {
    let cluster = Cluster::shared("clone");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    let data: Vec<u8> = (0..2_000_000_u32).map(|i| (i % 241) as u8).collect();
    fs::write(a.join("source"), &data).unwrap();
    File::open(a.join("source")).unwrap().sync_all().unwrap();
    // Linux passes FICLONE to no FUSE filesystem; copy_file_range of a whole file is how cp asks for it there.
    // As the node counts: the kernel charges a whole large folio for each small write into one.
    let written =
        || bramble_tests::reference().map_or_else(|| cluster.node(0).status().written_bytes(), |_| 0);
    // The last copy of what was written may still be on its way.
    let before = wait_for("the writes to come to rest", Duration::from_secs(30), || {
        let before = written();
        std::thread::sleep(Duration::from_secs(1));
        (written() == before).then_some(before)
    });
    let (source, target) = (
        File::open(a.join("source")).unwrap(),
        File::create(a.join("clone")).unwrap(),
    );
    let mut left = data.len();
    while left > 0 {
        left -= rustix::fs::copy_file_range(&source, None, &target, None, left).unwrap();
    }
    drop(target);
    assert!(fs::read(b.join("clone")).unwrap() == data);
    let cost = written() - before;
    assert!(cost < data.len() as u64 / 2, "the clone wrote {cost} bytes");
}

#[test]
fn extended_attributes_of_all_kinds() {
    let cluster = Cluster::shared("xattrs");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    sh(
        &a,
        "touch file; mkdir dir
         setfattr -n user.one -v 1 file; setfattr -n trusted.two -v 2 file; setfattr -n security.three -v 3 file
         setfattr -n user.empty file; setfattr -n user.dir -v d dir",
    );
    let found = sh(&b, "getfattr -d -m - file | sort");
    for line in [
        "security.three=\"3\"",
        "trusted.two=\"2\"",
        "user.empty=\"\"",
        "user.one=\"1\"",
    ] {
        assert!(found.contains(line), "{line} in {found}");
    }
    sh(
        &b,
        "setfattr -n user.one -v changed file; setfattr -x trusted.two file",
    );
    let found = sh(&a, "getfattr -d -m - file");
    assert!(
        found.contains("user.one=\"changed\"") && !found.contains("trusted.two"),
        "{found}"
    );
    let large = "x".repeat(if bramble_tests::reference().is_none() {
        60_000
    } else {
        2_000
    });
    let file = a.join("file");
    rustix::fs::setxattr(
        &file,
        "user.large",
        large.as_bytes(),
        rustix::fs::XattrFlags::CREATE,
    )
    .unwrap();
    let again = rustix::fs::setxattr(&file, "user.large", b"", rustix::fs::XattrFlags::CREATE);
    assert_eq!(again.unwrap_err(), rustix::io::Errno::EXIST);
    let missing = rustix::fs::setxattr(&file, "user.none", b"", rustix::fs::XattrFlags::REPLACE);
    assert_eq!(missing.unwrap_err(), rustix::io::Errno::NODATA);
    let mut value = vec![0; 70_000];
    let len = rustix::fs::getxattr(b.join("file"), "user.large", &mut value[..]).unwrap();
    assert_eq!(&value[..len], large.as_bytes());
}

#[test]
fn access_control_lists_decide_and_are_inherited() {
    let cluster = Cluster::shared("acls");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    sh(
        &a,
        "chmod 755 .; echo secret >file; chmod 600 file; setfacl -m u:daemon:r file
         mkdir dir; setfacl -d -m u:daemon:rwx,g::rx,o::- dir; setfacl -m u:daemon:rwx dir",
    );
    let as_user = |user: &str, script: &str| {
        bramble_tests::run::try_sh(&b, &format!("setpriv --reuid={user} --clear-groups {script}"))
            .status
            .success()
    };
    assert!(as_user("daemon", "cat file"));
    assert!(!as_user("nobody", "cat file"));
    assert!(!as_user("daemon", "sh -c 'echo >>file'"));
    assert!(sh(&b, "getfacl -cp file").contains("user:daemon:r--"));
    sh(&b, "umask 077; touch dir/new; mkdir dir/sub");
    assert!(
        sh(&a, "getfacl -cp dir/new").contains("user:daemon:rwx"),
        "{}",
        sh(&a, "getfacl -cp dir/new")
    );
    assert!(sh(&a, "getfacl -cp dir/sub").contains("default:user:daemon:rwx"));
    // The mask follows the group bits of chmod.
    sh(&a, "setfacl -m u:daemon:rw file; chmod 640 file");
    assert!(as_user("daemon", "cat file") && !as_user("daemon", "sh -c 'echo >>file'"));
    sh(&a, "setfacl -b file; chmod 600 file");
    assert!(!as_user("daemon", "cat file"));
}

#[test]
fn special_files_keep_what_they_are() {
    let cluster = Cluster::shared("special");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    sh(
        &a,
        "mkfifo fifo; mknod char c 1 3; mknod block b 7 200; ln -s fifo link; ln fifo hard",
    );
    let kind = |name: &str| fs::symlink_metadata(b.join(name)).unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("char").is_char_device() && kind("block").is_block_device());
    assert!(kind("link").is_symlink());
    let meta = fs::symlink_metadata(b.join("block")).unwrap();
    assert_eq!(meta.rdev(), rustix::fs::makedev(7, 200));
    assert_eq!(fs::symlink_metadata(b.join("hard")).unwrap().nlink(), 2);
    let socket = std::os::unix::net::UnixListener::bind(a.join("socket")).unwrap();
    assert!(kind("socket").is_socket());
    std::os::unix::net::UnixStream::connect(a.join("socket")).unwrap();
    drop(socket);
}

#[test]
fn direct_and_synchronous_writes() {
    let cluster = Cluster::shared("direct");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    sh(&a, "dd if=/dev/urandom of=random bs=64k count=20 status=none");
    sh(&a, "dd if=random of=direct bs=64k oflag=direct status=none");
    sh(
        &b,
        "dd if=direct of=copy bs=64k iflag=direct oflag=dsync status=none; cmp copy random",
    );
    sh(
        &a,
        "dd if=copy of=sync bs=10k oflag=sync status=none; cmp sync random",
    );
    // Direct and buffered at once, from two nodes.
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(a.join("direct"))
        .unwrap();
    let buffered = OpenOptions::new()
        .read(true)
        .write(true)
        .open(b.join("direct"))
        .unwrap();
    let mut page = [0; 4096];
    buffered.read_exact_at(&mut page, 0).unwrap();
    let aligned = Aligned([5; 4096]);
    direct.write_all_at(&aligned.0, 0).unwrap();
    buffered.read_exact_at(&mut page, 0).unwrap();
    assert_eq!(page, [5; 4096]);
}

#[repr(align(4096))]
struct Aligned([u8; 4096]);

#[test]
fn shared_maps_reach_other_nodes() {
    let cluster = Cluster::shared("mmap");
    let [a, b] = [0, 1].map(|node| cluster.node(node).open("mmap/file"));
    a.set_len(100_000).unwrap();
    let mut map = Map::new(&a, 100_000, true).unwrap();
    // A page fault does not ask how long the file is by now; programs ask first.
    assert_eq!(b.metadata().unwrap().len(), 100_000);
    let other = Map::new(&b, 100_000, true).unwrap();
    assert_eq!(other.read(0..5), [0; 5]);
    map.write(50_000, b"through the map");
    map.sync().unwrap();
    let mut found = [0; 15];
    b.read_exact_at(&mut found, 50_000).unwrap();
    assert_eq!(&found, b"through the map");
    let fresh = Map::new(&b, 100_000, true).unwrap();
    assert_eq!(fresh.read(50_000..50_015), b"through the map");
    // A private map changes nothing.
    let mut private = Map::new(&a, 100_000, false).unwrap();
    private.write(0, b"mine");
    b.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [0; 15]);
    // What a map wrote is there when it is gone, without msync.
    map.write(0, b"unmapped");
    drop(map);
    a.sync_all().unwrap();
    b.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(&found[..8], b"unmapped");
}

#[test]
fn programs_run_from_the_mount() {
    let cluster = Cluster::shared("exec");
    fs::copy("/bin/true", cluster.dir(0).join("program")).unwrap();
    run::<OsString>(cluster.dir(1).join("program"), []);
    let error = OpenOptions::new()
        .write(true)
        .open(cluster.dir(1).join("program"))
        .map(drop);
    assert!(error.is_ok(), "nothing runs it any more");
}

#[test]
fn times_have_nanoseconds_and_may_be_long_ago() {
    let cluster = Cluster::shared("times");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    sh(
        &a,
        "touch -d '2001-02-03 04:05:06.123456789 UTC' file; touch -d '1960-01-01 00:00:00.5 UTC' old",
    );
    let meta = fs::metadata(b.join("file")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (981_173_106, 123_456_789));
    let old = fs::metadata(b.join("old")).unwrap();
    assert_eq!((old.mtime(), old.mtime_nsec()), (-315_619_200, 500_000_000));
}

#[test]
fn statfs_counts_replicas() {
    let cluster = Cluster::shared("statfs");
    let statfs = |node: usize| rustix::fs::statvfs(cluster.dir(node)).unwrap();
    let (one, two) = (statfs(0), statfs(1));
    assert!(one.f_blocks > 0 && one.f_bavail > 0 && one.f_files > 0 && one.f_namemax == 255);
    let bytes = [one.f_blocks * one.f_frsize, two.f_blocks * two.f_frsize];
    assert!(bytes[0].abs_diff(bytes[1]) < bytes[0] / 10, "{bytes:?}");
    if bramble_tests::reference().is_none() {
        // The three media are one disk here, each byte is kept three times: so one disk's worth fits.
        let medium = rustix::fs::statvfs(&cluster.node(0).store).unwrap();
        assert!(one.f_blocks * one.f_frsize <= medium.f_blocks * medium.f_frsize);
    }
}

#[test]
fn names_may_hold_any_bytes() {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let cluster = Cluster::shared("bytes");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    let all: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let names = [&all[..127], &all[127..], &[0xff; 255], b"\xe2\x98\x83"]
        .map(|name| OsString::from_vec(name.to_vec()));
    for name in &names {
        fs::write(a.join(name), name.as_bytes()).unwrap();
    }
    for entry in fs::read_dir(&b).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(fs::read(entry.path()).unwrap(), entry.file_name().as_bytes());
    }
    assert_eq!(fs::read_dir(&b).unwrap().count(), names.len());
    let long = a.join("x".repeat(256));
    assert_eq!(
        fs::write(long, "").unwrap_err().raw_os_error(),
        Some(libc::ENAMETOOLONG)
    );
}

#[test]
fn large_files_keep_every_byte() {
    let cluster = Cluster::shared("large");
    let [a, b, c] = [0, 1, 2].map(|node| cluster.dir(node));
    sh(
        &a,
        "dd if=/dev/urandom of=large bs=1M count=48 status=none; sync -f large",
    );
    let sums: Vec<_> = [&a, &b, &c]
        .iter()
        .map(|dir| sh(dir, "sha256sum large"))
        .collect();
    assert!(sums[0] == sums[1] && sums[1] == sums[2], "{sums:?}");
    // Far beyond 4 GiB, with a hole between.
    let mut file = cluster.node(2).open("large/far");
    file.write_all_at(b"far", 5 << 40).unwrap();
    file.flush().unwrap();
    let mut found = [0; 3];
    cluster
        .node(0)
        .open("large/far")
        .read_exact_at(&mut found, 5 << 40)
        .unwrap();
    assert_eq!(&found, b"far");
    let mut head = [9; 100];
    file.read_exact(&mut head).unwrap();
    assert_eq!(head, [0; 100]);
}
