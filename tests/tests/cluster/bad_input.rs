//! What goes wrong at the administrator's hand: each case ends with a message that says what to do and an exit status
//! that is not 0, and changes nothing.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use bramble_tests::run::{bramble, describe};
use bramble_tests::{Cluster, Node, Options, Own, cluster, sh};

fn one_node(test: &str) -> Own {
    Cluster::own(
        test,
        Options {
            nodes: 1,
            ..Options::default()
        },
    )
}

/// Names, sizes, times and contents of what is in a store, but for what any start leaves (socket and lock).
fn contents(dir: &Path) -> String {
    let script = "find . ! -name lock ! -name '*.sock' -printf '%P %s %m\\n' | sort
                  find . -type f ! -name lock -print0 | sort -z | xargs -0 -r sha256sum";
    if dir.exists() {
        sh(dir, script)
    } else {
        String::new()
    }
}

/// `output` is of a command that failed as it should, with a message that has each of `words` in it.
fn assert_refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "this must fail: {}", describe(output));
    assert!(
        output.status.code().is_some_and(|code| code < 100),
        "a crash, not an error: {}",
        describe(output)
    );
    let lower = text.to_lowercase();
    for word in words {
        assert!(
            lower.contains(&word.to_lowercase()),
            "the message does not say {word:?}:\n{text}"
        );
    }
    assert!(
        !text.contains("panicked") && !text.contains("Error {"),
        "not a message for people:\n{text}"
    );
    assert!(text.lines().count() <= 5, "too long a message:\n{text}");
}

/// Runs the node's daemon, which must refuse to start.
fn run_refused(node: &Node, words: &[&str]) {
    let before = contents(&node.store);
    let mut command = std::process::Command::new("timeout");
    command
        .arg("30")
        .arg(bramble())
        .args(["run", "--store"])
        .arg(&node.store);
    let output = command.output().unwrap();
    assert_refused(&output, words);
    assert_eq!(contents(&node.store), before, "a refused start changed the store");
}

#[test]
fn tokens_that_are_wrong_used_or_expired() {
    let cluster = one_node("bad_token");
    let first = cluster.node(0);
    let joiner = cluster.prepare();
    let refused = |token: &str, words: &[&str]| {
        assert_refused(&joiner.join(&first.listen, token), words);
        assert!(!joiner.store.exists(), "a refused join left a store behind");
    };
    refused("nonsense", &["token"]);
    let good = first.token(&[]);
    // Right in form, wrong in one character of the secret.
    let (head, last) = good.split_at(good.len() - 1);
    refused(
        &format!("{head}{}", if last == "0" { "1" } else { "0" }),
        &["token"],
    );
    let short = first.token(&["--valid-s", "1"]);
    std::thread::sleep(Duration::from_secs(3));
    refused(&short, &["expired", "bramble token"]);
    // A token is good once.
    assert!(joiner.join(&first.listen, &good).status.success());
    let mut again = cluster.prepare();
    again.store = joiner.store.with_file_name("again");
    again.name = "again".into();
    again.listen = joiner.listen.replace(":7400", ":7401");
    assert_refused(&again.join(&first.listen, &good), &["token"]);
    assert!(!again.store.exists());
}

#[test]
fn a_peer_that_is_not_there() {
    let cluster = one_node("no_peer");
    let token = cluster.node(0).token(&[]);
    let joiner = cluster.prepare();
    assert_refused(&joiner.join("127.0.0.1:9", &token), &["127.0.0.1:9"]);
    assert!(!joiner.store.exists());
    // Someone listens there, but it is not a Bramble node.
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stranger.local_addr().unwrap().to_string();
    assert_refused(&joiner.join(&address, &token), &[&address]);
    assert!(!joiner.store.exists());
}

#[test]
fn an_address_in_use() {
    let cluster = one_node("address_in_use");
    let node = cluster.node(0);
    node.stop();
    let taken = TcpListener::bind(&node.listen).unwrap();
    run_refused(node, &[&node.listen, "in use"]);
    drop(taken);
    // An address that this machine does not have.
    let mut far = cluster.prepare();
    far.listen = "192.0.2.1:7400".into();
    let output = far.init();
    if output.status.success() {
        run_refused(&far, &["192.0.2.1:7400"]);
    } else {
        assert_refused(&output, &["192.0.2.1:7400"]);
    }
}

#[test]
fn a_store_that_belongs_to_another_cluster() {
    let cluster = one_node("other_cluster");
    let other = cluster::second(
        "other_cluster_2",
        Options {
            nodes: 1,
            ..Options::default()
        },
    );
    let foreign = other.node(0);
    foreign.stop();
    let before = contents(&foreign.store);
    let token = cluster.node(0).token(&[]);
    assert_refused(
        &foreign.join(&cluster.node(0).listen, &token),
        &[foreign.store.to_str().unwrap()],
    );
    assert_refused(&foreign.init(), &[foreign.store.to_str().unwrap()]);
    assert_eq!(contents(&foreign.store), before);
    // A directory with something else in it is not taken for a store.
    let joiner = cluster.prepare();
    fs::create_dir_all(&joiner.store).unwrap();
    fs::write(joiner.store.join("holiday.jpg"), "mine").unwrap();
    assert_refused(
        &joiner.join(&cluster.node(0).listen, &token),
        &[joiner.store.to_str().unwrap(), "empty"],
    );
    assert_eq!(fs::read_dir(&joiner.store).unwrap().count(), 1);
}

#[test]
fn a_store_that_runs_already_or_is_none() {
    let cluster = one_node("running_store");
    let output = cluster.node(0).cli(&["run"]);
    assert_refused(&output, &["run", cluster.node(0).store.to_str().unwrap()]);
    assert!(cluster.node(0).is_healthy());
    let nothing = cluster.prepare();
    assert_refused(
        &nothing.cli(&["run"]),
        &[nothing.store.to_str().unwrap(), "init", "join"],
    );
    assert_refused(&nothing.cli(&["status"]), &[nothing.store.to_str().unwrap()]);
    assert!(!nothing.store.exists());
    cluster.node(0).stop();
    assert_refused(&cluster.node(0).cli(&["status"]), &["bramble run"]);
}

#[test]
fn a_store_from_a_newer_version() {
    let cluster = one_node("newer_version");
    let node = cluster.node(0);
    node.stop();
    node.edit_json("identity", |identity| identity["format_version"] = 999.into());
    run_refused(node, &["999", "newer"]);
}

#[test]
fn mount_points_that_are_missing_or_busy() {
    let cluster = one_node("mount_point");
    let node = cluster.node(0);
    node.stop();
    fs::remove_dir(&node.mount).unwrap();
    run_refused(node, &[node.mount.to_str().unwrap(), "mkdir"]);
    fs::write(&node.mount, "a file").unwrap();
    run_refused(node, &[node.mount.to_str().unwrap(), "directory"]);
    fs::remove_file(&node.mount).unwrap();
    fs::create_dir(&node.mount).unwrap();
    sh(&node.mount, "mount -t tmpfs busy .");
    run_refused(node, &[node.mount.to_str().unwrap(), "mounted"]);
    sh(Path::new("/"), &format!("umount {}", node.mount.display()));
    // With all well, it starts.
    cluster.start(0);
    cluster.wait_healthy();
    // At init already.
    let fresh = cluster.prepare();
    fs::remove_dir(&fresh.mount).unwrap();
    let output = fresh.init();
    assert_refused(&output, &[fresh.mount.to_str().unwrap(), "mkdir"]);
    assert!(!fresh.store.exists());
}

#[test]
fn a_machine_without_fuse() {
    let cluster = one_node("no_fuse");
    let node = cluster.node(0);
    node.stop();
    let before = contents(&node.store);
    let script = format!(
        "mount -t tmpfs none /dev; exec timeout 30 {} run --store {}",
        bramble().display(),
        node.store.display()
    );
    let output = bramble_tests::run::try_run("unshare", ["-m", "/bin/sh", "-c", &script]);
    assert_refused(&output, &["/dev/fuse"]);
    assert_eq!(contents(&node.store), before);
}

#[test]
fn a_medium_that_is_full_from_the_start() {
    let cluster = Cluster::own(
        "full_at_init",
        Options {
            nodes: 1,
            medium_mib: Some(160),
            ..Options::default()
        },
    );
    let fresh = cluster.prepare();
    let medium = fresh.store.parent().unwrap();
    let _ = bramble_tests::run::try_sh(medium, "dd if=/dev/zero of=filler bs=64k 2>/dev/null");
    let output = fresh.init();
    let output = if output.status.success() {
        let mut command = std::process::Command::new("timeout");
        command
            .arg("30")
            .arg(bramble())
            .args(["run", "--store"])
            .arg(&fresh.store)
            .output()
            .unwrap()
    } else {
        output
    };
    assert_refused(&output, &["bytes left", "make room"]);
}

#[test]
fn arguments_that_make_no_sense() {
    let cluster = one_node("arguments");
    let fresh = cluster.prepare();
    let case = |args: &[&str], words: &[&str]| {
        let output = bramble_tests::run::try_run(bramble(), args);
        assert!(!output.status.success(), "{args:?} must fail");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            words.iter().all(|word| text.contains(word)),
            "{args:?}: no {words:?} in\n{text}"
        );
    };
    let (store, mount) = (fresh.store.to_str().unwrap(), fresh.mount.to_str().unwrap());
    case(
        &["init", "--store", store, "--listen", "here", "--mount", mount],
        &["--listen"],
    );
    case(
        &[
            "init",
            "--store",
            store,
            "--listen",
            "0.0.0.0:7400",
            "--mount",
            mount,
        ],
        &["0.0.0.0"],
    );
    case(
        &[
            "init",
            "--store",
            store,
            "--listen",
            &fresh.listen,
            "--mount",
            "relative",
        ],
        &["relative"],
    );
    case(
        &[
            "init",
            "--store",
            store,
            "--listen",
            &fresh.listen,
            "--mount",
            mount,
            "--name",
            "a b",
        ],
        &["name"],
    );
    case(&["frobnicate"], &["frobnicate"]);
    assert!(!fresh.store.exists());
}
