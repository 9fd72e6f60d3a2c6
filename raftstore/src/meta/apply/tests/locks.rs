//! Locks, case by case and against a model that keeps one holder list for each byte.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::support::*;
use crate::meta::apply::locks::LOCKS_PER_INODE_MAX;
use crate::meta::*;

fn owner(bench: &Bench, token: u64, kind: LockKind) -> LockOwner {
    LockOwner {
        session: bench.local.session(),
        token,
        kind,
    }
}

fn posix(bench: &Bench, token: u64, exclusive: bool, range: (u64, u64)) -> Lock {
    let (start, end) = range;
    Lock {
        owner: owner(bench, token, LockKind::Posix),
        pid: 100 + token as u32,
        exclusive,
        start,
        end,
    }
}

fn flock(bench: &Bench, token: u64, exclusive: bool) -> Lock {
    let owner = owner(bench, token, LockKind::Flock);
    Lock {
        owner,
        pid: 7,
        exclusive,
        start: 0,
        end: u64::MAX,
    }
}

fn lock(bench: &Bench, ino: Ino, lock: Lock) -> Answer {
    bench.submit(Op::Lock { ino, lock })
}

fn unlock(bench: &Bench, ino: Ino, lock: Lock) -> Answer {
    bench.submit(Op::Unlock {
        ino,
        owner: lock.owner,
        start: lock.start,
        end: lock.end,
    })
}

fn held(bench: &Bench, ino: Ino) -> Vec<(u64, bool, u64, u64)> {
    let locks = bench.reader().locks(ino).unwrap();
    locks
        .iter()
        .map(|lock| (lock.owner.token, lock.exclusive, lock.start, lock.end))
        .collect()
}

#[test]
fn ranges_split_and_join() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let take = |exclusive, range| lock(&bench, file, posix(&bench, 1, exclusive, range)).unwrap();
    take(true, (0, 99));
    take(false, (40, 59));
    assert_eq!(
        held(&bench, file),
        [(1, true, 0, 39), (1, false, 40, 59), (1, true, 60, 99)]
    );
    take(true, (40, 59));
    assert_eq!(held(&bench, file), [(1, true, 0, 99)]);
    take(true, (100, u64::MAX));
    assert_eq!(held(&bench, file), [(1, true, 0, u64::MAX)]);
    unlock(&bench, file, posix(&bench, 1, true, (50, 50))).unwrap();
    assert_eq!(held(&bench, file), [(1, true, 0, 49), (1, true, 51, u64::MAX)]);
    unlock(&bench, file, posix(&bench, 1, true, (0, u64::MAX))).unwrap();
    assert_eq!(held(&bench, file), []);
    bench.check();
}

#[test]
fn conflicts_name_the_holder() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let first = posix(&bench, 1, true, (10, 19));
    lock(&bench, file, first).unwrap();
    let take = |token, exclusive, range| lock(&bench, file, posix(&bench, token, exclusive, range));
    assert_eq!(take(2, false, (19, 30)), Ok(Reply::Blocked(first)));
    assert_eq!(take(2, true, (0, 10)), Ok(Reply::Blocked(first)));
    assert_eq!(take(2, true, (20, 30)), Ok(Reply::Done));
    assert_eq!(take(2, true, (0, 9)), Ok(Reply::Done));
    // Shared locks share; an upgrade waits for the other one.
    assert_eq!(take(1, false, (10, 19)), Ok(Reply::Done));
    assert_eq!(take(2, false, (10, 19)), Ok(Reply::Done));
    assert!(matches!(take(1, true, (15, 15)), Ok(Reply::Blocked(blocker)) if blocker.owner.token == 2));
    assert_eq!(held(&bench, file)[0], (1, false, 10, 19));
    // Another file is another matter.
    let other = bench.mkfile(ROOT_INO, "other");
    assert_eq!(
        lock(&bench, other, posix(&bench, 3, true, (0, u64::MAX))),
        Ok(Reply::Done)
    );
    bench.check();
}

#[test]
fn the_two_families_ignore_each_other() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    assert_eq!(
        lock(&bench, file, posix(&bench, 1, true, (0, u64::MAX))),
        Ok(Reply::Done)
    );
    assert_eq!(lock(&bench, file, flock(&bench, 1, true)), Ok(Reply::Done));
    assert!(matches!(
        lock(&bench, file, flock(&bench, 2, false)),
        Ok(Reply::Blocked(_))
    ));
    unlock(&bench, file, posix(&bench, 1, true, (0, u64::MAX))).unwrap();
    assert_eq!(held(&bench, file).len(), 1);
    unlock(&bench, file, flock(&bench, 1, true)).unwrap();
    assert_eq!(lock(&bench, file, flock(&bench, 2, true)), Ok(Reply::Done));
}

#[test]
fn a_blocked_conversion_of_flock_gives_up_what_was_held() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    lock(&bench, file, flock(&bench, 1, false)).unwrap();
    lock(&bench, file, flock(&bench, 2, false)).unwrap();
    let (answer, events) = bench.listen(|| lock(&bench, file, flock(&bench, 1, true)));
    assert!(matches!(answer, Ok(Reply::Blocked(blocker)) if blocker.owner.token == 2));
    let by = flock(&bench, 1, true).owner.session;
    assert_eq!(
        events,
        [
            Event::LockFreed { ino: file },
            Event::LockWanted { ino: file, by }
        ]
    );
    // So the other one gets through, instead of both waiting for ever.
    assert_eq!(lock(&bench, file, flock(&bench, 2, true)), Ok(Reply::Done));
    bench.check();
}

#[test]
fn waiters_hear_of_what_is_given_up() {
    let bench = Bench::new();
    let file = bench.mkfile(ROOT_INO, "file");
    let freed = vec![Event::LockFreed { ino: file }];
    let whole = (0, u64::MAX);
    let after = |act: &dyn Fn() -> Answer| bench.listen(|| act().unwrap()).1;
    assert_eq!(after(&|| lock(&bench, file, posix(&bench, 1, true, whole))), []);
    assert_eq!(after(&|| lock(&bench, file, posix(&bench, 1, true, (5, 9)))), []);
    assert_eq!(
        after(&|| lock(&bench, file, posix(&bench, 1, false, (5, 9)))),
        freed
    );
    assert_eq!(after(&|| lock(&bench, file, posix(&bench, 1, true, (5, 9)))), []);
    assert_eq!(
        after(&|| unlock(&bench, file, posix(&bench, 1, true, (5, 9)))),
        freed
    );
    assert_eq!(
        after(&|| unlock(&bench, file, posix(&bench, 1, true, (5, 9)))),
        []
    );
    assert_eq!(after(&|| unlock(&bench, file, posix(&bench, 2, true, whole))), []);
    assert_eq!(
        after(&|| unlock(&bench, file, posix(&bench, 1, true, whole))),
        freed
    );
}

#[test]
fn go_with_their_session_and_their_inode() {
    let bench = Bench::new();
    let (a, b) = (bench.mkfile(ROOT_INO, "a"), bench.mkfile(ROOT_INO, "b"));
    lock(&bench, a, posix(&bench, 1, true, (0, 9))).unwrap();
    lock(&bench, a, flock(&bench, 2, true)).unwrap();
    lock(&bench, b, posix(&bench, 1, true, (0, 9))).unwrap();
    let old = bench.local.session();
    let (_, events) = bench.listen(|| bench.local.open_session().unwrap());
    let freed = |ino| Event::LockFreed { ino };
    assert_eq!(
        events,
        [freed(a), freed(b), Event::SessionExpired { session: old }]
    );
    assert_eq!((held(&bench, a), held(&bench, b)), (vec![], vec![]));
    lock(&bench, a, posix(&bench, 1, true, (0, 9))).unwrap();
    bench.unlink(ROOT_INO, "a").unwrap();
    bench.submit(Op::Reap { inodes: vec![a] }).unwrap();
    assert_eq!(held(&bench, a), []);
    assert_eq!(
        lock(&bench, a, posix(&bench, 1, true, (0, 9))),
        refused(Refusal::Stale)
    );
    bench.check();
}

#[test]
fn refuses_what_makes_no_sense() {
    let bench = Bench::new();
    assert_eq!(
        lock(&bench, ROOT_INO, posix(&bench, 1, true, (9, 8))),
        refused(Refusal::Invalid)
    );
    let mut foreign = posix(&bench, 1, true, (0, 9));
    foreign.owner.session = SessionId(foreign.owner.session.0 + 1);
    assert!(matches!(
        lock(&bench, ROOT_INO, foreign),
        Err(MetaError::Malformed(_))
    ));
    assert!(matches!(
        unlock(&bench, ROOT_INO, foreign),
        Err(MetaError::Malformed(_))
    ));
}

#[test]
fn an_inode_has_so_many_locks_and_no_more() {
    let bench = Bench::new();
    let held = (0..LOCKS_PER_INODE_MAX as u64 - 1).map(|i| posix(&bench, i, true, (2 * i, 2 * i)));
    let row = |lock: Lock| {
        (
            keys::lock(ROOT_INO, lock.owner, lock.start),
            value::encode(&lock).unwrap(),
        )
    };
    bench.local.poke(held.map(row)).unwrap();
    let far = u64::MAX - 10;
    assert_eq!(
        lock(&bench, ROOT_INO, posix(&bench, 1, true, (far, far))),
        Ok(Reply::Done)
    );
    let over = posix(&bench, 2, true, (far + 2, far + 2));
    assert_eq!(lock(&bench, ROOT_INO, over), refused(Refusal::NoLocks));
    // What is held can be given up, and then there is room again.
    unlock(&bench, ROOT_INO, posix(&bench, 1, true, (far, far))).unwrap();
    assert_eq!(lock(&bench, ROOT_INO, over), Ok(Reply::Done));
}

/// Bytes 0 to 11; the last one stands for all that follow.
const BYTES: u64 = 12;

#[derive(Debug, Clone)]
struct Try {
    token: u64,
    kind: LockKind,
    /// `None` unlocks.
    exclusive: Option<bool>,
    range: (u64, u64),
}

fn attempt() -> impl Strategy<Value = Try> {
    let kind = prop_oneof![4 => Just(LockKind::Posix), 1 => Just(LockKind::Flock)];
    (1..4u64, kind, prop::option::of(any::<bool>()), 0..BYTES, 0..BYTES).prop_map(
        |(token, kind, exclusive, a, b)| Try {
            token,
            kind,
            exclusive,
            range: (a.min(b), a.max(b)),
        },
    )
}

/// For each family and byte: who holds it, and how.
type Holders = BTreeMap<(LockKind, u64), BTreeMap<u64, bool>>;

/// What the locks that are really held mean byte by byte.
fn holders(locks: &[Lock]) -> Holders {
    let mut found = Holders::new();
    for lock in locks {
        for byte in (0..BYTES).filter(|byte| lock.start <= *byte && *byte <= lock.end) {
            let twice = found
                .entry((lock.owner.kind, byte))
                .or_default()
                .insert(lock.owner.token, lock.exclusive);
            assert_eq!(twice, None, "two locks of one owner overlap: {locks:?}");
        }
    }
    found
}

fn step(model: &mut Holders, attempt: &Try) -> bool {
    let bytes = attempt.range.0..=attempt.range.1;
    let conflict = bytes.clone().any(|byte| {
        let holders = model.get(&(attempt.kind, byte)).into_iter().flatten();
        let wants = attempt.exclusive;
        holders
            .clone()
            .any(|(token, exclusive)| *token != attempt.token && wants.is_some_and(|x| x || *exclusive))
    });
    for byte in bytes {
        let holders = model.entry((attempt.kind, byte)).or_default();
        match attempt.exclusive {
            Some(exclusive) if !conflict => holders.insert(attempt.token, exclusive),
            // A blocked flock gives up what it had; a blocked fcntl lock does not.
            Some(_) if attempt.kind == LockKind::Posix => None,
            _ => holders.remove(&attempt.token),
        };
    }
    model.retain(|_, holders| !holders.is_empty());
    conflict
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn behave_as_the_model(attempts in prop::collection::vec(attempt(), 1..80)) {
        let bench = Bench::new();
        let mut model = Holders::new();
        for attempt in &attempts {
            let (start, end) = attempt.range;
            let end = if end == BYTES - 1 { u64::MAX } else { end };
            let owner = owner(&bench, attempt.token, attempt.kind);
            let exclusive = attempt.exclusive.unwrap_or_default();
            let wanted = Lock { owner, pid: 1, exclusive, start, end };
            let answer = match attempt.exclusive {
                Some(_) => lock(&bench, ROOT_INO, wanted),
                None => unlock(&bench, ROOT_INO, wanted),
            };
            let blocked = matches!(answer, Ok(Reply::Blocked(_)));
            prop_assert!(blocked || answer == Ok(Reply::Done));
            prop_assert_eq!(step(&mut model, attempt), blocked, "{:?}", attempt);
            let locks = bench.reader().locks(ROOT_INO).unwrap();
            prop_assert_eq!(&holders(&locks), &model);
            // Neighbours of the same sort are one lock.
            for pair in locks.windows(2).filter(|pair| pair[0].owner == pair[1].owner) {
                let touch = pair[0].end.checked_add(1) == Some(pair[1].start);
                prop_assert!(!touch || pair[0].exclusive != pair[1].exclusive, "{:?}", pair);
            }
        }
        bench.check();
    }
}
