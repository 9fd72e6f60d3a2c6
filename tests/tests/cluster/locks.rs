//! flock and fcntl locks across nodes.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bramble_tests::sys::{RangeLock, lock_range};
use bramble_tests::{Cluster, Options, brief_or_full, wait_for};
use rustix::fs::{FlockOperation, flock};

/// Adds one to the number in a file, in the way that needs a lock.
fn increment(file: &mut File) {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    let number: u64 = text.trim().parse().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    write!(file, "{}", number + 1).unwrap();
}

/// Lets three nodes count in one file under a lock.
fn count(cluster: &bramble_tests::Shared, lock: fn(&File), unlock: fn(&File)) {
    let rounds = brief_or_full(60, 1000);
    fs::write(cluster.dir(0).join("count"), "0").unwrap();
    thread::scope(|scope| {
        for node in 0..3 {
            let dir = cluster.dir(node);
            scope.spawn(move || {
                let mut file = File::options()
                    .read(true)
                    .write(true)
                    .open(dir.join("count"))
                    .unwrap();
                for _ in 0..rounds {
                    lock(&file);
                    increment(&mut file);
                    unlock(&file);
                }
            });
        }
    });
    let text = fs::read_to_string(cluster.dir(1).join("count")).unwrap();
    assert_eq!(text, (3 * rounds).to_string());
}

#[test]
fn flock_excludes_across_nodes() {
    let cluster = Cluster::shared("flock");
    count(
        &cluster,
        |file| flock(file, FlockOperation::LockExclusive).unwrap(),
        |file| flock(file, FlockOperation::Unlock).unwrap(),
    );
}

#[test]
fn fcntl_locks_exclude_across_nodes() {
    let cluster = Cluster::shared("fcntl");
    count(
        &cluster,
        |file| lock_range(file, RangeLock::Write, 0, 0, true).unwrap(),
        |file| lock_range(file, RangeLock::Unlock, 0, 0, true).unwrap(),
    );
}

#[test]
fn byte_ranges_conflict_only_where_they_overlap() {
    let cluster = Cluster::shared("ranges");
    let [a, b] = [0, 1].map(|node| cluster.node(node).open("ranges/file"));
    let try_lock = |file: &File, kind, start, len| lock_range(file, kind, start, len, false).is_ok();
    assert!(try_lock(&a, RangeLock::Write, 100, 100));
    assert!(try_lock(&b, RangeLock::Write, 0, 100), "before");
    assert!(try_lock(&b, RangeLock::Write, 200, 0), "after");
    assert!(!try_lock(&b, RangeLock::Write, 199, 1), "the last byte");
    assert!(!try_lock(&b, RangeLock::Read, 100, 1), "the first byte");
    // Splits the lock in two.
    assert!(try_lock(&a, RangeLock::Unlock, 140, 20));
    assert!(try_lock(&b, RangeLock::Write, 140, 20));
    assert!(!try_lock(&b, RangeLock::Write, 139, 1));
    assert!(!try_lock(&b, RangeLock::Write, 160, 1));
    // From exclusive to shared.
    assert!(try_lock(&a, RangeLock::Read, 100, 40));
    assert!(try_lock(&b, RangeLock::Read, 100, 40));
    assert!(!try_lock(&a, RangeLock::Write, 100, 40));
    // Closing any of a process's descriptors drops its locks.
    drop(a);
    assert!(try_lock(&b, RangeLock::Write, 0, 0));
}

#[test]
fn read_locks_go_with_the_last_descriptor_of_a_file_opened_for_reading_only() {
    let cluster = Cluster::shared("read_only");
    let writer = cluster.node(1).open("read_only/file");
    let try_write = || lock_range(&writer, RangeLock::Write, 0, 0, false).is_ok();
    let reader = File::open(cluster.node(0).path("read_only/file")).unwrap();
    let copy = reader.try_clone().unwrap();
    lock_range(&reader, RangeLock::Read, 0, 10, false).unwrap();
    drop(reader);
    assert!(!try_write(), "a copy of the descriptor is still open");
    drop(copy);
    // The kernel does not wait for the answer to this close.
    wait_for("the lock to be free", Duration::from_secs(10), || {
        try_write().then_some(())
    });
}

#[test]
fn flock_and_fcntl_do_not_conflict() {
    let cluster = Cluster::shared("families");
    let [a, b] = [0, 1].map(|node| cluster.node(node).open("families/file"));
    flock(&a, FlockOperation::NonBlockingLockExclusive).unwrap();
    lock_range(&b, RangeLock::Write, 0, 0, false).unwrap();
    assert!(flock(&b, FlockOperation::NonBlockingLockExclusive).is_err());
    assert!(lock_range(&a, RangeLock::Read, 0, 1, false).is_err());
}

#[test]
fn a_waiting_lock_wakes_when_the_holder_lets_go() {
    let cluster = Cluster::shared("wake");
    for release in ["unlock", "close"] {
        let [a, b] = [0, 1].map(|node| cluster.node(node).open("wake/file"));
        flock(&a, FlockOperation::LockExclusive).unwrap();
        let had = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                flock(&b, FlockOperation::LockExclusive).unwrap();
                had.store(true, Ordering::Release);
            });
            thread::sleep(Duration::from_millis(500));
            assert!(!had.load(Ordering::Acquire), "two nodes have the lock");
            if release == "unlock" {
                flock(&a, FlockOperation::Unlock).unwrap();
            } else {
                drop(a);
            }
            waiter.join().unwrap();
        });
    }
}

#[test]
fn the_locks_of_a_killed_node_go_to_those_who_wait() {
    let cluster = Cluster::own("lock_holder_killed", Options::default());
    let victim = cluster.follower();
    let other = (victim + 1) % 3;
    let held = cluster.node(victim).open("file");
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let ranges = cluster.node(victim).open("ranges");
    lock_range(&ranges, RangeLock::Write, 10, 10, false).unwrap();
    let waiting = cluster.node(other).open("file");
    let waiting_range = cluster.node(other).open("ranges");
    assert!(flock(&waiting, FlockOperation::NonBlockingLockExclusive).is_err());
    let had = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            flock(&waiting, FlockOperation::LockExclusive).unwrap();
            lock_range(&waiting_range, RangeLock::Write, 0, 0, true).unwrap();
            had.store(true, Ordering::Release);
        });
        thread::sleep(Duration::from_millis(500));
        assert!(!had.load(Ordering::Acquire));
        let killed = Instant::now();
        cluster.node(victim).kill9();
        waiter.join().unwrap();
        eprintln!(
            "the locks of a killed node were free after {:?}",
            killed.elapsed()
        );
    });
    drop(held);
    // The node comes back without them.
    cluster.start(victim);
    cluster.wait_healthy();
    let again = cluster.node(victim).open("file");
    assert!(flock(&again, FlockOperation::NonBlockingLockExclusive).is_err());
}

#[test]
fn a_waiting_lock_can_be_interrupted() {
    let cluster = Cluster::shared("interrupt");
    let held = cluster.node(0).open("interrupt/file");
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let start = Instant::now();
    // `timeout` sends SIGTERM; flock(1) dies of it only if its system call comes back.
    let output = bramble_tests::run::try_run(
        "timeout",
        [
            "2".as_ref(),
            "flock".as_ref(),
            cluster.dir(1).join("file").as_os_str(),
            "true".as_ref(),
        ],
    );
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(start.elapsed() < Duration::from_secs(20));
    flock(&held, FlockOperation::Unlock).unwrap();
    let next = cluster.node(1).open("interrupt/file");
    flock(&next, FlockOperation::NonBlockingLockExclusive).expect("no lock is left of the interrupted one");
}
