//! The filesystems that are compared, and how each is brought up on hosts.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::command::{output, run, wait_for};
use super::host::{Host, Hosts};
use crate::{Error, Result, files};

/// A filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum System {
    /// The medium's own, on one host: what a program had without replication.
    Ext4,
    /// Three replicas.
    Glusterfs,
    /// Three replicas.
    Bramble,
}

const START: Duration = Duration::from_secs(120);
const PORT: u16 = 7400;

impl System {
    /// As it is written on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Glusterfs => "glusterfs",
            Self::Bramble => "bramble",
        }
    }

    /// Hosts that it needs.
    #[must_use]
    pub fn hosts(self) -> u8 {
        match self {
            Self::Ext4 => 1,
            Self::Glusterfs | Self::Bramble => 3,
        }
    }

    /// Starts it; returns where it is mounted on the first host.
    ///
    /// # Errors
    /// With the daemons' logs.
    pub fn start(self, hosts: &Hosts, bramble: &Path) -> Result<PathBuf> {
        let started = match self {
            Self::Ext4 => return Ok(hosts.first()?.medium.clone()),
            Self::Glusterfs => start_glusterfs(hosts),
            Self::Bramble => start_bramble(hosts, bramble),
        };
        started
            .map_err(|e| Error::Usage(format!("{} does not start: {e}\n{}", self.name(), hosts.logs())))?;
        Ok(hosts.first()?.mount.clone())
    }
}

fn start_bramble(hosts: &Hosts, bramble: &Path) -> Result<()> {
    let mut first: Option<(&Host, String)> = None;
    for host in hosts.all() {
        let store = host.medium.join("store");
        let listen = format!("{}:{PORT}", host.ip);
        let mut command = host.command(bramble);
        match &first {
            None => command.arg("init"),
            Some((first, first_listen)) => {
                let mut token = first.command(bramble);
                token.arg("token").arg("--store").arg(first.medium.join("store"));
                let token = run(&mut token)?;
                let token = token.split_whitespace().last().unwrap_or_default();
                command.args(["join", "--peer", first_listen, "--token", token])
            }
        };
        command.arg("--store").arg(&store).arg("--mount").arg(&host.mount);
        run(command.args(["--listen", &listen]))?;
        spawn(host, host.command(bramble).arg("run").arg("--store").arg(&store))?;
        wait_for("a node to be healthy", START, || {
            let mut health = host.command(bramble);
            Ok(output(health.arg("health").arg("--store").arg(&store))?
                .status
                .success())
        })?;
        first.get_or_insert((host, listen));
    }
    wait_for("three voters", START, || {
        let Some((host, _)) = &first else { return Ok(false) };
        let mut status = host.command(bramble);
        status
            .args(["status", "--json", "--store"])
            .arg(host.medium.join("store"));
        let status: serde_json::Value =
            serde_json::from_slice(&output(&mut status)?.stdout).unwrap_or_default();
        Ok(status.pointer("/raft/voters").and_then(serde_json::Value::as_u64) == Some(3))
    })
}

/// Starts a daemon; what it prints goes to the host's log. The janitor ends it with the host.
fn spawn(host: &Host, command: &mut std::process::Command) -> Result<()> {
    let log = files::append_to(&host.log)?;
    let errors = log.try_clone().map_err(Error::io("open", &host.log))?;
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map(drop)
        .map_err(Error::io("start a daemon on", &host.log))
}

fn start_glusterfs(hosts: &Hosts) -> Result<()> {
    for host in hosts.all() {
        // Its state is on the host's medium, as on a Pi; what it logs is not.
        host.sh(&format!(
            "cd {}; mkdir glusterd brick; mkdir -p /var/lib/glusterd /var/log/glusterfs
             mount --bind glusterd /var/lib/glusterd; mount -t tmpfs tmpfs /var/log/glusterfs
             glusterd --log-file={}",
            host.medium.display(),
            host.log.display()
        ))?;
    }
    let first = hosts.first()?;
    let gluster = |words: &str| first.sh(&format!("gluster --mode=script {words}"));
    wait_for("glusterd to answer", START, || Ok(gluster("peer status").is_ok()))?;
    for host in hosts.all().iter().skip(1) {
        gluster(&format!("peer probe {}", host.ip))?;
    }
    let others = hosts.all().len().saturating_sub(1);
    wait_for("GlusterFS's peers to connect", START, || {
        let status = gluster("peer status")?;
        Ok(status.matches("Peer in Cluster (Connected)").count() == others)
    })?;
    let bricks: Vec<_> = hosts
        .all()
        .iter()
        .map(|host| format!("{}:{}", host.ip, host.medium.join("brick").display()))
        .collect();
    gluster(&format!(
        "volume create lab replica {} {} force",
        bricks.len(),
        bricks.join(" ")
    ))?;
    gluster("volume start lab")?;
    wait_for("GlusterFS to mount", START, || {
        let script = format!("mount -t glusterfs {}:/lab {}", first.ip, first.mount.display());
        Ok(first.sh(&script).is_ok())
    })?;
    wait_for("GlusterFS's bricks", START, || {
        let status = gluster("volume heal lab info")?;
        Ok(status.matches("Status: Connected").count() == bricks.len())
    })
}
