//! Volumes of Docker: real dockerds, each on a host of its own, with containers that use the tree.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bramble_tests::docker::{DockerHost, IMAGE, cluster};
use bramble_tests::run::describe;
use bramble_tests::wait_for;
use serde_json::Value;

fn inspect(host: &DockerHost, volume: &str) -> Value {
    let text = host.docker(&["volume", "inspect", volume]);
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

#[test]
fn containers_use_volumes_with_options() {
    let cluster = cluster("docker_volumes", 1);
    let node = cluster.node(0);
    let host = DockerHost::start(&cluster, 0);
    host.wait_primed();

    let create = ["volume", "create", "-d", "bramble"];
    let options = [
        "-o",
        "size=16M",
        "-o",
        "uid=33",
        "-o",
        "gid=44",
        "-o",
        "mode=0750",
        "db",
    ];
    host.docker(&[&create[..], &options].concat());
    let shown = inspect(&host, "db");
    assert_eq!(shown["Scope"], "global", "{shown}");
    assert_eq!(shown["Mountpoint"], node.path("volumes/db").to_str().unwrap());
    assert_eq!(shown["Status"]["size_bytes"], 16 << 20, "{shown}");
    assert_eq!(shown["Status"]["replicas"], 1, "{shown}");
    wait_for("the volume to be healthy", Duration::from_secs(30), || {
        (inspect(&host, "db")["Status"]["health"] == "ok").then_some(())
    });
    let made = fs::metadata(node.path("volumes/db")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (33, 44, 0o750));

    for bad in [
        "sise=1G",
        "size=0",
        "size=900T",
        "mode=rwx",
        "path=../x",
        "replicas=many",
        "keep=maybe",
    ] {
        let why = host.refused(&[&create[..], &["-o", bad, "bad"]].concat());
        let option = bad.split('=').next().unwrap();
        assert!(why.contains(option) || why.contains("size"), "{bad}: {why}");
    }
    let why = host.refused(&[&create[..], &["-o", "sise=1G", "bad"]].concat());
    for option in ["size", "uid", "gid", "mode", "path", "replicas", "keep"] {
        assert!(
            why.contains(&format!("{option} (")),
            "{option} is not listed: {why}"
        );
    }
    host.refused(&[&create[..], &["a/b"]].concat());
    let listed = host.docker(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]);
    assert_eq!(listed, "bramble db");
    assert!(!node.path("volumes/bad").exists());

    // One writes, another reads, and all nodes see it.
    host.sh("db", "echo from a container >/data/file; sync /data/file");
    assert_eq!(host.sh("db", "cat /data/file"), "from a container");
    assert_eq!(
        fs::read_to_string(node.path("volumes/db/file")).unwrap(),
        "from a container\n"
    );
    let size_kib = host.sh("db", "df -k /data | tail -n 1 | awk '{print $2}'");
    assert_eq!(size_kib, "16384", "df shows the volume's size");
    let full = host.sh(
        "db",
        "dd if=/dev/zero of=/data/big bs=1M count=32 conv=fsync 2>&1 || rm /data/big",
    );
    assert!(full.to_lowercase().contains("quota exceeded"), "{full}");

    // A container that is only made, and one that runs.
    let local = cluster.local_dir("copies");
    fs::write(local.join("in"), "copied in").unwrap();
    host.docker(&[
        "create", "--name", "box", "-v", "db:/data", IMAGE, "sleep", "1000",
    ]);
    for _ in 0..2 {
        host.docker(&["cp", local.join("in").to_str().unwrap(), "box:/data/in"]);
        host.docker(&["cp", "box:/data/file", local.join("out").to_str().unwrap()]);
        assert_eq!(fs::read(local.join("out")).unwrap(), b"from a container\n");
        assert_eq!(fs::read(node.path("volumes/db/in")).unwrap(), b"copied in");
        host.docker(&["start", "box"]);
    }

    // While it runs, neither Docker nor Bramble removes it.
    host.refused(&["volume", "rm", "db"]);
    let refused = node.cli(&["volume", "rm", "db"]);
    let why = describe(&refused);
    assert!(!refused.status.success() && why.contains("in use"), "{why}");
    host.docker(&["rm", "-f", "box"]);
    wait_for("all uses to be counted back", Duration::from_secs(30), || {
        let users = inspect(&host, "db")["Status"]["in_use_on"].clone();
        (users == Value::Array(vec![])).then_some(())
    });
    host.docker(&["volume", "rm", "db"]);
    assert!(!node.path("volumes/db").exists());
    assert!(
        host.refused(&["volume", "inspect", "db"])
            .to_lowercase()
            .contains("no such volume")
    );

    // A place of its own, which stays.
    let options = ["-o", "path=apps/web", "-o", "keep=true", "web"];
    host.docker(&[&create[..], &options].concat());
    host.sh("web", "echo kept >/data/page");
    host.docker(&["volume", "rm", "web"]);
    assert_eq!(fs::read(node.path("apps/web/page")).unwrap(), b"kept\n");
    host.docker(&[&create[..], &["-o", "path=apps/web", "web"]].concat());
    assert_eq!(host.sh("web", "cat /data/page"), "kept");
}

#[test]
fn no_container_starts_while_the_tree_is_not_mounted() {
    let cluster = cluster("docker_unmounted", 1);
    let node = cluster.node(0);
    let host = DockerHost::start(&cluster, 0);
    host.docker(&["volume", "create", "-d", "bramble", "db"]);
    host.sh("db", "echo data >/data/file; sync /data/file");

    for how in ["stopped", "killed"] {
        match how {
            "stopped" => node.stop(),
            _ => node.kill9(),
        }
        let script = "test -e /data/file && cat /data/file; echo written here >/data/new";
        let args = [
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            "db:/data",
            IMAGE,
            "sh",
            "-euc",
            script,
        ];
        let mut waiting = host
            .command(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Long enough for a container to start that would.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) && waiting.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(100));
        }
        if let Some(status) = waiting.try_wait().unwrap() {
            assert!(!status.success(), "{how}: a container ran without the tree");
        }
        if !node.is_mounted() {
            let local: Vec<_> = fs::read_dir(&node.mount).unwrap().collect();
            assert!(
                local.is_empty(),
                "{how}: the local disk was written to: {local:?}"
            );
        }
        cluster.start(0);
        cluster.wait_healthy();
        let output = waiting.wait_with_output().unwrap();
        // Either Docker waited, and then the container found its data, or it had given up.
        if output.status.success() {
            assert_eq!(output.stdout, b"data\n", "{how}: {}", describe(&output));
        }
        assert_eq!(host.sh("db", "cat /data/file"), "data", "{how}");
        assert_eq!(
            host.docker(&["volume", "ls", "-q"]),
            "db",
            "{how}: Docker has not forgotten it"
        );
    }
}
