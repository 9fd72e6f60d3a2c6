//! Sessions: who may still propose, and what was answered.

use crate::kv::KvError;
use crate::meta::types::*;
use crate::meta::{Event, MetaError, Proposal, Refusal, Reply, Txn, keys, tables, value};

use super::step::{Fail, Step};

/// Answers that are kept for a session: its proposals between `ack_floor` and the newest, at most.
pub(crate) const ANSWERS_MAX: u64 = 16_384;

/// What an earlier proposal was answered, as it is kept.
type Answer = Result<Reply, MetaError>;

/// Whether a proposal is to be applied.
pub(super) enum Admission {
    /// Yes.
    Admitted,
    /// No: this is the answer.
    Answered(Box<Answer>),
}

/// Checks a proposal against its session, and moves the session's floors.
pub(super) fn admit(txn: &mut Txn<'_>, proposal: &Proposal) -> Result<Admission, KvError> {
    if proposal.session == SessionId::SYSTEM {
        return Ok(Admission::Admitted);
    }
    let refuse = |error| Ok(Admission::Answered(Box::new(Err(error))));
    let Some(mut session) = tables::session(txn, proposal.session)? else {
        return refuse(MetaError::SessionExpired(proposal.session));
    };
    let ack_floor = session.ack_floor.max(proposal.ack_floor);
    if proposal.seq == 0
        || proposal.ack_floor > proposal.seq
        || proposal.seq - ack_floor.min(proposal.seq) >= ANSWERS_MAX
    {
        return refuse(MetaError::Malformed("the sequence number is out of range".into()));
    }
    if proposal.seq < session.ack_floor {
        return refuse(MetaError::Stale);
    }
    if let Some(coded) = txn.get(&keys::answer(proposal.session, proposal.seq))? {
        let answer = value::decode_answer(&coded)?;
        return Ok(Admission::Answered(Box::new(
            answer.unwrap_or(Err(MetaError::Stale)),
        )));
    }
    let chunk_floor = session.chunk_floor.max(proposal.chunk_floor);
    if (ack_floor, chunk_floor) != (session.ack_floor, session.chunk_floor) {
        let known_end = session.ack_floor.saturating_add(ANSWERS_MAX);
        for seq in session.ack_floor..ack_floor.min(known_end) {
            txn.delete(keys::answer(session.id, seq).into());
        }
        session.ack_floor = ack_floor;
        session.chunk_floor = chunk_floor;
        txn.put(keys::session(session.id).into(), value::encode(&session)?);
    }
    Ok(Admission::Admitted)
}

/// Keeps the answer for a repeat of the proposal.
pub(super) fn remember(txn: &mut Txn<'_>, proposal: &Proposal, answer: &Answer) -> Result<(), KvError> {
    // The proposal itself may have ended its session.
    if proposal.session != SessionId::SYSTEM && tables::session(txn, proposal.session)?.is_some() {
        txn.put(
            keys::answer(proposal.session, proposal.seq).into(),
            value::encode_answer(answer)?,
        );
    }
    Ok(())
}

/// Refuses a chunk whose bytes may be gone: its session has ended, or has given it up.
pub(super) fn check_chunk(txn: &Txn<'_>, id: ChunkId) -> Result<(), Fail> {
    let owner = SessionId(id.session);
    let session = tables::session(txn, owner)?.ok_or(MetaError::SessionExpired(owner))?;
    if id.seq < session.chunk_floor {
        return Err(MetaError::Malformed(format!("chunk {id} was given up by its writer")).into());
    }
    Ok(())
}

pub(super) fn open(step: &mut Step<'_, '_>, node: NodeId) -> Result<Reply, Fail> {
    tables::node(step.txn, node)?.ok_or(Refusal::NotFound)?;
    step.expire_sessions_of(node)?;
    let id = SessionId(step.context.log_index);
    let session = Session {
        id,
        node,
        ack_floor: 1,
        chunk_floor: 0,
    };
    step.txn.put(keys::session(id).into(), value::encode(&session)?);
    Ok(Reply::Session(id))
}

pub(super) fn expire(step: &mut Step<'_, '_>, session: SessionId) -> Result<Reply, Fail> {
    if tables::session(step.txn, session)?.is_some() {
        step.expire_session(session)?;
    }
    Ok(Reply::Done)
}

impl Step<'_, '_> {
    fn expire_session(&mut self, session: SessionId) -> Result<(), Fail> {
        for ino in tables::locked_inodes(self.txn, session)? {
            self.drop_locks(ino, Some(session))?;
        }
        self.delete_all(&keys::answers(session))?;
        self.txn.delete(keys::session(session).into());
        self.events.push(Event::SessionExpired { session });
        Ok(())
    }

    pub(super) fn expire_sessions_of(&mut self, node: NodeId) -> Result<(), Fail> {
        for session in tables::sessions(self.txn)? {
            if session.node == node {
                self.expire_session(session.id)?;
            }
        }
        Ok(())
    }
}
