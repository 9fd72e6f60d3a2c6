//! `bramble vip`: the configuration of keepalived on this node, for one address that is always on a healthy node.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use clap::Args;
use raftstore::disk::{Disk, RealDisk};
use raftstore::meta::NodeId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::vip_check::DockerArgs;
use super::{Outcome, text};
use crate::node::config::Config;
use crate::node::files;
use crate::node::store::{self, Identity, Layout};

/// How a configuration of ours begins; no other is overwritten.
const MARK: &str = "# Written by `bramble vip`";
/// Of the node with the lowest id. VRRP keeps 255 for who owns the address.
const PRIORITY_FIRST: usize = 250;
/// Between two nodes' priorities, if there are few. What is far apart makes hosts that start at the same moment take the
/// address one after the other.
const PRIORITY_STEP_MAX: usize = 40;
/// VRRP has room for no longer one, bytes.
const PASSWORD_BYTES_MAX: usize = 8;
/// Between two checks, seconds.
const CHECK_INTERVAL_S: u32 = 2;
/// keepalived's own limit for a check, seconds; [`super::vip_check`] ends before.
const CHECK_TIMEOUT_S: u32 = 5;

/// What `bramble vip` is told.
#[derive(Debug, Args)]
pub(super) struct VipArgs {
    /// The node's store.
    #[arg(long)]
    store: PathBuf,
    /// The virtual address with the length of its network, as in 192.168.1.100/24 [default: as the last time].
    #[arg(long, value_parser = address)]
    address: Option<Address>,
    /// The network interface [default: the one that has the node's own address].
    #[arg(long)]
    interface: Option<String>,
    /// A file with a password of up to 8 characters that all nodes share. It goes over the network as it is.
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// VRRP's number of the address, from 1 to 255; the same on all nodes [default: made from the cluster's id].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    router_id: Option<u8>,
    #[command(flatten)]
    docker: DockerArgs,
    /// Where to write, as in /etc/keepalived/keepalived.conf [default: standard output].
    #[arg(long)]
    output: Option<PathBuf>,
}

impl VipArgs {
    /// For this address, with nothing else that is unusual.
    pub(super) fn new(
        store: &Path,
        address: Option<Address>,
        interface: Option<String>,
        docker: DockerArgs,
        output: &Path,
    ) -> Self {
        Self {
            store: store.to_owned(),
            address,
            interface,
            password_file: None,
            router_id: None,
            docker,
            output: Some(output.to_owned()),
        }
    }
}

/// An address and the length of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Address {
    ip: IpAddr,
    prefix: u8,
}

/// What was asked for; kept in the store, so that the command can be repeated without it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Wanted {
    address: Address,
    interface: Option<String>,
    password_file: Option<PathBuf>,
    router_id: Option<u8>,
    docker: DockerArgs,
}

/// What a configuration is made from.
struct Facts<'a> {
    wanted: &'a Wanted,
    password: Option<String>,
    interface: String,
    program: String,
    store: String,
    config: &'a Config,
    identity: &'a Identity,
    /// The cluster's nodes, in the order of their ids.
    members: Vec<(NodeId, IpAddr)>,
}

pub(super) fn vip(args: VipArgs) -> Outcome {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let layout = Layout::new(Arc::clone(&disk), &args.store);
    let identity = Identity::load(&layout).map_err(text)?;
    let config = Config::load(&layout).map_err(text)?;
    let wanted = wanted(&args, &layout)?;
    let store = std::path::absolute(&args.store).map_err(text)?;
    let facts = Facts {
        password: wanted.password_file.as_deref().map(password).transpose()?,
        interface: match &wanted.interface {
            Some(interface) => interface.clone(),
            None => interface_of(config.listen.ip())?,
        },
        program: plain(&std::env::current_exe().map_err(text)?)?,
        store: plain(&store)?,
        members: members(&layout, &config, identity.node_id)?,
        wanted: &wanted,
        config: &config,
        identity: &identity,
    };
    let written = configuration(&facts)?;
    let memory = serde_json::to_vec_pretty(&wanted).map_err(text)?;
    let outcome = match &args.output {
        None => {
            print!("{written}");
            Ok(())
        }
        Some(path) => replace(&*disk, path, &written),
    };
    outcome?;
    files::replace_file(&*disk, &layout.vip(), &memory, 0o600)
        .map_err(|error| format!("cannot write {}: {error}", layout.vip().display()))
}

/// What is asked for now, or was the last time.
fn wanted(args: &VipArgs, layout: &Layout) -> Result<Wanted, String> {
    if let Some(address) = args.address {
        return Ok(Wanted {
            address,
            interface: args.interface.clone(),
            password_file: args
                .password_file
                .as_deref()
                .map(std::path::absolute)
                .transpose()
                .map_err(text)?,
            router_id: args.router_id,
            docker: args.docker.clone(),
        });
    }
    if args.interface.is_some() || args.password_file.is_some() || args.router_id.is_some() {
        return Err("give --address, too: the other options belong to it".into());
    }
    let remembered = files::read(&**layout.disk(), &layout.vip());
    let remembered = remembered.map_err(|_| {
        "which address? Give --address, as in --address 192.168.1.100/24; later calls remember it".to_owned()
    })?;
    serde_json::from_slice(&remembered)
        .map_err(|error| format!("{} is damaged ({error}): give --address", layout.vip().display()))
}

/// All nodes, this one included, by what the store knows: also without a quorum.
fn members(layout: &Layout, config: &Config, own: NodeId) -> Result<Vec<(NodeId, IpAddr)>, String> {
    let mut members = vec![(own, config.listen.ip())];
    for (id, member) in store::load_members(layout) {
        let listen: std::net::SocketAddr = member
            .listen
            .parse()
            .map_err(|_| format!("node {} listens on {:?}: no address", member.name, member.listen))?;
        if id != own {
            members.push((id, listen.ip()));
        }
    }
    members.sort_unstable_by_key(|(id, _)| *id);
    Ok(members)
}

fn configuration(facts: &Facts) -> Result<String, String> {
    let own = facts.config.listen.ip();
    let address = facts.wanted.address;
    let peers: Vec<IpAddr> = facts
        .members
        .iter()
        .map(|(_, ip)| *ip)
        .filter(|ip| *ip != own)
        .collect();
    if own.is_loopback() || facts.members.len() - peers.len() != 1 {
        return Err(format!(
            "the nodes share a machine (they listen on {own}): a virtual address is for nodes on machines of their own"
        ));
    }
    if facts
        .members
        .iter()
        .any(|(_, ip)| ip.is_ipv4() != address.ip.is_ipv4())
    {
        return Err(format!(
            "{} and the nodes' addresses must all be IPv4, or all IPv6",
            address.ip
        ));
    }
    if facts.members.iter().any(|(_, ip)| *ip == address.ip) {
        return Err(format!(
            "{} is a node's own address: choose a free one",
            address.ip
        ));
    }
    let rank = facts
        .members
        .iter()
        .position(|(id, _)| *id == facts.identity.node_id);
    let priority = rank.and_then(|rank| priority(rank, facts.members.len()));
    let priority = priority.ok_or("the cluster has too many nodes for VRRP's priorities")?;
    let router_id = facts
        .wanted
        .router_id
        .unwrap_or_else(|| router_id(&facts.identity.cluster_id));

    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{MARK} for node {name}. Run that again when nodes have come or gone; changes made here are lost then.\n\
         global_defs {{\n    router_id {name}\n    enable_script_security\n    script_user root\n}}\n\n\
         # Fails unless this node is healthy, and not draining; assumed to fail until it has been run.\n\
         vrrp_script bramble {{\n    script \"{program} health --vip --store {store}{docker}\"\n    \
         interval {CHECK_INTERVAL_S}\n    timeout {CHECK_TIMEOUT_S}\n    fall 2\n    rise 2\n    init_fail\n}}\n\n\
         vrrp_instance bramble {{\n    # Whoever has the address keeps it while it is healthy: moving it back would only interrupt again.\n    \
         state BACKUP\n    nopreempt\n    interface {interface}\n    virtual_router_id {router_id}\n    \
         priority {priority}\n    advert_int 1\n    unicast_src_ip {own}\n    unicast_peer {{\n",
        name = facts.config.name,
        program = facts.program,
        store = facts.store,
        docker = facts.wanted.docker.to_arguments()?,
        interface = facts.interface,
    );
    for peer in peers {
        let _ = writeln!(out, "        {peer}");
    }
    out.push_str("    }\n");
    if let Some(password) = &facts.password {
        let _ = writeln!(
            out,
            "    authentication {{\n        auth_type PASS\n        auth_pass {password}\n    }}"
        );
    }
    let _ = writeln!(
        out,
        "    virtual_ipaddress {{\n        {}/{} dev {}\n    }}\n    track_script {{\n        bramble\n    }}\n}}",
        address.ip, address.prefix, facts.interface
    );
    Ok(out)
}

/// Different for each of `nodes`, from 1 to 254.
fn priority(rank: usize, nodes: usize) -> Option<usize> {
    let step = ((PRIORITY_FIRST - 1) / nodes.max(1)).min(PRIORITY_STEP_MAX);
    (step > 0).then_some(PRIORITY_FIRST - rank * step)
}

/// VRRP's number for a cluster's address: from 1 to 255, the same on all its nodes, most likely another than that of a
/// second cluster on the same network.
fn router_id(cluster_id: &str) -> u8 {
    let hash = Sha256::digest(cluster_id.as_bytes());
    let number = u16::from_be_bytes([hash[0], hash[1]]);
    u8::try_from(number % 255).unwrap_or(0) + 1
}

/// A path as it can stand in keepalived's configuration, where it is split at blanks.
fn plain(path: &Path) -> Result<String, String> {
    let usable = |text: &&str| {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | '@' | ':' | ','))
    };
    path.to_str().filter(usable).map(str::to_owned).ok_or_else(|| {
        format!(
            "keepalived cannot be told of {}: use a path of letters, digits and '/.-_+@:,'",
            path.display()
        )
    })
}

/// The same check, for what comes from the command line.
pub(super) fn plain_argument(path: &Path) -> Result<String, String> {
    plain(path)
}

fn password(path: &Path) -> Result<String, String> {
    let text = files::read_text(&RealDisk, path);
    let text = text.map_err(|error| format!("cannot read the password from {}: {error}", path.display()))?;
    let password = text.trim_end_matches(['\r', '\n']);
    let usable = (1..=PASSWORD_BYTES_MAX).contains(&password.len())
        && password
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+'));
    if usable {
        Ok(password.to_owned())
    } else {
        Err(format!(
            "the password in {} is not usable: choose up to {PASSWORD_BYTES_MAX} letters, digits, '-', '_', '.' or '+'",
            path.display()
        ))
    }
}

/// The interface that has an address.
fn interface_of(ip: IpAddr) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Interface {
        ifname: String,
        addr_info: Vec<Assigned>,
    }
    #[derive(Deserialize)]
    struct Assigned {
        local: Option<IpAddr>,
    }
    let unknown =
        |why: String| format!("no interface with the address {ip} is found ({why}): give --interface");
    let output = Command::new("ip").args(["-json", "address", "show"]).output();
    let output = output.map_err(|error| unknown(format!("ip: {error}")))?;
    let all: Vec<Interface> =
        serde_json::from_slice(&output.stdout).map_err(|error| unknown(format!("ip: {error}")))?;
    all.into_iter()
        .find(|interface| {
            interface
                .addr_info
                .iter()
                .any(|assigned| assigned.local == Some(ip))
        })
        .map(|interface| interface.ifname)
        .ok_or_else(|| unknown("none has it".into()))
}

/// Writes the configuration, unless it is there already. It is readable for root alone: it may hold a password.
fn replace(disk: &dyn Disk, path: &Path, written: &str) -> Outcome {
    let name = path.display();
    match files::read_text(disk, path) {
        Ok(old) if old == written => {
            println!("{name} is up to date");
            return Ok(());
        }
        Ok(old) if !old.starts_with(MARK) && !old.trim().is_empty() => {
            return Err(format!(
                "{name} was not written by `bramble vip`: move it away first, or include this command's output in it"
            ));
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("cannot read {name}: {error}"));
        }
        _ => {}
    }
    files::replace_file(disk, path, written.as_bytes(), 0o600)
        .map_err(|error| format!("cannot write {name}: {error}"))?;
    println!("{name} is written: reload keepalived");
    Ok(())
}

/// An address with the length of its network.
pub(super) fn address(text: &str) -> Result<Address, String> {
    let wrong = || "give an address with the length of its network, as in 192.168.1.100/24".to_owned();
    let (ip, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let (ip, prefix): (IpAddr, u8) = (
        ip.parse().map_err(|_| wrong())?,
        prefix.parse().map_err(|_| wrong())?,
    );
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    if prefix == 0 || prefix > longest || ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        return Err(wrong());
    }
    Ok(Address { ip, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::config::{EngineChoice, Limits, OnQuorumLoss};

    fn config(listen: &str) -> Config {
        Config {
            name: "pi-2".into(),
            listen: listen.parse().unwrap(),
            mount: "/mnt/cluster".into(),
            engine: EngineChoice::default(),
            on_quorum_loss: OnQuorumLoss::default(),
            limits: Limits::default(),
        }
    }

    fn written(listen: &str, virtual_address: &str, members: &[(NodeId, &str)]) -> Result<String, String> {
        let wanted = Wanted {
            address: address(virtual_address).unwrap(),
            interface: None,
            password_file: None,
            router_id: None,
            docker: DockerArgs::default(),
        };
        let identity = Identity {
            format_version: 1,
            cluster_id: "c".into(),
            node_id: 2,
            founder: false,
            first_token: None,
            started: true,
        };
        configuration(&Facts {
            wanted: &wanted,
            password: Some("secret".into()),
            interface: "eth0".into(),
            program: "/usr/bin/bramble".into(),
            store: "/var/lib/bramble/store".into(),
            config: &config(listen),
            identity: &identity,
            members: members
                .iter()
                .map(|(id, ip)| (*id, ip.parse().unwrap()))
                .collect(),
        })
    }

    #[test]
    fn a_configuration_names_the_peers_and_a_priority_of_its_own() {
        let three = [(1, "192.0.2.1"), (2, "192.0.2.2"), (7, "192.0.2.7")];
        let text = written("192.0.2.2:7400", "192.0.2.100/24", &three).unwrap();
        for line in [
            "    state BACKUP\n    nopreempt\n",
            "    priority 210\n",
            "    unicast_src_ip 192.0.2.2\n    unicast_peer {\n        192.0.2.1\n        192.0.2.7\n    }\n",
            "    script \"/usr/bin/bramble health --vip --store /var/lib/bramble/store\"\n",
            "    init_fail\n",
            "        auth_pass secret\n",
            "        192.0.2.100/24 dev eth0\n",
        ] {
            assert!(text.contains(line), "{line:?} is missing in:\n{text}");
        }
        assert!(text.starts_with(MARK));
    }

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        let one = [(2, "192.0.2.2")];
        assert!(written("192.0.2.2:7400", "192.0.2.2/24", &one).is_err());
        assert!(written("192.0.2.2:7400", "2001:db8::1/64", &one).is_err());
        assert!(written("127.0.0.1:7400", "192.0.2.9/24", &[(2, "127.0.0.1")]).is_err());
        assert!(
            written(
                "192.0.2.2:7400",
                "192.0.2.9/24",
                &[(1, "192.0.2.2"), (2, "192.0.2.2")]
            )
            .is_err()
        );
        for wrong in [
            "192.0.2.2",
            "192.0.2.2/33",
            "192.0.2.2/0",
            "x/24",
            "127.0.0.1/8",
            "0.0.0.0/8",
            "224.0.0.1/8",
        ] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        assert_eq!(address("2001:db8::7/64").unwrap().prefix, 64);
        assert!(plain(Path::new("/a b")).is_err() && plain(Path::new("/a\"")).is_err());
    }

    #[test]
    fn priorities_differ() {
        for nodes in 1..=249 {
            let all: std::collections::BTreeSet<_> =
                (0..nodes).map(|rank| priority(rank, nodes).unwrap()).collect();
            assert!(all.len() == nodes && all.first() >= Some(&1) && all.last() < Some(&255));
        }
        assert_eq!(priority(0, 250), None);
    }

    #[test]
    fn clusters_get_numbers_that_vrrp_allows() {
        let ids: std::collections::BTreeSet<u8> = (0..2000).map(|n| router_id(&n.to_string())).collect();
        assert!(!ids.contains(&0) && ids.len() > 240);
    }

    #[test]
    fn a_foreign_configuration_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keepalived.conf");
        let ours = format!("{MARK} one");
        replace(&RealDisk, &path, &ours).unwrap();
        replace(&RealDisk, &path, &ours).unwrap();
        replace(&RealDisk, &path, &format!("{MARK} two")).unwrap();
        files::replace_file(&RealDisk, &path, b"vrrp_instance mine {}", 0o644).unwrap();
        assert!(
            replace(&RealDisk, &path, &ours)
                .unwrap_err()
                .contains("move it away")
        );
    }

    #[test]
    fn passwords_fit_into_vrrp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let read = |text: &str| {
            files::replace_file(&RealDisk, &path, text.as_bytes(), 0o600).unwrap();
            password(&path)
        };
        assert_eq!(read("12345678\n").unwrap(), "12345678");
        for wrong in ["", "\n", "123456789", "a b", "a}"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
