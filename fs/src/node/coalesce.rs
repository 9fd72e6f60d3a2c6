//! Answers many askers with one question. An asker is only served by a question that was asked after it came: that
//! is what makes a shared read index linearizable.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

/// Askers that wait to be picked up.
const ASKERS_MAX: usize = 1024;
/// Questions that may be under way at once: a second one spares latecomers the wait for the first one's answer.
const QUESTIONS_MAX: usize = 4;

/// Merges concurrent questions.
pub struct Coalescer<T> {
    askers: mpsc::Sender<oneshot::Sender<T>>,
}

impl<T: Clone + Send + 'static> Coalescer<T> {
    /// Asks with `ask`, from a task of its own that ends when the coalescer is dropped.
    pub fn spawn<F, Fut>(ask: F) -> Self
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        let (askers, mut waiting) = mpsc::channel::<oneshot::Sender<T>>(ASKERS_MAX);
        let slots = Arc::new(Semaphore::new(QUESTIONS_MAX));
        tokio::spawn(async move {
            while let Some(first) = waiting.recv().await {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                    return;
                };
                let mut served = vec![first];
                while let Ok(next) = waiting.try_recv() {
                    served.push(next);
                }
                // All of `served` came before this question is asked.
                let answer = ask();
                tokio::spawn(async move {
                    let answer = answer.await;
                    drop(slot);
                    for asker in served {
                        let _ = asker.send(answer.clone());
                    }
                });
            }
        });
        Self { askers }
    }

    /// The answer to a question asked after this call began; `None` if the runtime is shutting down.
    pub async fn ask(&self) -> Option<T> {
        let (asker, answer) = oneshot::channel();
        self.askers.send(asker).await.ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn many_askers_share_questions_asked_after_they_came() {
        let asked = Arc::new(AtomicU64::new(0));
        let now = Arc::new(AtomicU64::new(0));
        let (count, time) = (Arc::clone(&asked), Arc::clone(&now));
        let coalescer = Arc::new(Coalescer::spawn(move || {
            count.fetch_add(1, Ordering::SeqCst);
            // What the question finds is fixed when it is asked.
            let found = time.load(Ordering::SeqCst);
            async move {
                tokio::time::sleep(Duration::from_millis(2)).await;
                found
            }
        }));
        let mut askers = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let (coalescer, now) = (Arc::clone(&coalescer), Arc::clone(&now));
            askers.spawn(async move {
                let came = now.fetch_add(1, Ordering::SeqCst) + 1;
                let found = coalescer.ask().await.unwrap();
                assert!(found >= came, "asker of {came} was told {found}");
            });
        }
        while let Some(result) = askers.join_next().await {
            result.unwrap();
        }
        assert!(
            asked.load(Ordering::SeqCst) < 250,
            "{asked:?} questions for 500 askers"
        );
    }
}
