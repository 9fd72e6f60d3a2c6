//! Other people's test suites, on the mount.

use std::path::Path;
use std::process::Command;

use bramble_tests::run::{describe, sh, tool};
use bramble_tests::{Cluster, Seed, brief_or_full};
use rand::Rng as _;

/// Cases of pjdfstest that are left out, with the reason.
const SKIPPED: &[(&str, &str)] = &[];

#[test]
fn pjdfstest_passes_whole() {
    let cluster = Cluster::shared("pjdfstest");
    let second = cluster.local_dir("pjdfstest-second");
    cluster.janitor().add_mount(&second);
    sh(&second, "mount -t tmpfs second .");
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("pjdfstest.toml");
    let mut command = Command::new(tool("pjdfstest"));
    command
        .arg("-c")
        .arg(config)
        .arg("-p")
        .arg(cluster.dir(0))
        .arg("-s")
        .arg(&second);
    // mount(8) asks a helper to remount a FUSE filesystem, which would start it again; with -i it asks the kernel.
    let bin = cluster.local_dir("pjdfstest-bin");
    sh(
        &bin,
        "printf '#!/bin/sh\\nexec /bin/mount -i \"$@\"\\n' >mount; chmod +x mount",
    );
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = command.env("NO_COLOR", "1").env("PATH", path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().collect();
    let named = |outcome: &str| -> Vec<String> {
        let names = lines
            .iter()
            .filter(|line| line.ends_with(outcome))
            .filter_map(|line| line.split(' ').next());
        names.map(str::to_owned).collect()
    };
    let failures: Vec<_> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.ends_with("FAILED"))
        .map(|(at, _)| lines[at..(at + 2).min(lines.len())].join("\n"))
        .collect();
    assert!(
        failures.is_empty() && output.status.success(),
        "{}\n{}",
        failures.join("\n"),
        describe(&output)
    );
    let expected: Vec<_> = SKIPPED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(named("skipped"), expected);
    assert!(named("ok").len() >= 380, "{} cases ran", named("ok").len());
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
