//! What the state machine tells the background work.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftstore::meta::{ChunkId, Event, Observer};
use tokio::sync::Notify;

/// Chunks that each queue holds; if more come, the whole state is walked instead.
const QUEUE_CHUNKS_MAX: usize = 8192;

/// Hears of applied entries and keeps what repair and reclaiming are to look at.
#[derive(Debug, Default)]
pub struct ChunkWatcher {
    news: Mutex<News>,
    repair: Notify,
    reclaim: Notify,
}

/// What has happened since it was last asked for.
#[derive(Debug, Default)]
struct News {
    added: VecDeque<ChunkId>,
    dead: VecDeque<ChunkId>,
    walk_for_missing: bool,
    walk_for_garbage: bool,
}

/// One kind of news.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// These chunks.
    pub(super) chunks: Vec<ChunkId>,
    /// Everything.
    pub(super) walk: bool,
}

impl ChunkWatcher {
    /// To be registered with the metadata store before anything is applied.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Chunks that got their first reference; waits until there is something.
    pub(super) async fn added(&self) -> Told {
        loop {
            let told = {
                let mut news = self.news();
                Told {
                    chunks: news.added.drain(..).collect(),
                    walk: std::mem::take(&mut news.walk_for_missing),
                }
            };
            if told != Told::default() {
                return told;
            }
            self.repair.notified().await;
        }
    }

    /// Chunks that lost their last reference; waits until there is something.
    pub(super) async fn dead(&self) -> Told {
        loop {
            let told = {
                let mut news = self.news();
                Told {
                    chunks: news.dead.drain(..).collect(),
                    walk: std::mem::take(&mut news.walk_for_garbage),
                }
            };
            if told != Told::default() {
                return told;
            }
            self.reclaim.notified().await;
        }
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for ChunkWatcher {
    fn applied(&self, _index: u64, events: &[Event]) {
        let (mut repair, mut reclaim) = (false, false);
        let mut news = self.news();
        for event in events {
            match event {
                Event::ChunkAdded { id } => {
                    repair = true;
                    let overflow = enqueue(&mut news.added, *id);
                    news.walk_for_missing |= overflow;
                }
                Event::ChunkDead { id } => {
                    reclaim = true;
                    let overflow = enqueue(&mut news.dead, *id);
                    news.walk_for_garbage |= overflow;
                }
                Event::Nodes | Event::Placement | Event::Reset => {
                    (repair, reclaim) = (true, true);
                    news.walk_for_missing = true;
                    news.walk_for_garbage = true;
                }
                Event::SessionExpired { .. } => {
                    reclaim = true;
                    news.walk_for_garbage = true;
                }
                _ => {}
            }
        }
        drop(news);
        if repair {
            self.repair.notify_one();
        }
        if reclaim {
            self.reclaim.notify_one();
        }
    }
}

/// True if the queue was full: then it is emptied, since a walk finds what was in it too.
fn enqueue(queue: &mut VecDeque<ChunkId>, id: ChunkId) -> bool {
    let full = queue.len() >= QUEUE_CHUNKS_MAX;
    if full {
        queue.clear();
    } else {
        queue.push_back(id);
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn too_much_news_becomes_a_walk() {
        let watcher = ChunkWatcher::new();
        let id = |seq| ChunkId { session: 1, seq };
        watcher.applied(
            1,
            &[Event::ChunkAdded { id: id(1) }, Event::ChunkDead { id: id(2) }],
        );
        assert_eq!(
            watcher.added().await,
            Told {
                chunks: vec![id(1)],
                walk: false
            }
        );
        assert_eq!(
            watcher.dead().await,
            Told {
                chunks: vec![id(2)],
                walk: false
            }
        );
        for seq in 0..=QUEUE_CHUNKS_MAX as u64 {
            watcher.applied(seq, &[Event::ChunkAdded { id: id(seq) }]);
        }
        assert_eq!(
            watcher.added().await,
            Told {
                chunks: vec![],
                walk: true
            }
        );
        watcher.applied(9, &[Event::Reset]);
        assert!(watcher.added().await.walk && watcher.dead().await.walk);
    }
}
