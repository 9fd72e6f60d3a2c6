//! Which engine, and how much it may use.

use std::fmt;
use std::str::FromStr;

/// The engines to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EngineKind {
    /// A log-structured merge tree; small in memory, gentle to cards.
    #[default]
    Fjall,
    /// A log-structured B-tree.
    Sled,
    /// For simulation and tests: everything in memory, written to a file at each flush.
    Memory,
}

impl EngineKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fjall, Self::Sled, Self::Memory];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fjall => "fjall",
            Self::Sled => "sled",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The configuration names an engine that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no key-value engine {0:?}: choose \"fjall\" (the default), \"sled\" or \"memory\"")]
pub struct UnknownEngine(pub String);

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownEngine(name.to_owned()))
    }
}

/// An engine's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Changes kept in memory before they are written as a sorted file (`fjall`). Up to five times this for a
    /// moment, if the medium cannot keep up.
    pub write_buffer_bytes_max: u64,
    /// Cache for blocks read from the medium.
    pub cache_bytes_max: u64,
    /// Values that open snapshots still need after they were changed (`sled`, which has no snapshots of its own).
    /// Beyond this the snapshots expire.
    pub old_values_bytes_max: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            write_buffer_bytes_max: 4 << 20,
            cache_bytes_max: 8 << 20,
            old_values_bytes_max: 32 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_others_are_refused_with_the_choice() {
        for kind in EngineKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "rocksdb".parse::<EngineKind>().unwrap_err().to_string();
        assert!(
            error.contains("rocksdb") && error.contains("fjall") && error.contains("sled"),
            "{error}"
        );
    }
}
