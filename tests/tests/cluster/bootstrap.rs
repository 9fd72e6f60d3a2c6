//! One command for each machine, with a real Docker on each: a cluster, its Swarm, and the return of a machine that was
//! destroyed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use bramble_tests::boot::{self, all, begin};
use bramble_tests::docker::{DockerHost, IMAGE};
use bramble_tests::run::{bramble, describe};
use bramble_tests::{Cluster, Options, Own, cluster, run, sh, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn hosts(test: &str, nodes: usize, docker: bool) -> Own {
    let options = Options {
        nodes,
        namespaces: true,
        docker,
        blank: true,
        limit: Duration::from_secs(600),
        ..Options::default()
    };
    Cluster::own(test, options)
}

/// A Swarm's nodes as one of its managers sees them: names, with id, state, and role.
fn swarm_nodes(host: &DockerHost) -> BTreeMap<String, Vec<String>> {
    let format = "{{.Hostname}} {{.ID}} {{.Status}} {{.ManagerStatus}}";
    let listed = host.docker(&["node", "ls", "--format", format]);
    let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in listed.lines() {
        let (name, rest) = line.split_once(' ').unwrap();
        nodes
            .entry(name.to_owned())
            .or_default()
            // Of a worker, the last one is empty.
            .push(rest.trim_end().replace("Leader", "Reachable"));
    }
    nodes
}

/// What `status` says of each node: id and whether all its chunks are there.
fn members(cluster: &Cluster, index: usize) -> BTreeMap<String, (u64, bool)> {
    let status = cluster.node(index).status();
    let nodes = status.0["cluster"]["nodes"].as_array().unwrap().clone();
    let of = |node: &serde_json::Value| {
        let complete = node["chunks_complete"].as_bool().unwrap() && node["reachable"].as_bool().unwrap();
        (
            node["name"].as_str().unwrap().to_owned(),
            (node["id"].as_u64().unwrap(), complete),
        )
    };
    nodes.iter().map(of).collect()
}

#[test]
fn three_machines_make_one_swarm_and_a_blank_one_takes_a_dead_ones_place() {
    let cluster = hosts("bootstrap", 3, true);
    let mut dockers = docker_on_all(&cluster);
    let node = |index: usize| cluster.node(index);
    let peer = node(0).listen.clone();
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name.clone()).collect();

    // The first machine, for now without Swarm, so that all three then begin with it at the same moment.
    let first = ["--listen", "10.77.0.1", "--name", &names[0]];
    let keepalived = cluster.local_dir("keepalived");
    let config = |index: usize| keepalived.join(format!("{index}.conf"));
    let said = begin(&cluster, 0, &[&first[..], &["--no-swarm"]].concat())
        .end()
        .ok();
    assert!(
        said.contains("first node") && said.contains("clean") && said.contains("--token"),
        "{said}"
    );
    let tokens: Vec<String> = (0..2).map(|_| node(0).token(&[])).collect();
    let configs: Vec<String> = (0..3).map(|index| config(index).display().to_string()).collect();
    let options = |index: usize, token: Option<&str>| -> Vec<String> {
        let mut options: Vec<String> = [
            "--vip",
            "10.77.0.100/24",
            "--keepalived-config",
            &configs[index],
            "--name",
            &names[index],
        ]
        .map(str::to_owned)
        .to_vec();
        if let Some(token) = token {
            options.extend(["--peer", &peer, "--token", token].map(str::to_owned));
        }
        options
    };
    let runs = [
        (0, options(0, None)),
        (1, options(1, Some(&tokens[0]))),
        (2, options(2, Some(&tokens[1]))),
    ];
    let begun = Instant::now();
    for end in all(&cluster, &runs) {
        eprintln!("bootstrap: {:.1} s", end.took.as_secs_f64());
        let said = end.ok();
        assert!(said.contains("Swarm: this machine is a manager"), "{said}");
    }
    eprintln!(
        "bootstrap: two machines joined, one Swarm made: {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    let before = swarm_nodes(&dockers[1]);
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>()
    );
    for (name, nodes) in &before {
        assert!(
            nodes.len() == 1 && nodes[0].ends_with("Ready Reachable"),
            "{name}: {nodes:?}"
        );
    }
    for docker in &dockers {
        assert_eq!(swarm_nodes(docker), before, "all are in the same");
    }
    for index in 0..3 {
        let text = fs::read_to_string(config(index)).unwrap();
        assert!(text.contains("10.77.0.100/24"), "{text}");
    }

    // Again, on all at once: nothing changes. (The token is used up, and does no harm.)
    let members_before = members(&cluster, 0);
    let identities = || -> Vec<Vec<u8>> {
        let of = |index| fs::read(node(index).store.join("identity")).unwrap();
        (0..3).map(of).collect()
    };
    let (identities_before, begun) = (identities(), Instant::now());
    for end in all(&cluster, &runs) {
        let said = end.ok();
        assert!(
            said.contains("already") && !said.contains("joining the Swarm as") && !said.contains("making"),
            "{said}"
        );
    }
    eprintln!(
        "bootstrap: repeated on three machines: {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    assert_eq!(swarm_nodes(&dockers[0]), before);
    assert_eq!(
        (members(&cluster, 0), identities()),
        (members_before.clone(), identities_before)
    );

    // Chunks, on all nodes.
    sh(
        &node(0).mount,
        "head -c 60000000 /dev/urandom >large; sync large; sha256sum large >sums; sync sums",
    );
    wait_for("all nodes to have all chunks", PATIENCE, || {
        members(&cluster, 0)
            .values()
            .all(|(_, complete)| *complete)
            .then_some(())
    });

    // The second machine is destroyed, and one of its name comes without anything.
    let dead = 1;
    dockers[dead].kill9();
    boot::destroy(&cluster, dead);
    dockers.remove(dead).forget();
    fs::remove_file(config(dead)).unwrap();
    let token = node(0).token(&[]);
    let blank = DockerHost::start(&cluster, dead);
    dockers.insert(dead, blank);
    assert_eq!(
        dockers[dead].docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]),
        "inactive"
    );
    let end = begin(&cluster, dead, &options(dead, Some(&token))).end();
    eprintln!(
        "bootstrap: a blank machine took a dead one's place: {:.1} s",
        end.took.as_secs_f64()
    );
    let said = end.ok();
    eprintln!("{said}");
    assert!(
        said.contains("removing the dead node2") && said.contains("complete and clean"),
        "{said}"
    );

    // `status` is clean, and all chunks are on three nodes.
    let after = members(&cluster, 0);
    assert_eq!(after.len(), 3, "{after:?}");
    assert!(after.values().all(|(_, complete)| *complete), "{after:?}");
    assert!(
        after["node2"].0 > members_before["node2"].0,
        "ids are never used again"
    );
    assert_eq!(
        (after["node1"], after["node3"]),
        (members_before["node1"], members_before["node3"])
    );
    let counts: Vec<u64> = cluster
        .nodes()
        .iter()
        .map(|node| node.status().chunks_count())
        .collect();
    assert!(
        counts[0] >= 50 && counts.iter().all(|count| *count == counts[0]),
        "{counts:?}"
    );
    assert_eq!(cluster.node(dead).status().voters(), 3);
    sh(&node(dead).mount, "sha256sum --quiet -c sums");
    // The Swarm has nothing left of the dead one, and its quorum.
    let now = swarm_nodes(&dockers[0]);
    for (name, nodes) in &now {
        assert!(
            nodes.len() == 1 && nodes[0].ends_with("Ready Reachable"),
            "{name}: {nodes:?}"
        );
    }
    assert_eq!(now.len(), 3);
    assert_ne!(now["node2"], before["node2"]);
    assert_eq!(
        (&now["node1"], &now["node3"]),
        (&before["node1"], &before["node3"])
    );
    assert!(
        fs::read_to_string(config(dead))
            .unwrap()
            .contains("10.77.0.100/24")
    );
    // So any one of the three may go again.
    cluster.node(0).kill9();
    sh(
        &node(dead).mount,
        "sha256sum --quiet -c sums; echo more >more; sync more",
    );
}

/// Starts Docker on all hosts of a cluster.
fn docker_on_all(cluster: &Cluster) -> Vec<DockerHost> {
    // The first one makes the image for all.
    let mut dockers = vec![DockerHost::start(cluster, 0)];
    std::thread::scope(|scope| {
        let rest: Vec<_> = (1..cluster.nodes().len())
            .map(|index| scope.spawn(move || DockerHost::start(cluster, index)))
            .collect();
        dockers.extend(rest.into_iter().map(|host| host.join().unwrap()));
    });
    dockers
}

/// Does something while a manager is asked over and over who is in the Swarm; also what it answered each time. A Swarm without
/// a quorum does not answer, which fails the test.
fn watched<T>(manager: &DockerHost, action: impl FnOnce() -> T) -> (T, Vec<BTreeMap<String, Vec<String>>>) {
    let (watching, ended) = channel::<()>();
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let mut looks = vec![swarm_nodes(manager)];
            while ended.recv_timeout(Duration::from_millis(200)) == Err(RecvTimeoutError::Timeout) {
                looks.push(swarm_nodes(manager));
            }
            looks
        });
        let outcome = action();
        drop(watching);
        (outcome, watch.join().unwrap())
    })
}

#[test]
fn a_blank_machine_takes_a_dead_workers_place() {
    // Bootstrap makes managers of the first five, whichever those are: one of the six works.
    let cluster = hosts("bootstrap_worker", 6, true);
    let mut dockers = docker_on_all(&cluster);
    let node = |index: usize| cluster.node(index);
    let peer = node(0).listen.clone();
    let begun = Instant::now();
    let first = ["--listen", "10.77.0.1", "--name", &node(0).name];
    let said = begin(&cluster, 0, &first).end().ok();
    assert!(said.contains("making a Swarm"), "{said}");
    let options = |index: usize| {
        let token = node(0).token(&[]);
        ["--name", &node(index).name, "--peer", &peer, "--token", &token]
            .map(str::to_owned)
            .to_vec()
    };
    let runs: Vec<_> = (1..6).map(|index| (index, options(index))).collect();
    let said: Vec<String> = all(&cluster, &runs)
        .into_iter()
        .map(boot::Bootstrapped::ok)
        .collect();
    eprintln!("bootstrap: six machines: {:.1} s", begun.elapsed().as_secs_f64());
    let before = swarm_nodes(&dockers[0]);
    let is_worker = |name: &str| before[name].len() == 1 && before[name][0].ends_with(" Ready");
    let workers: Vec<usize> = (0..6).filter(|index| is_worker(&node(*index).name)).collect();
    let [dead] = workers[..] else {
        panic!("five manage, and one works: {before:?}")
    };
    let name = node(dead).name.clone();
    let role = "Swarm: this machine is a worker";
    assert!(said[dead - 1].contains(role), "{}", said[dead - 1]);
    let managers: BTreeMap<_, _> = before.iter().filter(|(other, _)| **other != name).collect();
    assert_eq!(managers.len(), 5, "{before:?}");
    for (other, nodes) in &managers {
        assert!(
            nodes.len() == 1 && nodes[0].ends_with(" Ready Reachable"),
            "{other}: {nodes:?}"
        );
    }

    // It has something to do, and its share of the data.
    let script = "echo started >>/data/starts; sync /data/starts; exec sleep 100000";
    let mount = "type=volume,source=work,target=/data,volume-driver=bramble";
    let how = [
        "--detach",
        "--no-resolve-image",
        "--constraint",
        "node.role==worker",
    ];
    let service = ["--name", "work", "--mount", mount, IMAGE, "sh", "-euc", script];
    dockers[0].docker(&[&["service", "create"], &how[..], &service].concat());
    let starts = || fs::read_to_string(node(0).path("volumes/work/starts")).unwrap_or_default();
    wait_for("the service to run on the worker", PATIENCE, || {
        (starts() == "started\n").then_some(())
    });
    sh(
        &node(0).mount,
        "head -c 30000000 /dev/urandom >large; sync large; sha256sum large >sums; sync sums",
    );
    let clean = |what: &str| {
        wait_for(what, PATIENCE, || {
            let members = members(&cluster, 0);
            let complete = members.len() == 6 && members.values().all(|(_, complete)| *complete);
            let counts: Vec<u64> = cluster
                .nodes()
                .iter()
                .map(|node| node.status().chunks_count())
                .collect();
            // Each is on three nodes, and nobody keeps what is not his any more (for half a minute, he does).
            let copies: u64 = counts.iter().sum();
            (complete && copies >= 3 * 29 && copies.is_multiple_of(3)).then_some((members, counts))
        })
    };
    let (members_before, counts) = clean("all chunks to be on the nodes of their groups");
    assert!(counts[dead] > 0, "{counts:?}");

    // The worker is destroyed: the managers see it, and so do the other nodes.
    dockers[dead].kill9();
    boot::destroy(&cluster, dead);
    dockers.remove(dead).forget();
    dockers.insert(dead, DockerHost::start(&cluster, dead));
    let state = ["info", "--format", "{{.Swarm.LocalNodeState}}"];
    assert_eq!(dockers[dead].docker(&state), "inactive");
    let (old, _) = before[&name][0].split_once(' ').unwrap();
    wait_for("the Swarm to give the worker up", PATIENCE, || {
        (swarm_nodes(&dockers[0])[&name] == [format!("{old} Down")]).then_some(())
    });
    assert!(!members(&cluster, 0)[&name].1);
    assert_eq!(starts(), "started\n", "no other machine works");

    // One of its name comes without anything. Five manage without it, so it works, too.
    let options = options(dead);
    let (end, looks) = watched(&dockers[0], || begin(&cluster, dead, &options).end());
    eprintln!(
        "bootstrap: a blank machine took a dead worker's place: {:.1} s",
        end.took.as_secs_f64()
    );
    let said = end.ok();
    eprintln!("{said}");
    for words in [
        &format!("removing the dead {name} ({old}) from the Swarm"),
        role,
        "6 machines, 5 of them managers",
        "complete and clean",
    ] {
        assert!(said.contains(words), "it does not say {words:?}: {said}");
    }

    // The Swarm has nothing left of the dead one. The others managed it all the time, and nobody else did.
    let now = swarm_nodes(&dockers[0]);
    assert!(
        now[&name].len() == 1 && now[&name][0].ends_with(" Ready"),
        "{now:?}"
    );
    assert!(!now[&name][0].starts_with(old), "{now:?}");
    for look in looks.iter().chain([&now]) {
        // A machine that is joining has no name for a moment.
        let (managing, rest): (Vec<_>, Vec<_>) =
            look.iter().partition(|(other, _)| managers.contains_key(other));
        assert!(managing.into_iter().eq(managers.clone()), "{look:?}");
        let rest: Vec<&String> = rest.into_iter().flat_map(|(_, nodes)| nodes).collect();
        assert!(rest.iter().all(|node| !node.ends_with("Reachable")), "{look:?}");
        assert!(rest.len() <= 1, "the dead one was to go first: {look:?}");
    }
    assert_eq!(now.len(), 6, "{now:?}");
    let removals = |index: usize| {
        let log = fs::read_to_string(&node(index).log).unwrap();
        let told = log
            .lines()
            .filter(|line| line.contains("removing a dead machine"));
        told.map(str::to_owned).collect::<Vec<_>>()
    };
    let removals: Vec<String> = (0..6).flat_map(removals).collect();
    assert!(removals.len() == 1 && removals[0].contains(old), "{removals:?}");

    // What was to be done on the worker is done there, with what it had.
    wait_for("the service to run on the new worker", PATIENCE, || {
        (starts() == "started\nstarted\n").then_some(())
    });
    let tasks = [
        "service",
        "ps",
        "--filter",
        "desired-state=running",
        "--format",
        "{{.Node}}",
        "work",
    ];
    assert_eq!(dockers[0].docker(&tasks), name);

    // Again: nothing changes.
    let said = begin(&cluster, dead, &options).end().ok();
    assert!(
        said.contains("already") && said.contains(role) && !said.contains("removing"),
        "{said}"
    );
    assert_eq!(swarm_nodes(&dockers[0]), now);

    // `status` is clean: the old id is retired, and all chunks are where they belong.
    let (after, counts) = clean("all chunks to be on the nodes of their groups again");
    assert!(counts[dead] > 0, "{counts:?}");
    for (other, (id, _)) in &members_before {
        let is_new = after[other].0 > members_before.values().map(|(id, _)| *id).max().unwrap();
        assert!(
            is_new == (*other == name) && (is_new || after[other].0 == *id),
            "{after:?}"
        );
    }
    let status = node(dead).status();
    assert_eq!(status.voters(), 5);
    assert_eq!(status.0["warnings"], serde_json::json!([]));
    sh(&node(dead).mount, "sha256sum --quiet -c sums");
}

#[test]
fn bad_input_changes_nothing() {
    let cluster = hosts("bootstrap_bad", 3, false);
    let (first, second) = (cluster.node(0), cluster.node(1));
    let peer = first.listen.clone();
    begin(&cluster, 0, &["--listen", "10.77.0.1", "--name", "a"])
        .end()
        .ok();
    let used = first.token(&[]);
    let good = first.token(&[]);
    let try_second = |options: &[&str]| begin(&cluster, 1, options).end();

    // Names, before a disk would be touched.
    for name in ["a/b", "..x/", "", "a b"] {
        try_second(&["--peer", &peer, "--token", &good, "--name", name]).refused(&["name", "not usable"]);
    }
    try_second(&["--peer", &peer, "--token", "BRAMBLE-1-old", "--name", "b"]).refused(&["not a join token"]);
    try_second(&["--name", "b"]).refused(&["--listen"]);
    // A living node keeps its name.
    try_second(&["--peer", &peer, "--token", &good, "--name", "a"])
        .refused(&["in use by a node that is running"]);
    assert!(!second.store.exists());

    // A token is good once.
    let joined = begin(&cluster, 1, &["--peer", &peer, "--token", &used, "--name", "b"])
        .end()
        .ok();
    assert!(joined.contains("b joined"), "{joined}");
    let third = cluster.node(2);
    begin(&cluster, 2, &["--peer", &peer, "--token", &used, "--name", "c"])
        .end()
        .refused(&["token"]);
    assert!(!third.store.exists(), "a refused join left something");

    // What is there already is of another name, address, or cluster: it stays as it is.
    let identity = fs::read(second.store.join("identity")).unwrap();
    try_second(&["--name", "z"]).refused(&["name b, not z", "left alone"]);
    try_second(&["--listen", "10.77.0.9"]).refused(&["10.77.0.9", "left alone"]);
    let other = cluster::second(
        "bootstrap_bad_2",
        Options {
            nodes: 1,
            ..Options::default()
        },
    );
    let foreign = other.node(0).token(&[]);
    try_second(&["--peer", &peer, "--token", &foreign])
        .refused(&["another cluster than the token", "left alone"]);
    assert_eq!(fs::read(second.store.join("identity")).unwrap(), identity);
    try_second(&[]).ok();
}

#[test]
fn a_disk_with_data_is_refused_and_a_confirmed_one_is_used() {
    let cluster = hosts("bootstrap_disk", 1, false);
    let node = cluster.node(0);
    let dir = cluster.local_dir("disk");
    let image = dir.join("image");
    fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    let device = run("losetup", ["-f", "--show", image.to_str().unwrap()])
        .trim()
        .to_owned();
    cluster.janitor().add_loop(&device);
    cluster.janitor().add_mount(node.store.parent().unwrap());
    let fstab = dir.join("fstab").display().to_string();
    let base = ["--listen", "10.77.0.1", "--disk", &device, "--fstab", &fstab];
    let attempt = |options: &[&str]| begin(&cluster, 0, &[&base[..], options].concat()).end();
    let sum = || sh(&dir, "sha256sum image");

    // Blank, but whole.
    let before = sum();
    attempt(&[]).refused(&[&device, "whole disk", "--yes-erase"]);
    // Photos.
    let at = dir.join("photos");
    sh(
        &dir,
        &format!(
            "mkfs.ext4 -q -F -L PHOTOS {device}; mkdir {0}; mount {device} {0}; echo me >{0}/me.jpg",
            at.display()
        ),
    );
    cluster.janitor().add_mount(&at);
    attempt(&["--yes-erase", &device]).refused(&["in use", at.to_str().unwrap(), "left alone"]);
    sh(&dir, "umount photos");
    let with_photos = sum();
    assert_ne!(before, with_photos);
    attempt(&[]).refused(&[&device, "PHOTOS", "me.jpg", "Nothing was written"]);
    attempt(&["--yes-erase", "/dev/null"]).refused(&["nothing was written"]);
    attempt(&["--name", "a/b", "--yes-erase", &device]).refused(&["not usable"]);
    assert_eq!(sum(), with_photos, "the disk was written to");
    assert!(!Path::new(&fstab).exists() && !node.store.exists());

    // Erased, as is asked for.
    let said = attempt(&["--yes-erase", &device]).ok();
    assert!(
        said.contains("making a filesystem") && said.contains("complete and clean"),
        "{said}"
    );
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts.contains(&format!("{device} {}", node.store.parent().unwrap().display())));
    sh(&node.mount, "echo kept >file; sync file");
    // After a boot, before which nobody has mounted it: the store on it is found.
    node.stop();
    run("umount", [node.store.parent().unwrap()]);
    let said = attempt(&[]).ok();
    assert!(
        said.contains("holds a store") && said.contains("already"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(node.path("file")).unwrap(), "kept\n");
    assert_eq!(fs::read_to_string(&fstab).unwrap().lines().count(), 1);
    attempt(&[]).ok();
}

#[test]
fn the_drill_ends_well_and_leaves_nothing() {
    // Nothing else runs meanwhile.
    let cluster = Cluster::shared("drill");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/drill");
    let drill = |dir: &Path| {
        let mut command = Command::new(&script);
        command
            .env("BRAMBLE", bramble())
            .env("DRILL_DIR", dir)
            .stdin(Stdio::null());
        command
    };
    let dir = cluster.local_dir("drill").join("hosts");
    let nothing_left = |id: u32| {
        wait_for("all that the drill made to be gone", PATIENCE, || {
            let names = sh(
                Path::new("/"),
                &format!("ip netns list; find /sys/fs/cgroup -type d -name 'brmd-{id}-*' || true"),
            );
            // Groups go only when no process is in them, and namespaces are removed after the processes in them.
            (!dir.exists() && !names.contains(&format!("brmd-{id}-"))).then_some(())
        });
    };
    let child = drill(&dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    eprintln!("{text}");
    assert!(text.contains("clean: three nodes with all chunks"), "{text}");
    nothing_left(id);
    // Killed in the middle, it is cleared away all the same.
    let mut child = drill(&dir).stdout(Stdio::null()).spawn().unwrap();
    wait_for("a host to run", PATIENCE, || {
        dir.join("pi-1/docker.log").exists().then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    nothing_left(child.id());
}
