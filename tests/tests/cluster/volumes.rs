//! Volumes, quotas, snapshots and clones, with real daemons.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bramble_tests::run::{describe, try_sh};
use bramble_tests::{Cluster, Shared, sh, wait_for};
use serde_json::Value;

/// `bramble volume ARGS` on a node, which must work.
fn volume(cluster: &Shared, node: usize, args: &[&str]) -> String {
    let args: Vec<&str> = ["volume"].iter().chain(args).copied().collect();
    cluster.node(node).cli_ok(&args)
}

/// The same, which must be refused; what it says.
fn refused(cluster: &Shared, node: usize, args: &[&str]) -> String {
    let args: Vec<&str> = ["volume"].iter().chain(args).copied().collect();
    let output = cluster.node(node).cli(&args);
    assert!(!output.status.success(), "{args:?}: {}", describe(&output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `ls --json` says of a volume.
fn status(cluster: &Shared, node: usize, name: &str) -> Value {
    let list: Value = serde_json::from_str(&volume(cluster, node, &["ls", "--json"])).unwrap();
    let volumes = list["volumes"].as_array().unwrap();
    let found = volumes.iter().find(|volume| volume["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}")).clone()
}

/// A script that must fail, and say so with these words.
fn fails(dir: &Path, script: &str, words: &str) {
    let output = try_sh(dir, script);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains(words),
        "{script}: {said}"
    );
}

#[test]
fn a_quota_holds_on_all_nodes_and_df_shows_it() {
    let cluster = Cluster::shared("quota");
    volume(
        &cluster,
        0,
        &[
            "create", "quota1", "--size", "20M", "--uid", "33", "--mode", "0770",
        ],
    );
    let [a, b] = [0, 1].map(|node| cluster.node(node).path("volumes/quota1"));
    let meta = fs::metadata(&a).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (33, 0o770));
    let df = |dir: &Path| sh(dir, "df -B1 --output=size,avail . | tail -1");
    assert_eq!(
        df(&a).split_whitespace().collect::<Vec<_>>(),
        ["20971520", "20971520"]
    );
    sh(&a, "dd if=/dev/zero of=a bs=1M count=12 status=none");
    // The other node knows within a second; nothing was synced.
    let start = Instant::now();
    wait_for("the other node to know", Duration::from_secs(10), || {
        let avail: u64 = df(&b).split_whitespace().nth(1)?.parse().ok()?;
        (avail <= 8 << 20).then_some(())
    });
    eprintln!("the other node knew after {:?}", start.elapsed());
    fails(&b, "dd if=/dev/zero of=b bs=1M count=9", "Disk quota exceeded");
    // Both at once: what there is in the end is hardly more than the limit.
    std::thread::scope(|scope| {
        for dir in [&a, &b] {
            let script = "dd if=/dev/zero of=both.$$ bs=64k count=400 conv=fsync";
            scope.spawn(move || fails(dir, script, "Disk quota exceeded"));
        }
    });
    sh(&a, "sync .");
    sh(&b, "sync .");
    let used = status(&cluster, 2, "quota1")["used_bytes"].as_u64().unwrap();
    eprintln!("used {used} of {}", 20 << 20);
    assert!((19 << 20..=28 << 20).contains(&used), "{used}");
    // A rewrite in place fits, and removing makes room.
    sh(
        &a,
        "dd if=/dev/urandom of=a bs=1M count=12 conv=notrunc,fsync status=none",
    );
    sh(&b, "rm a both.* b; sync .");
    wait_for("the room to be free", Duration::from_secs(30), || {
        (status(&cluster, 1, "quota1")["used_bytes"] == 0).then_some(())
    });
    sh(&b, "dd if=/dev/zero of=b bs=1M count=15 conv=fsync status=none");
    // A larger limit counts at once, everywhere.
    volume(&cluster, 2, &["set", "quota1", "--size", "40M"]);
    sh(&a, "dd if=/dev/zero of=a bs=1M count=20 conv=fsync status=none");
    volume(&cluster, 0, &["rm", "quota1"]);
    fails(
        cluster.dir(1).parent().unwrap(),
        "cat volumes/quota1/a",
        "No such file",
    );
}

#[test]
fn moving_out_of_a_volume_copies() {
    let cluster = Cluster::shared("across");
    volume(&cluster, 0, &["create", "across1"]);
    let mount = cluster.node(1).path("");
    sh(
        &mount,
        "echo text >volumes/across1/file; mv volumes/across1/file across/; test ! -e volumes/across1/file",
    );
    assert_eq!(sh(&cluster.dir(2), "cat file"), "text\n");
    fails(&mount, "ln across/file volumes/across1/", "cross-device");
    fails(&mount, "rmdir volumes/across1", "busy");
    sh(&mount, "mv across/file volumes/across1/");
    // A directory that is no volume can have a limit, too.
    let quota = |size: &str| volume(&cluster, 0, &["quota", "across/limited", "--size", size]);
    sh(&mount, "mkdir across/limited");
    quota("1M");
    fails(
        &mount,
        "dd if=/dev/zero of=across/limited/x bs=1M count=2",
        "Disk quota exceeded",
    );
    quota("none");
    sh(
        &mount,
        "dd if=/dev/zero of=across/limited/x bs=1M count=2 status=none; rm -r across/limited",
    );
    volume(&cluster, 0, &["rm", "across1"]);
}

/// A program that inserts rows on a node, one transaction each, and notes outside of the cluster what was committed.
struct Inserter {
    process: Child,
    acknowledged: std::path::PathBuf,
}

impl Inserter {
    fn start(dir: &Path, notes: &Path, mode: &str) -> Self {
        let acknowledged = notes.join(format!("acknowledged-{mode}"));
        fs::write(&acknowledged, "0").unwrap();
        let script = format!(
            "sqlite3 db 'pragma journal_mode={mode}; create table t(n integer primary key, x);' >/dev/null
             n=0; while test ! -e {0}.stop; do
                 n=$((n + 1))
                 sqlite3 -cmd '.timeout 60000' db \"pragma synchronous=full; insert into t values($n, hex(randomblob(300)))\"
                 echo $n >{0}
             done",
            acknowledged.display()
        );
        let process = Command::new("/bin/sh")
            .args(["-euc", &script])
            .current_dir(dir)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            acknowledged,
        }
    }

    /// Lets it end what it has begun.
    fn stop(mut self) {
        fs::write(self.acknowledged.with_extension("stop"), "").unwrap();
        assert!(self.process.wait().unwrap().success());
    }

    fn rows(&self) -> u64 {
        let text = fs::read_to_string(&self.acknowledged).unwrap();
        text.trim().parse().unwrap_or(0)
    }
}

impl Drop for Inserter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_snapshot_of_a_running_database_recovers() {
    let cluster = Cluster::shared("snapshot_db");
    let notes = cluster.local_dir("snapshot_db");
    for mode in ["delete", "wal"] {
        let name = format!("db-{mode}");
        volume(&cluster, 0, &["create", &name]);
        let inserter = Inserter::start(&cluster.node(1).path(format!("volumes/{name}")), &notes, mode);
        for round in 0..3 {
            let before = inserter.rows();
            wait_for("more rows", Duration::from_secs(60), || {
                (inserter.rows() >= before + 10).then_some(())
            });
            let acknowledged = inserter.rows();
            let (snapshot, clone) = (format!("s{round}"), format!("{name}-{round}"));
            volume(&cluster, 2, &["snapshot", &name, &snapshot]);
            let source = format!("{name}@{snapshot}");
            volume(&cluster, 0, &["clone", &source, &clone, "--size", "1G"]);
            let dir = cluster.node(0).path(format!("volumes/{clone}"));
            let found = sh(
                &dir,
                "sqlite3 db 'pragma integrity_check; select count(*) from t;'",
            );
            let mut lines = found.lines();
            assert_eq!(lines.next(), Some("ok"), "{mode}, {round}");
            let rows: u64 = lines.next().unwrap().parse().unwrap();
            assert!(rows >= acknowledged, "{mode}: {rows} rows of {acknowledged}");
            volume(&cluster, 1, &["rm", &clone]);
        }
        inserter.stop();
        // The database itself goes on, and can be put back to what it was.
        let dir = cluster.node(2).path(format!("volumes/{name}"));
        let count = |dir: &Path| sh(dir, "sqlite3 db 'select count(*) from t'");
        let rows: u64 = count(&dir).trim().parse().unwrap();
        let open = fs::File::open(cluster.node(1).path(format!("volumes/{name}/db"))).unwrap();
        let said = refused(&cluster, 0, &["restore", &name, "s0"]);
        assert!(said.contains("open on node node2"), "{said}");
        drop(open);
        // The daemon hears of a close a moment later.
        wait_for("the file to be closed", Duration::from_secs(10), || {
            let args = ["volume", "restore", &name, "s0"];
            cluster.node(0).cli(&args).status.success().then_some(())
        });
        for node in 0..3 {
            let dir = cluster.node(node).path(format!("volumes/{name}"));
            assert_eq!(sh(&dir, "sqlite3 db 'pragma integrity_check'"), "ok\n");
            let restored: u64 = count(&dir).trim().parse().unwrap();
            assert!(restored < rows, "{restored} rows, before {rows}");
        }
        volume(&cluster, 1, &["rm", &name]);
        for round in 0..3 {
            volume(&cluster, 1, &["rm", &format!("{name}@s{round}")]);
        }
    }
}

#[test]
fn ten_thousand_files_are_copied_and_removed() {
    let cluster = Cluster::shared("many_files");
    let inodes = || cluster.node(0).status().0["cluster"]["inodes"].as_u64().unwrap();
    wait_for("earlier tests' files to be gone", Duration::from_secs(60), || {
        // What is counted is what was pushed.
        sh(&cluster.node(0).path(""), "sync .");
        let first = inodes();
        std::thread::sleep(Duration::from_secs(2));
        (inodes() == first).then_some(())
    });
    let before = inodes();
    volume(&cluster, 0, &["create", "many"]);
    let root = cluster.node(0).path("volumes/many");
    for directory in 0..100 {
        let dir = root.join(format!("d{directory}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..100 {
            let mut file = fs::File::create(dir.join(format!("f{file}"))).unwrap();
            file.write_all(format!("{directory}").repeat(500).as_bytes())
                .unwrap();
        }
    }
    let sum = "find . -type f | LC_ALL=C sort | xargs cat | sha256sum; find . | wc -l";
    let expected = sh(&root, sum);
    // What this node has not pushed is pushed first: that is not what is measured.
    sh(&cluster.node(0).path(""), "sync .");
    let start = Instant::now();
    volume(&cluster, 0, &["snapshot", "many", "s"]);
    eprintln!("a snapshot of 10,000 files took {:?}", start.elapsed());
    let start = Instant::now();
    volume(&cluster, 1, &["clone", "many@s", "many2"]);
    eprintln!("a clone of 10,000 files took {:?}", start.elapsed());
    sh(&root, "rm -r d1*; echo other >d2/f2");
    for dir in [".snapshots/many/s", "volumes/many2"] {
        assert_eq!(sh(&cluster.node(2).path(dir), sum), expected, "{dir}");
    }
    let snapshot = cluster.node(1).path(".snapshots/many/s");
    fails(&snapshot, "touch x", "Read-only");
    fails(&snapshot, "echo >>d2/f2", "Read-only");
    fails(&snapshot, "rm -r d3", "Read-only");
    fails(&snapshot, "mv d3 d4", "Read-only");
    let start = Instant::now();
    volume(&cluster, 2, &["rm", "many"]);
    volume(&cluster, 0, &["rm", "many2"]);
    volume(&cluster, 1, &["rm", "many@s"]);
    eprintln!("they were gone after {:?}", start.elapsed());
    // `volumes` and `.snapshots` stay.
    wait_for("the room to be free", Duration::from_secs(180), || {
        (inodes() <= before + 2).then_some(())
    });
    eprintln!("their room was free after {:?}", start.elapsed());
}

#[test]
fn commands_say_what_is_wrong() {
    let cluster = Cluster::shared("volume_commands");
    let said = |args: &[&str], words: &str| {
        let said = refused(&cluster, 0, args);
        assert!(said.contains(words), "{args:?}: {said}");
    };
    volume(&cluster, 0, &["create", "cmd", "--size", "10M", "--label", "a=b"]);
    // Again on another node: the same volume.
    let again = volume(&cluster, 1, &["create", "cmd", "-o", "size=10M"]);
    assert!(again.contains("volumes/cmd"), "{again}");
    said(&["create", "cmd", "--size", "11M"], "another size");
    said(&["create", "cmd2", "--size", "0"], "a size of 0");
    said(
        &["create", "cmd2", "--size", "1000T"],
        "more than the cluster holds",
    );
    said(&["create", "cmd2", "-o", "colour=red"], "there are: size");
    said(&["create", "cmd2", "--replicas", "2"], "keeps 3 copies");
    for name in ["a/b", "..", ".x", "x y"] {
        said(&["create", name], "cannot be the name");
    }
    said(&["rm", "cmd2"], "there is no volume cmd2");
    said(&["rm", "cmd@s"], "no snapshot s");
    said(&["snapshot", "cmd2", "s"], "there is no volume cmd2");
    volume(&cluster, 2, &["snapshot", "cmd", "s"]);
    said(&["snapshot", "cmd", "s"], "exists already");
    said(&["clone", "cmd", "cmd"], "exists already");
    said(&["restore", "cmd", "t"], "no snapshot t");
    said(&["set", "cmd"], "say what is to change");
    let open = fs::File::create(cluster.node(1).path("volumes/cmd/file")).unwrap();
    wait_for("the open file to be seen", Duration::from_secs(10), || {
        let said = cluster.node(0).cli(&["volume", "rm", "cmd"]);
        assert!(!said.status.success());
        String::from_utf8_lossy(&said.stderr)
            .contains("open on node node2")
            .then_some(())
    });
    wait_for("the copies to be complete", Duration::from_secs(60), || {
        (status(&cluster, 0, "cmd")["health"] == "ok").then_some(())
    });
    let text = volume(&cluster, 0, &["ls"]);
    for part in [
        "cmd ",
        "10.0 MiB",
        "ok",
        "cmd@s",
        ".snapshots/cmd/s",
        "volumes/cmd",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let found = status(&cluster, 2, "cmd");
    assert_eq!(
        (&found["labels"]["a"], &found["replicas"]),
        (&Value::from("b"), &Value::from(3))
    );
    volume(&cluster, 0, &["rm", "cmd", "--force"]);
    drop(open);
    let text = volume(&cluster, 1, &["ls"]);
    assert!(!text.contains("10.0 MiB") && text.contains("cmd@s"), "{text}");
    volume(&cluster, 1, &["clone", "cmd@s", "cmd"]);
    volume(&cluster, 1, &["rm", "cmd@s"]);
    volume(&cluster, 1, &["rm", "cmd", "--keep"]);
    sh(&cluster.node(0).path(""), "rm -r volumes/cmd");
}
