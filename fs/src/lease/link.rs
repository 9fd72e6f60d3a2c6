//! The way from a holder to the leader.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ToLeader;

/// Messages that may wait to be sent. A link on which more pile up is taken down: the leader does not keep up, or is
/// gone, and the next link begins with what is held then.
pub const LINK_MESSAGES_MAX: usize = 16_384;

/// The way to the present leader. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LeaseLink {
    sender: mpsc::Sender<ToLeader>,
    down: CancellationToken,
}

/// The other end of a [`LeaseLink`]. The link is down once this is dropped.
#[derive(Debug)]
pub struct LinkReceiver {
    receiver: mpsc::Receiver<ToLeader>,
    down: CancellationToken,
}

impl LeaseLink {
    /// A link on which at most `messages_max` messages wait.
    #[must_use]
    pub fn new(messages_max: usize) -> (Self, LinkReceiver) {
        let (sender, receiver) = mpsc::channel(messages_max);
        let down = CancellationToken::new();
        let link = Self {
            sender,
            down: down.clone(),
        };
        (link, LinkReceiver { receiver, down })
    }

    /// Hands a message over; never blocks. False once the link is down: a new one will come. That a message was
    /// handed over does not mean that the leader gets it.
    pub fn send(&self, message: ToLeader) -> bool {
        if self.down.is_cancelled() {
            return false;
        }
        let sent = self.sender.try_send(message).is_ok();
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
        tokio::select! {
            biased;
            () = self.down.cancelled() => None,
            message = self.receiver.recv() => message,
        }
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
        assert_eq!(receiver.recv().await, Some(claim(2)));
        drop(receiver);
        assert!(!link.send(claim(3)));
    }

    #[tokio::test]
    async fn a_link_that_overflows_goes_down_instead_of_losing_a_message() {
        let (link, mut receiver) = LeaseLink::new(1);
        assert!(link.send(claim(1)));
        assert!(!link.send(claim(2)) && !link.send(claim(3)));
        assert_eq!(
            receiver.recv().await,
            None,
            "also what had arrived before is void"
        );
    }
}
