//! keepalived beside each node of a cluster with namespaces, and the address that moves between them.

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::run::{bramble, describe, run, try_run};
use crate::{Cluster, Node};

/// The address.
pub const ADDRESS: &str = "10.77.0.100";

/// Runs a check ($2...) for keepalived, which would keep no more than its status, and notes in a file ($1) when it
/// began and ended, and what it said.
const KEEPER: &str = r#"#!/bin/sh
log=$1
shift
begun=$(date +%T.%3N)
trap 'echo "$begun to $(date +%T.%3N): ended by keepalived" >>"$log"; exit 1' TERM
said=$("$@" 2>&1)
status=$?
echo "$begun to $(date +%T.%3N): $status $said" >>"$log"
exit $status
"#;

/// What Docker would be on a host, as far as `bramble health --vip` asks.
struct FakeDocker {
    socket: PathBuf,
    well: Arc<AtomicBool>,
}

impl FakeDocker {
    fn start(socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let well = Arc::new(AtomicBool::new(true));
        let shared = Arc::clone(&well);
        // Ends with this process.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 512];
                let _ = stream.read(&mut request);
                if shared.load(Ordering::Relaxed) {
                    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nOK");
                }
            }
        });
        Self { socket, well }
    }
}

/// One host: a node, its keepalived, its Docker.
struct Host {
    netns: String,
    dir: PathBuf,
    docker: FakeDocker,
}

impl Host {
    /// As `bramble vip` writes it.
    fn config(&self) -> PathBuf {
        self.dir.join("keepalived.conf")
    }

    /// The same for keepalived, with the check run by way of [`KEEPER`].
    fn used_config(&self) -> PathBuf {
        self.dir.join("keepalived.used.conf")
    }

    /// What the checks said.
    fn checks(&self) -> PathBuf {
        self.dir.join("check.log")
    }
}

/// The hosts of a cluster.
pub struct Hosts<'a> {
    cluster: &'a Cluster,
    hosts: Vec<Host>,
    /// A name for the program that keepalived trusts: nobody but root may write to any directory on the way to it.
    program: PathBuf,
    /// [`KEEPER`], at a place that keepalived trusts, too.
    keeper: PathBuf,
}

impl<'a> Hosts<'a> {
    /// Writes keepalived's configuration on each node, and starts none yet.
    ///
    /// # Panics
    /// If that does not work.
    #[must_use]
    pub fn new(cluster: &'a Cluster) -> Self {
        let name = cluster.janitor().dir().file_name().unwrap().to_owned();
        let program = Path::new("/run").join(&name);
        let keeper = program.with_extension("check");
        fs::write(&keeper, KEEPER).unwrap();
        fs::set_permissions(&keeper, Permissions::from_mode(0o755)).unwrap();
        File::create(&program).unwrap();
        cluster.janitor().add_mount(&program);
        run("mount", [Path::new("--bind"), &bramble(), &program]);
        let host = |node: &Node| {
            let dir = node.log.parent().unwrap().to_owned();
            Host {
                netns: node.netns.clone().expect("a cluster with namespaces"),
                docker: FakeDocker::start(dir.join("docker.sock")),
                dir,
            }
        };
        let hosts = Self {
            cluster,
            hosts: cluster.nodes().iter().map(host).collect(),
            program,
            keeper,
        };
        (0..hosts.hosts.len()).for_each(|host| {
            let said = hosts.configure(host);
            assert!(said.contains("is written"), "{said}");
        });
        hosts
    }

    /// `bramble vip` on a host; what it says.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn configure(&self, host: usize) -> String {
        let (at, node) = (&self.hosts[host], self.cluster.node(host));
        let net = format!("--net=/run/netns/{}", at.netns);
        let output = Command::new("nsenter")
            .arg(net)
            .arg(&self.program)
            .args(["vip", "--address", &format!("{ADDRESS}/24")])
            .arg("--docker-socket")
            .arg(&at.docker.socket)
            .arg("--output")
            .arg(at.config())
            .arg("--store")
            .arg(&node.store)
            .output()
            .unwrap();
        assert!(output.status.success(), "bramble vip: {}", describe(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// keepalived's configuration on a host.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn configuration(&self, host: usize) -> String {
        fs::read_to_string(self.hosts[host].config()).unwrap()
    }

    /// Starts keepalived on a host.
    ///
    /// # Panics
    /// If that does not work.
    pub fn start(&self, host: usize) {
        let host = &self.hosts[host];
        let config = fs::read_to_string(host.config()).unwrap();
        let by_keeper = format!("script \"{} {} ", self.keeper.display(), host.checks().display());
        fs::write(host.used_config(), config.replace("script \"", &by_keeper)).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(host.dir.join("keepalived.log"))
            .unwrap();
        let mut child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", host.netns))
            .args([
                "keepalived",
                "--dont-fork",
                "--log-console",
                "--log-detail",
                "--vrrp",
            ])
            .arg(format!("--use-file={}", host.used_config().display()))
            .arg(format!("--pid={}", host.dir.join("keepalived.pid").display()))
            .arg(format!("--vrrp_pid={}", host.dir.join("vrrp.pid").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("cannot start keepalived");
        self.cluster.janitor().add_pid(child.id());
        std::thread::spawn(move || child.wait());
    }

    /// Ends keepalived on a host as a power cut does, and with it the address.
    ///
    /// # Panics
    /// If none ran.
    pub fn kill(&self, host: usize) {
        let at = &self.hosts[host];
        let pids = processes_with(&at.used_config());
        assert!(!pids.is_empty(), "keepalived does not run on {}", at.netns);
        let _ = try_run("kill", ["-9"].into_iter().chain(pids.iter().map(String::as_str)));
        let _ = try_run(
            "ip",
            [
                "-n",
                &at.netns,
                "address",
                "del",
                &format!("{ADDRESS}/24"),
                "dev",
                "eth0",
            ],
        );
        for file in ["keepalived.pid", "vrrp.pid"] {
            let _ = fs::remove_file(at.dir.join(file));
        }
    }

    /// Whether Docker is well on a host.
    pub fn set_docker(&self, host: usize, well: bool) {
        self.hosts[host].docker.well.store(well, Ordering::Relaxed);
    }

    /// The hosts that have the address.
    #[must_use]
    pub fn holders(&self) -> Vec<usize> {
        let has = |host: &usize| {
            let netns = &self.hosts[*host].netns;
            let output = try_run("ip", ["-n", netns, "-o", "address", "show", "to", ADDRESS]);
            !output.stdout.is_empty()
        };
        (0..self.hosts.len()).filter(has).collect()
    }

    /// Waits until exactly `wanted` says so of the hosts that have the address, and goes on to for two seconds; returns
    /// who has it, and how long after `since` that began.
    ///
    /// # Panics
    /// If that takes more than a minute.
    #[must_use]
    pub fn wait(
        &self,
        what: &str,
        since: Instant,
        wanted: impl Fn(&[usize]) -> bool,
    ) -> (Vec<usize>, Duration) {
        let limit = Duration::from_secs(60);
        let mut begun: Option<(Instant, Vec<usize>)> = None;
        let mut seen = Vec::new();
        loop {
            let holders = self.holders();
            let now = Instant::now();
            if seen.last() != Some(&holders) {
                seen.push(holders.clone());
            }
            match &begun {
                Some((at, before)) if *before == holders => {
                    if now - *at > Duration::from_secs(2) {
                        return (holders, *at - since);
                    }
                }
                _ => begun = wanted(&holders).then_some((now, holders)),
            }
            assert!(
                since.elapsed() < limit,
                "waited in vain: {what}; holders were {seen:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// True if `from` gets an answer from the address.
    #[must_use]
    pub fn reaches_address(&self, from: usize) -> bool {
        let net = format!("--net=/run/netns/{}", self.hosts[from].netns);
        try_run("nsenter", [&net, "ping", "-c", "1", "-W", "1", ADDRESS])
            .status
            .success()
    }

    fn logs(&self) -> String {
        let end = |path: PathBuf| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<_> = text
                .lines()
                .filter(|line| !line.contains("gratuitous ARP"))
                .collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        let log = |host: &Host| {
            format!(
                "\n--- keepalived on {0} ---\n{1}\n--- checks on {0} ---\n{2}\n--- left behind on {0} ---\n{3}",
                host.netns,
                end(host.dir.join("keepalived.log")),
                end(host.checks()),
                left_behind(&host.dir.join("mnt")),
            )
        };
        self.hosts.iter().map(log).collect()
    }
}

/// What waits for the tree at `mount` at this moment.
fn left_behind(mount: &Path) -> String {
    let describe = |pid: String| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        format!("{pid}: {}\n{}", read("cmdline").replace('\0', " "), read("stack"))
    };
    let probes = processes_with(mount).into_iter().map(describe);
    probes.filter(|text| text.contains("probe-")).collect()
}

impl Drop for Hosts<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for host in &self.hosts {
            let pids = processes_with(&host.used_config());
            let _ = try_run("kill", ["-9"].into_iter().chain(pids.iter().map(String::as_str)));
        }
        let _ = try_run("umount", [Path::new("-l"), &self.program]);
        let _ = fs::remove_file(&self.program);
        let _ = fs::remove_file(&self.keeper);
    }
}

/// Processes whose command line names `path`.
fn processes_with(path: &Path) -> Vec<String> {
    let wanted = path.to_str().unwrap().as_bytes();
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let names = line.windows(wanted.len()).any(|window| window == wanted);
        if names && pid.bytes().all(|b| b.is_ascii_digit()) {
            pids.push(pid);
        }
    }
    pids
}
