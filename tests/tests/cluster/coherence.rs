//! What one node did, every node sees from the moment the call returned.

use std::fs::{self, File};
use std::io::{ErrorKind, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bramble_tests::sys::Map;
use bramble_tests::{Cluster, Seed, brief_or_full, wait_for};
use rand::{Rng as _, RngCore as _};

#[test]
fn a_write_is_read_at_once_on_every_node() {
    let cluster = Cluster::shared("write_read");
    let mut seed = Seed::new();
    for round in 0..brief_or_full(400, 4000) {
        let (writer, reader) = (seed.random_range(0..3), seed.random_range(0..3));
        let len = if round % 10 == 0 {
            seed.random_range(1..300_000)
        } else {
            seed.random_range(1..5000)
        };
        let mut data = vec![0; len];
        seed.fill_bytes(&mut data);
        let name = format!("file{}", seed.random_range(0..5));
        fs::write(cluster.dir(writer).join(&name), &data).unwrap();
        let found = fs::read(cluster.dir(reader).join(&name)).unwrap();
        assert!(
            found == data,
            "round {round}: {name} written on {writer}, read on {reader}"
        );
    }
}

#[test]
fn files_that_are_open_see_writes_of_other_nodes() {
    let cluster = Cluster::shared("open_files");
    let mut seed = Seed::new();
    fs::write(cluster.dir(0).join("file"), [0; 20_000]).unwrap();
    let open: Vec<File> = (0..3).map(|node| rw(&cluster.dir(node).join("file"))).collect();
    for round in 0..brief_or_full(700, 5000) {
        let (writer, reader) = (seed.random_range(0..3), seed.random_range(0..3));
        let (at, len) = (seed.random_range(0..19_000), seed.random_range(1..1000));
        let mut data = vec![0; len];
        seed.fill_bytes(&mut data);
        open[writer].write_all_at(&data, at).unwrap();
        let mut found = vec![0; len];
        open[reader].read_exact_at(&mut found, at).unwrap();
        assert!(
            found == data,
            "round {round}: {len} bytes at {at} written on {writer}, read on {reader}"
        );
    }
}

#[test]
fn sizes_times_and_modes_are_seen_at_once() {
    let cluster = Cluster::shared("attributes");
    let mut seed = Seed::new();
    let paths: Vec<_> = (0..3).map(|node| cluster.dir(node).join("file")).collect();
    fs::write(&paths[0], b"").unwrap();
    let open: Vec<File> = paths.iter().map(|path| rw(path)).collect();
    let mut last_mtime = 0;
    for round in 0..brief_or_full(300, 3000) {
        let (writer, reader) = (seed.random_range(0..3), seed.random_range(0..3));
        let size = seed.random_range(0..1_000_000);
        let mode = seed.random_range(0..0o1000);
        open[writer].set_len(size).unwrap();
        fs::set_permissions(&paths[writer], fs::Permissions::from_mode(mode)).unwrap();
        for meta in [
            fs::metadata(&paths[reader]).unwrap(),
            open[reader].metadata().unwrap(),
        ] {
            assert_eq!(meta.len(), size, "round {round}: on {reader} after {writer}");
            assert_eq!(
                meta.mode() & 0o7777,
                mode,
                "round {round}: on {reader} after {writer}"
            );
            let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
            assert!(mtime >= last_mtime, "round {round}: time went back on {reader}");
            last_mtime = mtime;
        }
    }
}

#[test]
fn names_are_seen_and_gone_at_once() {
    let cluster = Cluster::shared("names");
    let mut seed = Seed::new();
    let dirs: Vec<_> = (0..3).map(|node| cluster.dir(node)).collect();
    for round in 0..brief_or_full(150, 2000) {
        let (a, b, c) = (
            seed.random_range(0..3),
            seed.random_range(0..3),
            seed.random_range(0..3),
        );
        let (old, new) = (format!("old{round}"), format!("new{round}"));
        // Ask first, so that a cache has something to be wrong about.
        assert!(!dirs[b].join(&old).exists());
        fs::write(dirs[a].join(&old), b"x").unwrap();
        assert!(
            dirs[b].join(&old).exists(),
            "round {round}: made on {a}, looked up on {b}"
        );
        assert!(
            list(&dirs[c]).contains(&old),
            "round {round}: made on {a}, listed on {c}"
        );
        fs::rename(dirs[b].join(&old), dirs[b].join(&new)).unwrap();
        assert!(
            !dirs[a].join(&old).exists(),
            "round {round}: renamed on {b}, looked up on {a}"
        );
        assert_eq!(
            list(&dirs[c]),
            vec![new.clone()],
            "round {round}: renamed on {b}, listed on {c}"
        );
        fs::remove_file(dirs[c].join(&new)).unwrap();
        assert!(
            !dirs[a].join(&new).exists(),
            "round {round}: removed on {c}, looked up on {a}"
        );
        assert!(
            list(&dirs[b]).is_empty(),
            "round {round}: removed on {c}, listed on {b}"
        );
    }
}

#[test]
fn a_replaced_file_is_the_new_one_everywhere() {
    let cluster = Cluster::shared("replace");
    let dirs: Vec<_> = (0..3).map(|node| cluster.dir(node)).collect();
    for round in 0..brief_or_full(100, 1000) {
        let writer = round % 3;
        let text = format!("version {round}");
        let mut file = File::create(dirs[writer].join("config.new")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.sync_all().unwrap();
        fs::rename(dirs[writer].join("config.new"), dirs[writer].join("config")).unwrap();
        for (node, dir) in dirs.iter().enumerate() {
            let found = fs::read_to_string(dir.join("config")).unwrap();
            assert_eq!(found, text, "round {round}: replaced on {writer}, read on {node}");
        }
    }
}

#[test]
fn an_unlinked_file_lives_while_any_node_has_it_open() {
    let cluster = Cluster::shared("unlinked");
    let [a, b, c] = [0, 1, 2].map(|node| cluster.dir(node).join("file"));
    let data: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    fs::write(&a, &data).unwrap();
    let mut open = rw(&b);
    fs::remove_file(&a).unwrap();
    assert_eq!(fs::metadata(&c).unwrap_err().kind(), ErrorKind::NotFound);
    // A new file of that name is another file.
    fs::write(&c, b"new").unwrap();
    let inode = open.metadata().unwrap();
    assert_eq!((inode.nlink(), inode.len()), (0, data.len() as u64));
    assert_ne!(inode.ino(), fs::metadata(&a).unwrap().ino());
    // Give whatever reaps unlinked files the time to make a mistake.
    for pause in [0, 3, 9] {
        std::thread::sleep(std::time::Duration::from_secs(pause));
        let mut found = vec![0; data.len()];
        open.read_exact_at(&mut found, 0).unwrap();
        assert!(found == data, "after {pause} s");
    }
    open.seek(SeekFrom::End(0)).unwrap();
    open.write_all(b"more").unwrap();
    assert_eq!(open.metadata().unwrap().len(), data.len() as u64 + 4);
    assert_eq!(fs::read(&b).unwrap(), b"new");
}

#[test]
fn a_replaced_file_that_is_open_keeps_its_bytes() {
    let cluster = Cluster::shared("replaced_open");
    let [a, b] = [0, 1].map(|node| cluster.dir(node));
    fs::write(a.join("file"), b"old bytes").unwrap();
    let open = File::open(a.join("file")).unwrap();
    fs::write(b.join("other"), b"new bytes").unwrap();
    fs::rename(b.join("other"), b.join("file")).unwrap();
    let mut found = [0; 9];
    open.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(&found, b"old bytes");
    assert_eq!(fs::read(a.join("file")).unwrap(), b"new bytes");
}

/// Something that is done in a directory, and what it is called.
type Change = (&'static str, fn(&Path));

/// In a tree that nobody has changed for a while, the kernel answers without asking; another node's change ends that.
#[test]
fn what_the_kernel_answers_by_itself_is_never_old() {
    let cluster = Cluster::shared("kernel");
    let (here, there) = (cluster.dir(0), cluster.dir(1));
    let changes: [Change; 6] = [
        ("write", |dir| {
            fs::write(dir.join("file"), b"a longer text").unwrap()
        }),
        ("replace", |dir| {
            fs::write(dir.join("new"), b"new").unwrap();
            fs::rename(dir.join("new"), dir.join("file")).unwrap();
        }),
        ("chmod", |dir| {
            fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        }),
        ("remove", |dir| fs::remove_file(dir.join("file")).unwrap()),
        ("make", |dir| {
            fs::write(dir.join("missing"), b"no longer").unwrap()
        }),
        ("move", |dir| {
            fs::rename(dir, dir.with_extension("moved")).unwrap()
        }),
    ];
    for (name, change) in changes {
        let (here, there) = (here.join(name), there.join(name));
        fs::create_dir(&there).unwrap();
        fs::write(there.join("file"), b"text").unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Keeps the kernel's knowledge fresh until the change, and while it is made.
            let hammer = scope.spawn(|| {
                let open = File::open(here.join("file")).unwrap();
                let mut asked = 0_u64;
                while !ended.load(Ordering::Relaxed) {
                    drop(stats(&here));
                    let _ = open.read_at(&mut [0; 100], 0);
                    asked += 4;
                }
                asked
            });
            std::thread::sleep(Duration::from_secs(2));
            let requests = cluster.node(0).io().read_calls;
            std::thread::sleep(Duration::from_millis(500));
            let requests = cluster.node(0).io().read_calls - requests;
            let before = look(&here);
            change(&there);
            let (found, expected) = (look(&here), look(&there));
            ended.store(true, Ordering::Relaxed);
            let asked = hammer.join().unwrap();
            assert_ne!(before, found, "{name}: done on one node, not seen on another");
            assert_eq!(found, expected, "{name}: seen differently on two nodes");
            // A fifth of the time at most was measured.
            assert!(
                requests < asked / 20,
                "{name}: the kernel was to answer by itself, but sent {requests} requests in 0.5 s of {asked} in all"
            );
        });
    }
}

/// What can be seen of `dir`, as text.
#[test]
fn a_mapping_shows_what_others_write_however_many_files_were_looked_at() {
    // More than a node holds leases of.
    const FILES: usize = 7000;
    let cluster = Cluster::shared("mapping");
    let [writer, reader] = [0, 1].map(|node| cluster.dir(node));
    fs::write(writer.join("mapped"), [1; 4096]).unwrap();
    for index in 0..FILES {
        File::create(writer.join(format!("file{index}"))).unwrap();
    }
    File::open(&writer).unwrap().sync_all().unwrap();
    let mapped = File::open(reader.join("mapped")).unwrap();
    let map = Map::read_only(&mapped, 4096).unwrap();
    assert_eq!(map.read(0..10), [1; 10]);
    let held = || cluster.node(1).status().0["leases"]["shared"].as_u64().unwrap();
    for index in 0..FILES {
        File::open(reader.join(format!("file{index}"))).unwrap();
    }
    assert!(held() < FILES as u64, "{} leases: none was given up", held());
    // Not synced: nothing but the lease tells the reader of it.
    let file = rw(&writer.join("mapped"));
    for byte in 2..5 {
        file.write_all_at(&[byte; 4096], 0).unwrap();
        wait_for("the mapping to show it", Duration::from_secs(3), || {
            (map.read(0..10) == [byte; 10]).then_some(())
        });
    }
}

fn look(dir: &Path) -> ([String; 3], String) {
    let text = fs::read(dir.join("file")).map_err(|error| error.to_string());
    (stats(dir), format!("{text:?}"))
}

fn stats(dir: &Path) -> [String; 3] {
    ["file", "missing", "."].map(|name| match fs::metadata(dir.join(name)) {
        Ok(meta) => format!("{} {} {:o}", meta.ino(), meta.len(), meta.mode()),
        Err(error) => error.to_string(),
    })
}

fn rw(path: &std::path::Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn list(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
