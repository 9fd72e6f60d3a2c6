//! Pushes what is pending to the cluster, as [`super::plan`] says.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt};
use raftstore::meta::{BatchItem, MetaError, Op, Piece, PieceData, Refusal, Reply, SessionId};
use tokio::task::JoinHandle;

use super::backend::{LeasedBackend, Shared};
use super::pending::{Batch, FileFlush, Large};
use super::plan::{Lanes, Plan, Stored};
use crate::backend::{BackendError, ChunkGuard};

/// Between two looks at the age of what is pending, and at the memory that the process takes.
const TICK: Duration = Duration::from_millis(500);
/// Pieces of one flush op.
const PIECES_MAX: usize = 4096;

/// Work that goes on beside the planning of more.
#[derive(Default)]
struct Work {
    lanes: Lanes,
    committing: Option<JoinHandle<Result<(), BackendError>>>,
    storing: Option<JoinHandle<Option<Stored>>>,
}

impl Work {
    /// Waits until one of them is done; for ever if there is none.
    async fn step(&mut self) -> Result<(), BackendError> {
        let stopped = |error: tokio::task::JoinError| BackendError::Stopped(error.to_string());
        tokio::select! {
            ended = task(&mut self.committing) => {
                self.committing = None;
                self.lanes.committing = false;
                ended.map_err(stopped)?
            }
            stored = task(&mut self.storing) => {
                self.storing = None;
                self.lanes.storing = false;
                self.lanes.ready = stored.map_err(stopped)?;
                Ok(())
            }
        }
    }
}

/// The end of a task, if there is one.
async fn task<T>(handle: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match handle {
        Some(handle) => handle.await,
        None => std::future::pending().await,
    }
}

impl LeasedBackend {
    /// Pushes changes for as long as the node lives, and lets as many wait as suits a process of `resident_bytes`. Ends only if
    /// they cannot be pushed any more: the node must leave.
    pub async fn run(self: Arc<Self>, resident_bytes: fn() -> u64) {
        tokio::select! {
            () = self.push() => {}
            () = self.keep_room(resident_bytes) => {}
        }
    }

    /// Never ends.
    async fn keep_room(&self, resident_bytes: fn() -> u64) {
        loop {
            self.shared().core().fit_into(resident_bytes());
            tokio::time::sleep(TICK).await;
        }
    }

    async fn push(&self) {
        let shared = self.shared();
        let mut was_valid = false;
        loop {
            tokio::select! {
                () = shared.kick.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            let is_valid = shared.core().is_valid(shared.now());
            if was_valid && !is_valid {
                // This node cannot know any more what others do.
                if let Some(upper) = shared.upper() {
                    upper.forget_everything();
                }
            }
            was_valid = is_valid;
            if let Err(error) = shared.push_all().await {
                tracing::error!(%error, "changes on this node cannot be committed any more");
                shared.core().fail(error);
                shared.changed.notify_waiters();
                return;
            }
        }
    }
}

impl Shared {
    /// Pushes until there is nothing to push.
    async fn push_all(self: &Arc<Self>) -> Result<(), BackendError> {
        let mut work = Work::default();
        loop {
            let is_free = !work.lanes.committing && work.lanes.ready.is_none();
            let gather = self.core().requests.gather(self.now()).filter(|_| is_free);
            if let Some(time) = gather {
                tokio::select! {
                    () = self.kick.notified() => {}
                    () = tokio::time::sleep(time) => {}
                    ended = work.step() => ended?,
                }
                continue;
            }
            let plan = self.core().plan(self.now(), &mut work.lanes)?;
            let this = Arc::clone(self);
            match plan {
                Plan::Store(session, large) => {
                    work.lanes.storing = true;
                    work.storing = Some(tokio::spawn(async move { this.store(session, large).await }));
                }
                Plan::Commit(session, batch, stored) => {
                    work.lanes.committing = true;
                    work.committing = Some(tokio::spawn(this.commit(session, batch, stored)));
                }
                Plan::Idle => {
                    self.settle();
                    if work.committing.is_none() && work.storing.is_none() {
                        return Ok(());
                    }
                    tokio::select! {
                        ended = work.step() => ended?,
                        () = self.kick.notified() => {}
                    }
                }
            }
        }
    }

    /// Answers those who have what they asked for without a batch.
    fn settle(&self) {
        self.core().settle();
    }

    /// Puts the files' bytes into chunks. `None` if that cannot be done: they are lost then.
    async fn store(&self, session: SessionId, large: Large) -> Option<Stored> {
        let number = large.number;
        match self.store_chunks(&large.files).await {
            Ok((flushes, chunks)) => Some(Stored {
                session,
                number,
                flushes,
                chunks,
            }),
            Err(error) => {
                self.lose(&large.files, &error);
                let mut core = self.core();
                if core.session == Some(session) {
                    core.pending.lost(number);
                    core.settle();
                }
                drop(core);
                self.changed.notify_waiters();
                None
            }
        }
    }

    /// Commits a batch, and what was stored to go with it.
    async fn commit(
        self: Arc<Self>,
        session: SessionId,
        batch: Batch,
        stored: Option<Stored>,
    ) -> Result<(), BackendError> {
        let began = self.now();
        let (flushes, payload) = inline(&batch.files);
        let mut items = batch.items;
        items.extend(flushes);
        let mut numbers = vec![batch.number];
        let mut chunks = Vec::new();
        if let Some(stored) = stored {
            items.extend(stored.flushes);
            numbers.push(stored.number);
            chunks = stored.chunks;
        }
        let answer = if items.is_empty() {
            Ok(Reply::Batch { refused: Vec::new() })
        } else {
            let op = Op::Batch { items: items.clone() };
            self.inner.submit_within(session, op, payload).await
        };
        drop(chunks);
        match answer {
            Ok(Reply::Batch { refused }) => {
                for (index, error) in refused {
                    self.refused(items.get(index as usize), &error);
                }
                let now = self.now();
                let mut core = self.core();
                if core.session == Some(session) {
                    core.pending.commit(&numbers, batch.upto);
                    // The cluster knows of them now.
                    if let Some(claim) = core.leases.claim() {
                        core.tell(claim);
                    }
                    // Files that were made here came with leases that nobody asked for.
                    self.evict(&mut core);
                }
                let answered = core.settle();
                if answered > 0 {
                    core.requests.answered(answered, now.saturating_sub(began), now);
                }
            }
            // Nothing of it was done, and nothing of it will be: `session_over` has told, or will.
            Err(BackendError::Meta(MetaError::SessionExpired(_))) => {
                self.core().end_session(session);
                if let Some(upper) = self.upper() {
                    upper.forget_everything();
                }
            }
            Ok(other) => {
                let why = format!("unexpected answer to a batch: {other:?}");
                return Err(BackendError::Meta(MetaError::Malformed(why)));
            }
            Err(error) => return Err(error),
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// The bytes of these files cannot be stored.
    fn lose(&self, files: &[FileFlush], error: &BackendError) {
        tracing::error!(files = files.len(), %error, "written bytes are lost");
        let mut core = self.core();
        for file in files {
            core.report(file.ino, error.clone());
        }
    }

    /// The cluster does not take what was acknowledged here.
    fn refused(&self, item: Option<&BatchItem>, error: &MetaError) {
        // A file that was freed needs no bytes.
        if let Some(BatchItem {
            op: Op::Flush { ino, .. },
            ..
        }) = item
        {
            if *error != MetaError::Refused(Refusal::Stale) {
                tracing::error!(ino, %error, "a file's bytes were not taken");
                self.core().report(*ino, BackendError::Meta(error.clone()));
            }
            return;
        }
        tracing::error!(?item, %error, "a change that was acknowledged on this node was refused by the cluster");
    }

    async fn store_chunks(
        &self,
        files: &[FileFlush],
    ) -> Result<(Vec<BatchItem>, Vec<ChunkGuard>), BackendError> {
        let (packs, places) = pack(files, self.options.chunk_bytes_max);
        let mut writes = Vec::new();
        for pack in packs {
            writes.push(self.inner.write_chunk(pack));
        }
        let mut stored = stream::iter(writes).buffered(self.options.chunk_writes_max);
        let mut chunks = Vec::new();
        while let Some(chunk) = stored.next().await {
            chunks.push(chunk?);
        }
        let mut places = places.into_iter();
        let mut place = |_: &Bytes| {
            let (pack, offset) = places.next().unwrap_or_default();
            let id = chunks.get(pack).map(|chunk: &ChunkGuard| chunk.id);
            PieceData::Chunk {
                id: id.unwrap_or(raftstore::meta::ChunkId { session: 0, seq: 0 }),
                offset,
            }
        };
        let items = files
            .iter()
            .flat_map(|file| flush_ops(file, &mut place))
            .collect();
        Ok((items, chunks))
    }
}

/// Puts the files' bytes into the payload of their batch.
fn inline(files: &[FileFlush]) -> (Vec<BatchItem>, Bytes) {
    let mut payload = BytesMut::new();
    let mut place = |run: &Bytes| {
        let offset = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        payload.extend_from_slice(run);
        PieceData::Inline { offset }
    };
    let items = files
        .iter()
        .flat_map(|file| flush_ops(file, &mut place))
        .collect();
    (items, payload.freeze())
}

/// What commits a file's bytes.
fn flush_ops(file: &FileFlush, place: &mut impl FnMut(&Bytes) -> PieceData) -> Vec<BatchItem> {
    let mut pieces: Vec<Piece> = Vec::with_capacity(file.runs.len());
    for (offset, run) in &file.runs {
        pieces.push(Piece {
            offset: *offset,
            len: u32::try_from(run.len()).unwrap_or(u32::MAX),
            data: place(run),
        });
    }
    let mut cut = file.cut;
    let mut items = Vec::new();
    let mut rest = pieces.as_slice();
    loop {
        let (now, later) = rest.split_at(rest.len().min(PIECES_MAX));
        items.push(BatchItem {
            time: file.state.mtime.max(file.state.ctime),
            op: Op::Flush {
                ino: file.ino,
                cut: cut.take(),
                pieces: now.to_vec(),
                state: file.state,
            },
        });
        rest = later;
        if rest.is_empty() {
            return items;
        }
    }
}

/// Fills packs of at most `bytes_max` with the runs of all files, one after the other; the pack and the offset of each
/// run. A run that does not fit begins a new pack. One that fills a pack alone is not copied.
fn pack(files: &[FileFlush], bytes_max: usize) -> (Vec<Bytes>, Vec<(usize, u32)>) {
    let mut packs: Vec<Bytes> = Vec::new();
    let mut places = Vec::new();
    let mut filling = BytesMut::new();
    for (_, run) in files.iter().flat_map(|file| &file.runs) {
        if !filling.is_empty() && filling.len() + run.len() > bytes_max {
            packs.push(std::mem::take(&mut filling).freeze());
        }
        places.push((packs.len(), u32::try_from(filling.len()).unwrap_or(u32::MAX)));
        if run.len() >= bytes_max {
            packs.push(run.clone());
        } else {
            filling.extend_from_slice(run);
        }
    }
    if !filling.is_empty() {
        packs.push(filling.freeze());
    }
    (packs, places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftstore::clock::Timestamp;
    use raftstore::meta::FileState;

    fn file(runs: &[&'static [u8]]) -> FileFlush {
        let time = Timestamp::default();
        FileFlush {
            ino: 7,
            cut: None,
            runs: runs.iter().map(|run| (0, Bytes::from_static(run))).collect(),
            state: FileState {
                size: 0,
                mode: 0,
                mtime: time,
                ctime: time,
                contents_time: time,
                data_version: 0,
            },
        }
    }

    #[test]
    fn packs_hold_the_runs_of_all_files_where_they_are_said_to_be() {
        let files = [file(&[b"abc", b"0123"]), file(&[b"de", b"4567", b"f"])];
        let (packs, places) = pack(&files, 4);
        assert!(packs.iter().all(|pack| (1..=4).contains(&pack.len())));
        let runs = files.iter().flat_map(|file| &file.runs);
        let mut found = 0;
        for ((_, run), (index, offset)) in runs.zip(places) {
            assert!(packs[index][offset as usize..].starts_with(run));
            found += run.len();
        }
        assert_eq!(found, packs.iter().map(Bytes::len).sum::<usize>());
    }
}
