//! Locks across nodes.

use std::time::Duration;

use raftstore::meta::{AttrChange, Fallocate, LockKind, Op, SessionId};
use tokio::sync::Notify;

use super::super::lock_table::LockTable;
use super::super::{LockRange, LockRequest};
use super::*;

fn request(ino: Ino, token: u64, kind: LockKind, start: u64, end: u64) -> LockRequest {
    LockRequest {
        ino,
        handle: token,
        token,
        kind,
        pid: 1,
        exclusive: true,
        range: LockRange { start, end },
    }
}

fn posix(ino: Ino, token: u64) -> LockRequest {
    request(ino, token, LockKind::Posix, 0, u64::MAX)
}

fn flock(ino: Ino, token: u64) -> LockRequest {
    request(ino, token, LockKind::Flock, 0, u64::MAX)
}

/// Starts waiting for a lock and sees to it that it does wait.
async fn waiting(vfs: &Arc<Vfs>, request: LockRequest) -> tokio::task::JoinHandle<Result<(), FsError>> {
    let vfs = vfs.clone();
    let task = tokio::spawn(async move { vfs.lock(request, true).await });
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert!(!task.is_finished());
    task
}

async fn soon<T>(task: tokio::task::JoinHandle<T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), task)
        .await
        .expect("it was not woken")
        .unwrap()
}

#[tokio::test]
async fn conflicting_locks_exclude_each_other_across_nodes() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    one.lock(posix(ino, 1), false).await.unwrap();
    refused(other.lock(posix(ino, 1), false).await, libc::EAGAIN);
    let found = other.get_lock(&posix(ino, 1)).await.unwrap().unwrap();
    assert_eq!((found.start, found.end, found.exclusive), (0, u64::MAX, true));
    assert_eq!(one.get_lock(&posix(ino, 1)).await.unwrap(), None);
    // flock and fcntl do not know of each other.
    other.lock(flock(ino, 1), false).await.unwrap();
    one.unlock(&posix(ino, 1)).await.unwrap();
    other.lock(posix(ino, 1), false).await.unwrap();
}

#[tokio::test]
async fn shared_locks_and_disjoint_ranges_go_together() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    let range = |token, start, end| request(ino, token, LockKind::Posix, start, end);
    one.lock(range(1, 0, 9), false).await.unwrap();
    other.lock(range(2, 10, 19), false).await.unwrap();
    refused(other.lock(range(2, 5, 15), false).await, libc::EAGAIN);
    let shared = |token| LockRequest {
        exclusive: false,
        ..range(token, 100, 200)
    };
    one.lock(shared(1), false).await.unwrap();
    other.lock(shared(2), false).await.unwrap();
    refused(one.lock(range(1, 150, 150), false).await, libc::EAGAIN);
}

#[tokio::test]
async fn a_waiter_gets_the_lock_when_the_other_node_gives_it_up() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    for lock in [posix, flock] {
        one.lock(lock(ino, 1), false).await.unwrap();
        let task = waiting(&other, lock(ino, 2)).await;
        one.unlock(&lock(ino, 1)).await.unwrap();
        soon(task).await.unwrap();
        refused(one.lock(lock(ino, 1), false).await, libc::EAGAIN);
        other.unlock(&lock(ino, 2)).await.unwrap();
    }
}

#[tokio::test]
async fn closing_gives_up_what_belongs_to_the_process_or_the_open_file() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    let handle = one.open(ino, READ_WRITE).await.unwrap().handle;
    // A process's lock goes when it closes any of its descriptors.
    one.lock(
        LockRequest {
            handle,
            ..posix(ino, 77)
        },
        false,
    )
    .await
    .unwrap();
    one.unlock_process(ino, 78).await.unwrap();
    refused(other.lock(posix(ino, 1), false).await, libc::EAGAIN);
    one.unlock_process(ino, 77).await.unwrap();
    other.lock(posix(ino, 1), false).await.unwrap();
    other.unlock(&posix(ino, 1)).await.unwrap();
    // flock and open-file-description locks go with the last descriptor.
    one.lock(
        LockRequest {
            handle,
            ..flock(ino, 79)
        },
        false,
    )
    .await
    .unwrap();
    one.lock(
        LockRequest {
            handle,
            ..posix(ino, 80)
        },
        false,
    )
    .await
    .unwrap();
    let task = waiting(&other, flock(ino, 1)).await;
    one.release(ino, handle).await.unwrap();
    soon(task).await.unwrap();
    other.lock(posix(ino, 1), false).await.unwrap();
}

#[tokio::test]
async fn who_stops_waiting_never_gets_the_lock() {
    let (cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    one.lock(posix(ino, 1), false).await.unwrap();
    let task = waiting(&other, posix(ino, 2)).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    one.unlock(&posix(ino, 1)).await.unwrap();
    assert!(cluster.reader().locks(ino).unwrap().is_empty());
    one.lock(posix(ino, 3), false).await.unwrap();
}

#[tokio::test]
async fn a_lock_granted_after_its_caller_has_gone_is_given_back() {
    if LEASED {
        // A lock that this node has a lease for is decided here; nothing is on its way.
        return;
    }
    let (cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    cluster.set_quorum(false);
    let task = waiting(&one, posix(ino, 1)).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    cluster.set_quorum(true);
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(cluster.reader().locks(ino).unwrap().is_empty());
}

#[tokio::test]
async fn two_who_wait_for_each_other_are_told() {
    let (_cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    let range = |token, start| request(ino, token, LockKind::Posix, start, start);
    one.lock(range(1, 0), false).await.unwrap();
    one.lock(range(2, 1), false).await.unwrap();
    let task = waiting(&one, range(1, 1)).await;
    refused(one.lock(range(2, 0), true).await, libc::EDEADLK);
    one.unlock(&range(2, 1)).await.unwrap();
    soon(task).await.unwrap();
}

#[tokio::test]
async fn the_locks_of_a_dead_node_are_free() {
    let (cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    one.lock(posix(ino, 1), false).await.unwrap();
    one.lock(flock(ino, 1), false).await.unwrap();
    let posix_waiter = waiting(&other, posix(ino, 1)).await;
    let flock_waiter = waiting(&other, flock(ino, 1)).await;
    let session = cluster.reader().locks(ino).unwrap()[0].owner.session;
    cluster.system(Op::ExpireSession { session }).unwrap();
    soon(posix_waiter).await.unwrap();
    soon(flock_waiter).await.unwrap();
}

#[tokio::test]
async fn two_shared_flocks_that_both_want_more_do_not_block_for_ever() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    let shared = |token| LockRequest {
        exclusive: false,
        ..flock(ino, token)
    };
    one.lock(shared(1), false).await.unwrap();
    other.lock(shared(2), false).await.unwrap();
    let upgrade = |vfs: &Arc<Vfs>, token| {
        let vfs = vfs.clone();
        tokio::spawn(async move {
            vfs.lock(flock(ino, token), true).await?;
            vfs.unlock(&flock(ino, token)).await
        })
    };
    let (a, b) = (upgrade(&one, 1), upgrade(&other, 2));
    soon(a).await.unwrap();
    soon(b).await.unwrap();
}

#[tokio::test]
async fn a_holder_that_takes_the_lock_again_and_again_lets_the_other_node_in() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    one.lock(posix(ino, 1), true).await.unwrap();
    let waiter = waiting(&other, posix(ino, 2)).await;
    let mut rounds = 0;
    while !waiter.is_finished() {
        rounds += 1;
        assert!(rounds < 100, "it starves");
        one.unlock(&posix(ino, 1)).await.unwrap();
        let again = tokio::time::timeout(Duration::from_millis(200), one.lock(posix(ino, 1), true));
        if again.await.is_err() {
            break;
        }
    }
    soon(waiter).await.unwrap();
}

/// Many owners on two nodes count in turn; the lock is all that protects the counter. Nobody starves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_and_nobody_starves_under_contention() {
    const OWNERS: u64 = 8;
    const TURNS: u64 = 25;
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "counter").await;
    write(&one, ino, 0, &0_u64.to_be_bytes()).await;
    let mut tasks = Vec::new();
    for token in 1..=OWNERS {
        let vfs = if token % 2 == 0 {
            one.clone()
        } else {
            other.clone()
        };
        tasks.push(tokio::spawn(async move {
            for _ in 0..TURNS {
                vfs.lock(posix(ino, token), true).await.unwrap();
                let bytes = vfs.read(ino, 0, 8).await.unwrap();
                let count = u64::from_be_bytes(bytes[..].try_into().unwrap());
                tokio::task::yield_now().await;
                let request = at(ino, 0, &(count + 1).to_be_bytes());
                vfs.write(request).await.unwrap();
                vfs.unlock(&posix(ino, token)).await.unwrap();
            }
        }));
    }
    for task in tasks {
        soon(task).await;
    }
    let bytes = read_all(&one, ino).await;
    assert_eq!(bytes[..], (OWNERS * TURNS).to_be_bytes());
}

#[tokio::test]
async fn closing_a_file_without_locks_proposes_nothing() {
    let (cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    let handle = one.open(ino, READ_WRITE).await.unwrap().handle;
    cluster.set_quorum(false);
    let close = async {
        one.unlock_process(ino, 5).await.unwrap();
        one.release(ino, handle).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(20), close)
        .await
        .expect("it asked the cluster");
}

async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

fn expire_all(cluster: &LocalCluster, ino: Ino) {
    let session = cluster.reader().locks(ino).unwrap()[0].owner.session;
    cluster.system(Op::ExpireSession { session }).unwrap();
}

#[tokio::test]
async fn a_thread_that_fails_does_not_make_the_locks_of_another_forgotten() {
    let (cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    let range = move |token, start| request(ino, token, LockKind::Posix, start, start);
    other.lock(range(9, 0), false).await.unwrap();
    // The first thread is the one that makes the owner known; it gives up while the second one has a lock.
    let interrupt = Arc::new(Notify::new());
    let (vfs, told) = (one.clone(), interrupt.clone());
    let first = tokio::spawn(async move { vfs.lock_until(range(1, 0), told.notified()).await });
    settle().await;
    one.lock(range(1, 5), false).await.unwrap();
    refused(one.lock(range(1, 0), false).await, libc::EAGAIN);
    interrupt.notify_one();
    refused(soon(first).await, libc::EINTR);
    one.unlock(&range(1, 5)).await.unwrap();
    other.unlock(&range(9, 0)).await.unwrap();
    assert_eq!(cluster.reader().locks(ino).unwrap(), []);
}

#[tokio::test]
async fn an_interrupt_does_not_end_a_request_that_is_being_decided() {
    if LEASED {
        // A lock that this node has a lease for is decided here; nothing is on its way.
        return;
    }
    let (cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    cluster.set_quorum(false);
    let interrupt = Arc::new(Notify::new());
    let (vfs, told) = (one.clone(), interrupt.clone());
    let task = tokio::spawn(async move { vfs.lock_until(posix(ino, 1), told.notified()).await });
    settle().await;
    interrupt.notify_one();
    settle().await;
    assert!(!task.is_finished());
    cluster.set_quorum(true);
    soon(task).await.unwrap();
    settle().await;
    assert_eq!(cluster.reader().locks(ino).unwrap().len(), 1);
}

#[tokio::test]
async fn giving_back_an_abandoned_lock_spares_the_repeat_and_what_was_held_before() {
    if LEASED {
        // A lock that this node has a lease for is decided here; nothing is on its way.
        return;
    }
    let (cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    let range = |start, end, exclusive| LockRequest {
        exclusive,
        ..request(ino, 1, LockKind::Posix, start, end)
    };
    one.lock(range(10, 19, false), false).await.unwrap();
    let before = cluster.reader().locks(ino).unwrap();
    let abandoned = |request| {
        let (cluster, one) = (cluster.clone(), one.clone());
        async move {
            cluster.set_quorum(false);
            let task = waiting(&one, request).await;
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
    };
    abandoned(range(0, 29, true)).await;
    cluster.set_quorum(true);
    settle().await;
    assert_eq!(
        cluster.reader().locks(ino).unwrap(),
        before,
        "not as it was before"
    );
    // The kernel repeats the call of an interrupted program.
    abandoned(range(0, 29, true)).await;
    let repeat = waiting(&one, range(0, 29, true)).await;
    cluster.set_quorum(true);
    soon(repeat).await.unwrap();
    settle().await;
    let held = cluster.reader().locks(ino).unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].start, held[0].end, held[0].exclusive), (0, 29, true));
}

#[tokio::test]
async fn a_request_that_outlives_its_session_is_made_again_under_the_next() {
    if LEASED {
        // A lock that this node has a lease for is decided here; nothing is on its way.
        return;
    }
    let (cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    one.lock(posix(ino, 1), false).await.unwrap();
    let first = cluster.reader().locks(ino).unwrap()[0].owner.session;
    // The lock is on its way when the session ends.
    cluster.set_quorum(false);
    let (vfs, another) = (one.clone(), request(ino, 2, LockKind::Flock, 0, u64::MAX));
    let task = tokio::spawn(async move { vfs.lock(another, false).await });
    let (vfs, unlocked) = (one.clone(), posix(ino, 1));
    let unlock = tokio::spawn(async move { vfs.unlock(&unlocked).await });
    settle().await;
    expire_all(&cluster, ino);
    cluster.set_quorum(true);
    soon(task).await.unwrap();
    soon(unlock).await.unwrap();
    let held = cluster.reader().locks(ino).unwrap();
    assert_eq!(held.len(), 1);
    assert_ne!(held[0].owner.session, first);
    refused(other.lock(flock(ino, 1), false).await, libc::EAGAIN);
    one.unlock(&flock(ino, 2)).await.unwrap();
    assert_eq!(cluster.reader().locks(ino).unwrap(), []);
}

#[tokio::test]
async fn files_that_lost_locks_with_the_session_take_no_changes_until_they_are_closed() {
    let (cluster, one, other) = two_nodes();
    let (ino, bystander) = (file(&one, "f").await, file(&one, "g").await);
    write(&one, ino, 0, b"old").await;
    let handle = one.open(ino, READ_WRITE).await.unwrap().handle;
    let locked = LockRequest {
        handle,
        ..posix(ino, 1)
    };
    let through = |handle| WriteRequest {
        handle,
        ..at(ino, 0, b"new")
    };
    let caller = |handle| Caller {
        handle: Some(handle),
        ..ROOT
    };
    let size = AttrChange {
        size: Some(1),
        ..AttrChange::default()
    };
    one.lock(locked, false).await.unwrap();
    one.write(through(handle)).await.unwrap();
    known(&one).await;
    // A write that begins under the session and arrives after its end.
    cluster.set_quorum(false);
    let late = tokio::spawn({
        let (vfs, request) = (one.clone(), through(handle));
        async move { vfs.write(request).await }
    });
    settle().await;
    expire_all(&cluster, ino);
    cluster.set_quorum(true);
    if LEASED {
        // Acknowledged under the lease, and lost with it before it was synced: whoever syncs is told.
        soon(late).await.unwrap();
        other.lock(posix(ino, 1), false).await.unwrap();
        refused(one.sync(ino).await, libc::EIO);
        one.sync(ino).await.unwrap();
    } else {
        refused(soon(late).await, libc::EIO);
        other.lock(posix(ino, 1), false).await.unwrap();
    }
    write(&other, ino, 0, b"far").await;
    other.unlock(&posix(ino, 1)).await.unwrap();

    refused(one.write(through(handle)).await, libc::EIO);
    refused(one.setattr_through(ino, Some(handle), size).await, libc::EIO);
    let punch = Fallocate::PunchHole;
    refused(one.fallocate(ino, punch, 0, 1, caller(handle)).await, libc::EIO);
    let copy = one.copy_range((bystander, 0), (ino, 0), 1, caller(handle)).await;
    refused(copy, libc::EIO);
    refused(one.lock(locked, false).await, libc::EIO);
    refused(one.lock(locked, true).await, libc::EIO);
    assert_eq!(read_all(&other, ino).await[..], *b"far");
    // Another file, and the same one opened since, but not by the owner that believes in its lock.
    write(&one, bystander, 0, b"x").await;
    let fresh = one.open(ino, READ_WRITE).await.unwrap().handle;
    let by_owner = WriteRequest {
        owner: Some(1),
        ..through(fresh)
    };
    refused(one.write(by_owner.clone()).await, libc::EIO);
    let mapped = WriteRequest {
        from_mapping: true,
        ..through(fresh)
    };
    refused(one.write(mapped.clone()).await, libc::EIO);
    one.write(through(fresh)).await.unwrap();
    // Closed, everything is as before.
    one.unlock_process(ino, 1).await.unwrap();
    one.write(by_owner).await.unwrap();
    refused(one.write(through(handle)).await, libc::EIO);
    one.release(ino, handle).await.unwrap();
    one.write(mapped).await.unwrap();
    let again = LockRequest {
        handle: fresh,
        ..locked
    };
    one.lock(again, false).await.unwrap();
    one.release(ino, fresh).await.unwrap();
    assert_eq!(cluster.reader().locks(ino).unwrap(), []);
}

#[tokio::test]
async fn who_was_passed_by_is_no_part_of_a_deadlock() {
    let (_cluster, one, _) = two_nodes();
    let (first, second) = (file(&one, "f").await, file(&one, "g").await);
    // 1 waits for the first file, which 2 gives up; at once 2 waits for the second one, which 1 has.
    one.lock(posix(first, 2), false).await.unwrap();
    one.lock(posix(second, 1), false).await.unwrap();
    let task = waiting(&one, posix(first, 1)).await;
    // Unlocking is over before the one that waits has run again.
    let unlock = posix(first, 2);
    one.unlock(&unlock).await.unwrap();
    let next = {
        let vfs = one.clone();
        tokio::spawn(async move { vfs.lock(posix(second, 2), true).await })
    };
    soon(task).await.unwrap();
    one.unlock(&posix(second, 1)).await.unwrap();
    soon(next).await.unwrap();
}

#[test]
fn an_old_answer_is_no_step_of_a_deadlock() {
    let table = Arc::new(LockTable::new(10));
    let session = SessionId(1);
    let lock = |ino, token| posix(ino, token).lock(session);
    let (waits_first, waits_second) = (table.wait(1, lock(1, 1)), table.wait(2, lock(2, 2)));
    let owner = |token| lock(1, token).owner;
    assert!(waits_first.blocked_by(lock(1, 1), owner(2)).is_none());
    // A true circle, as far as everybody was told.
    let circle = waits_second.blocked_by(lock(2, 2), owner(1)).unwrap();
    assert_eq!(circle.len(), 2);
    // The first file's lock was given up: nobody is known to be in the way there.
    table.wake(1);
    assert!(waits_second.blocked_by(lock(2, 2), owner(1)).is_none());
}
