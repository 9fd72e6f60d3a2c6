//! The units under a real systemd, which runs in namespaces of its own, with something in Docker's place.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use bramble_tests::janitor::Janitor;
use bramble_tests::machine::Machine;
use bramble_tests::{bramble, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

const INIT: &str =
    "bramble init --store /var/lib/bramble/store --listen 127.0.0.1:7400 --mount /mnt/cluster --name one";

/// A machine with the program, the units, and Docker's stand-in, and without the package.
fn machine(janitor: &Janitor) -> Machine<'_> {
    let machine = Machine::new(janitor, "units");
    fs::copy(bramble(), machine.seed("usr/bin/bramble")).unwrap();
    let units = machine.seed("usr/lib/systemd/system/bramble.service");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/systemd/.");
    run("cp", [Path::new("-r"), &source, units.parent().unwrap()]);
    for unit in ["bramble", "docker"] {
        let link = format!("etc/systemd/system/multi-user.target.wants/{unit}.service");
        let unit = format!("/usr/lib/systemd/system/{unit}.service");
        symlink(unit, machine.seed(&link)).unwrap();
    }
    machine.lend_medium();
    machine
}

#[test]
fn the_units_start_restart_and_stop_in_the_right_order() {
    let janitor = Janitor::new(Duration::from_secs(400));
    let hardware = machine(&janitor);
    let machine = hardware.boot();
    // Without a store, the daemon is left out, and Docker need not wait.
    machine.wait_state("docker.service", "failed");
    assert_eq!(machine.property("bramble.service", "ConditionResult"), "no");
    assert_eq!(machine.property("bramble.service", "ActiveState"), "inactive");
    machine.run(INIT);
    machine.shut_down();

    // Now both come up by themselves, in their order: Docker's stand-in would fail without the tree. The daemon works in
    // its sandbox.
    let machine = hardware.boot();
    machine.wait_docker("started");
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
    machine.wait_docker("started\nstopped\nstarted");
    machine.shut_down();
    let machine = hardware.boot();
    machine.wait_docker("started\nstopped\nstarted\nstopped\nstarted");
    machine.shut_down();
}
