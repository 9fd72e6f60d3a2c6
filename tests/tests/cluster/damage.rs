//! Damaged files on one node: the cluster serves on, and the node repairs itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bramble_tests::corrupt::{damage_bytes, files_below, flip_bits};
use bramble_tests::load::Worker;
use bramble_tests::{Cluster, Node, Options, Own, Seed, run, sh, try_run, wait_for};

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

/// A filesystem whose every write waits until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(medium: &Path) -> Self {
        run("fsfreeze", ["-f", medium.to_str().unwrap()]);
        Self(medium.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = try_run("fsfreeze", ["-u", self.0.to_str().unwrap()]);
    }
}

/// Freezes the medium of the leader, or of another, and has the others make many files meanwhile.
fn hang(test: &str, leads: bool) {
    // Much more than the state machine keeps in memory, so that it needs the medium.
    const FILES: usize = 40_000;
    let options = Options {
        medium_mib: Some(1024),
        ..Options::default()
    };
    let cluster = Cluster::own(test, options);
    let victim = if leads {
        cluster.leader()
    } else {
        cluster.follower()
    };
    let [one, other] = [1, 2].map(|step| cluster.node((victim + step) % 3));
    let victim = cluster.node(victim);
    let held = |node: &Node| node.path("held");
    fs::write(held(victim), "under a lease of the node that hangs").unwrap();
    sh(&victim.mount, "sync held");
    let frozen = Frozen::new(victim.store.parent().unwrap());
    let load = [one, other].map(|node| {
        let dir = node.path(format!("load-{}", node.name));
        std::thread::spawn(move || {
            fs::create_dir(&dir).unwrap();
            for index in 0..FILES / 2 {
                fs::File::create(dir.join(format!("a-file-with-a-name-of-some-length-{index}"))).unwrap();
            }
            fs::File::open(&dir).unwrap().sync_all().unwrap();
        })
    });
    wait_for("the node to notice", PATIENCE, || {
        let log = fs::read_to_string(&victim.log).unwrap();
        log.contains("the medium does not answer").then_some(())
    });
    // It may go on writing under its lease, and cannot give that back.
    let path = held(victim);
    let writer = std::thread::spawn(move || drop(fs::write(path, "what nobody will see")));
    wait_for("the others' files to be made and synced", PATIENCE, || {
        load.iter()
            .all(std::thread::JoinHandle::is_finished)
            .then_some(())
    });
    load.into_iter().for_each(|load| load.join().unwrap());
    if leads {
        assert_ne!(one.status().leader(), Some(victim.name.clone()));
    }
    let path = held(one);
    let next = std::thread::spawn(move || fs::write(path, "by another node now").unwrap());
    wait_for("what it holds to be given to another", PATIENCE, || {
        next.is_finished().then_some(())
    });
    next.join().unwrap();

    // It answers again: the node catches up.
    drop(frozen);
    writer.join().unwrap();
    victim.wait_healthy();
    cluster.nodes().iter().for_each(|node| {
        sh(
            &node.mount,
            &format!(
                "test $(find load-* -type f | wc -l) = {FILES}; echo again >written-by-{}",
                node.name
            ),
        );
    });
}

#[test]
fn the_others_go_on_when_the_leaders_medium_hangs() {
    hang("hang_leader", true);
}

#[test]
fn the_others_get_what_a_node_holds_whose_medium_hangs() {
    hang("hang_other", false);
}
