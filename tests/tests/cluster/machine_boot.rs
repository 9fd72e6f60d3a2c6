//! A machine with a real systemd is made a node by one command, and comes back by itself at each boot: with its disk, and
//! with one that comes late.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use bramble_tests::janitor::Janitor;
use bramble_tests::machine::{Booted, Machine};
use bramble_tests::{package, run};

/// Where the store's disk is mounted.
const PLACE: &str = "/var/lib/bramble";
/// systemd's name for that.
const MOUNT: &str = "var-lib-bramble.mount";

/// A machine as it is before it is a node: with the package and the script on its disk, and a program that starts at each
/// boot and has nothing to do with Bramble.
fn machine(janitor: &Janitor) -> Machine<'_> {
    let machine = Machine::new(janitor, "pi-1");
    let built = package::build(&janitor.dir().join("package"));
    fs::rename(built, machine.seed("srv/bramble.deb")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/bootstrap");
    fs::copy(script, machine.seed("srv/bootstrap")).unwrap();
    fs::write(
        machine.seed("etc/systemd/system/other.service"),
        "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n",
    )
    .unwrap();
    machine
}

/// When something happened, on the kernel's monotonic clock, microseconds.
fn time(machine: &Booted<'_>, unit: &str, what: &str) -> u64 {
    let time = machine
        .property(unit, &format!("{what}TimestampMonotonic"))
        .parse()
        .unwrap();
    assert!(time > 0, "{unit} has no {what}\n{}", machine.log());
    time
}

/// The disk is mounted as fstab says, the daemon was started after it, and Docker's stand-in after the daemon was ready.
fn check_order(machine: &Booted<'_>, device: &str, uuid: &str) {
    let disk = machine.run(&format!(
        "findmnt --noheadings --output SOURCE,FSTYPE,OPTIONS {PLACE}"
    ));
    let fields: Vec<&str> = disk.split_whitespace().collect();
    assert_eq!(fields[..2], [device, "ext4"], "{disk}");
    assert!(fields[2].contains("noatime"), "{disk}");
    assert_eq!(
        machine.property(MOUNT, "FragmentPath"),
        format!("/run/systemd/generator/{MOUNT}")
    );
    let mounted = time(machine, MOUNT, "ActiveEnter");
    let started = time(machine, "bramble.service", "ExecMainStart");
    let ready = time(machine, "bramble.service", "ActiveEnter");
    let docker = time(machine, "docker.service", "ExecMainStart");
    assert!(
        mounted <= started && started < ready && ready <= docker,
        "disk {mounted}, daemon {started}, ready {ready}, Docker {docker}"
    );
    let fsck = format!(
        "systemd-fsck@dev-disk-by\\x2duuid-{}.service",
        uuid.replace('-', "\\x2d")
    );
    assert_eq!(machine.property(&fsck, "ActiveState"), "active", "{fsck}");
    assert!(time(machine, &fsck, "ExecMainExit") <= mounted);
}

#[test]
fn a_bootstrapped_machine_comes_back_by_itself_also_if_its_disk_comes_late() {
    let janitor = Janitor::new(Duration::from_secs(400));
    let begun = Instant::now();
    let lap = |what: &str| eprintln!("machine_boot: {what}: {:.1} s", begun.elapsed().as_secs_f64());
    let hardware = machine(&janitor);
    let image = janitor.dir().join("usb-stick");
    File::create(&image).unwrap().set_len(1 << 30).unwrap();
    let device = hardware.plug(&image);

    lap("package");
    // Debian, with Docker, and with a blank disk.
    let machine = hardware.boot();
    machine.run("systemctl enable --now other.service");
    // There is no network, and everything that the package depends on.
    machine.run("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d");
    assert!(!machine.try_run("command -v bramble"));
    let command = format!(
        "sh /srv/bootstrap --deb /srv/bramble.deb --disk {device} --yes-erase {device} --listen 127.0.0.1 --no-swarm"
    );
    let said = machine.run(&command);
    lap("bootstrap");
    for words in [
        "installing bramble",
        &format!("making a filesystem (ext4) on {device}"),
        &format!("{device} is mounted at {PLACE}, now and at each boot"),
        "pi-1 is the first node of a new cluster",
        "bramble.service is enabled and started",
        "the tree is mounted at /mnt/cluster",
        "done: the cluster is complete and clean",
    ] {
        assert!(said.contains(words), "it does not say {words:?}:\n{said}");
    }
    let uuid = machine.run(&format!("blkid -p -s UUID -o value {device}"));
    let fstab = machine.run("grep -v '^#' /etc/fstab");
    assert_eq!(
        fstab,
        format!("UUID={uuid}  {PLACE}  ext4  noatime,nofail,x-systemd.device-timeout=infinity  0  2")
    );
    for (unit, property, value) in [
        ("bramble.service", "ActiveState", "active"),
        ("bramble.service", "UnitFileState", "enabled"),
        ("bramble.service", "StatusText", "the tree is mounted"),
        (MOUNT, "ActiveState", "active"),
    ] {
        assert_eq!(machine.property(unit, property), value, "{unit} {property}");
    }
    machine.run("systemctl enable --now docker.service");
    machine.wait_docker("started");
    machine.run("echo kept >/mnt/cluster/file; sync /mnt/cluster/file");
    // Again: nothing is done.
    let daemon = machine.property("bramble.service", "MainPID");
    let said = machine.run(&command);
    for words in [
        "is installed already",
        "is mounted at",
        "is node 1",
        "enabled and runs already",
    ] {
        assert!(said.contains(words), "it does not say {words:?}:\n{said}");
    }
    assert_eq!(machine.property("bramble.service", "MainPID"), daemon);
    assert_eq!(machine.run("grep -v '^#' /etc/fstab"), fstab);
    machine.shut_down();
    let clean = || {
        let state = run("dumpe2fs", ["-h", image.to_str().unwrap()]);
        assert!(
            state.contains("Filesystem state:         clean") && !state.contains("needs_recovery"),
            "the disk was not unmounted at shutdown: {state}"
        );
    };
    clean();

    lap("off");
    // Nobody types anything.
    let machine = hardware.boot();
    machine.wait_docker("started\nstopped\nstarted");
    check_order(&machine, &device, &uuid);
    assert_eq!(machine.run("cat /mnt/cluster/file"), "kept");

    // The disk is away for a moment, as systemd hears it (a loop device cannot be pulled): the daemon goes with it and comes
    // back, and Docker goes on.
    let tell = |what: &str| machine.run(&format!("udevadm trigger --action={what} {device}"));
    let pull = || {
        tell("remove");
        machine.wait_state("bramble.service", "inactive");
        machine.wait_state(MOUNT, "inactive");
    };
    let docker = machine.property("docker.service", "MainPID");
    pull();
    tell("add");
    machine.wait_state("bramble.service", "active");
    assert_eq!(machine.run("cat /mnt/cluster/file"), "kept");
    assert_eq!(machine.property("docker.service", "MainPID"), docker);
    // While it is away, Docker does not start, even if nobody starts the daemon: the machine only seems to have no store.
    machine.run("systemctl stop docker.service");
    pull();
    machine.run("systemctl start --no-block docker.service; systemctl stop bramble.service");
    machine.wait_state("docker.service", "activating");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(machine.property("docker.service", "ActiveState"), "activating");
    assert_eq!(machine.run("ls -A /mnt/cluster"), "");
    tell("add");
    machine.wait_docker("started\nstopped\nstarted\nstopped\nstarted");
    lap("away and back");
    machine.shut_down();
    clean();
    hardware.unplug(&device);

    lap("booted and off");
    // Without the disk, the machine is up, and what has to do with the tree waits, with no limit.
    let machine = hardware.boot();
    machine.wait_state("other.service", "active");
    machine.wait_state("local-fs.target", "active");
    let at = format!("/dev/disk/by-uuid/{uuid}");
    let disk = machine.run(&format!("systemd-escape --path --suffix=device {at}"));
    let waits = || {
        machine.run(&format!("[ ! -e {at} ]"));
        assert_eq!(machine.property(&disk, "ActiveState"), "inactive");
        let jobs = machine.run("systemctl list-jobs --no-legend | awk '{ print $2, $3, $4 }'");
        for job in [
            &format!("{disk} start running"),
            &format!("{MOUNT} start waiting"),
            "bramble.service start waiting",
            "docker.service start waiting",
        ] {
            assert!(jobs.contains(job), "no job {job:?} in\n{jobs}\n{}", machine.log());
        }
        assert_eq!(
            machine.run(&format!("ls -A {PLACE} /mnt/cluster; pgrep -x bramble || true")),
            format!("/mnt/cluster:\n\n{PLACE}:")
        );
    };
    lap("late");
    waits();
    assert_eq!(machine.property(&disk, "JobRunningTimeoutUSec"), "infinity");
    std::thread::sleep(Duration::from_secs(3));
    waits();
    // It comes, under whatever name.
    let device = machine.plug(&image);
    machine.wait_docker("started\nstopped\nstarted\nstopped\nstarted\nstopped\nstarted");
    check_order(&machine, &device, &uuid);
    assert_eq!(machine.run("cat /mnt/cluster/file"), "kept");
    machine.wait_state("multi-user.target", "active");
    assert_eq!(machine.run("systemctl list-jobs --no-legend"), "");
    machine.shut_down();
    clean();
    lap("end");
}
