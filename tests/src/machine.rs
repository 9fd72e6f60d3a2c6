//! A machine for a real systemd, in namespaces of its own: it can be switched on and off, and has disks that come and go.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::janitor::Janitor;
use crate::run::{describe, run, try_run};
use crate::wait_for;

const PATIENCE: Duration = Duration::from_secs(60);

/// A machine, off. What is written to its root is kept from one boot to the next.
pub struct Machine<'a> {
    janitor: &'a Janitor,
    dir: PathBuf,
}

impl<'a> Machine<'a> {
    /// A machine that has never been booted; `name` is its host name.
    ///
    /// # Panics
    /// If its disk cannot be made.
    #[must_use]
    pub fn new(janitor: &'a Janitor, name: &str) -> Self {
        let dir = janitor.dir().join(name);
        let disk = dir.join("disk");
        fs::create_dir_all(&disk).unwrap();
        fs::create_dir(dir.join("seed")).unwrap();
        File::create(dir.join("loops")).unwrap();
        // An overlay takes no directory of what it lies upon.
        janitor.add_mount(&disk);
        run("mount", ["-t", "tmpfs", "tmpfs", disk.to_str().unwrap()]);
        Self { janitor, dir }
    }

    /// The place of a file that is to be in the root when the machine is first booted.
    ///
    /// # Panics
    /// If its directory cannot be made.
    #[must_use]
    pub fn seed(&self, path: &str) -> PathBuf {
        let at = self.dir.join("seed").join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        at
    }

    /// Puts a directory of this machine's disk at `/var/lib/bramble`.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn lend_medium(&self) {
        fs::create_dir(self.dir.join("medium")).unwrap();
        fs::create_dir_all(self.seed("var/lib/bramble")).unwrap();
    }

    /// Gives the machine a disk before it is booted; its device.
    ///
    /// # Panics
    /// If that does not work.
    pub fn plug(&self, image: &Path) -> String {
        let device = attach(self.janitor, image, |_| ());
        let mut loops = File::options().append(true).open(self.dir.join("loops")).unwrap();
        writeln!(loops, "{device}").unwrap();
        device
    }

    /// Takes a disk away, while the machine is off.
    ///
    /// # Panics
    /// If that does not work.
    pub fn unplug(&self, device: &str) {
        let loops = self.dir.join("loops");
        let others = fs::read_to_string(&loops)
            .unwrap()
            .replace(&format!("{device}\n"), "");
        fs::write(&loops, others).unwrap();
        // In use until the machine's last process has gone. Then it may be another test's at once.
        let file = format!(
            "/sys/block/{}/loop/backing_file",
            device.trim_start_matches("/dev/")
        );
        let is_ours = || {
            fs::read_to_string(&file).is_ok_and(|file| Path::new(file.trim()).starts_with(self.janitor.dir()))
        };
        wait_for("the disk to be free", PATIENCE, || {
            if is_ours() {
                let _ = try_run("losetup", ["-d", device]);
            }
            (!is_ours()).then_some(())
        });
    }

    /// Switches it on.
    ///
    /// # Panics
    /// If systemd does not answer, or believes to be in a container: then it does not what it does on a machine.
    #[must_use]
    pub fn boot(&'a self) -> Booted<'a> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/machine.sh");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let process = Command::new("/bin/sh")
            .arg(script)
            .arg(&self.dir)
            .arg(self.group())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        // Its command line names the directory; its end ends all that is in the machine.
        self.janitor.add_pid(process.id());
        let mut booted = Booted {
            machine: self,
            process,
            init: 0,
        };
        let children = format!("/proc/{0}/task/{0}/children", booted.process.id());
        booted.init = wait_for("systemd to run", PATIENCE, || {
            let ended = booted.process.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}\n{}", booted.log());
            let child = fs::read_to_string(&children).ok()?;
            let child: u32 = child.split_whitespace().next()?.parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "systemd").then_some(child)
        });
        wait_for("systemd to answer", PATIENCE, || {
            booted.try_run("systemctl list-jobs").then_some(())
        });
        assert_eq!(booted.run("systemd-detect-virt --container || true"), "none");
        booted
    }

    /// The name of its control groups. The janitor removes them, too.
    fn group(&self) -> String {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        format!("{}-{}", name(self.janitor.dir()), name(&self.dir))
    }
}

/// Makes a loop device of a file. `before` is told of it before there is anything on it.
fn attach(janitor: &Janitor, image: &Path, before: impl Fn(&str)) -> String {
    let image = image.to_str().unwrap();
    for _ in 0..20 {
        let device = run("losetup", ["--find"]).trim().to_owned();
        before(&device);
        // Another test may take it first.
        janitor.add_loop(&device);
        if try_run("losetup", [&device, image]).status.success() {
            return device;
        }
    }
    panic!("there is no free loop device for {image}");
}

/// A machine that systemd has booted. Dropped, it loses its power.
pub struct Booted<'a> {
    machine: &'a Machine<'a>,
    process: Child,
    /// systemd's process id outside.
    init: u32,
}

impl Booted<'_> {
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--all", "--target", &self.init.to_string()])
            .args(["/bin/sh", "-euc", script])
            .stdin(Stdio::null());
        command
    }

    /// Whether a script, run in the machine, succeeds.
    ///
    /// # Panics
    /// If it cannot be run.
    #[must_use]
    pub fn try_run(&self, script: &str) -> bool {
        self.command(script).output().unwrap().status.success()
    }

    /// Runs a script in the machine that must succeed; what it printed.
    ///
    /// # Panics
    /// If it fails, with the machine's log.
    pub fn run(&self, script: &str) -> String {
        let output = self.command(script).output().unwrap();
        assert!(
            output.status.success(),
            "`{script}`: {}\n{}",
            describe(&output),
            self.log()
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A property of a unit.
    ///
    /// # Panics
    /// If systemd does not answer.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show --value --property {name} '{unit}'"))
    }

    /// Waits until a unit is active, failed, ...
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_state(&self, unit: &str, state: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.property(unit, "ActiveState") != state {
            assert!(
                Instant::now() < deadline,
                "{unit} is not {state}\n{}\n{}",
                self.run(&format!(
                    "systemctl --no-pager status '{unit}' || true; systemctl list-jobs"
                )),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until Docker's stand-in has said all of `expected` in the tree.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_docker(&self, expected: &str) {
        let said = || self.run("cat /mnt/cluster/docker || true");
        let deadline = Instant::now() + PATIENCE;
        while said() != expected {
            assert!(
                Instant::now() < deadline,
                "Docker has said {:?} and not {expected:?}\n{}\n{}",
                said(),
                self.run("systemctl --no-pager status bramble.service docker.service || true"),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        self.wait_state("docker.service", "active");
    }

    /// Plugs a disk in; its device.
    ///
    /// # Panics
    /// If that does not work.
    pub fn plug(&self, image: &Path) -> String {
        attach(self.machine.janitor, image, |device| {
            // udev looks at the disk when the kernel tells of it.
            let minor = device.trim_start_matches("/dev/loop");
            self.run(&format!("[ -e {device} ] || mknod {device} b 7 {minor}"));
        })
    }

    /// The end of what the machine, and its services, have said.
    #[must_use]
    pub fn log(&self) -> String {
        let dir = &self.machine.dir;
        let journal = dir.join("disk/files/var/log/journal");
        let output = Command::new("journalctl")
            .args([
                "--no-pager",
                "--lines=100",
                "--output=short-monotonic",
                "--directory",
            ])
            .arg(journal)
            .output();
        let journal = output.map_or_else(|error| error.to_string(), |output| describe(&output));
        fs::read_to_string(dir.join("log")).unwrap_or_default() + &journal
    }

    /// Shuts the machine down in order.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn shut_down(mut self) {
        let _ = self.try_run("systemctl --no-block poweroff");
        let deadline = Instant::now() + PATIENCE * 2;
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "systemd does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Booted<'_> {
    fn drop(&mut self) {
        if self.init > 0 && self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = try_run("kill", ["-9", &self.init.to_string()]);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Control groups are empty a moment after the last process has gone.
        let group = self.machine.group();
        let script = format!(
            "for g in /sys/fs/cgroup/{group} /sys/fs/cgroup/*/{group}; do [ ! -d $g ] || find $g -depth -type d -exec rmdir {{}} +; done"
        );
        for _ in 0..50 {
            if try_run("/bin/sh", ["-euc", &script]).status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("control groups named {group} are left");
    }
}
