//! Other people's test suites, on the mount.

use std::path::Path;
use std::process::Command;

use bramble_tests::run::{describe, sh, tool};
use bramble_tests::{Cluster, Seed, Shared, brief_or_full};
use rand::Rng as _;

/// Cases of pjdfstest that are left out, with the reason.
const SKIPPED: &[(&str, &str)] = &[(
    "link::link_count_max",
    "Linux tells no largest number of links (pathconf) of a FUSE filesystem",
)];

/// What pjdfstest said of its cases.
struct Outcome {
    passed: usize,
    skipped: Vec<String>,
}

/// Runs pjdfstest on `dir`, all cases or those whose names contain `filter`; none may fail.
fn pjdfstest(cluster: &Shared, dir: &Path, config: &str, filter: Option<&str>) -> Outcome {
    let second = cluster.local_dir("pjdfstest-second");
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join(config);
    let mut command = Command::new(tool("pjdfstest"));
    command
        .arg("-c")
        .arg(config)
        .arg("-p")
        .arg(dir)
        .arg("-s")
        .arg(second)
        .args(filter);
    // mount(8) asks a helper to remount a FUSE filesystem, which would start it again; with -i it asks the kernel.
    let bin = cluster.local_dir("pjdfstest-bin");
    std::fs::write(bin.join("mount"), "#!/bin/sh\nexec /bin/mount -i \"$@\"\n").unwrap();
    sh(&bin, "chmod +x mount");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = command.env("NO_COLOR", "1").env("PATH", path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().collect();
    let failures: Vec<_> = (0..lines.len())
        .filter(|at| lines[*at].ends_with("FAILED"))
        .map(|at| lines[at..(at + 2).min(lines.len())].join("\n"))
        .collect();
    assert!(
        failures.is_empty() && output.status.success(),
        "{}\n{}",
        failures.join("\n"),
        describe(&output)
    );
    let name = |line: &&str| line.split(' ').next().unwrap_or_default().to_owned();
    Outcome {
        passed: lines.iter().filter(|line| line.ends_with(" ok")).count(),
        skipped: lines
            .iter()
            .filter(|line| line.ends_with(" skipped"))
            .map(name)
            .collect(),
    }
}

#[test]
fn pjdfstest_passes_whole() {
    let cluster = Cluster::shared("pjdfstest");
    let second = cluster.local_dir("pjdfstest-second");
    cluster.janitor().add_mount(&second);
    sh(&second, "mount -t tmpfs second .");
    let most = pjdfstest(&cluster, &cluster.dir(0), "pjdfstest.toml", None);
    // The suite leaves removed files open, which rules out remounting read-only later: so that comes in a run of its
    // own, on another node.
    let (read_only, skipped): (Vec<_>, Vec<_>) = most
        .skipped
        .into_iter()
        .partition(|name| name.contains("::erofs_"));
    let rest = pjdfstest(
        &cluster,
        &cluster.dir(1),
        "pjdfstest-remount.toml",
        Some("::erofs_"),
    );
    assert_eq!((rest.passed, rest.skipped.len()), (read_only.len(), 0));
    assert_eq!(
        skipped,
        SKIPPED
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect::<Vec<_>>()
    );
    assert!(
        most.passed + rest.passed >= 397,
        "{} + {} cases passed",
        most.passed,
        rest.passed
    );
}

#[test]
fn fsx_finds_no_difference() {
    let cluster = Cluster::shared("fsx");
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("fsx.toml");
    let operations = brief_or_full("1500", "20000");
    let mut seed = Seed::new();
    for round in 0..brief_or_full(4, 20) {
        let number: u32 = seed.random();
        let artifacts = cluster.local_dir("fsx-artifacts");
        // Another node each time.
        let file = cluster.dir(round % 3).join(format!("fsx-{round}"));
        let mut command = Command::new(tool("fsx"));
        command
            .args(["-N", operations, "-S", &number.to_string(), "-f"])
            .arg(&config)
            .arg("-P")
            .arg(artifacts);
        let output = command.arg(file).output().unwrap();
        assert!(output.status.success(), "fsx -S {number}: {}", describe(&output));
    }
}
