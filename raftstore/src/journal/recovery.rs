//! Opening: from whatever is on the medium to a journal that goes on where the last one was cut off.
//!
//! First all segments are looked at, then the live ones are replayed in the order of their generations; only when
//! all is found to be well is anything changed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use super::batch::{FrameBuilder, FrameMeta, HeadState};
use super::cache::Cache;
use super::core::Core;
use super::format::{
    FRAMES_OFFSET, FrameHeader, FrameKind, RecordKind, SEGMENT_HEADER_BYTES, Seed, SegmentHeader,
};
use super::log::Log;
use super::replay::Replay;
use super::scan::{self, Frame};
use super::segment::{Life, UNFINISHED_NAME, Workshop, segment_name, slot_of};
use super::writer::Tail;
use super::{JournalError, JournalOptions, SpaceCondition};
use crate::disk::{DiskFile, Open};
use crate::raft::{LogId, Vote};

/// What [`Journal::open`](super::Journal::open) found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// There was no journal: this is a new one.
    pub blank: bool,
    /// A write that was under way when the last run ended was cut off. Nobody was told that it was done.
    pub torn_tail: Option<TornTail>,
    /// Frames that were replayed.
    pub frames: u64,
    /// The last saved vote.
    pub vote: Option<Vote>,
    /// The last purged log id.
    pub last_purged: Option<LogId>,
    /// The last log id.
    pub last: Option<LogId>,
}

/// Where a torn write was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// File name of the segment.
    pub segment: String,
    /// Where the log goes on.
    pub offset: u64,
}

/// A journal ready to run.
pub(super) struct Recovered {
    pub(super) core: Core,
    pub(super) tail: Tail,
    pub(super) report: Recovery,
}

/// A segment file at first sight.
struct Candidate {
    slot: u32,
    len: u64,
    file: Arc<dyn DiskFile>,
    head: Head,
}

/// What a segment file begins with.
enum Head {
    /// Zeros: it was made, but never used.
    Blank,
    /// A header of this store.
    Life(Arc<Life>),
    /// Something else.
    Bad(&'static str),
}

/// All segments, sorted out.
#[derive(Default)]
struct Survey {
    /// Lives that hold frames, by generation.
    used: BTreeMap<u64, Arc<Life>>,
    /// Lives that hold none.
    unused: Vec<Arc<Life>>,
    /// Files without a usable header, and the newest generation of which frames were found in them.
    bad: Vec<(u32, Option<(u64, FrameHeader)>)>,
    /// Files that were never used.
    blank: Vec<u32>,
    next_generation: u64,
    next_slot: u32,
}

/// Reads the journal in the workshop's directory, and repairs what a power cut may have left half done.
pub(super) fn recover(workshop: &Workshop, options: &JournalOptions) -> Result<Recovered, JournalError> {
    let at = |what: &'static str| move |error: io::Error| JournalError::io(what, &error);
    workshop
        .disk
        .create_dir_all(&workshop.dir)
        .map_err(at("create its directory"))?;
    let survey = survey(workshop)?;
    let Some((_, newest)) = survey.used.last_key_value() else {
        return start(workshop, options, survey);
    };
    let oldest = oldest_generation(newest)?;
    refuse_bad(&survey, oldest)?;
    let live = survey
        .used
        .range(oldest..)
        .map(|(_, life)| Arc::clone(life))
        .collect::<Vec<_>>();
    let replay = Replay::run(&live, oldest)?;
    repair(workshop, &live, &replay).map_err(at("make its tail durable"))?;

    let freed = survey.used.range(..oldest).map(|(_, life)| Arc::clone(life));
    let free = freed.chain(survey.unused.iter().cloned()).collect();
    discard_unusable(workshop, &survey).map_err(at("remove unused files"))?;
    let report = Recovery {
        blank: false,
        torn_tail: replay.torn_tail.clone(),
        frames: replay.frames,
        vote: replay.vote,
        last_purged: replay.log.bounds().purged,
        last: replay.log.last(),
    };
    if let Some(torn) = &report.torn_tail {
        tracing::info!(
            segment = torn.segment,
            offset = torn.offset,
            "cut off a write that a crash interrupted"
        );
    }
    let tail = replay.tail();
    let live = live.into_iter().map(|life| (life.generation, life)).collect();
    let core = core(replay.log, replay.vote, replay.committed, live, free, &survey);
    Ok(Recovered { core, tail, report })
}

/// Looks at every segment file.
fn survey(workshop: &Workshop) -> Result<Survey, JournalError> {
    let names = workshop
        .disk
        .list(&workshop.dir)
        .map_err(|error| JournalError::io("list its directory", &error))?;
    let mut survey = Survey {
        next_generation: 1,
        ..Survey::default()
    };
    for slot in names.iter().filter_map(|name| slot_of(name)) {
        let name = segment_name(slot);
        let io = |error: io::Error| JournalError::io(format!("read {name}"), &error);
        survey.next_slot = survey.next_slot.max(slot.saturating_add(1));
        let candidate = look(workshop, slot).map_err(io)??;
        match candidate.head {
            Head::Blank => survey.blank.push(slot),
            Head::Bad(detail) => {
                let found = newest_frame(workshop, &candidate).map_err(io)?;
                tracing::warn!(
                    segment = name,
                    detail,
                    ?found,
                    "a journal file has no usable header"
                );
                if let Some((_, header)) = found {
                    survey.next_generation = survey.next_generation.max(header.generation + 1);
                }
                survey.bad.push((slot, found));
            }
            Head::Life(life) => {
                survey.next_generation = survey.next_generation.max(life.generation + 1);
                if scan::frame_at(&life, FRAMES_OFFSET).map_err(io)?.is_some() {
                    survey.used.insert(life.generation, life);
                } else if let Some((offset, _)) = scan::find_later(&life, FRAMES_OFFSET + 1, 0).map_err(io)? {
                    let detail = format!("the first frame is not intact, but there is one at byte {offset}");
                    return Err(life.damaged(FRAMES_OFFSET, detail));
                } else {
                    survey.unused.push(life);
                }
            }
        }
    }
    Ok(survey)
}

/// Opens a segment file and reads its header.
fn look(workshop: &Workshop, slot: u32) -> io::Result<Result<Candidate, JournalError>> {
    let file = workshop
        .disk
        .open(&workshop.dir.join(segment_name(slot)), Open::Existing)?;
    let len = file.len()?;
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let head = if len < FRAMES_OFFSET {
        Head::Bad("it is too short")
    } else {
        file.read_exact_at(&mut bytes, 0)?;
        match SegmentHeader::decode(&bytes) {
            None if bytes.iter().all(|byte| *byte == 0) => Head::Blank,
            None => Head::Bad("its header is not intact"),
            Some(header) => match header.check(workshop, slot, len) {
                Err(error) => return Ok(Err(error)),
                Ok(None) => Head::Bad("its header is another file's"),
                Ok(Some(())) => Head::Life(Arc::new(Life {
                    slot,
                    generation: header.generation,
                    capacity_bytes: header.capacity_bytes,
                    seed: Seed::new(&workshop.identity, slot, header.generation),
                    file: Arc::clone(&file),
                })),
            },
        }
    };
    Ok(Ok(Candidate {
        slot,
        len,
        file,
        head,
    }))
}

impl SegmentHeader {
    /// Whether this is the header of this store's segment `slot`; `None` if it is some other file's.
    fn check(&self, workshop: &Workshop, slot: u32, len: u64) -> Result<Option<()>, JournalError> {
        use super::format::FORMAT_VERSION;
        if self.version > FORMAT_VERSION {
            return Err(JournalError::NewerVersion {
                found: self.version,
                supported: FORMAT_VERSION,
            });
        }
        if self.identity != workshop.identity {
            let (found, expected) = (self.identity.clone(), workshop.identity.clone());
            return Err(JournalError::Foreign { found, expected });
        }
        let sound = self.slot == slot && self.capacity_bytes == len && self.version > 0;
        Ok((sound && super::options::is_segment_size(len)).then_some(()))
    }
}

/// The frame of the newest generation in a file whose header cannot be trusted.
fn newest_frame(workshop: &Workshop, candidate: &Candidate) -> io::Result<Option<(u64, FrameHeader)>> {
    let seed_of = |generation| Seed::new(&workshop.identity, candidate.slot, generation);
    let mut newest: Option<(u64, FrameHeader)> = None;
    let mut from = 0;
    loop {
        let older = newest.map_or(0, |(_, header)| header.generation);
        let found = scan::find_header(&*candidate.file, candidate.len, from, seed_of, |header| {
            header.generation > older
        })?;
        match found {
            Some((offset, _)) => (newest, from) = (found, offset + 1),
            None => return Ok(newest),
        }
    }
}

/// What the last intact frame of the newest segment says of the oldest generation that is needed.
fn oldest_generation(newest: &Life) -> Result<u64, JournalError> {
    let mut oldest = newest.generation;
    let mut offset = FRAMES_OFFSET;
    while let Some(frame) = read_frame(newest, offset)? {
        oldest = frame.header.oldest_generation;
        offset += frame.header.total_bytes();
    }
    Ok(oldest)
}

pub(super) fn read_frame(life: &Life, offset: u64) -> Result<Option<Frame>, JournalError> {
    scan::frame_at(life, offset).map_err(|error| JournalError::io(format!("read {}", life.name()), &error))
}

/// A file without a usable header is damage if it holds frames that are needed. (Otherwise its header was being
/// written for another life when the power went.)
fn refuse_bad(survey: &Survey, oldest: u64) -> Result<(), JournalError> {
    for (slot, found) in &survey.bad {
        if let Some((offset, header)) = found
            && header.generation >= oldest
        {
            return Err(JournalError::Damaged {
                segment: segment_name(*slot),
                offset: 0,
                detail: format!(
                    "the segment's header is not intact, but a frame that is needed is at byte {offset}"
                ),
            });
        }
    }
    Ok(())
}

/// Makes what was replayed durable: the last frame may only be in the kernel's cache, even after a sync that failed
/// there. So it is written once more; and likewise the seal before it, which may be missing altogether.
fn repair(workshop: &Workshop, live: &[Arc<Life>], replay: &Replay) -> io::Result<()> {
    let meter = &workshop.meter;
    let life = &replay.end.life;
    meter.write(
        &*life.file,
        replay.end.last_frame.bytes(),
        replay.end.last_frame_offset,
    )?;
    meter.sync(|| life.file.sync_data())?;
    let previous = live.iter().rev().nth(1);
    if let (Some(previous), Some(offset)) = (previous, replay.end.reseal_at) {
        let meta = FrameMeta {
            kind: FrameKind::Seal,
            generation: previous.generation,
            sequence: replay.end.last_frame.header.sequence,
            oldest_generation: replay.end.last_frame.header.oldest_generation,
            committed: None,
        };
        workshop.write_seal(previous, offset, meta, life.generation)?;
    }
    Ok(())
}

/// Removes files that cannot be used again as they are.
fn discard_unusable(workshop: &Workshop, survey: &Survey) -> io::Result<()> {
    let names = workshop.disk.list(&workshop.dir)?;
    if names.iter().any(|name| name == UNFINISHED_NAME) {
        workshop.disk.remove(&workshop.dir.join(UNFINISHED_NAME))?;
    }
    // A blank file's name is perhaps not durable; that of one that has begun a life is.
    for slot in survey.blank.iter().chain(survey.bad.iter().map(|(slot, _)| slot)) {
        workshop.discard(*slot)?;
    }
    Ok(())
}

/// Starts a new journal.
fn start(
    workshop: &Workshop,
    options: &JournalOptions,
    mut survey: Survey,
) -> Result<Recovered, JournalError> {
    refuse_bad(&survey, 0)?;
    if let Some((slot, _)) = survey.bad.first() {
        return Err(JournalError::Damaged {
            segment: segment_name(*slot),
            offset: 0,
            detail: "the segment's header is not intact, and no other segment holds anything".into(),
        });
    }
    if options.must_exist {
        return Err(JournalError::Missing(workshop.dir.display().to_string()));
    }
    let at = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => JournalError::Full(error.to_string()),
        _ => JournalError::io("make its first segment", &error),
    };
    discard_unusable(workshop, &survey).map_err(at)?;
    let slot = survey.next_slot;
    let generation = survey.next_generation;
    survey.next_slot += 1;
    survey.next_generation += 1;
    let file = workshop.create(slot, options.segment_bytes, &|| {}).map_err(at)?;
    let life = workshop
        .begin(file, slot, options.segment_bytes, generation)
        .map_err(at)?;
    let state = HeadState::default();
    let head = postcard::to_stdvec(&state).map_err(|error| JournalError::Io {
        what: "encode".into(),
        error: error.to_string(),
    })?;
    let mut frame = FrameBuilder::new(life.seed);
    frame.push(RecordKind::State, 0, &head, &[]);
    let meta = FrameMeta {
        kind: FrameKind::Records,
        generation,
        sequence: 1,
        oldest_generation: generation,
        committed: None,
    };
    let bytes = frame.finish(meta);
    workshop
        .meter
        .write(&*life.file, &bytes, FRAMES_OFFSET)
        .map_err(at)?;
    workshop.meter.sync(|| life.file.sync_data()).map_err(at)?;
    let tail = Tail {
        life: Arc::clone(&life),
        offset: FRAMES_OFFSET + bytes.len() as u64,
        sequence: 2,
        oldest_generation: generation,
        committed: None,
        state,
    };
    let report = Recovery {
        blank: true,
        torn_tail: None,
        frames: 0,
        vote: None,
        last_purged: None,
        last: None,
    };
    let free = std::mem::take(&mut survey.unused).into();
    let core = core(
        Log::default(),
        None,
        None,
        BTreeMap::from([(generation, life)]),
        free,
        &survey,
    );
    Ok(Recovered { core, tail, report })
}

fn core(
    log: Log,
    vote: Option<Vote>,
    committed: Option<LogId>,
    live: BTreeMap<u64, Arc<Life>>,
    free: VecDeque<Arc<Life>>,
    survey: &Survey,
) -> Core {
    Core {
        log,
        cache: Cache::default(),
        vote,
        committed,
        queue: VecDeque::new(),
        pending_bytes: 0,
        queued_cuts: 0,
        next_ticket: 0,
        live,
        free,
        prepared: VecDeque::new(),
        next_generation: survey.next_generation,
        next_slot: survey.next_slot,
        space: SpaceCondition::Ok,
        failure: None,
        closing: false,
        damaged_reads: 0,
    }
}
