//! The way from a holder to the leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ToLeader;

/// Messages that may wait to be sent. A link on which more pile up is taken down: the leader does not keep up, or is
/// gone, and the next link begins with what is held then.
pub const LINK_MESSAGES_MAX: usize = 16_384;

/// The way to the present leader. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LeaseLink {
    sender: mpsc::Sender<(ToLeader, u64)>,
    grants: Arc<AtomicU64>,
    down: CancellationToken,
}

/// The other end of a [`LeaseLink`]. The link is down once this is dropped.
#[derive(Debug)]
pub struct LinkReceiver {
    receiver: mpsc::Receiver<(ToLeader, u64)>,
    grants: Arc<AtomicU64>,
    down: CancellationToken,
}

/// Counts the grants that the holder has taken in: what it says carries the number, so that the leader can tell what it
/// knew. Counted too late, a release is taken for an older one and void, and the leader asks for the lease again when
/// it is wanted; so that is harmless. Too early would not be.
#[derive(Debug, Clone)]
pub struct GrantCount(Arc<AtomicU64>);

impl GrantCount {
    /// [`super::LeaseHolder::granted`] has returned.
    pub fn taken_in(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl LeaseLink {
    /// A link on which at most `messages_max` messages wait.
    #[must_use]
    pub fn new(messages_max: usize) -> (Self, LinkReceiver) {
        let (sender, receiver) = mpsc::channel(messages_max);
        let (grants, down) = (Arc::<AtomicU64>::default(), CancellationToken::new());
        let link = Self {
            sender,
            grants: Arc::clone(&grants),
            down: down.clone(),
        };
        let receiver = LinkReceiver {
            receiver,
            grants,
            down,
        };
        (link, receiver)
    }

    /// Hands a message over; never blocks. False once the link is down: a new one will come. That a message was
    /// handed over does not mean that the leader gets it.
    pub fn send(&self, message: ToLeader) -> bool {
        if self.down.is_cancelled() {
            return false;
        }
        let sent = self
            .sender
            .try_send((message, self.grants.load(Ordering::SeqCst)))
            .is_ok();
        if !sent {
            // What comes after a message that was lost must not arrive.
            self.down.cancel();
        }
        sent
    }
}

impl LinkReceiver {
    /// The next message; `None` once the link is down, or nobody can send any more.
    pub async fn recv(&mut self) -> Option<ToLeader> {
        self.recv_counted().await.map(|(message, _)| message)
    }

    /// The next message, and how many grants had been taken in when it was sent; `None` as for
    /// [`LinkReceiver::recv`].
    pub async fn recv_counted(&mut self) -> Option<(ToLeader, u64)> {
        tokio::select! {
            biased;
            () = self.down.cancelled() => None,
            sent = self.receiver.recv() => sent,
        }
    }

    /// True once the link has overflowed.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.down.is_cancelled()
    }

    /// Where to count grants.
    #[must_use]
    pub fn grants(&self) -> GrantCount {
        GrantCount(Arc::clone(&self.grants))
    }
}

impl Drop for LinkReceiver {
    fn drop(&mut self) {
        self.down.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(ino: u64) -> ToLeader {
        ToLeader::Claim { inodes: vec![ino] }
    }

    #[tokio::test]
    async fn messages_arrive_in_order_until_the_link_is_down() {
        let (link, mut receiver) = LeaseLink::new(2);
        assert!(link.send(claim(1)) && link.clone().send(claim(2)));
        assert_eq!(receiver.recv().await, Some(claim(1)));
        receiver.grants().taken_in();
        assert_eq!(receiver.recv_counted().await, Some((claim(2), 0)));
        assert!(link.send(claim(4)));
        assert_eq!(receiver.recv_counted().await, Some((claim(4), 1)));
        drop(receiver);
        assert!(!link.send(claim(3)));
    }

    #[tokio::test]
    async fn a_link_that_overflows_goes_down_instead_of_losing_a_message() {
        let (link, mut receiver) = LeaseLink::new(1);
        assert!(link.send(claim(1)));
        assert!(!link.send(claim(2)) && !link.send(claim(3)) && receiver.is_down());
        assert_eq!(
            receiver.recv().await,
            None,
            "also what had arrived before is void"
        );
    }
}
