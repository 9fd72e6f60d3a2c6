//! The arguments.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::bootstrap::BootstrapArgs;
use super::vip::VipArgs;
use super::vip_check::DockerArgs;
use crate::docker::PluginSocket;
use crate::node::config::{EngineChoice, OnQuorumLoss};

/// A replicated POSIX filesystem for a few small machines.
#[derive(Debug, Parser)]
#[command(name = "bramble", version, about, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes the first node of a new cluster, prints a token for the second, and exits.
    Init {
        #[command(flatten)]
        make: MakeArgs,
        /// How long the printed token is good, from when the node first runs: 30s, 10m, 1h, 2d.
        #[arg(long, value_parser = duration, default_value = "24h")]
        token_valid: Duration,
    },
    /// Makes a further node of a cluster, and exits.
    Join {
        #[command(flatten)]
        make: MakeArgs,
        /// IP:PORT of a node that runs.
        #[arg(long)]
        peer: SocketAddr,
        /// A token made by `bramble token` on a node of the cluster.
        #[arg(long)]
        token: String,
    },
    /// Makes this machine a node, and keeps it one: prepares the disk, joins (or begins) a cluster, starts the daemon, joins
    /// Docker's Swarm. Can be repeated at will. A blank machine with a dead node's name takes its place.
    Bootstrap(BootstrapArgs),
    /// Runs a node in the foreground: mounts the tree, until SIGTERM.
    Run {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// End when the process that started this one does.
        #[arg(long, hide = true)]
        die_with_parent: bool,
        /// Where Docker's volume plugin is served: auto (/run/docker/plugins/bramble.sock, if Docker is on this machine), off,
        /// or the path of a socket.
        #[arg(long, value_name = "auto|off|SOCKET", default_value = "auto")]
        docker_plugin: PluginSocket,
    },
    /// Shows what a node and its cluster are doing.
    Status {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Makes a token that lets one node join.
    Token {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// How long it is good: 30s, 10m, 1h, 2d.
        #[arg(long, value_parser = duration, default_value = "1h")]
        valid: Duration,
        /// The same in seconds.
        #[arg(long, conflicts_with = "valid")]
        valid_s: Option<u64>,
    },
    /// Lists or removes nodes.
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Manages volumes: directories with a name, a limit, snapshots.
    Volume {
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Ends with 0 if the tree is mounted here, answers, and a quorum decides.
    Health {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// Ends with 0 only if this node should have the virtual address, too: Docker answers, the tree can be written,
        /// and the node is not draining. For keepalived; ends within 4 s.
        #[arg(long)]
        vip: bool,
        #[command(flatten)]
        docker: DockerArgs,
    },
    /// Writes the configuration of keepalived on this node, for an address that is always on a healthy one.
    Vip(VipArgs),
    /// Gives leadership and the virtual address away, before this node is shut down or worked on.
    Drain {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// Ends it.
        #[arg(long)]
        undo: bool,
        /// Takes Swarm's tasks away first; with --undo, lets them come back.
        #[arg(long)]
        swarm: bool,
    },
    /// Writes man pages and shell completions, for packages.
    #[command(hide = true)]
    Generate {
        /// The directory for man pages.
        #[arg(long)]
        man: Option<PathBuf>,
        /// The directory for completions.
        #[arg(long)]
        completions: Option<PathBuf>,
    },
    /// Asks the mount, for the daemon that serves it.
    #[command(hide = true)]
    ProbeMount {
        /// Where the tree is mounted.
        #[arg(long)]
        mount: PathBuf,
        /// Only whether the threads that serve it answer.
        #[arg(long)]
        threads: bool,
        /// What is at this path, which should be a directory of the tree.
        #[arg(long, requires = "device")]
        directory: Option<PathBuf>,
        /// The device that all files of the tree are on.
        #[arg(long)]
        device: Option<u64>,
    },
    /// Writes to the tree, for `health --vip`.
    #[command(hide = true)]
    ProbeWrite {
        /// Where the tree is mounted.
        #[arg(long)]
        mount: PathBuf,
        /// The node's name.
        #[arg(long)]
        name: String,
    },
    /// Waits, for as long as it takes, until the node is healthy; at once if there is no store. For what must not start
    /// without the tree.
    Wait {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
    },
    /// Runs three nodes on this machine, to try them, until Ctrl-C.
    Demo {
        /// Where: mounts are DIR/node1 to DIR/node3, stores DIR/store1 to DIR/store3.
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Lists the nodes.
    Ls {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
    },
    /// Removes a node for good.
    Rm {
        /// The store of the node that is asked.
        #[arg(long)]
        store: PathBuf,
        /// Name or id of the node to remove.
        node: String,
        /// Also if the nodes that are left have no majority of what is left of the voters.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// Makes a volume: the directory volumes/NAME of the tree, or the one at --path. What is there already is kept.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        make: MakeVolumeArgs,
    },
    /// Makes a volume of a copy of another one, or of a snapshot. No data is copied.
    Clone {
        /// VOLUME, or VOLUME@SNAPSHOT.
        source: String,
        /// The new volume's name.
        name: String,
        #[command(flatten)]
        make: MakeVolumeArgs,
    },
    /// Removes a volume and what is in it (snapshots of it stay), or a snapshot.
    Rm {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// VOLUME, or VOLUME@SNAPSHOT.
        name: String,
        /// Leave its directory where it is.
        #[arg(long, conflicts_with = "purge")]
        keep: bool,
        /// Remove its directory, also if the volume was made with `keep`.
        #[arg(long)]
        purge: bool,
        /// Also while it is in use.
        #[arg(long)]
        force: bool,
    },
    /// Lists volumes and snapshots: what they hold and may hold, copies and their health, who uses them.
    Ls {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Changes a volume's size, inodes or keep; `none` takes a limit away.
    Set {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// Which volume.
        name: String,
        #[command(flatten)]
        options: VolumeOptionArgs,
    },
    /// Makes a snapshot of a volume, at once and for all nodes: .snapshots/VOLUME/NAME in the tree, read-only.
    Snapshot {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// Which volume.
        volume: String,
        /// The snapshot's name.
        name: String,
    },
    /// Puts what a snapshot shows in the place of what is in its volume.
    Restore {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// Which volume.
        volume: String,
        /// Which of its snapshots.
        snapshot: String,
        /// Also while the volume is in use.
        #[arg(long)]
        force: bool,
    },
    /// Limits what a directory that is no volume, and all below it, may hold.
    Quota {
        /// The node's store.
        #[arg(long)]
        store: PathBuf,
        /// The directory, seen from the root of the tree.
        directory: String,
        #[command(flatten)]
        options: VolumeOptionArgs,
    },
}

/// What a new volume is to be.
#[derive(Debug, Args)]
pub(super) struct MakeVolumeArgs {
    /// The node's store.
    #[arg(long)]
    pub(super) store: PathBuf,
    #[command(flatten)]
    pub(super) options: VolumeOptionArgs,
    /// KEY=VALUE to be kept with it; can be given several times.
    #[arg(long)]
    pub(super) label: Vec<String>,
}

/// Options of a volume; the daemon reads them.
#[derive(Debug, Args)]
pub(super) struct VolumeOptionArgs {
    /// The most that it may hold: 500M, 10G, 1T.
    #[arg(long)]
    pub(super) size: Option<String>,
    /// The most files and directories that it may hold.
    #[arg(long)]
    pub(super) inodes: Option<String>,
    /// Owner of its directory, a number.
    #[arg(long)]
    pub(super) uid: Option<String>,
    /// Group of its directory, a number.
    #[arg(long)]
    pub(super) gid: Option<String>,
    /// Permissions of its directory, octal.
    #[arg(long)]
    pub(super) mode: Option<String>,
    /// Its directory, seen from the root of the tree.
    #[arg(long)]
    pub(super) path: Option<String>,
    /// Copies of its data.
    #[arg(long)]
    pub(super) replicas: Option<String>,
    /// Whether removing it leaves its directory.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) keep: Option<String>,
    /// OPTION=VALUE, the same for scripts; can be given several times.
    #[arg(short = 'o', long = "opt")]
    pub(super) option: Vec<String>,
}

/// What `init` and `join` are told about the new node.
#[derive(Debug, Args)]
pub(super) struct MakeArgs {
    /// A directory to make, on the medium that is to hold this node's share.
    #[arg(long)]
    pub(super) store: PathBuf,
    /// IP:PORT where the other nodes reach this one.
    #[arg(long)]
    pub(super) listen: SocketAddr,
    /// An empty directory, where the tree will appear.
    #[arg(long)]
    pub(super) mount: PathBuf,
    /// The node's name [default: the host's name].
    #[arg(long)]
    pub(super) name: Option<String>,
    /// The key-value engine under the metadata.
    #[arg(long, value_enum, default_value_t)]
    pub(super) engine: EngineChoice,
    /// What writes do while there is no quorum.
    #[arg(long, value_enum, default_value_t)]
    pub(super) on_quorum_loss: OnQuorumLoss,
}

/// Seconds, or a number with s, m, h or d.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        None => (text, "s"),
        Some(at) => text.split_at(at),
    };
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("give a number with s, m, h or d, as in 90s or 1h".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "give a number with s, m, h or d, as in 90s or 1h".to_owned())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(|| "that is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_understood() {
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("2d").unwrap(), Duration::from_secs(172_800));
        for wrong in [
            "",
            "h",
            "1w",
            "-1s",
            "1.5h",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
