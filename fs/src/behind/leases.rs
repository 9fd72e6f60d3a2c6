//! Which leases this node holds, which it is being asked to give up, and who on it waits for one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use raftstore::meta::Ino;
use tokio::sync::oneshot;

use super::tries::RangeTries;
use crate::backend::Look;
use crate::lease::{Lease, LeaseMode, ToLeader, is_range, range_of};

/// Entries of the eviction order for leases that are gone, before they are swept.
const ORDER_SLACK: usize = 1024;
/// The kernel is lent a lease for this part of the time for which nobody else has wanted it. So a conflicting change
/// waits for at most this part of the time since the last one.
const LENT_SHARE: u32 = 8;
/// Less is not worth the trouble.
const LENT_MIN: Duration = Duration::from_millis(5);

/// A lease that is held.
#[derive(Debug)]
struct Held {
    mode: LeaseMode,
    /// Usable once this node has applied so much.
    since: u64,
    /// Calls that rely on it at this moment.
    pins: u32,
    /// The number of the last pending change made under it; of a range, of the last to any of its inodes, which is not
    /// made under it.
    touched: u64,
    /// What others want of it.
    recall: Option<Recall>,
    /// When it came, counted in grants.
    grant: u64,
    /// Nobody else has shown interest in the inode since then, on the monotonic clock.
    quiet_since: Duration,
    /// The kernel may answer from its own cache until then.
    lent_until: Duration,
    /// The inode was made under it: no other node has ever had a lease of it.
    own: bool,
}

impl Held {
    /// Whether nobody may begin to use it.
    fn is_closing(&self) -> bool {
        self.recall.is_some_and(|recall| recall.closing)
    }
}

/// A lease that is on its way back.
#[derive(Debug, Clone, Copy)]
struct Recall {
    /// What may be kept.
    keep: Option<LeaseMode>,
    /// Nobody may begin to use it.
    closing: bool,
}

/// A request that the leader has not answered.
#[derive(Debug)]
struct Request {
    leases: Vec<Lease>,
    /// Answered with the log index from which the leases can be used.
    waiter: oneshot::Sender<Granted>,
}

/// Leases that were granted together; pinned for whoever waited for them.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) inodes: Vec<Ino>,
    /// What this node must have applied.
    pub(super) since: u64,
}

/// How a lease comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// Somebody still relies on it.
    InUse,
    /// The kernel does, for so long.
    Lent(Duration),
    /// Nobody does. Changes up to this number were made under it.
    Ready(u64),
    /// It is not held, or not wanted any more.
    Gone,
}

/// The leases of one node.
#[derive(Debug, Default)]
pub(super) struct LeaseCache {
    /// By inode, or range.
    held: HashMap<Ino, Held>,
    /// In the order in which they came, for eviction; may name some that are gone.
    order: VecDeque<Ino>,
    /// Those that the leader has not been told of.
    born: HashSet<Ino>,
    requests: HashMap<u64, Request>,
    next_request: u64,
    tries: RangeTries,
    /// Leases that came so far.
    grants: u64,
}

impl LeaseCache {
    /// What this node must have applied before it may use all of `wants`; `None` if it does not hold them, or is
    /// giving one up that is not among `pinned`.
    pub(super) fn usable(&self, wants: impl IntoIterator<Item = Lease>, pinned: &[Ino]) -> Option<u64> {
        let mut since = 0;
        for want in wants {
            let held = self.held.get(&want.ino)?;
            if held.mode < want.mode || (held.is_closing() && !pinned.contains(&want.ino)) {
                return None;
            }
            since = since.max(held.since);
        }
        Some(since)
    }

    /// The leases that a look stands on: those of inodes, or of the ranges in which they are.
    pub(super) fn covering<'a>(&'a self, look: Look<'a>) -> impl Iterator<Item = Ino> + 'a {
        let is_open = |lease| self.held.get(&lease).is_some_and(|held| !held.is_closing());
        let covering = move |ino| match range_of(ino) {
            range if !is_open(ino) && is_open(range) => range,
            _ => ino,
        };
        let whole = look.whole.iter().copied();
        whole.chain(look.attributes.iter().copied().map(covering))
    }

    /// The attributes of these are not covered, and asked for one by one. What to tell the leader besides.
    pub(super) fn missed(&mut self, inodes: &[Ino]) -> Option<ToLeader> {
        let range = self.tries.missed(inodes)?;
        self.next_request += 1;
        Some(self.tries.request(self.next_request, range))
    }

    pub(super) fn pin(&mut self, inodes: &[Ino]) {
        for ino in inodes {
            if let Some(held) = self.held.get_mut(ino) {
                held.pins += 1;
            }
        }
    }

    /// Whether somebody may be waiting for that.
    pub(super) fn unpin(&mut self, inodes: &[Ino]) -> bool {
        let mut last = false;
        for ino in inodes {
            if let Some(held) = self.held.get_mut(ino) {
                held.pins = held.pins.saturating_sub(1);
                last |= held.pins == 0 && held.recall.is_some();
            }
        }
        last
    }

    /// A change with this number was made under these leases. Their ranges show it, too.
    pub(super) fn touch(&mut self, inodes: impl Iterator<Item = Ino>, number: u64) {
        for ino in inodes.flat_map(|ino| [ino, range_of(ino)]) {
            if let Some(held) = self.held.get_mut(&ino) {
                held.touched = number;
            }
        }
    }

    /// Leases that came so far.
    pub(super) fn grants(&self) -> u64 {
        self.grants
    }

    /// For how long the kernel may answer for all of `inodes` on its own, if it begins now; pins them unless that is no
    /// time at all. They must have been held since `grants` leases had come, and unchanged since change `number`.
    pub(super) fn lend(
        &mut self,
        inodes: &[Ino],
        (grants, number): (u64, u64),
        now: Duration,
        longest: Duration,
    ) -> Duration {
        let mut time = longest;
        for ino in inodes {
            let Some(held) = self.held.get(ino) else {
                return Duration::ZERO;
            };
            if held.recall.is_some() || held.grant > grants || held.touched > number {
                return Duration::ZERO;
            }
            time = time.min(now.saturating_sub(held.quiet_since) / LENT_SHARE);
        }
        if time < LENT_MIN {
            return Duration::ZERO;
        }
        self.pin(inodes);
        time
    }

    /// The kernel knows, until then. Ends what [`LeaseCache::lend`] began; whether somebody may be waiting for that.
    pub(super) fn lent(&mut self, inodes: &[Ino], until: Duration) -> bool {
        for ino in inodes {
            if let Some(held) = self.held.get_mut(ino) {
                held.lent_until = held.lent_until.max(until);
            }
        }
        self.unpin(inodes)
    }

    /// Until when the kernel may answer for any of `inodes` on its own.
    pub(super) fn lent_until(&self, inodes: &[Ino]) -> Duration {
        let held = inodes.iter().filter_map(|ino| self.held.get(ino));
        held.map(|held| held.lent_until).max().unwrap_or_default()
    }

    /// An inode that was made here, and that nobody else can know.
    pub(super) fn born(&mut self, ino: Ino, now: Duration) {
        self.insert(
            Lease {
                ino,
                mode: LeaseMode::Exclusive,
            },
            0,
            now,
        );
        self.born.insert(ino);
        if let Some(held) = self.held.get_mut(&ino) {
            held.own = true;
        }
    }

    /// Whether no other node has ever had a lease of this inode, and so cannot have opened it.
    pub(super) fn is_own(&self, ino: Ino) -> bool {
        self.held.get(&ino).is_some_and(|held| held.own)
    }

    /// What the leader must be told before anyone else can come to know of inodes that were made here.
    pub(super) fn claim(&mut self) -> Option<ToLeader> {
        if self.born.is_empty() {
            return None;
        }
        let inodes = std::mem::take(&mut self.born).into_iter().collect();
        Some(ToLeader::Claim { inodes })
    }

    fn insert(&mut self, lease: Lease, since: u64, now: Duration) {
        self.grants += 1;
        match self.held.get_mut(&lease.ino) {
            Some(held) => {
                held.mode = held.mode.max(lease.mode);
                held.since = held.since.max(since);
                held.quiet_since = now;
            }
            None => {
                if self.order.len() > 2 * self.held.len() + ORDER_SLACK {
                    let held = &self.held;
                    let mut seen = HashSet::new();
                    self.order
                        .retain(|ino| held.contains_key(ino) && seen.insert(*ino));
                }
                self.order.push_back(lease.ino);
                let held = Held {
                    mode: lease.mode,
                    since,
                    pins: 0,
                    touched: 0,
                    recall: None,
                    grant: self.grants,
                    quiet_since: now,
                    lent_until: Duration::ZERO,
                    own: false,
                };
                self.held.insert(lease.ino, held);
            }
        }
    }

    /// A request for leases: what to tell the leader, and where the answer comes. It stands until it is answered, also
    /// if its caller goes away: the leader counts the leases as held from then on.
    pub(super) fn request(&mut self, leases: Vec<Lease>) -> (ToLeader, oneshot::Receiver<Granted>) {
        let (waiter, answer) = oneshot::channel();
        self.next_request += 1;
        let id = self.next_request;
        self.requests.insert(
            id,
            Request {
                leases: leases.clone(),
                waiter,
            },
        );
        (ToLeader::Acquire { id, leases }, answer)
    }

    /// The leader has granted a request: whoever waits for it gets the leases pinned. A grant that nobody waits for
    /// any more is a lease all the same.
    pub(super) fn granted(&mut self, id: u64, since: u64, now: Duration) {
        if let Some(ino) = self.tries.granted(id) {
            let mode = LeaseMode::Shared;
            return self.insert(Lease { ino, mode }, since, now);
        }
        let Some(request) = self.requests.remove(&id) else {
            return;
        };
        for lease in &request.leases {
            self.insert(*lease, since, now);
        }
        let inodes: Vec<Ino> = request.leases.iter().map(|lease| lease.ino).collect();
        self.pin(&inodes);
        if let Err(granted) = request.waiter.send(Granted { inodes, since }) {
            self.unpin(&granted.inodes);
        }
    }

    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// How many are held, shared and exclusive.
    pub(super) fn counts(&self) -> (usize, usize) {
        let modes = self.held.values().map(|held| held.mode);
        let exclusive = modes.filter(|mode| *mode == LeaseMode::Exclusive).count();
        (self.held.len() - exclusive, exclusive)
    }

    pub(super) fn holds(&self, ino: Ino) -> bool {
        self.held.contains_key(&ino)
    }

    /// Others want a lease that is held. True if somebody must see to its end. A range is closed at once: the leader may
    /// have let another node have an inode in it that was made just now.
    pub(super) fn recalled(&mut self, ino: Ino, keep: Option<LeaseMode>) -> bool {
        let Some(held) = self.held.get_mut(&ino) else {
            return false;
        };
        match &mut held.recall {
            Some(recall) => {
                recall.keep = recall.keep.min(keep);
                false
            }
            None => {
                let closing = is_range(ino);
                held.recall = Some(Recall { keep, closing });
                true
            }
        }
    }

    /// From now on nobody may begin to use a lease that is recalled. What is kept shared, the kernel may go on to know.
    pub(super) fn close(&mut self, ino: Ino, now: Duration) -> Closing {
        let Some(held) = self.held.get_mut(&ino) else {
            return Closing::Gone;
        };
        let Some(recall) = &mut held.recall else {
            return Closing::Gone;
        };
        if recall.keep.is_none() && held.lent_until > now {
            return Closing::Lent(held.lent_until - now);
        }
        recall.closing = true;
        if held.pins > 0 {
            return Closing::InUse;
        }
        Closing::Ready(if is_range(ino) { 0 } else { held.touched })
    }

    /// It may be used again until it is closed again.
    pub(super) fn reopen(&mut self, ino: Ino) {
        if let Some(recall) = self.held.get_mut(&ino).and_then(|held| held.recall.as_mut()) {
            recall.closing = false;
        }
    }

    /// A recalled lease has come to its end.
    pub(super) fn release(&mut self, ino: Ino, now: Duration) -> Option<ToLeader> {
        let held = self.held.get_mut(&ino)?;
        let keep = held.recall.take()?.keep.filter(|keep| *keep < held.mode);
        held.quiet_since = now;
        match keep {
            Some(mode) => {
                held.mode = mode;
                held.own = false;
            }
            None => {
                self.held.remove(&ino);
            }
        }
        Some(ToLeader::Release {
            leases: vec![(ino, keep)],
        })
    }

    /// Gives up what nobody uses until at most `leases_max` are held; nothing of which `is_needed` says, by its inode
    /// and the number of the last change, that it is used all the same.
    pub(super) fn evict(
        &mut self,
        leases_max: usize,
        now: Duration,
        is_needed: impl Fn(Ino, u64) -> bool,
    ) -> Option<ToLeader> {
        let mut leases = Vec::new();
        let mut looked_at = self.order.len();
        while self.held.len() > leases_max && looked_at > 0 {
            looked_at -= 1;
            let Some(ino) = self.order.pop_front() else {
                break;
            };
            let Some(held) = self.held.get(&ino) else {
                continue;
            };
            let in_use = held.pins > 0 || held.lent_until > now;
            let needed = !is_range(ino) && is_needed(ino, held.touched);
            if in_use || held.recall.is_some() || needed {
                self.order.push_back(ino);
                continue;
            }
            self.held.remove(&ino);
            if !self.born.remove(&ino) {
                leases.push((ino, None));
            }
        }
        (!leases.is_empty()).then_some(ToLeader::Release { leases })
    }

    /// For a leader that knows nothing of this node: all that is held, and the requests that it is to answer.
    pub(super) fn reconnected(&mut self) -> (Vec<Lease>, Vec<ToLeader>) {
        self.born.clear();
        let lease = |(ino, held): (&Ino, &Held)| Lease {
            ino: *ino,
            mode: held.mode,
        };
        let requests = self.requests.iter().map(|(id, request)| ToLeader::Acquire {
            id: *id,
            leases: request.leases.clone(),
        });
        (self.held.iter().map(lease).collect(), requests.collect())
    }

    /// Leases that this node does not have after all.
    pub(super) fn drop_held(&mut self, inodes: &[Ino]) {
        for ino in inodes {
            self.held.remove(ino);
        }
    }

    /// All leases are gone, and nobody answers the requests.
    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.order.clear();
        self.born.clear();
        self.requests.clear();
        self.tries.clear();
    }
}

#[cfg(test)]
mod tests;
