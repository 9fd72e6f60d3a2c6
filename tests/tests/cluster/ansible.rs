//! The Ansible playbook, with hosts in network namespaces: it begins, repeats, and replaces.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bramble_tests::run::{bramble, describe};
use bramble_tests::{Cluster, Options, Own, boot, sh};
use serde_json::json;

/// An inventory of the cluster's hosts. Ansible's own connection to this machine is used, with a shell that enters the host.
fn inventory(cluster: &Cluster) -> std::path::PathBuf {
    let dir = cluster.local_dir("ansible");
    let host = |index: usize| {
        let node = cluster.node(index);
        let shell = dir.join(format!("shell{index}"));
        let enter = format!(
            "#!/bin/sh\nexec nsenter --net=/run/netns/{} /bin/sh \"$@\"\n",
            node.netns.as_ref().unwrap()
        );
        fs::write(&shell, enter).unwrap();
        fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
        let variables = json!({
            "ansible_connection": "local",
            "ansible_shell_executable": shell,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_become": false,
            "bramble_address": node.listen.split(':').next().unwrap(),
            "bramble_program": bramble(),
            "bramble_store": node.store,
            "bramble_options": ["--mount", node.mount, "--start", "background", "--docker-plugin", "off"],
        });
        (node.name.clone(), variables)
    };
    let hosts: serde_json::Map<_, _> = (0..cluster.nodes().len()).map(host).collect();
    let path = dir.join("inventory.yml");
    fs::write(&path, json!({"bramble": {"hosts": hosts}}).to_string()).unwrap();
    path
}

/// Runs the playbook; for each host what the recap says changed, and all that was printed.
fn play(cluster: &Cluster, inventory: &Path) -> (Vec<u32>, String) {
    let playbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ansible/bramble.yml");
    let begun = Instant::now();
    let output = Command::new("ansible-playbook")
        .arg("-vv")
        .arg("-i")
        .arg(inventory)
        .arg(playbook)
        .env("ANSIBLE_NOCOLOR", "1")
        .env("ANSIBLE_LOCAL_TEMP", cluster.local_dir("ansible-temp"))
        .env("ANSIBLE_REMOTE_TEMP", cluster.local_dir("ansible-temp"))
        .env("ANSIBLE_HOME", cluster.local_dir("ansible-home"))
        .output()
        .unwrap();
    for node in cluster.nodes() {
        let pid = fs::read_to_string(node.store.join("run.pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            cluster.janitor().add_pid(pid);
        }
    }
    eprintln!("playbook: {:.1} s", begun.elapsed().as_secs_f64());
    assert!(output.status.success(), "{}", describe(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("BRAMBLE-1-"), "a token was printed:\n{text}");
    let recap = text.split("PLAY RECAP").nth(1).unwrap();
    let changed = |node: &bramble_tests::Node| {
        let line = recap.lines().find(|line| line.starts_with(&node.name)).unwrap();
        let count = line
            .split("changed=")
            .nth(1)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap();
        count.parse().unwrap()
    };
    (cluster.nodes().iter().map(changed).collect(), text)
}

#[test]
fn the_playbook_begins_repeats_and_replaces() {
    let options = Options {
        namespaces: true,
        blank: true,
        ..Options::default()
    };
    let cluster: Own = Cluster::own("ansible", options);
    let inventory = inventory(&cluster);
    let (changed, _) = play(&cluster, &inventory);
    assert_eq!(changed, [1, 1, 1]);
    sh(
        &cluster.node(2).mount,
        "head -c 5000000 /dev/urandom >large; sha256sum large >sums; sync large sums",
    );
    let before = cluster.node(0).status().0["cluster"]["nodes"].clone();
    let (changed, _) = play(&cluster, &inventory);
    assert_eq!(changed, [0, 0, 0], "the second time nothing is left to do");

    // The first is replaced, which is the one that began.
    boot::destroy_background(&cluster, 0);
    let (changed, text) = play(&cluster, &inventory);
    assert_eq!(changed, [1, 0, 0]);
    assert!(text.contains("3 vote, and 1"), "{text}");
    sh(&cluster.node(0).mount, "sha256sum --quiet -c sums");
    let status = cluster.node(1).status();
    let nodes = status.0["cluster"]["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3);
    assert!(
        nodes.iter().all(|node| node["chunks_complete"] == true),
        "{nodes:?}"
    );
    assert!(
        nodes.iter().all(|node| node["id"] != before[0]["id"]),
        "the dead node is still there"
    );
    bramble_tests::wait_for("the nodes to be healthy", Duration::from_secs(30), || {
        let healthy = |node: &bramble_tests::Node| node.cli(&["health"]).status.success();
        cluster.nodes().iter().all(healthy).then_some(())
    });
}
