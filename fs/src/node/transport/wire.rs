//! Errors on the wire: the one place where they become a gRPC status and come back from one.

use raftstore::meta::NodeId;
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

/// Why a node did not do what another asked of it. Travels as the details of a gRPC status, coded with postcard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum WireError {
    /// The callee does not lead; nothing was done. Names the leader's id and address if it knows them.
    #[error("this node is not the leader")]
    NotLeader(Option<(NodeId, String)>),
    /// The callee could not do it now; nothing was done, and the caller may try again.
    #[error("{0}")]
    NotNow(String),
    /// It may or may not have been done.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The callee cannot be reached; nothing was done.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The caller has no certificate of this cluster.
    #[error("a certificate of this cluster is needed for this call")]
    NotMember,
    /// The caller was removed from the cluster.
    #[error(
        "this node was removed from the cluster: stop it, delete its store, and join again with a new token if you \
         want it back"
    )]
    Removed,
    /// The request was meant for another node.
    #[error("this is node {here}, not node {wanted}")]
    WrongTarget {
        /// Whom the caller meant.
        wanted: NodeId,
        /// Who answered.
        here: NodeId,
    },
    /// The request was understood and refused; the text tells the user what to do.
    #[error("{0}")]
    Refused(String),
    /// No such chunk here, or no good copy of it.
    #[error("there is no good copy here")]
    NotThere,
    /// The medium is full.
    #[error("the medium is full")]
    NoSpace,
    /// The request could not be decoded.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// The callee has stopped for good.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

impl WireError {
    fn code(&self) -> Code {
        match self {
            Self::NotLeader(_) | Self::WrongTarget { .. } => Code::FailedPrecondition,
            Self::NotNow(_) | Self::Unreachable(_) => Code::Unavailable,
            Self::Unknown(_) => Code::Unknown,
            Self::NotMember => Code::Unauthenticated,
            Self::Removed | Self::Refused(_) => Code::PermissionDenied,
            Self::NotThere => Code::NotFound,
            Self::NoSpace => Code::ResourceExhausted,
            Self::Malformed(_) => Code::InvalidArgument,
            Self::Stopped(_) => Code::Aborted,
        }
    }

    /// True if it is certain that the callee did nothing.
    #[must_use]
    pub fn nothing_done(&self) -> bool {
        !matches!(self, Self::Unknown(_) | Self::Stopped(_))
    }
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Self {
        let details = postcard::to_stdvec(&error).unwrap_or_default();
        Self::with_details(error.code(), error.to_string(), details.into())
    }
}

impl From<Status> for WireError {
    fn from(status: Status) -> Self {
        if let Ok(error) = postcard::from_bytes(status.details()) {
            return error;
        }
        let mut source = std::error::Error::source(&status);
        while let Some(error) = source {
            if error.is::<tonic::ConnectError>() {
                return Self::Unreachable(innermost(error));
            }
            source = error.source();
        }
        match status.code() {
            Code::Unimplemented | Code::InvalidArgument => Self::Malformed(status.message().to_owned()),
            _ => Self::Unknown(status.message().to_owned()),
        }
    }
}

/// The text of the deepest cause, which is the one that helps.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Decodes a postcard message of another node.
///
/// # Errors
/// [`WireError::Malformed`] if it is not one.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    postcard::from_bytes(bytes).map_err(|error| WireError::Malformed(error.to_string()))
}

/// Encodes a postcard message.
///
/// # Errors
/// [`WireError::Malformed`] if the value cannot be encoded; a defect.
pub fn encode<T: Serialize>(value: &T) -> Result<bytes::Bytes, WireError> {
    postcard::to_stdvec(value)
        .map(Into::into)
        .map_err(|error| WireError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_wire() {
        let errors = [
            WireError::NotLeader(Some((3, "192.0.2.3:7400".into()))),
            WireError::NotLeader(None),
            WireError::NotNow("later".into()),
            WireError::Unknown("lost".into()),
            WireError::Unreachable("refused".into()),
            WireError::NotMember,
            WireError::Removed,
            WireError::WrongTarget { wanted: 1, here: 2 },
            WireError::Refused("because".into()),
            WireError::NotThere,
            WireError::NoSpace,
            WireError::Malformed("bits".into()),
            WireError::Stopped("poisoned".into()),
        ];
        for error in errors {
            assert_eq!(WireError::from(Status::from(error.clone())), error);
        }
    }

    #[test]
    fn a_status_of_unknown_origin_leaves_the_outcome_open() {
        let error = WireError::from(Status::internal("stream reset"));
        assert_eq!(error, WireError::Unknown("stream reset".into()));
        assert!(!error.nothing_done());
    }

    #[test]
    fn garbage_is_malformed() {
        for seed in 0u8..64 {
            let bytes: Vec<u8> = (0..seed)
                .map(|i| i.wrapping_mul(37) ^ seed.wrapping_mul(91))
                .collect();
            let _ = decode::<raftstore::meta::Proposal>(&bytes);
            let _ = WireError::from(Status::with_details(Code::Unknown, "x", bytes.into()));
        }
        assert!(matches!(
            decode::<raftstore::meta::Proposal>(b"\xff\xff"),
            Err(WireError::Malformed(_))
        ));
    }
}
