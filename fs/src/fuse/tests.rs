//! Real mounts of an in-process cluster: what only a kernel can show.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests use the mounted filesystem as programs do"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation, RenameFlags, XattrFlags};
use rustix::io::Errno;
use tokio::runtime::Runtime;

use super::{MountHandle, MountOptions, Unmounted, mount};
use crate::posix::Limits;
use crate::posix::testing::LocalCluster;

/// One cluster mounted twice, as two nodes would.
struct Mounts {
    cluster: Arc<LocalCluster>,
    one: MountHandle,
    other: MountHandle,
    runtime: Runtime,
    _dir: tempfile::TempDir,
}

impl Mounts {
    /// `None`, and the reason on standard output, where mounting is impossible.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            println!("skipped: mounting needs root and /dev/fuse");
            return None;
        }
        let runtime = Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let cluster = LocalCluster::new(1 << 30).unwrap();
        let mount_one = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            let vfs = cluster.vfs(Limits::default()).unwrap();
            let handle = runtime.handle().clone();
            mount(vfs, handle, &path, MountOptions::default()).unwrap()
        };
        Some(Self {
            one: mount_one("one"),
            other: mount_one("other"),
            cluster,
            runtime,
            _dir: dir,
        })
    }

    fn one(&self, name: &str) -> PathBuf {
        self.one.path().join(name)
    }

    fn other(&self, name: &str) -> PathBuf {
        self.other.path().join(name)
    }

    fn end(self) {
        assert_eq!(self.one.unmount().unwrap(), Unmounted::Clean);
        assert_eq!(self.other.unmount().unwrap(), Unmounted::Clean);
        drop(self.runtime);
    }
}

fn read_write(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

#[test]
fn names_and_contents_are_the_same_everywhere() {
    let Some(mounts) = Mounts::new() else { return };
    fs::create_dir(mounts.one("dir")).unwrap();
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    fs::write(mounts.one("dir/file"), &data).unwrap();
    assert_eq!(fs::read(mounts.other("dir/file")).unwrap(), data);
    fs::hard_link(mounts.other("dir/file"), mounts.other("dir/link")).unwrap();
    symlink("dir/link", mounts.one("symlink")).unwrap();
    let metadata = fs::metadata(mounts.other("symlink")).unwrap();
    assert_eq!((metadata.nlink(), metadata.len()), (2, 3_000_000));
    fs::rename(mounts.one("dir/file"), mounts.one("moved")).unwrap();
    assert!(!mounts.other("dir/file").exists());
    let renamed = rustix::fs::renameat_with(
        rustix::fs::CWD,
        mounts.one("moved"),
        rustix::fs::CWD,
        mounts.one("symlink"),
        RenameFlags::NOREPLACE,
    );
    assert_eq!(renamed, Err(Errno::EXIST));
    let mut names: Vec<_> = fs::read_dir(mounts.other(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["dir", "moved", "symlink"]);
    assert!(fs::remove_dir(mounts.one("dir")).is_err());
    mounts.end();
}

#[test]
fn a_cached_file_shows_what_another_node_writes() {
    let Some(mounts) = Mounts::new() else { return };
    let file = read_write(&mounts.one("f"));
    let far = read_write(&mounts.other("f"));
    for round in 0..50_u64 {
        let data = [u8::try_from(round).unwrap(); 8192];
        far.write_all_at(&data, 0).unwrap();
        let mut seen = [0; 8192];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, data);
        far.set_len(100 + round).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100 + round);
        assert_eq!(
            file.read_at(&mut seen, 0).unwrap(),
            100 + usize::try_from(round).unwrap()
        );
    }
    drop((file, far));
    mounts.end();
}

#[test]
fn appends_through_two_mounts_all_arrive() {
    let Some(mounts) = Mounts::new() else { return };
    let write = |path: PathBuf, tag: u8| {
        std::thread::spawn(move || {
            let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
            for _ in 0..300 {
                log.write_all(&[tag; 10]).unwrap();
            }
        })
    };
    let writers = [
        write(mounts.one("log"), b'a'),
        write(mounts.other("log"), b'b'),
        write(mounts.one("log"), b'c'),
    ];
    for writer in writers {
        writer.join().unwrap();
    }
    let log = fs::read(mounts.one("log")).unwrap();
    assert_eq!(log.len(), 9000);
    for tag in [b'a', b'b', b'c'] {
        let whole = log.chunks(10).filter(|record| **record == [tag; 10]).count();
        assert_eq!(whole, 300);
    }
    mounts.end();
}

#[test]
fn unlinked_open_files_live_on() {
    let Some(mounts) = Mounts::new() else { return };
    let mut file = read_write(&mounts.one("f"));
    file.write_all(b"before").unwrap();
    fs::remove_file(mounts.other("f")).unwrap();
    file.write_all(b" and after").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");
    assert!(!mounts.one("f").exists());
    drop(file);
    mounts.end();
}

#[test]
fn holes_direct_io_and_attributes() {
    let Some(mounts) = Mounts::new() else { return };
    let path = mounts.one("f");
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT | libc::O_SYNC)
        .open(&path)
        .unwrap();
    direct.write_all_at(&[7; 8192], 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&direct, punch, 0, 4096).unwrap();
    assert_eq!(rustix::fs::seek(&direct, rustix::fs::SeekFrom::Data(0)), Ok(4096));
    assert_eq!(direct.metadata().unwrap().blocks(), 8);
    let collapse = rustix::fs::fallocate(&direct, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse, Err(Errno::OPNOTSUPP));
    let copy = read_write(&mounts.other("copy"));
    let copied = rustix::fs::copy_file_range(read_write(&mounts.other("f")), None, &copy, None, 8192);
    assert_eq!(copied, Ok(8192));
    assert_eq!(fs::read(mounts.one("copy")).unwrap(), fs::read(&path).unwrap());
    rustix::fs::setxattr(&path, "user.key", b"value", XattrFlags::CREATE).unwrap();
    let mut value = [0; 16];
    let far = mounts.other("f");
    assert_eq!(rustix::fs::getxattr(&far, "user.key", &mut value), Ok(5));
    assert_eq!(
        rustix::fs::getxattr(&far, "user.key", &mut value[..2]),
        Err(Errno::RANGE)
    );
    assert_eq!(
        rustix::fs::getxattr(&far, "user.none", &mut value),
        Err(Errno::NODATA)
    );
    drop((direct, copy));
    mounts.end();
}

#[test]
fn flock_and_fcntl_locks_reach_across_mounts() {
    let Some(mounts) = Mounts::new() else { return };
    let (here, there) = (read_write(&mounts.one("f")), read_write(&mounts.other("f")));
    rustix::fs::flock(&here, FlockOperation::LockExclusive).unwrap();
    let taken = rustix::fs::flock(&there, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(taken, Err(Errno::WOULDBLOCK));
    // The two kinds do not see each other, and one process's fcntl locks on two mounts are two owners' to us.
    rustix::fs::fcntl_lock(&there, FlockOperation::NonBlockingLockExclusive).unwrap();
    let taken = rustix::fs::fcntl_lock(&here, FlockOperation::NonBlockingLockExclusive);
    assert!(matches!(taken, Err(Errno::AGAIN | Errno::ACCESS)));
    drop(here);
    rustix::fs::flock(&there, FlockOperation::LockExclusive).unwrap();
    let here = read_write(&mounts.one("f"));
    let waiter = std::thread::spawn(move || rustix::fs::flock(&here, FlockOperation::LockExclusive));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!waiter.is_finished());
    drop(there);
    waiter.join().unwrap().unwrap();
    mounts.end();
}

#[test]
fn a_process_that_waits_can_be_killed() {
    let Some(mounts) = Mounts::new() else { return };
    let here = read_write(&mounts.one("f"));
    rustix::fs::flock(&here, FlockOperation::LockExclusive).unwrap();
    let waiter = |path: PathBuf| {
        Command::new("flock")
            .arg(path)
            .arg("true")
            .stdin(Stdio::null())
            .spawn()
    };
    let Ok(mut blocked) = waiter(mounts.other("f")) else {
        println!("skipped: no flock program");
        return;
    };
    std::thread::sleep(Duration::from_millis(200));
    assert!(blocked.try_wait().unwrap().is_none());
    blocked.kill().unwrap();
    blocked.wait().unwrap();
    // Without a quorum too, with somewhat more patience.
    mounts.cluster.set_quorum(false);
    let mut stat = Command::new("stat")
        .arg(mounts.other("f"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(stat.try_wait().unwrap().is_none());
    stat.kill().unwrap();
    stat.wait().unwrap();
    mounts.cluster.set_quorum(true);
    rustix::fs::flock(&here, FlockOperation::Unlock).unwrap();
    // The one that was killed left nothing behind.
    let there = read_write(&mounts.other("f"));
    rustix::fs::flock(&there, FlockOperation::NonBlockingLockExclusive).unwrap();
    drop((here, there));
    mounts.end();
}

#[test]
fn a_mount_in_use_is_taken_out_of_the_tree() {
    let Some(mounts) = Mounts::new() else { return };
    let busy = read_write(&mounts.one("f"));
    let path = mounts.one.path().to_owned();
    assert_eq!(mounts.one.unmount().unwrap(), Unmounted::StillInUse);
    assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    busy.write_all_at(b"still works", 0).unwrap();
    drop(busy);
    assert_eq!(mounts.other.unmount().unwrap(), Unmounted::Clean);
}
