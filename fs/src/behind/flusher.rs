//! Pushes what is pending to the cluster, one batch after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt};
use raftstore::meta::{BatchItem, MetaError, Op, Piece, PieceData, Refusal, Reply, SessionId};
use tokio::task::JoinHandle;

use super::backend::{LeasedBackend, Shared};
use super::core::Plan;
use super::pending::{Batch, FileFlush};
use crate::backend::{BackendError, ChunkGuard};

/// Between two looks at the age of what is pending.
const TICK: Duration = Duration::from_millis(500);
/// Bytes of a batch that nobody waits for that ride in the log.
const UNASKED_INLINE_BYTES_MAX: usize = 64 << 10;
/// Pieces of one flush op.
const PIECES_MAX: usize = 4096;

/// A batch whose bytes are where the cluster can refer to them.
struct Stored {
    number: u64,
    upto: u64,
    items: Vec<BatchItem>,
    payload: Bytes,
    chunks: Vec<ChunkGuard>,
}

/// Waits for a batch that is being committed, if there is one.
async fn end(committing: &mut Option<JoinHandle<Result<(), BackendError>>>) -> Result<(), BackendError> {
    match committing.take() {
        Some(committing) => committing
            .await
            .unwrap_or_else(|error| Err(BackendError::Stopped(error.to_string()))),
        None => Ok(()),
    }
}

impl LeasedBackend {
    /// Pushes changes for as long as the node lives. Ends only if that cannot be done any more: the node must leave.
    pub async fn run(self: Arc<Self>) {
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
                shared.flushed.send_replace(u64::MAX);
                shared.changed.notify_waiters();
                return;
            }
        }
    }
}

impl Shared {
    /// Pushes until there is nothing to push. While one batch is being committed, the chunks of the next are stored.
    async fn push_all(self: &Arc<Self>) -> Result<(), BackendError> {
        let mut before: Option<JoinHandle<Result<(), BackendError>>> = None;
        loop {
            let gather = self.core().gather(self.now());
            if let (Some(time), None) = (gather, &before) {
                let _ = tokio::time::timeout(time, self.kick.notified()).await;
                continue;
            }
            let plan = self.core().plan(self.now(), before.is_some())?;
            match plan {
                Plan::Push {
                    session,
                    batch,
                    asked,
                    covers,
                } => {
                    let began = self.now();
                    let stored = self.prepare(batch, asked).await;
                    end(&mut before).await?;
                    before = Some(tokio::spawn(
                        Arc::clone(self).commit(session, stored, covers, began),
                    ));
                }
                Plan::Answered(covers) => {
                    end(&mut before).await?;
                    self.answer(covers);
                }
                Plan::Idle => {
                    let Some(committing) = &mut before else {
                        return Ok(());
                    };
                    tokio::select! {
                        ended = committing => {
                            before = None;
                            ended.unwrap_or_else(|error| Err(BackendError::Stopped(error.to_string())))?;
                        }
                        () = self.kick.notified() => {}
                    }
                }
            }
        }
    }

    /// Flush requests up to this one are done.
    fn answer(&self, covers: u64) {
        if covers > 0 {
            self.flushed.send_replace(covers);
        }
    }

    /// Stores the bytes of a batch.
    async fn prepare(&self, batch: Batch, asked: bool) -> Stored {
        let mut items = batch.items;
        let (flushes, payload, chunks) = match self.store(&batch.files, asked).await {
            Ok(stored) => stored,
            Err(error) => {
                self.lose(&batch.files, &error);
                (Vec::new(), Bytes::new(), Vec::new())
            }
        };
        items.extend(flushes);
        Stored {
            number: batch.number,
            upto: batch.upto,
            items,
            payload,
            chunks,
        }
    }

    /// Commits a batch whose bytes are stored, and answers flush requests up to `covers`.
    async fn commit(
        self: Arc<Self>,
        session: SessionId,
        stored: Stored,
        covers: u64,
        began: Duration,
    ) -> Result<(), BackendError> {
        let items = stored.items;
        let answer = if items.is_empty() {
            Ok(Reply::Batch { refused: Vec::new() })
        } else {
            let op = Op::Batch { items: items.clone() };
            self.inner.submit_within(session, op, stored.payload).await
        };
        drop(stored.chunks);
        match answer {
            Ok(Reply::Batch { refused }) => {
                for (index, error) in refused {
                    self.refused(items.get(index as usize), &error);
                }
                let now = self.now();
                let mut core = self.core();
                if core.session == Some(session) {
                    core.pending.commit(stored.number, stored.upto);
                    // The cluster knows of them now.
                    if let Some(claim) = core.leases.claim() {
                        core.tell(claim);
                    }
                }
                if covers > 0 {
                    core.answered(covers, now.saturating_sub(began), now);
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
        self.answer(covers);
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

    /// Puts the files' bytes where the cluster can refer to them: small amounts into the payload of the batch,
    /// larger ones into chunks: sooner if nobody waits for them, since what is in the log is mostly written twice.
    async fn store(
        &self,
        files: &[FileFlush],
        asked: bool,
    ) -> Result<(Vec<BatchItem>, Bytes, Vec<ChunkGuard>), BackendError> {
        let total: usize = files
            .iter()
            .flat_map(|file| &file.runs)
            .map(|(_, run)| run.len())
            .sum();
        let inline_bytes_max = if asked {
            self.options.inline_bytes_max
        } else {
            self.options.inline_bytes_max.min(UNASKED_INLINE_BYTES_MAX)
        };
        if total <= inline_bytes_max {
            let mut payload = BytesMut::with_capacity(total);
            let mut place = |run: &Bytes| {
                let offset = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                payload.extend_from_slice(run);
                PieceData::Inline { offset }
            };
            let items = files
                .iter()
                .flat_map(|file| flush_ops(file, &mut place))
                .collect();
            return Ok((items, payload.freeze(), Vec::new()));
        }
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
        Ok((items, Bytes::new(), chunks))
    }
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
