//! fcntl and flock locks. The rules are POSIX's: an owner's locks never conflict with each other, a new one takes
//! the place of what the owner had on these bytes, neighbours of the same sort become one.

use crate::meta::types::*;
use crate::meta::{Event, Refusal, Reply, keys, tables, value};

use super::step::{Fail, Step, malformed};

/// Locks on one inode; each request looks at all of them.
pub(super) const LOCKS_PER_INODE_MAX: usize = 16_384;

pub(super) fn lock(step: &mut Step<'_, '_>, ino: Ino, lock: Lock) -> Result<Reply, Fail> {
    check(step, lock.owner, lock.start, lock.end)?;
    step.inode(ino)?;
    let conflict = |held: &&Lock| {
        held.owner != lock.owner
            && held.owner.kind == lock.owner.kind
            && overlap(held, lock.start, lock.end)
            && (held.exclusive || lock.exclusive)
    };
    let held = tables::locks_with(step.txn, &keys::locks(ino))?;
    if let Some(blocker) = held.iter().find(conflict) {
        // As flock(2) says: what was held is given up first. Two holders that both want more would wait for ever.
        if lock.owner.kind == LockKind::Flock {
            let freed = step.take_from(ino, lock.owner, lock.start, lock.end)?;
            step.locks_given_up(ino, lock.owner.session, !freed.is_empty())?;
        }
        step.events.push(Event::LockWanted {
            ino,
            by: lock.owner.session,
        });
        return Ok(Reply::Blocked(*blocker));
    }
    if held.len() >= LOCKS_PER_INODE_MAX {
        return Err(Refusal::NoLocks.into());
    }
    let taken = step.take_from(ino, lock.owner, lock.start, lock.end)?;
    let weaker = !lock.exclusive && taken.iter().any(|held| held.exclusive);
    let whole = step.join_neighbours(ino, lock)?;
    step.put_lock(ino, whole)?;
    step.locks_given_up(ino, lock.owner.session, weaker)?;
    Ok(Reply::Done)
}

pub(super) fn unlock(
    step: &mut Step<'_, '_>,
    ino: Ino,
    owner: LockOwner,
    start: u64,
    end: u64,
) -> Result<Reply, Fail> {
    check(step, owner, start, end)?;
    let freed = step.take_from(ino, owner, start, end)?;
    step.locks_given_up(ino, owner.session, !freed.is_empty())?;
    Ok(Reply::Done)
}

fn check(step: &Step<'_, '_>, owner: LockOwner, start: u64, end: u64) -> Result<(), Fail> {
    if owner.session != step.context.session {
        return Err(malformed("a lock's owner is of another session"));
    }
    if start > end {
        return Err(Refusal::Invalid.into());
    }
    Ok(())
}

fn overlap(lock: &Lock, start: u64, end: u64) -> bool {
    lock.start <= end && start <= lock.end
}

impl Step<'_, '_> {
    fn put_lock(&mut self, ino: Ino, lock: Lock) -> Result<(), Fail> {
        self.txn.put(
            keys::lock(ino, lock.owner, lock.start).into(),
            value::encode(&lock)?,
        );
        self.txn.put(
            keys::session_lock(lock.owner.session, ino).into(),
            value::encode(&())?,
        );
        Ok(())
    }

    /// Takes the bytes `start..=end` out of an owner's locks; the parts that were taken out.
    fn take_from(&mut self, ino: Ino, owner: LockOwner, start: u64, end: u64) -> Result<Vec<Lock>, Fail> {
        let mut taken = Vec::new();
        for held in tables::locks_with(self.txn, &keys::locks_of_owner(ino, owner))? {
            if !overlap(&held, start, end) {
                continue;
            }
            self.txn.delete(keys::lock(ino, owner, held.start).into());
            if let Some(before) = start.checked_sub(1).filter(|last| *last >= held.start) {
                self.put_lock(ino, Lock { end: before, ..held })?;
            }
            if let Some(after) = end.checked_add(1).filter(|first| *first <= held.end) {
                self.put_lock(ino, Lock { start: after, ..held })?;
            }
            taken.push(Lock {
                start: held.start.max(start),
                end: held.end.min(end),
                ..held
            });
        }
        Ok(taken)
    }

    /// Removes locks that `lock` continues, or that continue it; the lock that covers all of them.
    fn join_neighbours(&mut self, ino: Ino, mut lock: Lock) -> Result<Lock, Fail> {
        for held in tables::locks_with(self.txn, &keys::locks_of_owner(ino, lock.owner))? {
            let touches =
                held.end.checked_add(1) == Some(lock.start) || lock.end.checked_add(1) == Some(held.start);
            if touches && held.exclusive == lock.exclusive {
                self.txn.delete(keys::lock(ino, lock.owner, held.start).into());
                lock.start = lock.start.min(held.start);
                lock.end = lock.end.max(held.end);
            }
        }
        Ok(lock)
    }

    /// Tells the waiters if something was given up, and keeps the list of the session's locked inodes right.
    fn locks_given_up(&mut self, ino: Ino, session: SessionId, given_up: bool) -> Result<(), Fail> {
        if given_up {
            self.events.push(Event::LockFreed { ino });
            if !tables::any(self.txn, &keys::locks_of_session(ino, session))? {
                self.txn.delete(keys::session_lock(session, ino).into());
            }
        }
        Ok(())
    }

    /// Drops all locks on an inode, or those of one session.
    pub(super) fn drop_locks(&mut self, ino: Ino, session: Option<SessionId>) -> Result<(), Fail> {
        let prefix = match session {
            Some(session) => keys::locks_of_session(ino, session),
            None => keys::locks(ino),
        };
        let locks = tables::locks_with(self.txn, &prefix)?;
        for lock in &locks {
            self.txn.delete(keys::lock(ino, lock.owner, lock.start).into());
            self.txn
                .delete(keys::session_lock(lock.owner.session, ino).into());
        }
        if !locks.is_empty() {
            self.events.push(Event::LockFreed { ino });
        }
        Ok(())
    }
}
