//! Nodes hammer one file and one directory: nothing is lost or seen twice, and exactly one wins.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use std::thread;

use bramble_tests::{Cluster, Meeting, brief_or_full};

/// Runs `work` for each node at once, on this test's directory as that node mounts it.
fn on_each_node<T: Send>(
    cluster: &bramble_tests::Shared,
    work: impl Fn(usize, PathBuf) -> T + Sync,
) -> Vec<T> {
    let barrier = Meeting::new(3);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|node| {
                let (dir, work, barrier) = (cluster.dir(node), &work, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    work(node, dir)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn appends_from_all_nodes_are_all_there_once() {
    let cluster = Cluster::shared("appends");
    let rounds = brief_or_full(400, 5000);
    on_each_node(&cluster, |node, dir| {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .unwrap();
        for round in 0..rounds {
            // Lengths differ, so that an append at a stale end would cut into another.
            let line = format!("{node} {round} {}\n", "x".repeat((node * 37 + round * 11) % 90));
            assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
        }
    });
    let text = fs::read_to_string(cluster.dir(1).join("log")).unwrap();
    let mut next = [0; 3];
    for line in text.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let (node, round): (usize, usize) = (fields[0].parse().unwrap(), fields[1].parse().unwrap());
        assert_eq!(
            round, next[node],
            "a line of node {node} is lost, repeated or out of order: {line:?}"
        );
        assert_eq!(
            fields[2].len(),
            (node * 37 + round * 11) % 90,
            "a torn line: {line:?}"
        );
        next[node] += 1;
    }
    assert_eq!(next, [rounds; 3]);
}

#[test]
fn exactly_one_node_creates_a_name_exclusively() {
    let cluster = Cluster::shared("exclusive");
    let names = brief_or_full(200, 2000);
    let barrier = Meeting::new(3);
    let won = on_each_node(&cluster, |node, dir| {
        let mut won = Vec::new();
        for name in 0..names {
            barrier.wait();
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(dir.join(name.to_string()))
            {
                Ok(mut file) => {
                    write!(file, "{node}").unwrap();
                    won.push(name);
                }
                Err(e) => assert_eq!(e.kind(), ErrorKind::AlreadyExists, "{e}"),
            }
        }
        won
    });
    let mut winners = BTreeMap::new();
    for (node, names) in won.iter().enumerate() {
        for name in names {
            let other = winners.insert(*name, node);
            assert!(other.is_none(), "{name} was created by {other:?} and by {node}");
        }
    }
    assert_eq!(winners.len(), names);
    for (name, node) in winners {
        let text = fs::read_to_string(cluster.dir((node + 1) % 3).join(name.to_string())).unwrap();
        assert_eq!(text, node.to_string());
    }
}

#[test]
fn exactly_one_node_makes_removes_and_takes() {
    let cluster = Cluster::shared("one_wins");
    let rounds = brief_or_full(100, 1000);
    let barrier = Meeting::new(3);
    let counts = on_each_node(&cluster, |node, dir| {
        let mut counts = [0; 3];
        for round in 0..rounds {
            let name = dir.join(format!("dir{round}"));
            let mut race = |index: usize, result: std::io::Result<()>, lost: ErrorKind| {
                match result {
                    Ok(()) => counts[index] += 1,
                    Err(e) => assert_eq!(e.kind(), lost, "{e}"),
                }
                barrier.wait();
            };
            barrier.wait();
            race(0, fs::create_dir(&name), ErrorKind::AlreadyExists);
            race(
                1,
                fs::rename(&name, dir.join(format!("mine{round}-{node}"))),
                ErrorKind::NotFound,
            );
            let taken: Vec<_> = (0..3)
                .map(|n| dir.join(format!("mine{round}-{n}")))
                .filter(|p| p.exists())
                .collect();
            assert_eq!(taken.len(), 1, "round {round}: {taken:?}");
            barrier.wait();
            race(2, fs::remove_dir(&taken[0]), ErrorKind::NotFound);
        }
        counts
    });
    for index in 0..3 {
        assert_eq!(
            counts.iter().map(|count| count[index]).sum::<usize>(),
            rounds,
            "step {index}: {counts:?}"
        );
    }
    assert_eq!(fs::read_dir(cluster.dir(0)).unwrap().count(), 0);
}

#[test]
fn renames_from_all_nodes_lose_no_file() {
    let cluster = Cluster::shared("renames");
    let files = 12;
    for file in 0..files {
        fs::write(cluster.dir(0).join(format!("{file}-0")), file.to_string()).unwrap();
    }
    let moved = on_each_node(&cluster, |node, dir| {
        let mut moved = 0;
        for round in 0..brief_or_full(150, 2000) {
            let file = (round * 7 + node * 5) % files;
            let (from, to) = ((round + node) % 3, (round + node + 1) % 3);
            let result = fs::rename(
                dir.join(format!("{file}-{from}")),
                dir.join(format!("{file}-{to}")),
            );
            match result {
                Ok(()) => moved += 1,
                Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound, "{e}"),
            }
        }
        moved
    });
    assert!(
        moved.iter().all(|count| *count > 0),
        "no race took place: {moved:?}"
    );
    let mut found: Vec<usize> = names(&cluster.dir(1)).iter().map(|name| file_of(name)).collect();
    found.sort_unstable();
    assert_eq!(found, (0..files).collect::<Vec<_>>());
    for name in names(&cluster.dir(2)) {
        let text = fs::read_to_string(cluster.dir(2).join(&name)).unwrap();
        assert_eq!(text, file_of(&name).to_string());
    }
}

#[test]
fn a_directory_that_changes_lists_each_lasting_name_once() {
    let cluster = Cluster::shared("listing");
    let lasting = brief_or_full(3000, 100_000);
    thread::scope(|scope| {
        for node in 0..3 {
            let dir = cluster.dir(node);
            scope.spawn(move || {
                for number in (node..lasting).step_by(3) {
                    File::create(dir.join(format!("lasting{number}"))).unwrap();
                }
            });
        }
    });
    let stop = std::sync::atomic::AtomicBool::new(false);
    let dir = cluster.dir(2);
    thread::scope(|scope| {
        let changes = scope.spawn(|| churn(&cluster.dir(0), &stop));
        for round in 0..brief_or_full(4, 10) {
            let mut count = 0;
            let mut seen = vec![false; lasting];
            for entry in fs::read_dir(&dir).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let Some(number) = name.strip_prefix("lasting") else {
                    continue;
                };
                let number: usize = number.parse().unwrap();
                assert!(
                    !std::mem::replace(&mut seen[number], true),
                    "round {round}: {name} is listed twice"
                );
                count += 1;
            }
            assert_eq!(count, lasting, "round {round}: names are missing");
        }
        stop.store(true, std::sync::atomic::Ordering::Release);
        assert!(changes.join().unwrap() > 0, "nothing changed meanwhile");
    });
}

/// Makes, renames and removes names until told to stop; returns how often.
fn churn(dir: &Path, stop: &std::sync::atomic::AtomicBool) -> usize {
    let mut rounds = 0;
    while !stop.load(std::sync::atomic::Ordering::Acquire) {
        let (one, two) = (dir.join(format!("one{rounds}")), dir.join(format!("two{rounds}")));
        File::create(&one).unwrap();
        fs::rename(&one, &two).unwrap();
        fs::remove_file(&two).unwrap();
        rounds += 1;
    }
    rounds
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn file_of(name: &str) -> usize {
    name.split('-').next().unwrap().parse().unwrap()
}
