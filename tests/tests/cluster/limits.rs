//! Memory, and the cost of doing nothing.

use std::fs;
use std::time::Duration;

use bramble_tests::{Cluster, Options, brief_or_full, sh, wait_for};

/// What a node may take, resident.
const MEMORY_BYTES_MAX: u64 = 100_000_000;

#[test]
fn a_node_with_many_files_under_load_stays_small() {
    let cluster = Cluster::own("memory", Options::default());
    let files = brief_or_full(3_000, 100_000);
    std::thread::scope(|scope| {
        for (index, node) in cluster.nodes().iter().enumerate() {
            scope.spawn(move || {
                for number in (index..files).step_by(3) {
                    let dir = node.path(format!("dir{}", number / 1000));
                    fs::create_dir_all(&dir).unwrap();
                    fs::write(
                        dir.join(format!("file{number}")),
                        format!("contents of file {number}"),
                    )
                    .unwrap();
                }
            });
        }
    });
    // Large writes, listings and reads, on all nodes at once.
    std::thread::scope(|scope| {
        for node in cluster.nodes() {
            scope.spawn(|| {
                sh(
                    &node.mount,
                    &format!(
                        "dd if=/dev/zero of=large-{} bs=1M count=64 status=none; find . -type f -size -2k | head -3000 | \
                         xargs cat >/dev/null; ls -lR >/dev/null",
                        node.name
                    ),
                );
            });
        }
    });
    sh(&cluster.node(0).mount, "rm large-*");
    for node in cluster.nodes() {
        let status = node.status();
        eprintln!(
            "{}: {} MB resident at most, status: {} MB",
            node.name,
            node.rss_peak_bytes() / 1_000_000,
            status.memory_bytes() / 1_000_000
        );
        assert!(
            node.rss_peak_bytes() < MEMORY_BYTES_MAX,
            "{} took {} bytes",
            node.name,
            node.rss_peak_bytes()
        );
        assert!(status.memory_bytes() > 0 && status.written_bytes() > 0);
    }
    let found: usize = sh(&cluster.node(1).mount, "find . -type f | wc -l")
        .trim()
        .parse()
        .unwrap();
    assert_eq!(found, files);
}

#[test]
fn idle_nodes_write_nothing_and_hardly_compute() {
    let cluster = Cluster::own("idle", Options::default());
    sh(
        &cluster.node(0).mount,
        "for i in $(seq 200); do echo $i >file$i; done; dd if=/dev/zero of=large bs=1M count=8 status=none",
    );
    // Merging and flushing may go on for a while after the last write.
    let quiet = |seconds| {
        let before: Vec<_> = cluster.nodes().iter().map(|node| node.io().write_bytes).collect();
        std::thread::sleep(Duration::from_secs(seconds));
        cluster
            .nodes()
            .iter()
            .zip(before)
            .all(|(node, before)| node.io().write_bytes == before)
    };
    wait_for("the nodes to come to rest", Duration::from_secs(90), || {
        quiet(3).then_some(())
    });
    let cpu: Vec<_> = cluster.nodes().iter().map(bramble_tests::Node::cpu).collect();
    let seconds = brief_or_full(10, 120);
    assert!(quiet(seconds), "idle nodes write to the medium");
    for (node, before) in cluster.nodes().iter().zip(cpu) {
        let used = node.cpu() - before;
        eprintln!(
            "{}: {used:?} of processor time in {seconds} s of idleness",
            node.name
        );
        assert!(
            used < Duration::from_millis(seconds * 20),
            "{} used {used:?} in {seconds} s",
            node.name
        );
    }
}

#[test]
fn a_full_medium_is_reported_and_survived() {
    let options = Options {
        medium_mib: Some(192),
        limits: vec![("journal_bytes_max", 32 << 20)],
        ..Options::default()
    };
    let cluster = Cluster::own("full", options);
    let mount = &cluster.node(0).mount;
    sh(mount, "echo keep >keep");
    let output = bramble_tests::run::try_sh(mount, "dd if=/dev/zero of=big bs=1M count=1000");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("No space left"),
        "{text}"
    );
    // Small writes come to an end, too, and nothing that was there is hurt.
    assert_eq!(sh(&cluster.node(1).mount, "cat keep"), "keep\n");
    cluster.wait_healthy();
    sh(&cluster.node(1).mount, "rm big");
    wait_for("the room to be free again", Duration::from_secs(120), || {
        // What a try that failed has written is freed first, or tries that follow at once would fill the medium again.
        let output = bramble_tests::run::try_sh(
            mount,
            "sleep 3; dd if=/dev/zero of=again bs=1M count=20 conv=fsync 2>/dev/null && rm again",
        );
        output.status.success().then_some(())
    });
}
