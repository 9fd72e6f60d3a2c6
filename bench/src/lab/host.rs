//! Hosts: each has a network namespace with a limited link, a mount and a UTS namespace, and a medium of its own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::command::{run, words};
use super::janitor::{Janitor, Listed};
use super::link::{Traffic, traffic};
use super::medium::{Device, Medium};
use crate::layer::Directory;
use crate::report::HostUse;
use crate::{Error, Result, files};

/// What hosts are made of.
#[derive(Debug, Clone, Copy)]
pub struct Hardware<'a> {
    /// The kind of medium.
    pub medium: Medium,
    /// The rate of each one's link in tc's words, as 1gbit.
    pub link: &'a str,
    /// Files that a medium must have room for.
    pub files: u64,
}

/// A host.
#[derive(Debug)]
pub struct Host {
    /// Its address in the lab's network.
    pub ip: String,
    /// Its medium is mounted here, as the host sees it.
    pub medium: PathBuf,
    /// For a filesystem to be mounted, as the host sees it.
    pub mount: PathBuf,
    /// For what its daemons print.
    pub log: PathBuf,
    name: String,
    device: Device,
    /// Keeps its namespaces.
    holder: Child,
}

/// Several hosts on one switch.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
    // Dropped last: removes all of it.
    janitor: Janitor,
}

impl Hosts {
    /// Makes so many hosts.
    ///
    /// # Errors
    /// If this is not root, or the machine lacks a program.
    pub fn new(parent: &Path, system: &str, count: u8, hardware: Hardware) -> Result<Self> {
        let janitor = Janitor::new(parent, system)?;
        let tag = format!("bl{}", std::process::id());
        let switch = format!("{tag}-switch");
        add_netns(&janitor, &switch)?;
        words(&format!("ip -n {switch} link add bridge type bridge"))?;
        words(&format!("ip -n {switch} link set bridge up"))?;
        let hosts = (1..=count)
            .map(|number| Host::new(&janitor, &tag, number, hardware))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { hosts, janitor })
    }

    /// The hosts.
    #[must_use]
    pub fn all(&self) -> &[Host] {
        &self.hosts
    }

    /// The first one, where the jobs run.
    ///
    /// # Errors
    /// If there is none.
    pub fn first(&self) -> Result<&Host> {
        self.hosts
            .first()
            .ok_or_else(|| Error::Usage("a lab needs a host".to_owned()))
    }

    /// The end of all logs, for an error's message.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = format!("(in {})", self.janitor.dir().display());
        for host in &self.hosts {
            let log = files::read(&host.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(10)..];
            text.push_str(&format!("\n--- {} ---\n{}", host.name, tail.join("\n")));
        }
        text
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // The janitor kills what runs on the hosts; these are ours to wait for.
        for host in &mut self.hosts {
            let _ = host.holder.kill();
            let _ = host.holder.wait();
        }
    }
}

impl Host {
    fn new(janitor: &Janitor, tag: &str, number: u8, hardware: Hardware) -> Result<Self> {
        let name = format!("{tag}-host{number}");
        let base = janitor.dir().join(format!("host{number}"));
        for dir in [base.clone(), base.join("medium"), base.join("mnt")] {
            files::make_dir(&dir)?;
        }
        let device = Device::new(janitor, &base, hardware.medium, hardware.files)?;
        let link = hardware.link;
        let ip = format!("10.79.0.{number}");
        let switch = format!("{tag}-switch");
        add_netns(janitor, &name)?;
        for line in [
            format!("ip -n {name} link add eth0 type veth peer name port{number} netns {switch}"),
            format!("ip -n {name} addr add {ip}/24 dev eth0"),
            format!("ip -n {name} link set eth0 up"),
            format!("ip -n {switch} link set port{number} master bridge up"),
            // Both directions of the cable.
            format!("tc -n {name} qdisc add dev eth0 root tbf rate {link} burst 1mb latency 50ms"),
            format!("tc -n {switch} qdisc add dev port{number} root tbf rate {link} burst 1mb latency 50ms"),
        ] {
            words(&line)?;
        }
        let (medium, mount) = (base.join("medium"), base.join("mnt"));
        let holder = hold(&name, number, &device, &medium)?;
        device.adopt_kernel_threads()?;
        Ok(Self {
            ip,
            medium,
            mount,
            log: base.join("log"),
            name,
            device,
            holder,
        })
    }

    /// A command that runs on the host.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--net", "--mount", "--uts", "--target"])
            .arg(self.holder.id().to_string())
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a shell script on the host, which must succeed.
    ///
    /// # Errors
    /// With what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        run(self.command("/bin/sh").args(["-euc", script]))
    }

    /// A directory as the host sees it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn directory(&self, path: &Path) -> Result<Directory> {
        let path = PathBuf::from(format!("/proc/{}/root{}", self.holder.id(), path.display()));
        Directory::open(&path).map_err(Error::io("open", &path))
    }

    /// Syncs the host's medium.
    ///
    /// # Errors
    /// As syncfs.
    pub fn sync(&self) -> Result<()> {
        use crate::layer::Files as _;
        let directory = self.directory(&self.medium)?;
        directory.sync_tree(".").map_err(Error::io("sync", &self.medium))
    }

    /// Ends all daemons and other programs on the host.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn kill_all(&self) -> Result<()> {
        let holder = self.holder.id().to_string();
        for pid in words(&format!("ip netns pids {}", self.name))?.split_whitespace() {
            if pid != holder {
                // It may have ended meanwhile.
                let _ = words(&format!("kill -9 {pid}"));
            }
        }
        Ok(())
    }

    /// What has been used of this host so far.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn used(&self) -> Result<HostUse> {
        let mut used = self.device.counters()?;
        let holder = self.holder.id().to_string();
        let Traffic { sent, received } =
            traffic(&files::read(Path::new(&format!("/proc/{holder}/net/dev")))?)?;
        (used.sent_bytes, used.received_bytes) = (sent, received);
        let pids = words(&format!("ip netns pids {}", self.name))?;
        for pid in pids.split_whitespace().filter(|pid| *pid != holder) {
            // It may have ended meanwhile.
            let (Ok(stat), Ok(status)) = (
                files::read(Path::new(&format!("/proc/{pid}/stat"))),
                files::read(Path::new(&format!("/proc/{pid}/status"))),
            ) else {
                continue;
            };
            used.cpu_seconds += cpu_seconds(&stat).unwrap_or(0.0);
            used.memory_bytes += kib(&status, "VmRSS:") * 1024;
            used.memory_peak_bytes += kib(&status, "VmHWM:") * 1024;
        }
        Ok(used)
    }
}

/// The first process on a host: mounts the medium, then keeps the namespaces.
fn hold(name: &str, number: u8, device: &Device, medium: &Path) -> Result<Child> {
    let script = format!(
        "hostname host{number} && mount -t tmpfs tmpfs /run && mount {} {} && echo ready && exec sleep infinity",
        device.path,
        medium.display()
    );
    // Not `ip netns exec`: that mounts a /sys of its own, in which there are no control groups.
    let mut child = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{name}"))
        .args([
            "unshare",
            "--mount",
            "--uts",
            "--propagation",
            "private",
            "/bin/sh",
            "-c",
        ])
        .arg(script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::io("start the first process of", name))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(Error::io("read from", name))?;
    }
    if line.trim() == "ready" {
        return Ok(child);
    }
    let _ = child.wait();
    Err(Error::Usage(format!(
        "cannot set up {name}: see the message above"
    )))
}

fn add_netns(janitor: &Janitor, name: &str) -> Result<()> {
    janitor.list(Listed::Netns, name)?;
    words(&format!("ip netns add {name}"))?;
    words(&format!("ip -n {name} link set lo up")).map(drop)
}

/// Of a process and of its children that have ended.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // Fields after the name, which is in brackets and may hold anything: the four times are the 12th to 15th.
    let fields: Vec<_> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields
        .get(11..15)?
        .iter()
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Some(ticks as f64 / 100.0)
}

fn kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_read_as_proc_writes_them() {
        let stat = "77 (a ) b) S 1 77 77 0 -1 4194560 100 0 0 0 250 50 7 3 20 0 4 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(3.1));
        assert_eq!(cpu_seconds("garbage"), None);
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(
            (kib(status, "VmRSS:"), kib(status, "VmHWM:"), kib("", "VmRSS:")),
            (1024, 2048, 0)
        );
    }
}
