//! The state of leases and pending changes on one node: everything that is decided in one step, under one lock.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use raftstore::clock::Timestamp;
use raftstore::kv::KvError;
use raftstore::meta::{Event, Ino, MetaError, Op, Proposal, Reader, Reply, SessionId};

use super::BehindOptions;
use super::footprint::{self, Way};
use super::leases::LeaseCache;
use super::pending::Pending;
use super::requests::Requests;
use super::room::Room;
use crate::backend::{BackendError, Look, Moment};
use crate::lease::{HolderStatus, Lease, LeaseLink, LeaseMode, ToLeader};

/// Inodes whose locks other nodes are known to wait for; forgetting one costs them a poll.
const WANTED_MAX: usize = 1024;
/// The part of the leases that is given up at a time.
const EVICTED_PART: usize = 32;
/// Errors that wait to be reported.
const ERRORS_MAX: usize = 4096;

/// What became of an attempt to do something.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Done here, to be pushed later; what the state machine would say, and tell.
    Done(Reply, Vec<Event>),
    /// Refused.
    Refused(MetaError),
    /// These leases are needed first.
    Acquire(Vec<Lease>),
    /// Something else must come to an end first; another attempt once anything has changed.
    Wait,
    /// This node must have applied so much first.
    Apply(u64),
    /// Numbers for new inodes are needed first.
    Numbers,
    /// To be proposed at once under this session: the inodes are gated and pinned for it.
    Through(SessionId, Vec<Ino>),
    /// To be proposed without more ado.
    Free,
    /// The bytes of these files must be pushed first: then it is known what they come to.
    Push(BTreeSet<Ino>),
}

/// A change that somebody wants, and what it relies on.
pub(super) struct Wish<'a> {
    /// The only session it may be made under.
    pub(super) only: Option<SessionId>,
    pub(super) op: &'a Op,
    pub(super) payload: &'a Bytes,
    /// Leases that its caller has pinned.
    pub(super) pinned: &'a [Ino],
    /// The wall clock.
    pub(super) time: Timestamp,
    /// The monotonic clock.
    pub(super) now: Duration,
    /// What this node has applied.
    pub(super) applied: u64,
}

pub(super) struct Core {
    pub(super) options: BehindOptions,
    pub(super) room: Room,
    pub(super) session: Option<SessionId>,
    link: Option<LeaseLink>,
    /// Leases may be used until then, on the monotonic clock.
    valid_until: Duration,
    pub(super) leases: LeaseCache,
    pub(super) pending: Pending,
    reader: Reader,
    /// Inodes that are being changed past the queue.
    gated: BTreeSet<Ino>,
    /// Numbers for new inodes.
    numbers: Range<Ino>,
    wanted: HashSet<Ino>,
    errors: BTreeMap<Ino, BackendError>,
    /// After this, nothing is taken any more.
    failed: Option<BackendError>,
    /// Who waits for a flush.
    pub(super) requests: Requests,
    /// Files that are due, though nobody has asked.
    pub(super) due: BTreeSet<Ino>,
    /// Whether the queue is due, too.
    pub(super) queue_is_due: bool,
    /// Somebody waits for room, which only a push makes: what is there may be less than a batch.
    pub(super) is_crowded: bool,
}

impl Core {
    pub(super) fn new(base: &Reader, options: BehindOptions) -> Self {
        let pending = Pending::new(base);
        Self {
            room: Room::least(&options),
            options,
            session: None,
            link: None,
            valid_until: Duration::ZERO,
            leases: LeaseCache::default(),
            reader: pending.reader(),
            pending,
            gated: BTreeSet::new(),
            numbers: 0..0,
            wanted: HashSet::new(),
            errors: BTreeMap::new(),
            failed: None,
            requests: Requests::default(),
            due: BTreeSet::new(),
            queue_is_due: false,
            is_crowded: false,
        }
    }

    /// The state with what is pending.
    pub(super) fn reader(&self) -> Reader {
        self.reader.clone()
    }

    pub(super) fn reader_ref(&self) -> &Reader {
        &self.reader
    }

    /// Whether leases may be used, by this node's own clock.
    pub(super) fn is_valid(&self, now: Duration) -> bool {
        self.session.is_some() && now < self.valid_until
    }

    pub(super) fn renew(&mut self, session: SessionId, until: Duration) {
        if self.session == Some(session) {
            self.valid_until = self.valid_until.max(until);
        }
    }

    /// A leader is there for `session`.
    pub(super) fn connected(&mut self, session: SessionId, link: LeaseLink) -> Vec<Lease> {
        if self.session != Some(session) {
            self.session_over();
            self.session = Some(session);
        }
        let (held, requests) = self.leases.reconnected();
        for request in requests {
            link.send(request);
        }
        self.link = Some(link);
        held
    }

    /// Gives up leases that nobody uses, if there are more than `leases_max`: some at a time, so that not each new one costs a
    /// message for an old one. Those of which `is_mapped` says so stay: their pages would show what other nodes write late.
    pub(super) fn evict(&mut self, now: Duration, is_mapped: impl Fn(Ino) -> bool) {
        let leases_max = self.options.leases_max;
        if self.leases.len() <= leases_max {
            return;
        }
        let pending = &self.pending;
        let keep = leases_max - leases_max / EVICTED_PART;
        let is_needed = |ino, touched| pending.has_any_of(ino, touched) || is_mapped(ino);
        if let Some(release) = self.leases.evict(keep, now, is_needed) {
            self.tell(release);
        }
    }

    /// How long the kernel may answer for `look` on its own, and the leases that it then relies on: they are pinned until
    /// [`LeaseCache::lent`] unless that is no time at all.
    pub(super) fn lend(&mut self, look: Look<'_>, moment: Moment, now: Duration) -> (Duration, Vec<Ino>) {
        if self.session.is_none() || self.failed.is_some() {
            return (Duration::ZERO, Vec::new());
        }
        let longest = self.options.lent_max.min(self.valid_until.saturating_sub(now));
        let leases: Vec<Ino> = self.leases.covering(look).collect();
        let time = self
            .leases
            .lend(&leases, (moment.grants, moment.number), now, longest);
        (time, leases)
    }

    /// What the leader cannot be told now, it learns when it is found again.
    pub(super) fn tell(&self, message: ToLeader) {
        if let Some(link) = &self.link {
            link.send(message);
        }
    }

    /// Everything that hung on the session is gone.
    pub(super) fn session_over(&mut self) {
        self.session = None;
        self.link = None;
        self.valid_until = Duration::ZERO;
        self.leases.clear();
        let queued = self.pending.queued();
        let lost = self.pending.clear();
        if !lost.is_empty() {
            tracing::error!(
                changes = queued,
                files = lost.len(),
                "the session is over: what was not synced on this node is lost"
            );
        }
        for ino in lost {
            let why =
                BackendError::Stopped("the cluster gave this node up before its changes were synced".into());
            self.report(ino, why);
        }
    }

    /// The cluster has refused `session`.
    pub(super) fn end_session(&mut self, session: SessionId) {
        if self.session == Some(session) {
            self.session_over();
        }
    }

    /// Keeps an error for the next fsync or close of the file.
    pub(super) fn report(&mut self, ino: Ino, error: BackendError) {
        if self.errors.len() >= ERRORS_MAX && !self.errors.contains_key(&ino) {
            self.errors.pop_first();
        }
        self.errors.insert(ino, error);
    }

    /// Answers those whose changes are committed; how many.
    pub(super) fn settle(&mut self) -> usize {
        if self.requests.iter().next().is_some() {
            self.pending.forget_settled();
        }
        self.requests.settle(&self.pending)
    }

    /// What went wrong with a file since somebody last asked.
    pub(super) fn take_error(&mut self, ino: Ino) -> Option<BackendError> {
        self.errors.remove(&ino)
    }

    /// Nothing more is taken. The leader can still be told that nothing is held.
    pub(super) fn fail(&mut self, error: BackendError) {
        self.failed.get_or_insert(error);
        let link = self.link.take();
        self.session_over();
        self.link = link;
        self.requests.abandon();
    }

    pub(super) fn failure(&self) -> Result<(), BackendError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// The number of the first of new inode numbers.
    pub(super) fn add_numbers(&mut self, first: Ino, count: u32) {
        self.numbers = first..first.saturating_add(u64::from(count));
    }

    pub(super) fn needs_numbers(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Others wait for locks on this inode.
    pub(super) fn locks_wanted(&mut self, ino: Ino) {
        if self.wanted.len() >= WANTED_MAX {
            self.wanted.clear();
        }
        self.wanted.insert(ino);
    }

    /// Whether `look` can be answered from here now.
    pub(super) fn may_look(&mut self, look: Look<'_>, now: Duration, applied: u64) -> Attempt {
        if !self.is_valid(now) {
            return Attempt::Wait;
        }
        match self.leases.usable(shared(self.leases.covering(look)), &[]) {
            None => {
                if let Some(range) = self.leases.missed(look.attributes) {
                    self.tell(range);
                }
                Attempt::Acquire(shared(look.inodes()).collect())
            }
            Some(since) if since > applied => Attempt::Apply(since),
            Some(_) => Attempt::Done(Reply::Done, Vec::new()),
        }
    }

    /// Tries to do what somebody wants.
    pub(super) fn attempt(&mut self, wish: &Wish<'_>) -> Result<Attempt, BackendError> {
        self.failure()?;
        // Sessions are numbered upwards: a later one than this is about to be announced here, too.
        let session = match (self.session, wish.only) {
            (Some(session), Some(gone)) if gone < session => {
                return Ok(Attempt::Refused(MetaError::SessionExpired(gone)));
            }
            (Some(session), only) if only.is_none_or(|only| only == session) => session,
            _ => return Ok(Attempt::Wait),
        };
        if !self.is_valid(wish.now) {
            return Ok(Attempt::Wait);
        }
        let footprint = footprint::of(wish.op, &self.reader, session, self.is_wanted(wish.op))?;
        if footprint.way == Way::Free {
            return Ok(Attempt::Free);
        }
        match self.leases.usable(footprint.leases.iter().copied(), wish.pinned) {
            None => return Ok(Attempt::Acquire(footprint.leases)),
            Some(since) if since > wish.applied => return Ok(Attempt::Apply(since)),
            Some(_) => {}
        }
        let inodes: Vec<Ino> = footprint.leases.iter().map(|lease| lease.ino).collect();
        if inodes.iter().any(|ino| self.gated.contains(ino)) {
            return Ok(Attempt::Wait);
        }
        if footprint.way == Way::Through {
            return Ok(self.gate(session, inodes));
        }
        if !self.has_room(wish) {
            self.is_crowded = true;
            return Ok(Attempt::Wait);
        }
        if let Some(attempt) = self.check_quota(wish)? {
            return Ok(attempt);
        }
        Ok(self.change(session, wish, &inodes)?)
    }

    fn is_wanted(&self, op: &Op) -> bool {
        match op {
            Op::Lock { ino, .. } | Op::Unlock { ino, .. } => self.wanted.contains(ino),
            _ => false,
        }
    }

    fn gate(&mut self, session: SessionId, inodes: Vec<Ino>) -> Attempt {
        self.gated.extend(&inodes);
        self.leases.pin(&inodes);
        Attempt::Through(session, inodes)
    }

    /// Ends what [`Attempt::Through`] began.
    pub(super) fn ungate(&mut self, inodes: &[Ino]) {
        for ino in inodes {
            self.gated.remove(ino);
        }
    }

    /// The cluster has answered an unlock: who waited has been told.
    pub(super) fn unlocked(&mut self, op: &Op) {
        if let Op::Unlock { ino, .. } = op {
            self.wanted.remove(ino);
        }
    }

    /// One write always fits if nothing else is pending.
    fn has_room(&self, wish: &Wish<'_>) -> bool {
        let fits = |waiting, bytes_max| waiting == 0 || waiting + wish.payload.len() <= bytes_max;
        // What is stored at a time has all that waits in a file.
        let file_fits = match wish.op {
            Op::Write { ino, .. } => fits(
                self.pending.active_bytes_of(*ino),
                self.room.large_bytes(&self.options),
            ),
            _ => true,
        };
        file_fits
            && fits(self.pending.dirty_bytes(), self.room.dirty_bytes)
            && self.pending.queued() < self.options.queued_max
            && self.pending.queue_bytes() < self.room.queue_bytes
    }

    /// The process takes so much memory by now.
    pub(super) fn fit_into(&mut self, resident_bytes: u64) {
        let waiting_bytes = self.pending.dirty_bytes() + self.pending.queue_bytes();
        self.room = Room::in_process(&self.options, resident_bytes, waiting_bytes);
    }

    /// Does it here.
    fn change(&mut self, session: SessionId, wish: &Wish<'_>, inodes: &[Ino]) -> Result<Attempt, KvError> {
        let mut op = wish.op.clone();
        if let Op::Create { ino, .. } = &mut op {
            if self.numbers.is_empty() {
                return Ok(Attempt::Numbers);
            }
            *ino = Some(self.numbers.start);
        }
        let proposal = Proposal {
            session,
            seq: 0,
            ack_floor: 0,
            chunk_floor: 0,
            time: wish.time,
            op,
            payload: wish.payload.clone(),
        };
        let (reply, events) = match self.pending.change(&proposal, wish.now)? {
            Ok(done) => done,
            Err(error) => return Ok(Attempt::Refused(error)),
        };
        if let (Op::Create { .. }, Reply::Inode(inode)) = (&proposal.op, &reply) {
            self.numbers.start += 1;
            self.leases.born(inode.ino, wish.now);
            self.leases
                .touch(std::iter::once(inode.ino), self.pending.number());
        }
        self.leases.touch(inodes.iter().copied(), self.pending.number());
        Ok(Attempt::Done(reply, events))
    }

    /// Forgets what was written to a file that nobody can read any more: it has no name, it is not open here, and no
    /// other node ever could open it. True if there was any.
    pub(super) fn forget_unreadable(
        &mut self,
        ino: Ino,
        is_open: impl FnOnce() -> bool,
    ) -> Result<bool, KvError> {
        if !self.pending.is_dirty(ino) || !self.leases.is_own(ino) {
            return Ok(false);
        }
        // In this order: whoever saw a name had told before that it is being opened.
        let unnamed = self.reader.inode(ino)?.is_none_or(|inode| inode.nlink == 0);
        let unreadable = unnamed && !is_open();
        if unreadable {
            self.pending.forget_bytes(ino);
        }
        Ok(unreadable)
    }

    /// Whether what is pending should be pushed without being asked for.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        let options = &self.options;
        self.is_crowded
            || self.pending.active_bytes() >= options.background_bytes
            || self.pending.untaken() >= options.queued_max / 2
            || self.pending.queue_bytes() >= self.room.queue_bytes / 2
            || self
                .pending
                .since()
                .is_some_and(|since| now.saturating_sub(since) >= options.age_max)
    }

    /// What is held and pending, for people.
    pub(super) fn status(&self, now: Duration) -> HolderStatus {
        let (shared, exclusive) = self.leases.counts();
        let oldest = self.pending.oldest();
        HolderStatus {
            shared,
            exclusive,
            pending_bytes: self.pending.written_bytes(),
            pending_changes: self.pending.queued(),
            oldest: oldest.map(|at| now.saturating_sub(at)),
            batch_bytes: self.options.background_bytes,
            inline_bytes_max: self.options.inline_bytes_max,
        }
    }
}

/// Leases for reading.
fn shared(inodes: impl Iterator<Item = Ino>) -> impl Iterator<Item = Lease> {
    let mode = LeaseMode::Shared;
    inodes.map(move |ino| Lease { ino, mode })
}
