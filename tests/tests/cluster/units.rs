//! The units under a real systemd, which runs in namespaces of its own, with something in Docker's place.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bramble_tests::janitor::Janitor;
use bramble_tests::run::{describe, try_run};
use bramble_tests::{bramble, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that systemd has booted.
struct Machine {
    dir: PathBuf,
    process: Child,
    /// systemd's process id outside.
    init: u32,
}

impl Machine {
    fn boot(janitor: &Janitor, name: &str) -> Self {
        let dir = janitor.dir().join(name);
        fs::create_dir_all(dir.join("root")).unwrap();
        fs::create_dir_all(dir.join("medium")).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .unwrap();
        let process = Command::new("/bin/sh")
            .arg(source.join("src/machine.sh"))
            .arg(&dir)
            .arg(bramble())
            .arg(source.join("../scripts/systemd"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        // Its command line names the directory; its end ends all that is in the machine.
        janitor.add_pid(process.id());
        let children = format!("/proc/{0}/task/{0}/children", process.id());
        let init = wait_for("systemd to run", PATIENCE, || {
            let child = fs::read_to_string(&children).ok()?;
            let child: u32 = child.split_whitespace().next()?.parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "systemd").then_some(child)
        });
        let machine = Self { dir, process, init };
        wait_for("systemd to answer", PATIENCE, || {
            machine.try_run("systemctl list-jobs").then_some(())
        });
        machine
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--all", "--target", &self.init.to_string()])
            .args(["/bin/sh", "-euc", script])
            .stdin(Stdio::null());
        command
    }

    fn try_run(&self, script: &str) -> bool {
        self.command(script).output().unwrap().status.success()
    }

    fn run(&self, script: &str) -> String {
        let output = self.command(script).output().unwrap();
        assert!(
            output.status.success(),
            "`{script}`: {}\n{}",
            describe(&output),
            self.log()
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show --value --property {name} {unit}"))
    }

    fn wait_state(&self, unit: &str, state: &str) {
        wait_for(&format!("{unit} to be {state}\n{}", self.log()), PATIENCE, || {
            (self.property(unit, "ActiveState") == state).then_some(())
        });
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let log = read("log") + &read("medium/log");
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Shuts the machine down in order.
    fn shut_down(mut self) {
        let _ = self.try_run("systemctl --no-block exit");
        wait_for("systemd to end", PATIENCE * 2, || {
            self.process.try_wait().unwrap()
        });
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = try_run("kill", ["-9", &self.init.to_string()]);
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Control groups are empty a moment after the last process has gone.
        let group = format!("bramble-{}", self.dir.file_name().unwrap().to_str().unwrap());
        let script = format!(
            "for g in /sys/fs/cgroup/*/{group}; do [ ! -d $g ] || find $g -depth -type d -exec rmdir {{}} +; done"
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

const INIT: &str =
    "bramble init --store /var/lib/bramble/store --listen 127.0.0.1:7400 --mount /mnt/cluster --name one";

/// Waits until Docker's stand-in has said all of `expected` in the tree.
fn wait_docker(machine: &Machine, expected: &str) {
    let said = || machine.run("cat /mnt/cluster/docker || true");
    let deadline = Instant::now() + PATIENCE;
    while said() != expected {
        assert!(
            Instant::now() < deadline,
            "Docker has said {:?} and not {expected:?}\n{}\n{}",
            said(),
            machine.run("systemctl --no-pager status bramble.service docker.service || true"),
            machine.log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    machine.wait_state("docker.service", "active");
}

#[test]
fn the_units_start_restart_and_stop_in_the_right_order() {
    let janitor = Janitor::new(Duration::from_secs(400));
    let machine = Machine::boot(&janitor, "units");
    // Without a store, the daemon is left out, and Docker need not wait.
    machine.wait_state("docker.service", "failed");
    assert_eq!(machine.property("bramble.service", "ConditionResult"), "no");
    assert_eq!(machine.property("bramble.service", "ActiveState"), "inactive");
    machine.run(INIT);
    machine.shut_down();

    // Now both come up by themselves, in their order: Docker's stand-in would fail without the tree. The daemon works in
    // its sandbox.
    let machine = Machine::boot(&janitor, "units");
    wait_docker(&machine, "started");
    let docker = machine.property("docker.service", "MainPID");
    let daemon = || machine.property("bramble.service", "MainPID");
    let before = daemon();
    assert_eq!(
        machine.run(&format!("grep Seccomp: /proc/{before}/status")),
        "Seccomp:\t2"
    );
    assert_eq!(
        machine.property("bramble.service", "StatusText"),
        "the tree is mounted"
    );

    // Killed: it is started again, and Docker goes on.
    machine.run(&format!("kill -9 {before}"));
    wait_for("the daemon to be started again", PATIENCE, || {
        let again = daemon();
        (again != "0" && again != before).then_some(())
    });
    machine.wait_state("bramble.service", "active");
    machine.run("grep -q started /mnt/cluster/docker");
    machine.run("systemctl restart bramble.service && grep -q started /mnt/cluster/docker");
    assert_eq!(
        machine.property("docker.service", "MainPID"),
        docker,
        "Docker was restarted"
    );

    // Stuck: the watchdog ends it.
    let before = daemon();
    machine.run(
        "mkdir -p /run/systemd/system/bramble.service.d
        printf '[Service]\\nWatchdogSec=3\\n' >/run/systemd/system/bramble.service.d/test.conf
        systemctl daemon-reload; systemctl restart bramble.service",
    );
    let soon = daemon();
    assert_ne!(soon, before);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(
        daemon(),
        soon,
        "the watchdog ends a daemon that is well\n{}",
        machine.log()
    );
    machine.run(&format!("kill -STOP {soon}"));
    wait_for("the watchdog to end the daemon", PATIENCE, || {
        let again = daemon();
        (again != "0" && again != soon).then_some(())
    });
    machine.wait_state("bramble.service", "active");

    // Docker's last word reaches the tree: that is unmounted after it.
    machine.run("systemctl restart docker.service");
    wait_docker(&machine, "started\nstopped\nstarted");
    machine.shut_down();
    let machine = Machine::boot(&janitor, "units");
    wait_docker(&machine, "started\nstopped\nstarted\nstopped\nstarted");
    machine.shut_down();
}
