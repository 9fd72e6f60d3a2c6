//! One proposal on its way into the state.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::kv::KvError;
use crate::meta::keys::{self, Counter};
use crate::meta::types::*;
use crate::meta::{Event, FileState, MetaError, ProjectId, Proposal, Refusal, Txn, tables, value};

use super::projects::Projects;
use super::refs::RefChanges;

/// Why a step ended early.
#[derive(Debug)]
pub(super) enum Fail {
    /// The proposal is refused; what it has changed so far is rolled back.
    Refused(MetaError),
    /// The engine failed.
    Kv(KvError),
}

impl From<KvError> for Fail {
    fn from(error: KvError) -> Self {
        Self::Kv(error)
    }
}

impl From<MetaError> for Fail {
    fn from(error: MetaError) -> Self {
        Self::Refused(error)
    }
}

impl From<Refusal> for Fail {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.into())
    }
}

/// A defect of the proposer.
pub(super) fn malformed(what: &str) -> Fail {
    MetaError::Malformed(what.into()).into()
}

/// Refuses a time that cannot be.
pub(super) fn check_time(time: Timestamp) -> Result<(), Fail> {
    if time.nsec > 999_999_999 {
        return Err(malformed("a time has too many nanoseconds"));
    }
    Ok(())
}

/// On whose behalf a step is done, and when: what it needs to know of its proposal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    pub(super) log_index: u64,
    pub(super) session: SessionId,
    pub(super) time: Timestamp,
    pub(super) payload_len: u64,
    /// Runs ahead of the log, on a node's [`crate::meta::Overlay`]. Extents, chunk references and totals are then left
    /// alone, and reserved numbers of inodes need not be known to the state yet.
    pub(super) speculative: bool,
    /// Refused if a project then uses more than it may. What a node has acknowledged is not.
    pub(super) enforced: bool,
}

impl Context {
    pub(super) fn new(log_index: u64, proposal: &Proposal) -> Self {
        Self {
            log_index,
            session: proposal.session,
            time: proposal.time,
            payload_len: proposal.payload.len() as u64,
            speculative: false,
            enforced: proposal.session != SessionId::SYSTEM,
        }
    }
}

/// What the step has done to an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// Read it.
    None,
    /// Changed bookkeeping that nobody outside sees.
    Silent,
    /// Changed attributes: ctime moved.
    Attributes,
    /// Changed contents: mtime and ctime moved.
    Contents,
}

struct Held {
    inode: Inode,
    change: Change,
}

/// The state as one operation sees and changes it. Inodes, reference counts and totals are gathered and written once,
/// by [`Step::finish`]; everything else goes into the transaction at once.
pub(super) struct Step<'a, 'b> {
    pub(super) txn: &'a mut Txn<'b>,
    pub(super) context: Context,
    pub(super) events: Vec<Event>,
    pub(super) refs: RefChanges,
    pub(super) projects: Projects,
    inodes: BTreeMap<Ino, Held>,
    /// Changes of the totals.
    inodes_delta: i64,
    allocated_delta: i64,
}

impl<'a, 'b> Step<'a, 'b> {
    pub(super) fn new(txn: &'a mut Txn<'b>, context: Context) -> Result<Self, Fail> {
        check_time(context.time)?;
        Ok(Self {
            txn,
            context,
            events: Vec::new(),
            refs: RefChanges::default(),
            projects: Projects::default(),
            inodes: BTreeMap::new(),
            inodes_delta: 0,
            allocated_delta: 0,
        })
    }

    pub(super) fn time(&self) -> Timestamp {
        self.context.time
    }

    fn held(&mut self, ino: Ino) -> Result<Option<&mut Held>, KvError> {
        if !self.inodes.contains_key(&ino) {
            let Some(inode) = tables::inode(self.txn, ino)? else {
                return Ok(None);
            };
            self.inodes.insert(
                ino,
                Held {
                    inode,
                    change: Change::None,
                },
            );
        }
        Ok(self.inodes.get_mut(&ino))
    }

    /// The inode as the step has it by now.
    pub(super) fn find(&mut self, ino: Ino) -> Result<Option<Inode>, KvError> {
        Ok(self.held(ino)?.map(|held| held.inode.clone()))
    }

    /// As [`Step::find`], for an inode that the caller has a handle of: ESTALE if it is gone.
    pub(super) fn inode(&mut self, ino: Ino) -> Result<Inode, Fail> {
        self.find(ino)?.ok_or_else(|| Refusal::Stale.into())
    }

    /// As [`Step::inode`], for a regular file.
    pub(super) fn file(&mut self, ino: Ino) -> Result<Inode, Fail> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Regular => Ok(inode),
            FileKind::Directory => Err(Refusal::IsDirectory.into()),
            _ => Err(Refusal::Invalid.into()),
        }
    }

    /// As [`Step::find`], for a directory in which a name is looked for: ENOENT if it is gone or removed.
    pub(super) fn directory(&mut self, ino: Ino) -> Result<Inode, Fail> {
        match self.find(ino)? {
            None => Err(Refusal::NotFound.into()),
            Some(inode) if inode.kind != FileKind::Directory => Err(Refusal::NotDirectory.into()),
            Some(inode) if inode.nlink == 0 => Err(Refusal::NotFound.into()),
            Some(inode) => Ok(inode),
        }
    }

    /// The inode, to be changed without any of its times moving.
    pub(super) fn edit(&mut self, ino: Ino) -> Result<&mut Inode, Fail> {
        let held = self.held(ino)?.ok_or(Refusal::Stale)?;
        held.change = held.change.max(Change::Silent);
        Ok(&mut held.inode)
    }

    /// Moves ctime.
    pub(super) fn attributes_changed(&mut self, ino: Ino) -> Result<(), Fail> {
        let time = self.time();
        let held = self.held(ino)?.ok_or(Refusal::Stale)?;
        if held.change < Change::Attributes {
            held.change = Change::Attributes;
            held.inode.ctime = time.max(held.inode.ctime.successor());
        }
        Ok(())
    }

    /// Moves mtime and ctime.
    pub(super) fn contents_changed(&mut self, ino: Ino) -> Result<(), Fail> {
        self.attributes_changed(ino)?;
        let time = self.time();
        let held = self.held(ino)?.ok_or(Refusal::Stale)?;
        if held.change < Change::Contents {
            held.change = Change::Contents;
            let inode = &mut held.inode;
            let mut mtime = time.max(inode.contents_time.successor());
            if mtime == inode.mtime {
                mtime = mtime.successor();
            }
            inode.mtime = mtime;
            inode.contents_time = mtime;
            inode.data_version = inode.data_version.wrapping_add(1);
        }
        Ok(())
    }

    /// Sets what writing changes, as the node that has written shows it.
    pub(super) fn contents_flushed(&mut self, ino: Ino, state: &FileState) -> Result<(), Fail> {
        let held = self.held(ino)?.ok_or(Refusal::Stale)?;
        held.change = Change::Contents;
        let inode = &mut held.inode;
        inode.size = state.size;
        inode.mode = state.mode;
        inode.mtime = state.mtime;
        inode.ctime = inode.ctime.max(state.ctime);
        inode.contents_time = inode.contents_time.max(state.contents_time);
        inode.data_version = state.data_version;
        Ok(())
    }

    /// Clears setuid, and setgid if group-executable, of anything but a directory.
    pub(super) fn kill_suid_sgid(&mut self, ino: Ino) -> Result<(), Fail> {
        let inode = self.inode(ino)?;
        let killed = if inode.mode & 0o010 == 0 { 0o4000 } else { 0o6000 };
        if inode.kind != FileKind::Directory && inode.mode & killed != 0 {
            self.edit(ino)?.mode &= !killed;
            self.attributes_changed(ino)?;
        }
        Ok(())
    }

    /// Takes the next `count` numbers of a counter that starts at `first`; the first of them.
    pub(super) fn count(&mut self, counter: Counter, first: u64, count: u32) -> Result<u64, Fail> {
        let number = tables::counter(self.txn, counter)?.unwrap_or(first);
        let next = add("a counter", number, i64::from(count))?;
        self.txn.put(keys::counter(counter).into(), value::encode(&next)?);
        Ok(number)
    }

    /// Adds an inode; its times are already right.
    pub(super) fn add_inode(&mut self, inode: Inode) {
        self.count_inodes(inode.project, 1, 0);
        self.inodes.insert(
            inode.ino,
            Held {
                inode,
                change: Change::Silent,
            },
        );
    }

    /// Frees an inode's record; it has no extents any more.
    pub(super) fn remove_inode(&mut self, ino: Ino) -> Result<(), Fail> {
        if let Some(inode) = self.find(ino)? {
            self.count_inodes(inode.project, -1, 0);
        }
        self.inodes.remove(&ino);
        self.txn.delete(keys::inode(ino).into());
        Ok(())
    }

    /// Counts inodes and bytes that there are more (or fewer), in all and in a project.
    pub(super) fn count_inodes(&mut self, project: ProjectId, inodes: i64, bytes: i64) {
        self.inodes_delta = self.inodes_delta.saturating_add(inodes);
        self.allocated_delta = self.allocated_delta.saturating_add(bytes);
        self.projects.charge(project, inodes, bytes);
    }

    /// Counts bytes that an inode's extents cover more (or less) than before.
    pub(super) fn allocated(&mut self, ino: Ino, bytes: i64) -> Result<(), Fail> {
        let inode = self.edit(ino)?;
        inode.allocated_bytes = add("an inode's allocated bytes", inode.allocated_bytes, bytes)?;
        let project = inode.project;
        self.count_inodes(project, 0, bytes);
        Ok(())
    }

    /// Writes what was gathered; the events of the step.
    pub(super) fn finish(mut self) -> Result<Vec<Event>, Fail> {
        let by = self.context.session;
        for (ino, held) in std::mem::take(&mut self.inodes) {
            if held.change == Change::None {
                continue;
            }
            self.txn
                .put(keys::inode(ino).into(), value::encode_inode(&held.inode)?);
            match held.change {
                Change::Contents if held.inode.kind == FileKind::Regular => {
                    self.events.push(Event::Data { ino, by });
                }
                Change::Contents | Change::Attributes => self.events.push(Event::Attr { ino, by }),
                Change::None | Change::Silent => {}
            }
        }
        let totals_change = self.inodes_delta != 0 || self.allocated_delta != 0;
        if totals_change && !self.context.speculative {
            let mut usage = tables::usage(self.txn)?;
            usage.inodes = add("the count of inodes", usage.inodes, self.inodes_delta)?;
            usage.allocated_bytes = add("the allocated bytes", usage.allocated_bytes, self.allocated_delta)?;
            self.txn
                .put(keys::counter(Counter::Usage).into(), value::encode(&usage)?);
        }
        if !self.context.speculative {
            self.projects.finish(self.txn, self.context.enforced)?;
        }
        self.refs.commit(self.txn, &mut self.events)?;
        Ok(self.events)
    }
}

/// A count that moves; one that would leave its range shows that the state is damaged.
pub(super) fn add(what: &str, count: u64, delta: i64) -> Result<u64, KvError> {
    let sum = count.checked_add_signed(delta);
    sum.ok_or_else(|| KvError::Damaged(format!("{what} is {count} and was to change by {delta}")))
}
