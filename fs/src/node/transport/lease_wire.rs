//! What goes over a link for leases, in either direction.

use bramble_proto::lease_request::Said as WireSaid;
use bramble_proto::lease_response::Order as WireOrder;
use bramble_proto::{
    Lease as WireLease, LeaseAcquire, LeaseClaim, LeaseGranted, LeaseHello, LeaseMode as WireMode,
    LeaseRecalled, LeaseRelease, LeaseRequest, LeaseResponse, LeaseTryRange, LeaseWelcome,
};
use raftstore::meta::{Ino, SessionId};

use super::wire::WireError;
use crate::lease::{Kept, Lease, LeaseMode, ToLeader};

/// From a holder to the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromHolder {
    /// What the holder's node has applied: all that it did under leases that it does not hold any more is in there.
    pub log_index: u64,
    /// The message.
    pub said: Said,
}

/// What a holder says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The first, before anything else.
    Hello {
        /// Who.
        session: SessionId,
        /// A part of what it holds.
        held: Vec<Lease>,
        /// No other part follows.
        last: bool,
    },
    /// All others.
    Message {
        /// The message.
        message: ToLeader,
        /// How many grants had been taken in when it was sent. Counts for releases only.
        grants_seen: u64,
    },
}

/// From the leader to a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHolder {
    /// The hello was taken in.
    Welcome {
        /// In which the leader leads.
        term: u64,
    },
    /// A request is granted.
    Granted {
        /// Its id.
        id: u64,
        /// What earlier holders did is in the log up to here.
        log_index: u64,
    },
    /// These are wanted by others.
    Recalled(Vec<Kept>),
    /// The claim of these was taken in.
    Claimed(Vec<Ino>),
    /// Others hold these.
    Refused(Vec<Ino>),
}

fn lease_out((ino, mode): (Ino, Option<LeaseMode>)) -> WireLease {
    let mode = match mode {
        None => WireMode::None,
        Some(LeaseMode::Shared) => WireMode::Shared,
        Some(LeaseMode::Exclusive) => WireMode::Exclusive,
    };
    WireLease {
        ino,
        mode: mode.into(),
    }
}

fn kept_in(lease: &WireLease) -> Result<Kept, WireError> {
    let mode = match WireMode::try_from(lease.mode) {
        Ok(WireMode::None) => None,
        Ok(WireMode::Shared) => Some(LeaseMode::Shared),
        Ok(WireMode::Exclusive) => Some(LeaseMode::Exclusive),
        Err(error) => return Err(WireError::Malformed(error.to_string())),
    };
    Ok((lease.ino, mode))
}

fn all_kept(leases: &[WireLease]) -> Result<Vec<Kept>, WireError> {
    leases.iter().map(kept_in).collect()
}

fn all_leases(leases: &[WireLease]) -> Result<Vec<Lease>, WireError> {
    let lease = |lease| match kept_in(lease)? {
        (ino, Some(mode)) => Ok(Lease { ino, mode }),
        (_, None) => Err(WireError::Malformed("a lease without a mode".into())),
    };
    leases.iter().map(lease).collect()
}

fn leases_out(leases: Vec<Lease>) -> Vec<WireLease> {
    let pairs = leases.into_iter().map(|lease| (lease.ino, Some(lease.mode)));
    pairs.map(lease_out).collect()
}

impl From<FromHolder> for LeaseRequest {
    fn from(from: FromHolder) -> Self {
        let said = match from.said {
            Said::Hello { session, held, last } => WireSaid::Hello(LeaseHello {
                session: session.0,
                held: leases_out(held),
                last,
            }),
            Said::Message { message, grants_seen } => match message {
                ToLeader::Acquire { id, leases } => WireSaid::Acquire(LeaseAcquire {
                    id,
                    leases: leases_out(leases),
                }),
                ToLeader::TryRange { id, range } => WireSaid::TryRange(LeaseTryRange { id, range }),
                ToLeader::Release { leases } => WireSaid::Release(LeaseRelease {
                    kept: leases.into_iter().map(lease_out).collect(),
                    grants_seen,
                }),
                ToLeader::Claim { inodes } => WireSaid::Claim(LeaseClaim { inodes }),
            },
        };
        Self {
            log_index: from.log_index,
            said: Some(said),
        }
    }
}

impl TryFrom<LeaseRequest> for FromHolder {
    type Error = WireError;

    fn try_from(request: LeaseRequest) -> Result<Self, WireError> {
        let said = request
            .said
            .ok_or_else(|| WireError::Malformed("an empty message about leases".into()))?;
        let message = |message, grants_seen| Said::Message { message, grants_seen };
        let said = match said {
            WireSaid::Hello(hello) => Said::Hello {
                session: SessionId(hello.session),
                held: all_leases(&hello.held)?,
                last: hello.last,
            },
            WireSaid::Acquire(LeaseAcquire { id, leases }) => {
                let leases = all_leases(&leases)?;
                message(ToLeader::Acquire { id, leases }, 0)
            }
            WireSaid::TryRange(LeaseTryRange { id, range }) => message(ToLeader::TryRange { id, range }, 0),
            WireSaid::Release(LeaseRelease { kept, grants_seen }) => {
                let leases = all_kept(&kept)?;
                message(ToLeader::Release { leases }, grants_seen)
            }
            WireSaid::Claim(LeaseClaim { inodes }) => message(ToLeader::Claim { inodes }, 0),
        };
        Ok(Self {
            log_index: request.log_index,
            said,
        })
    }
}

impl From<ToHolder> for LeaseResponse {
    fn from(order: ToHolder) -> Self {
        let order = match order {
            ToHolder::Welcome { term } => WireOrder::Welcome(LeaseWelcome { term }),
            ToHolder::Granted { id, log_index } => WireOrder::Granted(LeaseGranted { id, log_index }),
            ToHolder::Recalled(leases) => WireOrder::Recalled(LeaseRecalled {
                kept: leases.into_iter().map(lease_out).collect(),
            }),
            ToHolder::Claimed(inodes) => WireOrder::Claimed(LeaseClaim { inodes }),
            ToHolder::Refused(inodes) => WireOrder::Refused(LeaseClaim { inodes }),
        };
        Self { order: Some(order) }
    }
}

impl TryFrom<LeaseResponse> for ToHolder {
    type Error = WireError;

    fn try_from(response: LeaseResponse) -> Result<Self, WireError> {
        let order = response
            .order
            .ok_or_else(|| WireError::Malformed("an empty order about leases".into()))?;
        Ok(match order {
            WireOrder::Welcome(LeaseWelcome { term }) => Self::Welcome { term },
            WireOrder::Granted(LeaseGranted { id, log_index }) => Self::Granted { id, log_index },
            WireOrder::Recalled(LeaseRecalled { kept }) => Self::Recalled(all_kept(&kept)?),
            WireOrder::Claimed(LeaseClaim { inodes }) => Self::Claimed(inodes),
            WireOrder::Refused(LeaseClaim { inodes }) => Self::Refused(inodes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::range_of;
    use prost::Message;
    use rand::rngs::StdRng;
    use rand::{Rng, RngCore, SeedableRng};

    fn said(message: ToLeader, grants_seen: u64) -> FromHolder {
        FromHolder {
            log_index: 77,
            said: Said::Message { message, grants_seen },
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let (shared, exclusive) = (LeaseMode::Shared, LeaseMode::Exclusive);
        let leases = vec![
            Lease { ino: 1, mode: shared },
            Lease {
                ino: 2,
                mode: exclusive,
            },
        ];
        let kept = vec![(1, None), (2, Some(shared)), (3, Some(exclusive))];
        let hello = Said::Hello {
            session: SessionId(9),
            held: leases.clone(),
            last: true,
        };
        let requests = [
            FromHolder {
                log_index: 5,
                said: hello,
            },
            said(ToLeader::Acquire { id: 4, leases }, 0),
            said(
                ToLeader::TryRange {
                    id: 5,
                    range: range_of(1),
                },
                0,
            ),
            said(ToLeader::Release { leases: kept.clone() }, 6),
            said(ToLeader::Claim { inodes: vec![1, 2] }, 0),
        ];
        for request in requests {
            let wire = LeaseRequest::from(request.clone()).encode_to_vec();
            let back = LeaseRequest::decode(&wire[..]).unwrap();
            assert_eq!(FromHolder::try_from(back).unwrap(), request);
        }
        let orders = [
            ToHolder::Welcome { term: 8 },
            ToHolder::Granted { id: 1, log_index: 2 },
            ToHolder::Recalled(kept),
            ToHolder::Claimed(vec![3]),
            ToHolder::Refused(vec![4]),
        ];
        for order in orders {
            let wire = LeaseResponse::from(order.clone()).encode_to_vec();
            let back = LeaseResponse::decode(&wire[..]).unwrap();
            assert_eq!(ToHolder::try_from(back).unwrap(), order);
        }
    }

    #[test]
    fn garbage_is_survived() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..10_000 {
            let mut bytes = vec![0; rng.random_range(0..40)];
            rng.fill_bytes(&mut bytes);
            let _ = LeaseRequest::decode(&bytes[..]).map(FromHolder::try_from);
            let _ = LeaseResponse::decode(&bytes[..]).map(ToHolder::try_from);
        }
        let lease = WireLease { ino: 1, mode: 77 };
        assert!(kept_in(&lease).is_err() && all_leases(&[WireLease::default()]).is_err());
        assert!(FromHolder::try_from(LeaseRequest::default()).is_err());
    }
}
