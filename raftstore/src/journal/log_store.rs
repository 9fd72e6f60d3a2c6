//! openraft's log storage on a [`Journal`].

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use futures::Stream;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};

use super::{Journal, JournalError};
use crate::TypeConfig;
use crate::raft::{Entry, LogId, Vote};

/// openraft's log storage. Clones share the journal; each is a reader too.
///
/// Every error carries a [`JournalError`] inside its `io::Error`.
#[derive(Clone)]
pub struct LogStore {
    journal: Arc<Journal>,
}

/// Replication and apply take entries from the journal in pieces of about this size (or one that is larger).
const READ_BYTES_MAX: usize = 1 << 20;

impl LogStore {
    /// On this journal.
    #[must_use]
    pub fn new(journal: Arc<Journal>) -> Self {
        Self { journal }
    }
}

fn indexes(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.journal.read(indexes(&range), usize::MAX).await?)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.journal.read(start..end, READ_BYTES_MAX).await?)
    }

    /// Reads as it goes: however far behind the state machine is, memory stays bounded.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let left = indexes(&range);
        let start = (Arc::clone(&self.journal), left, Vec::new().into_iter());
        futures::stream::try_unfold(start, |(journal, mut left, mut read)| async move {
            if read.as_slice().is_empty() {
                read = journal.read(left.clone(), READ_BYTES_MAX).await?.into_iter();
            }
            let Some(entry) = read.next() else { return Ok(None) };
            left.start = entry.log_id.index + 1;
            Ok(Some((entry, (journal, left, read))))
        })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.journal.vote())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let (last_purged_log_id, last_log_id) = self.journal.ends();
        Ok(LogState {
            last_purged_log_id,
            last_log_id,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        Ok(self.journal.save_vote(*vote).await?)
    }

    /// Goes to the medium with whatever is written next: openraft needs it only as a hint.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.journal.note_committed(committed);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.journal.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let done = move |result: Result<(), JournalError>| callback.io_completed(result.map_err(Into::into));
        // Collected first: the caller's iterator need not live across an await.
        let entries: Vec<Entry> = entries.into_iter().collect();
        Ok(self.journal.append(entries, Box::new(done)).await?)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        Ok(self.journal.truncate_after(last.map(|last| last.index)).await?)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        Ok(self.journal.purge(upto).await?)
    }
}
