//! Replaying the live segments.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::JournalError;
use super::batch::{HeadState, PurgeBody, SealBody, records};
use super::format::{FRAME_HEADER_BYTES, FRAMES_OFFSET, FrameKind, Record, RecordKind};
use super::log::{Log, Place, Slot, log_id};
use super::recovery::{TornTail, read_frame};
use super::scan::{self, Frame};
use super::segment::Life;
use super::writer::Tail;
use crate::raft::{Entry, LogId, Vote};

/// What the frames come to.
pub(super) struct Replay {
    pub(super) log: Log,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) frames: u64,
    pub(super) torn_tail: Option<TornTail>,
    pub(super) end: End,
    next_sequence: u64,
}

/// Where they end.
pub(super) struct End {
    pub(super) life: Arc<Life>,
    /// Where the next frame goes.
    pub(super) offset: u64,
    pub(super) last_frame: Frame,
    pub(super) last_frame_offset: u64,
    /// Where in the previous segment the seal belongs, if it cannot be known to be durable: while there is only one
    /// frame after it.
    pub(super) reseal_at: Option<u64>,
}

/// How the replay of one segment ended.
struct SegmentEnd {
    /// One past the last frame.
    offset: u64,
    /// The generation that the seal there names, if there is one.
    sealed: Option<u64>,
    frames: u64,
    last: Option<(u64, Frame)>,
}

impl Replay {
    /// Replays `live`, sorted by generation, of which the oldest must be of generation `oldest`.
    pub(super) fn run(live: &[Arc<Life>], oldest: u64) -> Result<Self, JournalError> {
        let (Some(first), Some(newest)) = (live.first(), live.last()) else {
            return Err(JournalError::Missing("the journal's directory".into()));
        };
        if first.generation != oldest {
            return Err(first.damaged(
                0,
                format!("the segment before it (generation {oldest}) is missing"),
            ));
        }
        let mut state = State::begin(first)?;
        let mut reseal_at = None;
        for (at, life) in live.iter().enumerate() {
            let end = state.replay_segment(life, at == 0)?;
            let Some(next) = live.get(at + 1) else {
                let (last_frame_offset, last_frame) = end
                    .last
                    .ok_or_else(|| life.damaged(FRAMES_OFFSET, "it holds no frame"))?;
                if end.frames > 1 {
                    reseal_at = None;
                }
                let torn_tail = state.check_tail(life, end.offset, end.sealed)?;
                let offset = end.offset;
                let end = End {
                    life: Arc::clone(life),
                    offset,
                    last_frame,
                    last_frame_offset,
                    reseal_at,
                };
                return state.finish(newest, torn_tail, end);
            };
            state.check_transition(life, next, &end, at + 2 == live.len())?;
            reseal_at = Some(end.offset);
        }
        Err(newest.damaged(0, "the segments do not follow one another"))
    }

    /// Where the writer goes on.
    pub(super) fn tail(&self) -> Tail {
        let bounds = *self.log.bounds();
        Tail {
            life: Arc::clone(&self.end.life),
            offset: self.end.offset,
            sequence: self.next_sequence,
            oldest_generation: self.end.last_frame.header.oldest_generation,
            committed: self.committed,
            state: HeadState {
                bounds,
                vote: self.vote,
                committed_end: self.log.committed_end().min(bounds.next),
            },
        }
    }
}

/// The replay under way.
struct State {
    log: Log,
    vote: Option<Vote>,
    committed: Option<LogId>,
    frames: u64,
    /// Number of the frame that must come next.
    next_sequence: u64,
}

impl State {
    /// Begins with what stands at the head of the oldest segment.
    fn begin(first: &Life) -> Result<Self, JournalError> {
        let frame = read_frame(first, FRAMES_OFFSET)?
            .ok_or_else(|| first.damaged(FRAMES_OFFSET, "the first frame is not intact"))?;
        let head = records(frame.header, frame.body(), first.seed)
            .next()
            .flatten()
            .filter(|(_, record)| record.header.kind == RecordKind::State)
            .ok_or_else(|| {
                first.damaged(
                    FRAMES_OFFSET,
                    "the segment does not begin with the journal's state",
                )
            })?;
        let head: HeadState = decode(first, FRAMES_OFFSET, &head.1)?;
        Ok(Self {
            log: Log::resume(head.bounds, head.committed_end),
            vote: head.vote,
            committed: None,
            frames: 0,
            next_sequence: frame.header.sequence,
        })
    }

    /// Replays frames until there is no intact one, or a seal.
    fn replay_segment(&mut self, life: &Life, is_first: bool) -> Result<SegmentEnd, JournalError> {
        let mut end = SegmentEnd {
            offset: FRAMES_OFFSET,
            sealed: None,
            frames: 0,
            last: None,
        };
        while let Some(frame) = read_frame(life, end.offset)? {
            if frame.header.sequence != self.next_sequence {
                let detail = format!(
                    "frame {} is here, where {} must be",
                    frame.header.sequence, self.next_sequence
                );
                return Err(life.damaged(end.offset, detail));
            }
            if frame.header.kind == FrameKind::Seal {
                let seal = SealBody::decode(frame.body())
                    .ok_or_else(|| life.damaged(end.offset, "the seal makes no sense"))?;
                end.sealed = Some(seal.next_generation);
                break;
            }
            self.replay_frame(life, end.offset, &frame, is_first && end.frames == 0)?;
            let next = end.offset + frame.header.total_bytes();
            end.last = Some((end.offset, frame));
            end.offset = next;
            end.frames += 1;
            self.frames += 1;
            self.next_sequence += 1;
        }
        Ok(end)
    }

    fn replay_frame(
        &mut self,
        life: &Life,
        offset: u64,
        frame: &Frame,
        is_first: bool,
    ) -> Result<(), JournalError> {
        let base = offset + FRAME_HEADER_BYTES as u64;
        for found in records(frame.header, frame.body(), life.seed) {
            let (at, record) =
                found.ok_or_else(|| life.damaged(offset, "the frame's records make no sense"))?;
            self.replay_record(life, base + at as u64, &record, is_first)?;
        }
        if let Some((term, index)) = frame.header.committed {
            let id = log_id(term, index);
            if self.log.note_committed(id) {
                self.committed = Some(id);
            }
        }
        Ok(())
    }

    fn replay_record(
        &mut self,
        life: &Life,
        offset: u64,
        record: &Record<'_>,
        is_first: bool,
    ) -> Result<(), JournalError> {
        match record.header.kind {
            RecordKind::Entry => {
                let entry: Entry = decode(life, offset, record)?;
                if entry.log_id.index != record.header.index {
                    return Err(life.damaged(offset, "the entry has another index than its record"));
                }
                let place = u32::try_from(offset)
                    .map_err(|_| life.damaged(offset, "the segment is larger than segments are"))?;
                let slot = Slot {
                    term: entry.log_id.leader_id.term,
                    place: Place::At {
                        generation: life.generation,
                        offset: place,
                    },
                    body_bytes: record.header.body_bytes,
                    payload_bytes: record.header.payload_bytes,
                };
                self.log
                    .push(record.header.index, slot)
                    .map_err(|error| life.damaged(offset, error.to_string()))?;
            }
            RecordKind::Vote => self.vote = Some(decode(life, offset, record)?),
            RecordKind::TruncateAfter => self.log.truncate_after(decode(life, offset, record)?),
            RecordKind::Purge => {
                let purge: PurgeBody = decode(life, offset, record)?;
                self.log.purge(purge.upto, purge.trusted_end);
            }
            RecordKind::State => {
                let head: HeadState = decode(life, offset, record)?;
                if !is_first && (head.bounds != *self.log.bounds() || head.vote != self.vote) {
                    return Err(life.damaged(offset, "the state here is not what the segments before it say"));
                }
            }
        }
        Ok(())
    }

    /// Checks that the log goes on from `life`, where it ended with `end`, in `next`.
    fn check_transition(
        &self,
        life: &Life,
        next: &Life,
        end: &SegmentEnd,
        next_is_newest: bool,
    ) -> Result<(), JournalError> {
        if let Some(generation) = end.sealed {
            if generation != next.generation {
                let detail = format!("the segment that follows (generation {generation}) is missing");
                return Err(life.damaged(end.offset, detail));
            }
            return Ok(());
        }
        // Without a seal: the power may have gone after the next segment's first frame, but then there is no second.
        let first = read_frame(next, FRAMES_OFFSET)?;
        let first = first.ok_or_else(|| next.damaged(FRAMES_OFFSET, "the first frame is not intact"))?;
        let second_at = FRAMES_OFFSET + first.header.total_bytes();
        let second = find_later(next, second_at, first.header.sequence + 1)?;
        if next_is_newest && second.is_none() && first.header.sequence == self.next_sequence {
            return Ok(());
        }
        let detail = format!("a frame is not intact, but the log goes on in {}", next.name());
        Err(life.damaged(end.offset, detail))
    }

    /// Checks that the newest segment's end at `offset` is where the log ends, not where it is damaged.
    fn check_tail(
        &self,
        life: &Life,
        offset: u64,
        sealed: Option<u64>,
    ) -> Result<Option<TornTail>, JournalError> {
        if let Some(generation) = sealed {
            let detail = format!("the segment that follows (generation {generation}) is missing");
            return Err(life.damaged(offset, detail));
        }
        let Some((mut later, mut header)) = find_later(life, offset, self.next_sequence)? else {
            return Ok(None);
        };
        if header.sequence == self.next_sequence {
            match find_later(life, later + 1, self.next_sequence + 1)? {
                Some(found) => (later, header) = found,
                None => {
                    return Ok(Some(TornTail {
                        segment: life.name(),
                        offset,
                    }));
                }
            }
        }
        // A later frame was written only after the one that should be here had been synced.
        let detail = format!(
            "frame {} is not intact, but frame {} at byte {later} is there",
            self.next_sequence, header.sequence
        );
        Err(life.damaged(offset, detail))
    }

    fn finish(self, newest: &Life, torn_tail: Option<TornTail>, end: End) -> Result<Replay, JournalError> {
        if let Some(index) = self.log.first_missing() {
            return Err(newest.damaged(end.offset, format!("entry {index} of the log is in no segment")));
        }
        Ok(Replay {
            log: self.log,
            vote: self.vote,
            committed: self.committed,
            frames: self.frames,
            torn_tail,
            end,
            next_sequence: self.next_sequence,
        })
    }
}

fn find_later(
    life: &Life,
    from: u64,
    sequence_min: u64,
) -> Result<Option<(u64, super::format::FrameHeader)>, JournalError> {
    scan::find_later(life, from, sequence_min)
        .map_err(|error| JournalError::io(format!("read {}", life.name()), &error))
}

fn decode<T: DeserializeOwned>(life: &Life, offset: u64, record: &Record<'_>) -> Result<T, JournalError> {
    postcard::from_bytes(record.body)
        .map_err(|error| life.damaged(offset, format!("a record cannot be decoded: {error}")))
}
