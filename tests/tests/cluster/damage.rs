//! Damaged files on one node: the cluster serves on, and the node repairs itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bramble_tests::corrupt::{damage_bytes, files_below, flip_bits};
use bramble_tests::load::Worker;
use bramble_tests::{Cluster, Options, Own, Seed, sh, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster with files of all sizes, and a worker that goes on working on a node other than `victim`.
fn with_data(test: &str) -> (Own, usize, Worker) {
    let cluster = Cluster::own(test, Options::default());
    let victim = cluster.follower();
    let other = cluster.node((victim + 1) % 3);
    fill(&other.mount);
    let worker = Worker::start(&other.mount, "load");
    worker.wait_progress(50, PATIENCE);
    (cluster, victim, worker)
}

fn fill(mount: &Path) {
    sh(
        mount,
        "mkdir data; cd data
         for i in $(seq 150); do echo \"small file $i\" >small$i; done
         for i in $(seq 6); do dd if=/dev/urandom of=large$i bs=700000 count=1 iflag=fullblock status=none; done
         sha256sum * >../sums",
    );
}

/// All is as it was before the damage, read on the damaged node; the others were not disturbed.
fn check(cluster: &Own, victim: usize, mut worker: Worker) {
    worker.wait_progress(20, PATIENCE);
    cluster.node(victim).wait_healthy();
    cluster.wait_caught_up((victim + 1) % 3);
    sh(
        &cluster.node(victim).mount,
        "cd data; sha256sum --quiet -c ../sums",
    );
    sh(&cluster.node(victim).mount, "echo again >written-after-repair");
    worker.stop();
    cluster.nodes().iter().for_each(|node| worker.check(&node.mount));
}

#[test]
fn a_damaged_key_value_store_is_rebuilt() {
    let mut seed = Seed::new();
    let (cluster, victim, worker) = with_data("damaged_kv");
    let node = cluster.node(victim);
    // A clean end, so that the store's files hold what they can.
    node.stop();
    let files = files_below(&node.store.join("meta"));
    let mut flipped = 0;
    for (path, len) in files
        .iter()
        .filter(|(path, len)| *len > 0 && !path.ends_with("lock"))
    {
        flipped += flip_bits(&mut seed, path, 0..*len, 40).len();
    }
    assert!(
        flipped > 0,
        "no file to damage in {}",
        node.store.join("meta").display()
    );
    cluster.start(victim);
    check(&cluster, victim, worker);
}

#[test]
fn a_lost_key_value_store_is_rebuilt() {
    let (cluster, victim, worker) = with_data("lost_kv");
    let node = cluster.node(victim);
    node.kill9();
    fs::remove_dir_all(node.store.join("meta")).unwrap();
    cluster.start(victim);
    check(&cluster, victim, worker);
}

#[test]
fn a_damaged_journal_makes_the_node_start_again_under_a_new_id() {
    let mut seed = Seed::new();
    let (cluster, victim, worker) = with_data("damaged_journal");
    let node = cluster.node(victim);
    let id = node.status().node_id();
    node.kill9();
    // In the middle of what was written, so that it cannot be taken for a torn tail.
    let mut flipped = 0;
    for (path, _) in files_below(&node.store.join("journal")) {
        let bytes = fs::read(&path).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        if used > 8192 {
            // So many that some hit more than payload, of which each piece can be fetched by itself.
            flipped += flip_bits(&mut seed, &path, used / 4..used / 2, 2000).len();
        }
    }
    assert!(flipped > 0, "no segment to damage");
    cluster.start(victim);
    check(&cluster, victim, worker);
    assert_ne!(
        node.status().node_id(),
        id,
        "a node that lost its journal must not vote under its old id"
    );
}

#[test]
fn damaged_chunks_are_repaired_and_never_returned() {
    let (cluster, victim, worker) = with_data("damaged_chunks");
    let node = cluster.node(victim);
    // Bytes that can be found again on the medium; the file is large, so it is in chunks.
    let pattern = b"PATTERN-that-is-to-be-damaged-on-one-medium";
    let data: Vec<u8> = (0..40_000_u32)
        .flat_map(|i| [pattern.as_slice(), &i.to_be_bytes()].concat())
        .collect();
    fs::write(cluster.node((victim + 1) % 3).path("pattern"), &data).unwrap();
    wait_for("the chunks to be on the node", PATIENCE, || {
        holds(&node.store.join("chunks"), pattern).then_some(())
    });
    node.stop();
    let damaged = damage_bytes(&node.store.join("chunks"), pattern);
    assert!(damaged > 0);
    cluster.start(victim);
    node.wait_healthy();
    for _ in 0..2 {
        assert!(
            fs::read(node.path("pattern")).unwrap() == data,
            "damaged bytes were returned"
        );
        sh(Path::new("/"), "echo 1 >/proc/sys/vm/drop_caches");
    }
    wait_for("the repair to be counted", PATIENCE, || {
        (node.status().chunks_repaired() > 0).then_some(())
    });
    // What was repaired is good now, and is not repaired again.
    let repaired = wait_for("the last repair", PATIENCE, || {
        let count = node.status().chunks_repaired();
        std::thread::sleep(Duration::from_secs(2));
        (node.status().chunks_repaired() == count).then_some(count)
    });
    node.stop();
    cluster.start(victim);
    node.wait_healthy();
    assert!(fs::read(node.path("pattern")).unwrap() == data);
    eprintln!("{damaged} places damaged, {repaired} chunks repaired");
    assert_eq!(
        node.status().chunks_repaired(),
        0,
        "the repaired chunks are bad again"
    );
    check(&cluster, victim, worker);
}

#[test]
fn lost_chunks_are_fetched_again() {
    let (cluster, victim, worker) = with_data("lost_chunks");
    let node = cluster.node(victim);
    wait_for("chunks to be on the node", PATIENCE, || {
        (node.status().chunks_count() >= 6).then_some(())
    });
    node.kill9();
    let packs = files_below(&node.store.join("chunks"));
    assert!(!packs.is_empty());
    for (path, _) in packs {
        fs::remove_file(path).unwrap();
    }
    cluster.start(victim);
    node.wait_healthy();
    check(&cluster, victim, worker);
}

fn holds(dir: &Path, needle: &[u8]) -> bool {
    files_below(dir).iter().any(|(path, _)| {
        fs::read(path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    })
}
