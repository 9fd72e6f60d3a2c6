//! Pushes what is pending to the cluster, one batch after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt};
use raftstore::meta::{BatchItem, MetaError, Op, Piece, PieceData, Refusal, Reply};

use super::backend::{LeasedBackend, Shared};
use super::core::Plan;
use super::pending::FileFlush;
use crate::backend::{BackendError, ChunkGuard};

/// Between two looks at the age of what is pending.
const TICK: Duration = Duration::from_millis(500);
/// Pieces of one flush op.
const PIECES_MAX: usize = 4096;

impl LeasedBackend {
    /// Pushes changes for as long as the node lives.
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
                let mut core = shared.core();
                core.fail(error);
                core.session_over();
                drop(core);
                shared.flushed.send_replace(u64::MAX);
                shared.changed.notify_waiters();
                return;
            }
        }
    }
}

impl Shared {
    /// Pushes until there is nothing to push.
    async fn push_all(&self) -> Result<(), BackendError> {
        loop {
            let plan = self.core().plan(self.now())?;
            match plan {
                Ok(plan) => self.push(plan).await?,
                Err(covers) => {
                    self.flushed.send_replace(covers);
                    return Ok(());
                }
            }
        }
    }

    async fn push(&self, plan: Plan) -> Result<(), BackendError> {
        let Plan {
            session,
            batch,
            covers,
        } = plan;
        let upto = batch.upto;
        let mut items = batch.items;
        let (flushes, payload, chunks) = match self.store(&batch.files).await {
            Ok(stored) => stored,
            Err(error) => {
                self.lose(&batch.files, &error);
                (Vec::new(), Bytes::new(), Vec::new())
            }
        };
        items.extend(flushes);
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
                let mut core = self.core();
                if core.session == Some(session) {
                    core.pending.commit(upto);
                    // The cluster knows of them now.
                    if let Some(claim) = core.leases.claim() {
                        core.tell(claim);
                    }
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
        if covers > 0 {
            self.flushed.send_replace(covers);
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

    /// Puts the files' bytes where the cluster can refer to them: small amounts into the payload of the batch,
    /// larger ones into chunks.
    async fn store(
        &self,
        files: &[FileFlush],
    ) -> Result<(Vec<BatchItem>, Bytes, Vec<ChunkGuard>), BackendError> {
        let total: usize = files
            .iter()
            .flat_map(|file| &file.runs)
            .map(|(_, run)| run.len())
            .sum();
        if total <= self.options.inline_bytes_max {
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
/// run. A run that does not fit begins a new pack.
fn pack(files: &[FileFlush], bytes_max: usize) -> (Vec<Bytes>, Vec<(usize, u32)>) {
    let mut packs: Vec<BytesMut> = Vec::new();
    let mut places = Vec::new();
    for (_, run) in files.iter().flat_map(|file| &file.runs) {
        if packs.last().is_none_or(|pack| pack.len() + run.len() > bytes_max) {
            packs.push(BytesMut::new());
        }
        let index = packs.len() - 1;
        if let Some(pack) = packs.last_mut() {
            places.push((index, u32::try_from(pack.len()).unwrap_or(u32::MAX)));
            pack.extend_from_slice(run);
        }
    }
    (packs.into_iter().map(BytesMut::freeze).collect(), places)
}
