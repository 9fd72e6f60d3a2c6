//! Quotas, where writes are acknowledged: on this node, before they are done.

use std::collections::BTreeSet;
use std::time::Duration;

use raftstore::kv::KvError;
use raftstore::meta::{
    Ino, Inode, MetaError, NO_PROJECT, Op, Project, ProjectId, Reader, Refusal, Usage, WriteAt,
};

use super::core::{Attempt, Core, Wish};
use crate::backend::BackendError;

/// Closer than this to its limit, a project is *close*: what is pending of it is pushed soon. More than all nodes
/// together can have pending, so that nobody goes far beyond a limit of which others have used what is left.
const CLOSE_BYTES: u64 = 64 << 20;
/// The same in inodes.
const CLOSE_INODES: u64 = 65_536;
/// What is pending of a close project is pushed when it is as old as this, and the flusher has looked.
const CLOSE_AGE_MAX: Duration = Duration::from_millis(250);
/// Extents that are looked at to see whether a write takes more room; a range in more pieces counts as a whole.
const EXTENTS_MAX: usize = 256;

impl Core {
    /// What keeps a change from being done here because of a quota; `None` if nothing does.
    pub(super) fn check_quota(&self, wish: &Wish<'_>) -> Result<Option<Attempt>, BackendError> {
        match wish.op {
            Op::Write { ino, at, .. } => {
                let Some((inode, project)) = self.limited(*ino)? else {
                    return Ok(None);
                };
                let offset = match at {
                    WriteAt::Offset(offset) => *offset,
                    WriteAt::Append => inode.size,
                };
                let len = u64::try_from(wish.payload.len()).unwrap_or(u64::MAX);
                Ok(self.check_bytes(&inode, &project, offset, len)?)
            }
            Op::Create { parent, name, .. } => {
                let Some((_, project)) = self.limited(*parent)? else {
                    return Ok(None);
                };
                if project.limits.inodes == 0 || self.reader_ref().lookup(*parent, name)?.is_some() {
                    return Ok(None);
                }
                let pending = self.pending.of_project(project.id).inodes;
                if project.usage.inodes.saturating_add(pending) < project.limits.inodes {
                    return Ok(None);
                }
                Ok(Some(self.over(project.id, pending > 0)))
            }
            _ => Ok(None),
        }
    }

    /// The inode and its project, if that has a limit.
    fn limited(&self, ino: Ino) -> Result<Option<(Inode, Project)>, KvError> {
        let reader = self.reader_ref();
        let Some(inode) = reader.inode(ino)?.filter(|inode| inode.project != NO_PROJECT) else {
            return Ok(None);
        };
        let project = reader.project(inode.project)?;
        let limited = project.filter(|project| project.limits.any());
        Ok(limited.map(|project| (inode, project)))
    }

    fn check_bytes(
        &self,
        inode: &Inode,
        project: &Project,
        offset: u64,
        len: u64,
    ) -> Result<Option<Attempt>, KvError> {
        let limit = project.limits.bytes;
        let pending = self.pending.of_project(project.id).allocated_bytes;
        let used = project.usage.allocated_bytes;
        if limit == 0 || used.saturating_add(pending).saturating_add(len) <= limit {
            return Ok(None);
        }
        // What takes the place of other bytes takes no more room, as a database's writes do as a rule.
        let end = offset.saturating_add(len);
        let written = self.pending.unflushed(inode.ino, offset, end);
        let more = new_bytes(self.reader_ref(), inode.ino, (offset, end), written.written())?;
        if more == 0 || used.saturating_add(pending).saturating_add(more) <= limit {
            return Ok(None);
        }
        let not_by_itself = used.saturating_add(more) <= limit;
        Ok(Some(self.over(project.id, pending > 0 && not_by_itself)))
    }

    /// A change would go beyond the limit, if what is pending is as much as it may be.
    fn over(&self, project: ProjectId, is_pending: bool) -> Attempt {
        if is_pending {
            Attempt::Push(self.pending.files_of_project(project))
        } else {
            Attempt::Refused(MetaError::Refused(Refusal::QuotaExceeded))
        }
    }

    /// Whether something is to be pushed now so that the other nodes know how little of a quota is left.
    pub(super) fn presses(&self, now: Duration) -> Result<bool, KvError> {
        for (id, since) in self.pending.projects() {
            if now.saturating_sub(since) < CLOSE_AGE_MAX {
                continue;
            }
            let pending = self.pending.of_project(id);
            if self
                .reader_ref()
                .project(id)?
                .is_some_and(|project| is_close(&project, pending))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn is_close(project: &Project, pending: Usage) -> bool {
    let close = |limit: u64, used: u64, pending: u64, margin: u64| {
        limit > 0 && used.saturating_add(pending).saturating_add(margin) > limit
    };
    let Project { limits, usage, .. } = project;
    close(
        limits.bytes,
        usage.allocated_bytes,
        pending.allocated_bytes,
        CLOSE_BYTES,
    ) || close(limits.inodes, usage.inodes, pending.inodes, CLOSE_INODES)
}

/// Bytes of `start..end` of a file that neither its extents have nor `written` (offsets and lengths) names.
fn new_bytes(
    reader: &Reader,
    ino: Ino,
    (start, end): (u64, u64),
    written: impl Iterator<Item = (u64, u64)>,
) -> Result<u64, KvError> {
    let extents = reader.extents(ino, start, end, EXTENTS_MAX)?;
    if extents.len() >= EXTENTS_MAX {
        return Ok(end - start);
    }
    let there = extents.iter().map(|extent| (extent.offset, extent.len));
    let ranges: BTreeSet<(u64, u64)> = there.chain(written).collect();
    let (mut at, mut new) = (start, 0);
    for (offset, len) in ranges {
        new += offset.min(end).saturating_sub(at);
        at = at.max(offset.saturating_add(len));
    }
    Ok(new + end.saturating_sub(at))
}
