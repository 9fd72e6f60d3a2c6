//! Why a request failed, and which errno says so. This is the only place where errnos are chosen.

use raftstore::kv::KvError;
use raftstore::meta::{MetaError, Refusal, Reply};

use crate::backend::BackendError;

/// Why a request was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// POSIX says no.
    #[error("{0}")]
    Refused(Refusal),
    /// The cluster could not do it.
    #[error(transparent)]
    Backend(BackendError),
    /// EAGAIN: another owner's lock is in the way, and the caller did not want to wait.
    #[error("a conflicting lock is held")]
    WouldBlock,
    /// EDEADLK: waiting for this lock would wait for oneself.
    #[error("waiting for this lock would never end")]
    Deadlock,
    /// ENOLCK: this node's lock table is full.
    #[error("no locks available on this node")]
    NoLocks,
    /// EIO: this node lost its session, and with it locks on this file that were held when it was opened.
    #[error("locks on this file were lost while this node was cut off: close it and open it again")]
    LocksLost,
    /// EINTR: a signal came while the request waited.
    #[error("interrupted by a signal")]
    Interrupted,
    /// ENXIO: there is no data (or no hole) at or after this offset.
    #[error("nothing of this kind at or after the offset")]
    BeyondEnd,
    /// ERANGE: the caller's buffer is too small for the value.
    #[error("the buffer is too small")]
    BufferTooSmall,
    /// EIO: the state machine answered what this operation cannot mean; a defect.
    #[error("unexpected answer of the state machine: {0}")]
    UnexpectedReply(String),
    /// EIO: the file changed faster than it could be read.
    #[error("the file kept changing while it was read")]
    Unstable,
}

impl FsError {
    /// The errno that tells the caller.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused(refusal) => refusal_errno(*refusal),
            Self::Backend(error) => backend_errno(error),
            Self::WouldBlock => libc::EAGAIN,
            Self::Deadlock => libc::EDEADLK,
            Self::NoLocks => libc::ENOLCK,
            Self::Interrupted => libc::EINTR,
            Self::BeyondEnd => libc::ENXIO,
            Self::BufferTooSmall => libc::ERANGE,
            Self::UnexpectedReply(_) | Self::Unstable | Self::LocksLost => libc::EIO,
        }
    }

    /// For an answer that the operation cannot have.
    pub(super) fn unexpected(reply: &Reply) -> Self {
        Self::UnexpectedReply(format!("{reply:?}"))
    }
}

fn refusal_errno(refusal: Refusal) -> i32 {
    match refusal {
        Refusal::NotFound => libc::ENOENT,
        Refusal::Exists => libc::EEXIST,
        Refusal::NotDirectory => libc::ENOTDIR,
        Refusal::IsDirectory => libc::EISDIR,
        Refusal::NotEmpty => libc::ENOTEMPTY,
        Refusal::Invalid => libc::EINVAL,
        Refusal::NotPermitted => libc::EPERM,
        Refusal::NameTooLong => libc::ENAMETOOLONG,
        Refusal::TooManyLinks => libc::EMLINK,
        Refusal::TooLarge => libc::EFBIG,
        Refusal::NoAttribute => libc::ENODATA,
        Refusal::AttributeTooLarge => libc::E2BIG,
        Refusal::Stale => libc::ESTALE,
        Refusal::QuotaExceeded => libc::EDQUOT,
        Refusal::NoSpace => libc::ENOSPC,
        Refusal::NoLocks => libc::ENOLCK,
        Refusal::NotSupported => libc::EOPNOTSUPP,
        Refusal::CrossesProjects => libc::EXDEV,
        Refusal::ReadOnly => libc::EROFS,
        Refusal::Busy => libc::EBUSY,
    }
}

fn backend_errno(error: &BackendError) -> i32 {
    match error {
        BackendError::NoSpace => libc::ENOSPC,
        BackendError::Meta(MetaError::Refused(refusal)) => refusal_errno(*refusal),
        BackendError::Meta(_)
        | BackendError::ChunkGone(_)
        | BackendError::ChunkLost(_)
        | BackendError::NoQuorum(_)
        | BackendError::Kv(_)
        | BackendError::Stopped(_) => libc::EIO,
    }
}

impl From<Refusal> for FsError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<BackendError> for FsError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Meta(MetaError::Refused(refusal)) => Self::Refused(refusal),
            other => Self::Backend(other),
        }
    }
}

impl From<KvError> for FsError {
    fn from(error: KvError) -> Self {
        Self::Backend(BackendError::Kv(error))
    }
}
