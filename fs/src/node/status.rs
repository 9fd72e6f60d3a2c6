//! What `status` says: the document, and its text for people.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::config::Config;

/// The status of a node, and of the cluster as that node sees it. `status --json` prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// This node.
    pub node: NodeStatus,
    /// The cluster.
    pub cluster: ClusterStatus,
    /// Raft on this node.
    pub raft: RaftStatus,
    /// The journal of this node.
    pub journal: JournalStatus,
    /// The metadata of this node.
    pub metadata: MetadataStatus,
    /// The chunks of this node.
    pub chunks: ChunksStatus,
    /// Memory of this daemon.
    pub memory: MemoryStatus,
    /// The medium under this store.
    pub medium: MediumStatus,
    /// What this node may answer and change on its own.
    pub leases: LeasesStatus,
    /// What was done on this node that the cluster does not know of yet.
    pub pending: PendingStatus,
    /// What an administrator should look at.
    pub warnings: Vec<String>,
    /// The configuration.
    pub config: Option<Config>,
}

/// This node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its store.
    pub store: String,
    /// Its session; 0 while none is open.
    pub session: u64,
    /// Whether the tree is mounted.
    pub mounted: bool,
    /// Whether it gives away what moves elsewhere.
    #[serde(default)]
    pub draining: bool,
    /// The daemon's process id.
    pub pid: u32,
}

/// The cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its id.
    pub id: String,
    /// The leader's name, if this node knows it.
    pub leader: Option<String>,
    /// Whether a majority decides.
    pub quorum: bool,
    /// Why not.
    pub waiting_for: Option<String>,
    /// The nodes.
    pub nodes: Vec<MemberStatus>,
    /// Inodes in the tree.
    pub inodes: u64,
    /// Bytes of file data, copies not counted.
    pub data_bytes: u64,
}

/// A node of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub listen: String,
    /// `leader`, `voter`, `learner` or `joining`.
    pub role: String,
    /// Whether it could be reached just now.
    pub reachable: bool,
    /// Log entries that it has yet to apply, as last heard.
    pub lag_entries: Option<u64>,
    /// Since the leader last heard from it.
    pub silent_ms: Option<u64>,
    /// Program version.
    pub version: String,
    /// Memory of its daemon.
    pub memory_resident_bytes: u64,
    /// Written to its medium.
    pub medium_written_bytes: u64,
    /// Left on its medium.
    pub available_bytes: u64,
    /// Size of its medium.
    pub capacity_bytes: u64,
    /// Whether every chunk that belongs there is there.
    pub chunks_complete: bool,
    /// Chunks known to be missing there; more may be found.
    #[serde(default)]
    pub chunks_missing: u64,
    /// Whether it is draining.
    #[serde(default)]
    pub draining: bool,
}

/// Raft on this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RaftStatus {
    /// Term.
    pub term: u64,
    /// Number of voters.
    pub voters: u64,
    /// Number of learners.
    pub learners: u64,
    /// The last entry of the log.
    pub last_index: u64,
    /// The oldest entry that the log still holds.
    pub first_index: u64,
    /// The last entry known to be committed.
    pub committed_index: u64,
    /// The last entry applied here.
    pub applied_index: u64,
    /// Snapshots taken from other nodes since the daemon started.
    pub snapshots_installed: u64,
}

/// The journal of this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Segments in use.
    pub live_segments: u64,
    /// Segments kept for reuse.
    pub free_segments: u64,
    /// Size of all segments.
    pub total_bytes: u64,
    /// Smoothed time of an fdatasync, microseconds.
    pub sync_latency_us: u64,
    /// Syncs since the daemon started.
    pub syncs: u64,
    /// Bytes written since the daemon started.
    pub written_bytes: u64,
    /// Damaged entries that were found when they were read.
    pub damaged_reads: u64,
    /// Why it has stopped, if it has.
    pub poisoned: Option<String>,
}

/// The metadata of this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MetadataStatus {
    /// The engine.
    pub engine: String,
    /// What it has flushed to the medium, a log index.
    pub flushed_index: u64,
    /// Its caches and buffers, an estimate.
    pub memory_bytes: u64,
}

/// The chunks of this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChunksStatus {
    /// Chunks here.
    pub count: u64,
    /// Bytes in use.
    pub live_bytes: u64,
    /// Bytes that compaction will free.
    pub dead_bytes: u64,
    /// Damaged blocks found since the daemon started.
    pub bad: u64,
    /// Chunks damaged and not yet repaired.
    pub damaged: u64,
    /// Copies fetched from a peer and written anew since the daemon started.
    pub repaired: u64,
    /// Reads that another node answered.
    pub remote_reads: u64,
    /// Chunks that background work has yet to look at.
    pub pending: u64,
}

/// Memory of this daemon.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Resident.
    pub resident_bytes: u64,
}

/// The medium under this store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MediumStatus {
    /// Written by this daemon.
    pub written_bytes: u64,
    /// Left.
    pub available_bytes: u64,
    /// Size.
    pub capacity_bytes: u64,
    /// What it was found to take at the first start; `null` if it could not be measured.
    pub found: Option<MeasuredStatus>,
    /// What it costs now: an fdatasync of the journal, smoothed, and what this daemon has written over the last ten
    /// seconds.
    pub now: MeasuredStatus,
    /// From so many pending bytes on, they are pushed without being asked for; 0 while nothing is mounted.
    pub batch_bytes: u64,
    /// With more bytes, a batch goes to chunks; else it rides in the log.
    pub inline_bytes_max: u64,
}

/// What a medium takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredStatus {
    /// Time of a small write with its fdatasync, microseconds.
    pub sync_latency_us: u64,
    /// Bytes per second.
    pub write_bytes_per_s: u64,
}

/// The leases of this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LeasesStatus {
    /// To answer from its own state.
    pub shared: u64,
    /// To change, too.
    pub exclusive: u64,
}

/// What waits for being pushed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PendingStatus {
    /// Written bytes.
    pub bytes: u64,
    /// Changes of names and attributes.
    pub changes: u64,
    /// Since the oldest of them was made; `null` if there is none.
    pub oldest_ms: Option<u64>,
}

impl Status {
    /// The text for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let cluster = &self.cluster;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "cluster   {}, {} nodes", cluster.id, cluster.nodes.len());
        let _ = match (&cluster.waiting_for, &cluster.leader) {
            (Some(why), _) => writeln!(text, "quorum    NO: {why}"),
            (None, Some(leader)) => {
                let (vote, may_fail) = (self.raft.voters, self.raft.voters.saturating_sub(1) / 2);
                writeln!(
                    text,
                    "quorum    yes, {leader} leads; {vote} vote, and {may_fail} of them may fail"
                )
            }
            (None, None) => writeln!(text, "quorum    yes"),
        };
        let _ = writeln!(
            text,
            "tree      {} inodes, {} of data",
            cluster.inodes,
            human_bytes(cluster.data_bytes)
        );
        let mounted = if self.node.mounted {
            "mounted"
        } else {
            "NOT MOUNTED"
        };
        let mount = self
            .config
            .as_ref()
            .map(|config| config.mount.display().to_string())
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "this node {} (id {}), {mounted} at {mount}",
            self.node.name, self.node.id
        );
        text.push('\n');
        text.push_str(&self.nodes_table());
        let _ = writeln!(
            text,
            "\nlog       entries {} to {}, applied {}; journal {} in {} + {} segments, sync {:.1} ms",
            self.raft.first_index,
            self.raft.last_index,
            self.raft.applied_index,
            human_bytes(self.journal.total_bytes),
            self.journal.live_segments,
            self.journal.free_segments,
            self.journal.sync_latency_us as f64 / 1000.0,
        );
        let _ = writeln!(
            text,
            "chunks    {} with {}; {} bad found, {} repaired, {} damaged now",
            self.chunks.count,
            human_bytes(self.chunks.live_bytes),
            self.chunks.bad,
            self.chunks.repaired,
            self.chunks.damaged,
        );
        let _ = writeln!(text, "medium    {}", self.medium.line());
        let _ = write!(
            text,
            "leases    {} exclusive, {} shared; pending {} and {} changes",
            self.leases.exclusive,
            self.leases.shared,
            human_bytes(self.pending.bytes),
            self.pending.changes,
        );
        let _ = match self.pending.oldest_ms {
            Some(age) => writeln!(text, ", the oldest {:.1} s old", age as f64 / 1000.0),
            None => writeln!(text),
        };
        let _ = writeln!(
            text,
            "process   {} resident, {} written to the medium; engine {}",
            human_bytes(self.memory.resident_bytes),
            human_bytes(self.medium.written_bytes),
            self.metadata.engine,
        );
        if let Some(config) = &self.config {
            let _ = writeln!(
                text,
                "config    listen {}, on quorum loss {:?}, journal up to {}, store {}",
                config.listen,
                config.on_quorum_loss,
                human_bytes(config.limits.journal_bytes_max),
                self.node.store,
            );
        }
        if self.node.draining {
            text.push_str("DRAINING  leadership and the virtual address are given away; `bramble drain --undo` ends it\n");
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "WARNING   {warning}");
        }
        text
    }

    /// One line for each node.
    #[must_use]
    pub fn nodes_table(&self) -> String {
        let mut text = format!(
            "{:<4} {:<16} {:<22} {:<8} {:<12} {:>8} {:>10} {:>12}\n",
            "ID", "NAME", "LISTEN", "ROLE", "STATE", "LAG", "MEMORY", "FREE"
        );
        for node in &self.cluster.nodes {
            let state = match (node.reachable, node.chunks_complete, node.draining) {
                (true, true, false) => "up",
                (true, true, true) => "up, draining",
                (true, false, _) => "up, copying",
                (false, ..) => "UNREACHABLE",
            };
            let lag = node.lag_entries.map_or("-".to_owned(), |lag| lag.to_string());
            let _ = writeln!(
                text,
                "{:<4} {:<16} {:<22} {:<8} {:<12} {:>8} {:>10} {:>12}",
                node.id,
                node.name,
                node.listen,
                node.role,
                state,
                lag,
                human_bytes(node.memory_resident_bytes),
                human_bytes(node.available_bytes),
            );
        }
        text
    }
}

impl MediumStatus {
    /// What it was found to take, what it costs now, and what follows.
    fn line(&self) -> String {
        let cost = |cost: &MeasuredStatus| {
            let sync_ms = cost.sync_latency_us as f64 / 1000.0;
            format!("sync {sync_ms:.1} ms, {}/s", human_bytes(cost.write_bytes_per_s))
        };
        let found = self.found.as_ref().map_or("not measured".to_owned(), cost);
        let mut line = format!("found {found}; now {}", cost(&self.now));
        if self.batch_bytes > 0 {
            let (batch, inline) = (human_bytes(self.batch_bytes), human_bytes(self.inline_bytes_max));
            line.push_str(&format!("; batches of {batch}, in the log up to {inline}"));
        }
        line
    }
}

/// A number of bytes for people.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_why_it_waits() {
        let mut status = Status::default();
        status.cluster.waiting_for = Some("1 of 3 voters can be reached".into());
        status.cluster.nodes.push(MemberStatus {
            id: 2,
            name: "pi-2".into(),
            role: "voter".into(),
            ..Default::default()
        });
        let text = status.to_text();
        assert!(text.contains("NO: 1 of 3 voters can be reached") && text.contains("UNREACHABLE"));
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }

    #[test]
    fn tells_of_the_medium_and_of_what_is_pending() {
        let mut status = Status::default();
        assert!(
            status
                .to_text()
                .contains("found not measured; now sync 0.0 ms, 0 B/s\n")
        );
        status.medium.found = Some(MeasuredStatus {
            sync_latency_us: 33_300,
            write_bytes_per_s: 10 << 20,
        });
        status.medium.now.sync_latency_us = 41_000;
        (status.medium.batch_bytes, status.medium.inline_bytes_max) = (3 << 19, 256 << 10);
        (status.leases.shared, status.leases.exclusive) = (3, 40);
        status.pending = PendingStatus {
            bytes: 2048,
            changes: 7,
            oldest_ms: Some(1234),
        };
        let text = status.to_text();
        for line in [
            "medium    found sync 33.3 ms, 10.0 MiB/s; now sync 41.0 ms, 0 B/s; batches of 1.5 MiB, in the log up to 256.0 KiB\n",
            "leases    40 exclusive, 3 shared; pending 2.0 KiB and 7 changes, the oldest 1.2 s old\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn bytes_for_people() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(u64::MAX), "16777216.0 TiB");
    }
}
