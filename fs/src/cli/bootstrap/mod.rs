//! `bramble bootstrap`: all that a machine needs to be a node, in one command that can be repeated at will. Each step looks
//! first whether it is done.

mod daemons;
mod disk;
mod machine;
mod register;
mod service;
mod settle;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use raftstore::disk::RealDisk;

use self::daemons::Daemons;
use self::machine::{Machine, ThisMachine};
use self::register::TreeRegister;
use self::service::Start;
use super::args::MakeArgs;
use super::vip::{self, Address, VipArgs};
use super::vip_check::DockerArgs;
use super::{Outcome, admin, config_of, host_name, text};
use crate::docker::PluginSocket;
use crate::node::bootstrap::{self, BootstrapError};
use crate::node::config::{Config, EngineChoice, OnQuorumLoss};
use crate::node::mountpoint;
use crate::node::store::{Identity, Layout};
use crate::node::tls::Credentials;
use crate::node::token::JoinToken;
use crate::swarm::{Docker, DockerError, Enroll};

/// Where nodes listen, if no port is given.
const PORT: u16 = 7400;
/// How long the token for the next machine is good.
const TOKEN_VALID: Duration = Duration::from_secs(24 * 3600);
/// So often it is asked again to be taken in: a dead node's place is free once it is known to be dead and the others have
/// all that it had.
const JOINS_MAX: u32 = 90;
/// Between two attempts.
const JOIN_INTERVAL: Duration = Duration::from_secs(2);

/// What `bramble bootstrap` is told.
#[derive(Debug, Args)]
pub(super) struct BootstrapArgs {
    /// IP or IP:PORT where the other nodes reach this one (port 7400 if none is given) [default: the address from which
    /// --peer is reached].
    #[arg(long, value_parser = listen_address)]
    listen: Option<SocketAddr>,
    /// IP:PORT of a node that runs. Without it, and without a store, this is the first node of a new cluster.
    #[arg(long, requires = "token")]
    peer: Option<SocketAddr>,
    /// A token made by `bramble token` on a node of the cluster.
    #[arg(long, requires = "peer")]
    token: Option<String>,
    /// The node's name [default: the host's name]. That of a dead node takes its place.
    #[arg(long)]
    name: Option<String>,
    /// The node's store: a directory that is made.
    #[arg(long, default_value = service::UNIT_STORE)]
    store: PathBuf,
    /// Where the tree appears.
    #[arg(long, default_value = "/mnt/cluster")]
    mount: PathBuf,
    /// A partition or a whole disk that is to hold the store; it is mounted at the directory that the store is in.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Erase this disk, the same as in --disk, without asking.
    #[arg(long, requires = "disk")]
    yes_erase: Option<PathBuf>,
    /// An address that is always on a healthy node, as in 192.168.1.100/24: keepalived's configuration is written.
    #[arg(long, value_parser = vip::address)]
    vip: Option<Address>,
    /// The network interface for --vip [default: the one that has the node's own address].
    #[arg(long, requires = "vip")]
    vip_interface: Option<String>,
    /// Leave Docker's Swarm as it is.
    #[arg(long)]
    no_swarm: bool,
    /// Who starts the daemon.
    #[arg(long, value_enum, default_value_t)]
    start: Start,
    /// As in `bramble run`; the Docker whose plugin that is joins the Swarm.
    #[arg(long, value_name = "auto|off|SOCKET", default_value = "auto")]
    docker_plugin: PluginSocket,
    /// Where a disk's mount is written down.
    #[arg(long, hide = true, default_value = "/etc/fstab")]
    fstab: PathBuf,
    /// keepalived's configuration.
    #[arg(long, hide = true, default_value = "/etc/keepalived/keepalived.conf")]
    keepalived_config: PathBuf,
}

pub(super) fn bootstrap(args: &BootstrapArgs) -> Outcome {
    mountpoint::check_privileges().map_err(text)?;
    Bootstrap {
        args,
        machine: &ThisMachine,
    }
    .run()
}

struct Bootstrap<'a> {
    args: &'a BootstrapArgs,
    machine: &'a dyn Machine,
}

fn say(what: &str) {
    println!("{what}");
}

impl Bootstrap<'_> {
    fn run(&self) -> Outcome {
        let args = self.args;
        // All that can be refused before anything is changed.
        let token: Option<JoinToken> = args.token.as_deref().map(str::parse).transpose().map_err(text)?;
        self.check_name()?;
        let store = std::path::absolute(&args.store).map_err(text)?;
        let parent = store
            .parent()
            .ok_or("--store must be a directory that is in another one")?;
        match &args.disk {
            Some(device) => {
                let wanted = disk::Wanted {
                    device,
                    erase: args.yes_erase.as_deref(),
                    at: parent,
                    fstab: &args.fstab,
                };
                disk::prepare(self.machine, &wanted, &say)?;
            }
            None => {
                std::fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?
            }
        }
        let is_new = !Layout::new(Arc::new(RealDisk), &store).identity().exists();
        if is_new {
            self.make(&store, token.as_ref())?;
        } else {
            self.check_store(&store, token.as_ref())?;
        }
        service::start(self.machine, args.start, &store, &args.docker_plugin, &say)?;
        service::wait_healthy(&store, args.start, &say)?;
        let config = config(&store)?;
        say(&format!("the tree is mounted at {}", config.mount.display()));
        if let Some(address) = args.vip {
            self.virtual_address(&store, address)?;
        }
        if !args.no_swarm {
            self.swarm(&store, &config)?;
        }
        let silent = settle::wait(&store, &say)?;
        if silent.is_empty() {
            say("done: the cluster is complete and clean");
        } else {
            say(&format!(
                "done here. The cluster is not complete: {} cannot be reached",
                silent.join(", ")
            ));
        }
        if is_new {
            self.tell_of_the_next(&store, &config)?;
        }
        Ok(())
    }

    /// A name that cannot be used is refused before a disk is touched.
    fn check_name(&self) -> Outcome {
        let config = Config {
            name: self.args.name.clone().unwrap_or_else(host_name),
            listen: SocketAddr::from(([192, 0, 2, 1], PORT)),
            mount: self.args.mount.clone(),
            engine: EngineChoice::default(),
            on_quorum_loss: OnQuorumLoss::default(),
            limits: crate::node::config::Limits::default(),
        };
        config.validate().map_err(text)
    }

    /// Makes the store: of the first node, or of a further one.
    fn make(&self, store: &Path, token: Option<&JoinToken>) -> Outcome {
        let args = self.args;
        let listen = match (args.listen, args.peer) {
            (Some(listen), _) => listen,
            (None, Some(peer)) => SocketAddr::new(way_to(peer)?, PORT),
            (None, None) => {
                return Err("which address do the other nodes reach this one at? Give --listen, as in --listen 192.168.1.11".into());
            }
        };
        let mount = &args.mount;
        std::fs::create_dir_all(mount)
            .map_err(|error| format!("{} cannot be made: {error}", mount.display()))?;
        let config = config_of(&MakeArgs {
            store: store.to_owned(),
            listen,
            mount: mount.clone(),
            name: args.name.clone(),
            engine: EngineChoice::default(),
            on_quorum_loss: OnQuorumLoss::default(),
        })?;
        match (args.peer, token) {
            (Some(peer), Some(token)) => join(store, &config, peer, token),
            _ => {
                bootstrap::init(Arc::new(RealDisk), store, &config, TOKEN_VALID).map_err(text)?;
                say(&format!("{} is the first node of a new cluster", config.name));
                Ok(())
            }
        }
    }

    /// A store that is there belongs to the node, and the cluster, that is asked for.
    fn check_store(&self, store: &Path, token: Option<&JoinToken>) -> Outcome {
        let layout = Layout::new(Arc::new(RealDisk), store);
        let (identity, config) = (Identity::load(&layout).map_err(text)?, config(store)?);
        let args = self.args;
        let differs = |what: &str, has: String, asked: String| {
            format!(
                "the store {} is that of {} with {what} {has}, not {asked}: it was left alone. Leave the option out to keep it \
                 so; to begin anew, stop the daemon and remove the store",
                store.display(),
                config.name
            )
        };
        if let Some(name) = args.name.as_ref().filter(|name| **name != config.name) {
            return Err(differs("name", config.name.clone(), name.clone()));
        }
        if let Some(listen) = args.listen.filter(|listen| *listen != config.listen) {
            return Err(differs("address", config.listen.to_string(), listen.to_string()));
        }
        if let Some(token) = token {
            let own = Credentials::load(&layout).map_err(text)?.authority.fingerprint();
            if own.map_err(text)? != token.ca_fingerprint {
                return Err(format!(
                    "the store {} belongs to another cluster than the token: it was left alone. To leave that cluster for \
                     good, run `bramble node rm {}` there, stop the daemon here and remove the store; then repeat this command",
                    store.display(),
                    config.name
                ));
            }
        }
        say(&format!(
            "{} is node {} of the cluster {} already",
            config.name, identity.node_id, identity.cluster_id
        ));
        Ok(())
    }

    fn virtual_address(&self, store: &Path, address: Address) -> Outcome {
        let args = self.args;
        let parent = args.keepalived_config.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
        let docker = match &args.docker_plugin {
            PluginSocket::Auto => DockerArgs::default(),
            plugin => DockerArgs::at(plugin.docker().map(|docker| docker.path().to_owned())),
        };
        let output = &args.keepalived_config;
        let interface = args.vip_interface.clone();
        vip::vip(VipArgs::new(store, Some(address), interface, docker, output))?;
        if self.machine.has_systemd() {
            let keepalived = "keepalived.service";
            if self.machine.run("systemctl", &["cat", keepalived]).is_err() {
                return Err(
                    "keepalived is not installed: `apt install keepalived`, then repeat this command".into(),
                );
            }
            self.machine.run("systemctl", &["enable", keepalived])?;
            self.machine
                .run("systemctl", &["reload-or-restart", keepalived])?;
        }
        Ok(())
    }

    fn swarm(&self, store: &Path, config: &Config) -> Outcome {
        let Some(docker) = self.args.docker_plugin.docker() else {
            return Ok(());
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(text)?;
        if runtime.block_on(docker.own()) == Err(DockerError::Absent) {
            say(
                "there is no Docker on this machine: Swarm is left out. Install it and repeat this command, if you want it",
            );
            return Ok(());
        }
        let enroll = Enroll {
            docker: &docker,
            peers: &Daemons::new(store)?,
            register: &TreeRegister {
                mount: config.mount.clone(),
                name: config.name.clone(),
                say: &say,
            },
            advertise: config.listen.ip(),
            say: &say,
        };
        let enrolled = runtime
            .block_on(enroll.run())
            .map_err(|error| format!("Swarm: {error}"))?;
        let role = if enrolled.is_manager { "manager" } else { "worker" };
        say(&format!(
            "Swarm: this machine is a {role} of {}; {} machines, {} of them managers",
            enrolled.swarm_id, enrolled.nodes, enrolled.managers
        ));
        Ok(())
    }

    /// How to add the next machine.
    fn tell_of_the_next(&self, store: &Path, config: &Config) -> Outcome {
        let token = admin::new_token(store, TOKEN_VALID)?;
        say(&format!(
            "\nTo add a machine (the token is good for one, for a day; `bramble token --store {}` makes more), run there:\n\n    \
             bramble bootstrap --peer {} --token {token}",
            store.display(),
            config.listen
        ));
        Ok(())
    }
}

fn config(store: &Path) -> Result<Config, String> {
    Config::load(&Layout::new(Arc::new(RealDisk), store)).map_err(text)
}

/// Joins. A dead node of this name may have to be waited for.
fn join(store: &Path, config: &Config, peer: SocketAddr, token: &JoinToken) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    let mut told = String::new();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let joined = runtime.block_on(bootstrap::join(Arc::new(RealDisk), store, config, peer, token));
        match joined {
            Ok(node) => {
                say(&format!("{} joined the cluster, as node {node}", config.name));
                return Ok(());
            }
            Err(BootstrapError::NotYet(why)) if attempts < JOINS_MAX => {
                if why != told {
                    say(&format!("waiting: {why}"));
                    told = why;
                }
                std::thread::sleep(JOIN_INTERVAL);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// The address from which this machine reaches `peer`. Nothing is sent.
fn way_to(peer: SocketAddr) -> Result<IpAddr, String> {
    let any: SocketAddr = if peer.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let asked = std::net::UdpSocket::bind(any).and_then(|socket| {
        socket.connect(peer)?;
        socket.local_addr()
    });
    asked
        .map(|local| local.ip())
        .map_err(|error| format!("there is no way to {peer} ({error}): check --peer, or give --listen"))
}

/// IP, or IP:PORT.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let ip = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    ip.or_else(|_| text.parse())
        .map_err(|_| "give an address of this machine, as in 192.168.1.11 or 192.168.1.11:7400".into())
}
