//! Why the state machine refused a proposal.

use serde::{Deserialize, Serialize};

use super::types::SessionId;
use super::volume::VolumeError;

/// An answer that is an error. It is part of the replicated state (a repeat gets the same one), so it is plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MetaError {
    /// POSIX says no; maps to one errno.
    #[error("{0}")]
    Refused(Refusal),
    /// The session was expired: open another one. Nothing was done.
    #[error("session {} has expired", .0.0)]
    SessionExpired(SessionId),
    /// The sequence number is below the session's `ack_floor`: its answer is gone.
    #[error("this proposal was answered long ago")]
    Stale,
    /// The join token does not exist, was used, or has expired.
    #[error("the token is wrong, was used already, or has expired")]
    BadToken,
    /// The proposal makes no sense; a defect of the proposer.
    #[error("malformed proposal: {0}")]
    Malformed(String),
    /// About volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl From<Refusal> for MetaError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The POSIX errors that the state machine itself decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// ENOENT
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST
    #[error("file exists")]
    Exists,
    /// ENOTDIR
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR
    #[error("is a directory")]
    IsDirectory,
    /// ENOTEMPTY
    #[error("directory not empty")]
    NotEmpty,
    /// EINVAL
    #[error("invalid argument")]
    Invalid,
    /// EPERM
    #[error("operation not permitted")]
    NotPermitted,
    /// ENAMETOOLONG
    #[error("name too long")]
    NameTooLong,
    /// EMLINK
    #[error("too many links")]
    TooManyLinks,
    /// EFBIG
    #[error("file too large")]
    TooLarge,
    /// ENODATA
    #[error("no such attribute")]
    NoAttribute,
    /// ERANGE or E2BIG: an attribute value over the limit
    #[error("attribute too large")]
    AttributeTooLarge,
    /// ESTALE: the inode is gone
    #[error("stale file handle")]
    Stale,
    /// EDQUOT
    #[error("disk quota exceeded")]
    QuotaExceeded,
    /// ENOSPC
    #[error("no space left")]
    NoSpace,
    /// EOPNOTSUPP
    #[error("operation not supported")]
    NotSupported,
    /// ENOLCK
    #[error("too many locks")]
    NoLocks,
    /// EXDEV: the two places count for different projects
    #[error("invalid cross-device link")]
    CrossesProjects,
    /// EROFS
    #[error("read-only file system")]
    ReadOnly,
    /// EBUSY: it is a volume's directory
    #[error("device or resource busy")]
    Busy,
}
