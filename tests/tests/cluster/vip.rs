//! The virtual address, with a real keepalived on each host: it is on exactly one healthy one.

use std::time::{Duration, Instant};

use bramble_tests::hosts::Hosts;
use bramble_tests::{Cluster, Options, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
/// A move takes no longer: two failed checks, two seconds apart, that may take 5 s each, and VRRP's own 4 s.
const MOVE_MAX: Duration = Duration::from_secs(16);
/// After all hosts have come up: an election, a mount, two good checks, VRRP's 4 s.
const BOOT_MAX: Duration = Duration::from_secs(40);

/// Waits until one host has the address, which is none of `not`; says how long that took.
fn moved(hosts: &Hosts, what: &str, since: Instant, not: &[usize], limit: Duration) -> usize {
    let wanted = |holders: &[usize]| holders.len() == 1 && !not.contains(&holders[0]);
    let (holders, took) = hosts.wait(what, since, wanted);
    eprintln!(
        "VIP: {what}: on host {} alone after {:.1} s",
        holders[0] + 1,
        took.as_secs_f64()
    );
    assert!(took < limit, "{what}: {took:?}");
    holders[0]
}

/// The address stays where it is.
fn stays(hosts: &Hosts, what: &str, at: usize, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        assert_eq!(hosts.holders(), [at], "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn start_daemons(cluster: &Cluster, nodes: &[usize]) {
    for node in nodes {
        cluster.start(*node);
    }
}

#[test]
fn the_address_is_on_exactly_one_healthy_host() {
    let options = Options {
        namespaces: true,
        log: Some("info,bramble=debug,openraft=warn,lsm_tree=warn"),
        ..Options::default()
    };
    let cluster = Cluster::own("vip", options);
    let hosts = Hosts::new(&cluster);
    assert!(hosts.configure(0).contains("is up to date"));
    let configurations: Vec<_> = (0..3).map(|host| hosts.configuration(host)).collect();
    let line = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(key));
        line.unwrap_or_else(|| panic!("no {key} in\n{text}"))
            .trim()
            .to_owned()
    };
    let all = |key: &str| {
        configurations
            .iter()
            .map(|text| line(text, key))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!((all("virtual_router_id").len(), all("priority").len()), (1, 3));

    let since = Instant::now();
    (0..3).for_each(|host| hosts.start(host));
    let mut holder = moved(&hosts, "all keepalived started", since, &[], MOVE_MAX);
    assert!(hosts.reaches_address((holder + 1) % 3));

    // A power cut.
    let dead = holder;
    let since = Instant::now();
    cluster.network().cut(dead);
    hosts.kill(dead);
    cluster.node(dead).kill9();
    holder = moved(
        &hosts,
        "the host that has it loses its power",
        since,
        &[dead],
        MOVE_MAX,
    );
    assert!(hosts.reaches_address(3 - dead - holder));
    cluster.network().heal(dead);
    cluster.start(dead);
    hosts.start(dead);
    cluster.node(dead).wait_healthy();
    stays(&hosts, "it does not move back", holder, Duration::from_secs(8));

    let since = Instant::now();
    hosts.set_docker(holder, false);
    let before = holder;
    holder = moved(&hosts, "Docker fails where it is", since, &[before], MOVE_MAX);
    hosts.set_docker(before, true);
    stays(
        &hosts,
        "Docker is well again elsewhere",
        holder,
        Duration::from_secs(8),
    );

    drained(&cluster, &hosts, &mut holder);

    // A cut link: the others cannot know that the host gives the address up, and it cannot know that they took it.
    let cut = holder;
    let since = Instant::now();
    cluster.network().cut(cut);
    assert!(!cluster.network().reaches((cut + 1) % 3, cut));
    holder = moved(
        &hosts,
        "the link of the host that has it is cut",
        since,
        &[cut],
        MOVE_MAX,
    );
    assert!(hosts.reaches_address(3 - cut - holder));
    cluster.network().heal(cut);
    cluster.wait_healthy();
    stays(&hosts, "the link is healed", holder, Duration::from_secs(8));

    // No quorum: no host is healthy.
    let since = Instant::now();
    let lost = [(holder + 1) % 3, (holder + 2) % 3];
    lost.iter().for_each(|node| cluster.node(*node).kill9());
    let (_, took) = hosts.wait("no quorum", since, <[usize]>::is_empty);
    eprintln!(
        "VIP: the tree has no quorum: on no host after {:.1} s",
        took.as_secs_f64()
    );
    assert!(took < MOVE_MAX);
    let since = Instant::now();
    start_daemons(&cluster, &lost);
    moved(&hosts, "the quorum is back", since, &[], BOOT_MAX);

    // A blackout.
    for host in 0..3 {
        hosts.kill(host);
        cluster.node(host).kill9();
    }
    assert!(hosts.holders().is_empty());
    let since = Instant::now();
    for host in 0..3 {
        hosts.start(host);
        cluster.start(host);
    }
    moved(&hosts, "all hosts boot at once", since, &[], BOOT_MAX);
    cluster.wait_healthy();
}

/// Draining moves the address and leadership away, is shown, and survives a restart.
fn drained(cluster: &Cluster, hosts: &Hosts, holder: &mut usize) {
    let drained = *holder;
    let node = cluster.node(drained);
    let since = Instant::now();
    let said = node.cli_ok(&["drain"]);
    assert!(said.contains("leads"), "{said}");
    assert_ne!(cluster.leader(), drained, "a draining node leads");
    *holder = moved(
        hosts,
        "the host that has it is drained",
        since,
        &[drained],
        MOVE_MAX,
    );
    node.stop();
    cluster.start(drained);
    node.wait_healthy();
    let other = cluster.node(*holder);
    wait_for("the others to know", PATIENCE, || {
        other.cli_ok(&["status"]).contains("up, draining").then_some(())
    });
    assert!(node.cli_ok(&["status"]).contains("DRAINING"));
    let refused = node.cli(&["health", "--vip", "--no-docker"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("draining"),
        "{refused:?}"
    );
    let _ = node.cli_ok(&["drain", "--undo"]);
    let _ = node.cli_ok(&["health", "--vip", "--no-docker"]);
    stays(hosts, "draining ends", *holder, Duration::from_secs(6));
}

#[test]
fn the_check_for_the_address_never_hangs() {
    let cluster = Cluster::own("vip_check", Options::default());
    let node = cluster.node(0);
    let check = || {
        let start = Instant::now();
        let output = node.cli(&["health", "--vip", "--no-docker"]);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "the check took {took:?}");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert!(check().0, "{}", check().1);
    assert!(node.path(format!(".bramble/vip-{}", node.name)).exists());
    cluster.node(1).kill9();
    cluster.node(2).kill9();
    // More often than the daemon has threads.
    wait_for("the check to fail", PATIENCE, || (!check().0).then_some(()));
    for _ in 0..8 {
        assert!(!check().0);
    }
    let hanging = |command: &str| {
        let mount = node.mount.to_str().unwrap();
        let processes = bramble_tests::run("ps", ["-e", "-o", "args"]);
        let ours = |line: &&str| line.contains(command) && line.contains(mount);
        processes.lines().filter(ours).count()
    };
    let (asking, writing) = (hanging("probe-mount"), hanging("probe-write"));
    assert!(
        asking <= 2 && writing <= 1,
        "{asking} ask the mount, {writing} write to it"
    );
    // A daemon that stands still does not answer either.
    let signal = |signal: &str| bramble_tests::run("kill", [signal, &node.pid().to_string()]);
    signal("-STOP");
    assert!(!check().0);
    signal("-CONT");
    // One that is killed while its tree hangs ends, and frees its mount.
    node.kill9();
    (0..3).for_each(|node| cluster.start(node));
    wait_for("the check to succeed", PATIENCE, || check().0.then_some(()));
}
