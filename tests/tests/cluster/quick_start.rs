//! What a newcomer does first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use bramble_tests::run::{bramble, describe};
use bramble_tests::{Cluster, sh, wait_for};

fn demo(args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo");
    Command::new(script)
        .args(args)
        .env("BRAMBLE", bramble())
        .output()
        .unwrap()
}

/// Stops the demo, also if the test fails.
struct Demo(PathBuf);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = demo(&["stop", self.0.to_str().unwrap()]);
    }
}

#[test]
fn the_demo_does_what_it_says() {
    // Nothing else runs meanwhile.
    let cluster = Cluster::shared("demo");
    let dir = cluster.local_dir("demo").join("tree");
    let dir_arg = dir.to_str().unwrap();
    let guard = Demo(dir.clone());
    let output = demo(&[dir_arg]);
    assert!(output.status.success(), "{}", describe(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    eprintln!("{text}");

    // The commands that it tells to try: indented lines, but for the last, which stops it.
    let commands: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| !line.starts_with('/'))
        .collect();
    assert!(commands.len() >= 4, "{commands:?}");
    let wrote = sh(Path::new("/"), &commands[..2].join("\n"));
    assert_eq!(wrote, "hello\n", "{commands:?}");
    assert_eq!(fs::read_to_string(dir.join("node2/greeting")).unwrap(), "hello\n");
    let kill = commands
        .iter()
        .find(|line| line.contains("kill -9"))
        .expect("a command that kills a node");
    // From a file: in a command line of `sh -c`, pkill would find itself.
    let script = cluster.local_dir("demo").join("kill.sh");
    fs::write(&script, kill).unwrap();
    bramble_tests::run("sh", [&script]);
    wait_for("the node to be dead", Duration::from_secs(10), || {
        fs::read_dir(dir.join("node2")).err()
    });
    assert_eq!(fs::read_to_string(dir.join("node1/greeting")).unwrap(), "hello\n");
    fs::write(dir.join("node3/more"), "still here").unwrap();
    assert_eq!(fs::read_to_string(dir.join("node1/more")).unwrap(), "still here");
    // It comes back by itself, and has what it missed.
    wait_for("the killed node to be back", Duration::from_secs(60), || {
        fs::read(dir.join("node2/more")).ok()
    });

    let again = demo(&[dir_arg]);
    assert!(!again.status.success(), "a second demo in the same place");
    let stopped = demo(&["stop", dir_arg]);
    assert!(stopped.status.success(), "{}", describe(&stopped));
    assert!(!dir.exists());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir_arg), "{mounts}");
    let left = sh(
        Path::new("/"),
        &format!("grep -l -F -- {dir_arg} /proc/[0-9]*/cmdline 2>/dev/null | grep -v /$$/ || true"),
    );
    let left: Vec<_> = left
        .lines()
        .filter(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("demo\0")))
        .collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
    std::mem::forget(guard);
}
