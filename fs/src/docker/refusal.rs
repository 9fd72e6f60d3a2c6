//! What goes wrong, and what Docker is told about it.

use raftstore::meta::VolumeError;
use serde_json::{Value, json};

use super::tree::TreeError;
use crate::backend::BackendError;
use crate::posix::FsError;
use crate::volumes::{OPTIONS, VolumesError};

/// Why there is no answer, and the connection is to be broken.
///
/// Docker takes each *answer* to `Get` that is not the volume for "it does not exist" and forgets the volume. A broken
/// connection it takes for what it is, and asks again for half a minute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(pub String);

/// Why a request was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Refusal {
    /// It makes no sense, whatever volumes there are.
    #[error("{0}")]
    BadRequest(String),
    /// An option that does not exist, or not with this value.
    #[error("{}; the options are: {}", .0, options())]
    BadOption(String),
    /// Somebody uses the volume.
    #[error(
        "volume {volume} is in use on {nodes}: remove the containers that use it first (if there are none any more: \
         bramble volume rm --force {volume})"
    )]
    InUse {
        /// Which.
        volume: String,
        /// Names of nodes.
        nodes: String,
    },
    /// The volumes' own reasons.
    #[error(transparent)]
    Volumes(#[from] VolumesError),
    /// Its directory cannot be handed out.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The node is about to end.
    #[error("this node is stopping")]
    Stopping,
}

impl Refusal {
    /// The one place that decides what Docker is told.
    ///
    /// # Errors
    /// [`NoAnswer`] if that is to be nothing.
    pub(super) fn tell(&self) -> Result<Value, NoAnswer> {
        let certain = match self {
            Self::BadRequest(_) | Self::BadOption(_) | Self::InUse { .. } => true,
            Self::Tree(error) => *error != TreeError::Silent,
            Self::Stopping => false,
            Self::Volumes(VolumesError::Refused(_) | VolumesError::Open { .. }) => true,
            Self::Volumes(VolumesError::Tree(error)) => matches!(
                error,
                FsError::Refused(_) | FsError::Backend(BackendError::NoSpace)
            ),
        };
        if certain {
            Ok(json!({ "Err": self.to_string() }))
        } else {
            Err(NoAnswer(self.to_string()))
        }
    }

    /// As [`Refusal::tell`], where Docker takes each answer for "there is no such volume".
    ///
    /// # Errors
    /// [`NoAnswer`] unless that is the truth.
    pub(super) fn tell_if_unknown(&self) -> Result<Value, NoAnswer> {
        match self {
            Self::BadRequest(_) => self.tell(),
            Self::Volumes(error) if error.is_unknown() => self.tell(),
            other => Err(NoAnswer(other.to_string())),
        }
    }

    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::Volumes(error) if error.is_unknown())
    }

    pub(super) fn is_in_use(&self) -> bool {
        matches!(
            self,
            Self::Volumes(VolumesError::Refused(VolumeError::InUse { .. }))
        )
    }
}

/// All options, each with what it takes.
fn options() -> String {
    let known: Vec<String> = OPTIONS
        .iter()
        .map(|(name, takes)| format!("{name} ({takes})"))
        .collect();
    known.join(", ")
}
