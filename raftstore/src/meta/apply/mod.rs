//! What each proposal does to the state: one file for each family of operations.

mod acl;
mod attributes;
mod batch;
mod cluster;
mod data;
mod extents;
mod flush;
mod locks;
mod merge;
mod namespace;
mod projects;
mod prune;
mod quota;
mod reap;
mod refs;
mod rename;
mod sessions;
mod step;
#[cfg(test)]
mod tests;
mod tree;
mod tree_page;
mod volumes;
mod xattr;

use super::{Event, MetaError, Op, Proposal, Reply, Txn};
use crate::kv::KvError;
use sessions::Admission;
use step::{Context, Fail, Step, malformed};

/// Applies one proposal: a pure function of what `txn` shows and of the proposal.
///
/// A refused proposal changes nothing but its session's bookkeeping. Events are appended to `events`.
pub(crate) fn apply(
    txn: &mut Txn<'_>,
    log_index: u64,
    proposal: &Proposal,
    events: &mut Vec<Event>,
) -> Result<Result<Reply, MetaError>, KvError> {
    match sessions::admit(txn, proposal)? {
        Admission::Admitted => {}
        Admission::Answered(answer) => return Ok(*answer),
    }
    let context = Context::new(log_index, proposal);
    let answer = match &proposal.op {
        Op::Batch { items } => batch::apply(txn, context, items, events)?,
        op => attempt(txn, context, op, events)?,
    };
    sessions::remember(txn, proposal, &answer)?;
    Ok(answer)
}

/// As [`apply`], ahead of the log and for one operation: nobody is admitted and nothing remembered. Extents, chunk
/// references and totals stay as they are.
pub(crate) fn speculate(
    txn: &mut Txn<'_>,
    proposal: &Proposal,
    events: &mut Vec<Event>,
) -> Result<Result<Reply, MetaError>, KvError> {
    if !proposal.op.can_be_batched() && !matches!(proposal.op, Op::Write { .. }) {
        let what = "this operation cannot run ahead of the log".into();
        return Ok(Err(MetaError::Malformed(what)));
    }
    let context = Context {
        speculative: true,
        ..Context::new(0, proposal)
    };
    attempt(txn, context, &proposal.op, events)
}

/// Runs an operation, and takes back what it has changed if it is refused.
fn attempt(
    txn: &mut Txn<'_>,
    context: Context,
    op: &Op,
    events: &mut Vec<Event>,
) -> Result<Result<Reply, MetaError>, KvError> {
    let start = txn.savepoint();
    match run(txn, context, op) {
        Ok((reply, caused)) => {
            events.extend(caused);
            Ok(Ok(reply))
        }
        Err(Fail::Refused(error)) => {
            txn.rollback(start);
            Ok(Err(error))
        }
        Err(Fail::Kv(error)) => Err(error),
    }
}

fn run(txn: &mut Txn<'_>, context: Context, op: &Op) -> Result<(Reply, Vec<Event>), Fail> {
    let mut step = Step::new(txn, context)?;
    let reply = dispatch(&mut step, op)?;
    Ok((reply, step.finish()?))
}

fn dispatch(step: &mut Step<'_, '_>, op: &Op) -> Result<Reply, Fail> {
    match op {
        Op::OpenSession { node } => sessions::open(step, *node),
        Op::ExpireSession { session } => sessions::expire(step, *session),
        Op::Create {
            parent,
            name,
            new,
            exclusive,
            ino,
        } => namespace::create(step, *parent, name, new, *exclusive, *ino),
        Op::Link { ino, parent, name } => namespace::link(step, *ino, *parent, name),
        Op::Unlink { parent, name } => namespace::unlink(step, *parent, name),
        Op::Rmdir { parent, name } => namespace::rmdir(step, *parent, name),
        Op::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
        } => rename::rename(step, (*parent, name), (*new_parent, new_name), *mode),
        Op::SetAttr { ino, change } => attributes::set(step, *ino, change),
        Op::Write {
            ino,
            at,
            data,
            kill_suid_sgid,
        } => data::write(step, *ino, *at, *data, *kill_suid_sgid),
        Op::Fallocate {
            ino,
            what,
            offset,
            len,
        } => data::fallocate(step, *ino, *what, *offset, *len),
        Op::CopyRange {
            source,
            source_offset,
            target,
            target_offset,
            len,
        } => data::copy_range(step, (*source, *source_offset), (*target, *target_offset), *len),
        Op::SetXattr {
            ino,
            name,
            value,
            mode,
            kill_sgid,
        } => xattr::set(step, *ino, name, value, *mode, *kill_sgid),
        Op::RemoveXattr { ino, name } => xattr::remove(step, *ino, name),
        Op::Lock { ino, lock } => locks::lock(step, *ino, *lock),
        Op::Unlock {
            ino,
            owner,
            start,
            end,
        } => locks::unlock(step, *ino, *owner, *start, *end),
        Op::Reap { inodes } => reap::reap(step, inodes),
        Op::Merge { ino, runs } => merge::merge(step, *ino, runs),
        Op::InitCluster(info) => cluster::init(step, info),
        Op::AddNode {
            name,
            listen,
            token_hash,
        } => cluster::add_node(step, name, listen, *token_hash),
        Op::UpdateNode(info) => cluster::update_node(step, info),
        Op::RemoveNode { node } => cluster::remove_node(step, *node),
        Op::SetPlacement { group, nodes } => cluster::set_placement(step, *group, nodes),
        Op::AddToken { hash, valid_s } => cluster::add_token(step, hash, *valid_s),
        Op::ExpireToken { hash } => cluster::expire_token(step, hash),
        Op::ReserveInodes { count } => namespace::reserve(step, *count),
        Op::Batch { .. } => Err(malformed("a batch is in a batch")),
        Op::Flush {
            ino,
            cut,
            pieces,
            state,
        } => flush::flush(step, *ino, *cut, pieces, state),
        Op::Volume(op) => volumes::run(step, op),
    }
}
