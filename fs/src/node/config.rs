//! What the administrator chose; kept in the store, shown by `status`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files;
use super::store::Layout;

/// The key-value engine under the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// fjall's tree: small memory, few bytes written.
    #[default]
    Fjall,
    /// sled.
    Sled,
    /// In memory, on a simulated medium.
    #[cfg(test)]
    Memory,
}

/// What a write does while there is no quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnQuorumLoss {
    /// Waits (it can be interrupted) until the quorum is back.
    #[default]
    Wait,
    /// Fails with EIO after some seconds.
    Error,
}

/// Bounds on memory and on the medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Log that is kept although every voter has it and the state machine holds it, bytes.
    pub journal_bytes_max: u64,
    /// One journal segment, bytes.
    pub journal_segment_bytes: u64,
    /// Journal segments that are made ready while the medium is idle, so that a burst of writes need not wait for that;
    /// they are kept, bytes.
    pub journal_ready_bytes: u64,
    /// Entries kept in the log for nodes that come back, entries.
    pub journal_entries_max: u64,
    /// The engine's cache, bytes.
    pub engine_cache_bytes_max: u64,
    /// The engine's write buffers, bytes.
    pub engine_buffer_bytes_max: u64,
    /// Payload of proposals that wait for their answers, bytes.
    pub inflight_bytes_max: u64,
    /// Proposals that wait for their answers.
    pub inflight_proposals_max: u32,
    /// Kept free on each medium, percent of its size.
    pub reserve_percent: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            journal_bytes_max: 128 << 20,
            journal_segment_bytes: 8 << 20,
            // When it has so many, payload is moved out of it.
            journal_ready_bytes: 96 << 20,
            journal_entries_max: 200_000,
            engine_cache_bytes_max: 8 << 20,
            engine_buffer_bytes_max: 2 << 20,
            inflight_bytes_max: 4 << 20,
            inflight_proposals_max: 512,
            reserve_percent: 3,
        }
    }
}

/// A node's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's name, unique in the cluster.
    pub name: String,
    /// Where other nodes reach it.
    pub listen: SocketAddr,
    /// Where the tree is mounted.
    pub mount: PathBuf,
    /// The engine under the metadata.
    #[serde(default)]
    pub engine: EngineChoice,
    /// What writes do without a quorum.
    #[serde(default)]
    pub on_quorum_loss: OnQuorumLoss,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// Longest node name, bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what this version writes.
    #[error("the configuration {path} is wrong: {reason}. Correct it, or restore it from a backup")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A value makes no sense.
    #[error("{0}")]
    Value(String),
}

impl Config {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// [`ConfigError::Value`] says what to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let name_ok = !self.name.is_empty()
            && self.name.len() <= NAME_BYTES_MAX
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        let refuse = |text: String| Err(ConfigError::Value(text));
        if !name_ok {
            return refuse(format!(
                "the node name {:?} is not usable: choose up to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.' \
                 with --name",
                self.name
            ));
        }
        if self.listen.ip().is_unspecified() || self.listen.port() == 0 {
            return refuse(format!(
                "{} cannot be reached by other nodes: give the address of one of this machine's interfaces and a \
                 port, as in --listen 192.168.1.10:7400",
                self.listen
            ));
        }
        if !self.mount.is_absolute() {
            return refuse(format!(
                "the mount point {} must be an absolute path",
                self.mount.display()
            ));
        }
        let limits = &self.limits;
        let segments_ok = limits.journal_segment_bytes >= 1 << 20
            && limits.journal_bytes_max >= 4 * limits.journal_segment_bytes;
        if !segments_ok {
            return refuse(
                "journal_segment_bytes must be at least 1 MiB, and journal_bytes_max at least four segments"
                    .into(),
            );
        }
        if limits.inflight_proposals_max == 0
            || limits.inflight_bytes_max < 1 << 20
            || limits.reserve_percent > 50
        {
            return refuse(
                "inflight_proposals_max must be at least 1, inflight_bytes_max at least 1 MiB, reserve_percent at \
                 most 50"
                    .into(),
            );
        }
        Ok(())
    }

    /// Reads a store's configuration.
    ///
    /// # Errors
    /// If it is missing, unreadable or malformed.
    pub fn load(layout: &Layout) -> Result<Self, ConfigError> {
        let path = layout.config();
        let text = files::read_text(&**layout.disk(), &path).map_err(|source| ConfigError::Unreadable {
            path: path.clone(),
            source,
        })?;
        let config: Self = serde_json::from_str(&text).map_err(|error| ConfigError::Malformed {
            path,
            reason: error.to_string(),
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Writes it into a store, durably.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, layout: &Layout) -> std::io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::other)?;
        let (disk, path) = (&**layout.disk(), layout.config());
        files::replace_file(disk, &path, format!("{text}\n").as_bytes(), 0o644)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        Config {
            name: "pi-1".into(),
            listen: "192.0.2.1:7400".parse().unwrap(),
            mount: "/mnt/cluster".into(),
            engine: EngineChoice::Fjall,
            on_quorum_loss: OnQuorumLoss::Wait,
            limits: Limits::default(),
        }
    }

    #[test]
    fn survives_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(std::sync::Arc::new(raftstore::disk::RealDisk), dir.path());
        sample().save(&layout).unwrap();
        assert_eq!(Config::load(&layout).unwrap(), sample());
    }

    #[test]
    fn short_files_take_defaults_and_unknown_keys_are_refused() {
        let short = r#"{"name":"a","listen":"192.0.2.1:1","mount":"/m"}"#;
        let config: Config = serde_json::from_str(short).unwrap();
        assert_eq!(config.limits, Limits::default());
        let wrong = r#"{"name":"a","listen":"192.0.2.1:1","mount":"/m","lisen":"x"}"#;
        assert!(
            serde_json::from_str::<Config>(wrong)
                .unwrap_err()
                .to_string()
                .contains("lisen")
        );
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let refused = |change: fn(&mut Config)| {
            let mut config = sample();
            change(&mut config);
            config.validate().is_err()
        };
        assert!(refused(|c| c.name = String::new()));
        assert!(refused(|c| c.name = "a b".into()));
        assert!(refused(|c| c.listen = "0.0.0.0:7400".parse().unwrap()));
        assert!(refused(|c| c.listen = "192.0.2.1:0".parse().unwrap()));
        assert!(refused(|c| c.mount = "relative".into()));
        assert!(refused(|c| c.limits.journal_bytes_max = 1));
        assert!(!refused(|_| ()));
    }
}
