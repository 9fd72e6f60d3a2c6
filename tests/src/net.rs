//! Where the nodes of a cluster talk to each other.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::janitor::Janitor;
use crate::run::{run, sh};

const PORT: u16 = 7400;

/// A network for the nodes of one cluster. Nothing in it leaves the machine.
#[derive(Debug, Clone)]
pub enum Network {
    /// Loopback addresses of this run's own.
    Loopback {
        /// Of the first node; the others' follow.
        first: std::net::Ipv4Addr,
    },
    /// A network namespace for each node, all joined by a bridge in one more: links can be cut.
    Namespaces {
        /// The namespace that holds the bridge; the nodes' names follow from it.
        switch: String,
    },
}

impl Network {
    /// Loopback addresses that no other run and no other cluster of this run has: `127.a.b.c`.
    #[must_use]
    pub fn loopback() -> Self {
        static CLUSTERS: AtomicU8 = AtomicU8::new(0);
        // Some live as long as the run, so no address may come round again before some 60 more.
        let cluster = u32::from(CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let run = std::process::id();
        let parts = [
            100 + run / 62 % 150,
            run % 62 * 4 + cluster / 15 % 4,
            cluster % 15 * 16 + 1,
        ];
        let [a, b, c] = parts.map(|part| u8::try_from(part).expect("below 256"));
        Self::Loopback {
            first: [127, a, b, c].into(),
        }
    }

    /// Makes the namespaces for `nodes` nodes, with a bridge between them.
    ///
    /// # Panics
    /// If that does not work.
    #[must_use]
    pub fn namespaces(janitor: &Janitor, nodes: usize) -> Self {
        let tag = janitor
            .dir()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_start_matches("bramble-test-");
        let switch = format!("brmb-{tag}-switch");
        add_netns(janitor, &switch);
        run("ip", ["-n", &switch, "link", "add", "bridge", "type", "bridge"]);
        run("ip", ["-n", &switch, "link", "set", "bridge", "up"]);
        let network = Self::Namespaces { switch };
        for node in 0..nodes {
            network.add_host(janitor, node);
        }
        network
    }

    fn add_host(&self, janitor: &Janitor, node: usize) {
        let Self::Namespaces { switch } = self else { return };
        let host = self.netns(node).unwrap();
        add_netns(janitor, &host);
        let address = format!("{}/24", self.ip(node));
        let port = port_name(node);
        sh(
            &PathBuf::from("/"),
            &format!(
                "ip -n {host} link add eth0 type veth peer name {port} netns {switch}
                 ip -n {host} addr add {address} dev eth0
                 ip -n {host} link set eth0 up
                 ip -n {switch} link set {port} master bridge up"
            ),
        );
    }

    /// The network namespace of a node, if it has one.
    #[must_use]
    pub fn netns(&self, node: usize) -> Option<String> {
        match self {
            Self::Loopback { .. } => None,
            Self::Namespaces { switch } => Some(format!("{}n{node}", switch.trim_end_matches("switch"))),
        }
    }

    fn ip(&self, node: usize) -> String {
        match self {
            Self::Loopback { first } => {
                let node = u32::try_from(node).expect("few nodes");
                std::net::Ipv4Addr::from_bits(first.to_bits() + node).to_string()
            }
            Self::Namespaces { .. } => format!("10.77.0.{}", node + 1),
        }
    }

    /// The address that a node listens on.
    #[must_use]
    pub fn listen(&self, node: usize) -> String {
        format!("{}:{PORT}", self.ip(node))
    }

    /// Cuts a node's cable at the switch: what it sends is lost without a word, as is what is sent to it.
    ///
    /// # Panics
    /// On a loopback network, which has no cables.
    pub fn cut(&self, node: usize) {
        let Self::Namespaces { switch } = self else {
            panic!("loopback links cannot be cut")
        };
        run("ip", ["-n", switch, "link", "set", &port_name(node), "nomaster"]);
    }

    /// Mends what [`Network::cut`] cut.
    ///
    /// # Panics
    /// On a loopback network.
    pub fn heal(&self, node: usize) {
        let Self::Namespaces { switch } = self else {
            panic!("loopback links cannot be cut")
        };
        run(
            "ip",
            ["-n", switch, "link", "set", &port_name(node), "master", "bridge"],
        );
    }

    /// True if `from` gets an answer from `to`'s network: the proof that a link is cut, or is not.
    ///
    /// # Panics
    /// On a loopback network.
    #[must_use]
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        let netns = self.netns(from).expect("loopback links cannot be cut");
        let net = format!("--net=/run/netns/{netns}");
        let probe = format!("ping -c 1 -W 1 {} >/dev/null 2>&1", self.ip(to));
        crate::run::try_run("nsenter", [&net, "/bin/sh", "-c", &probe])
            .status
            .success()
    }
}

fn add_netns(janitor: &Janitor, name: &str) {
    janitor.add_netns(name);
    run("ip", ["netns", "add", name]);
    run("ip", ["-n", name, "link", "set", "lo", "up"]);
}

fn port_name(node: usize) -> String {
    format!("port{node}")
}
