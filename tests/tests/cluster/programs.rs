//! Programs that people run, on the mount.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bramble_tests::run::{describe, try_sh};
use bramble_tests::{Cluster, Shared, brief_or_full, run, sh, wait_for};

/// Makes a tree with all that rsync and tar have to carry, outside the cluster.
fn sample_tree(dir: &Path) {
    sh(
        dir,
        r#"mkdir -p src/deep/er; cd src
         for i in $(seq 60); do head -c $((i * 997)) /dev/urandom >"deep/file $i"; done
         head -c 3000000 /dev/urandom >large
         truncate -s 5M sparse; printf data | dd of=sparse bs=1 seek=2000000 conv=notrunc status=none
         ln large hard; ln -s deep/er link; ln -s nowhere dangling; mkfifo fifo
         touch -d '2002-02-02 02:02:02.222222222' deep/er/old; chmod 4711 deep/er/old; chown nobody:daemon 'deep/file 1'
         setfacl -m u:daemon:rwx large; setfattr -n user.key -v value large; chmod 2755 deep/er"#,
    );
}

#[test]
fn rsync_and_tar_carry_everything() {
    let cluster = Cluster::shared("rsync_tar");
    let (a, b) = (cluster.dir(0), cluster.dir(1));
    let local = cluster.local_dir("rsync_tar");
    sample_tree(&local);
    let (src, back) = (local.join("src"), local.join("back"));
    sh(&a, &format!("rsync -aHAXS {}/ copy/", src.display()));
    // Nothing is left to do when asked again, by checksum, on another node.
    let left = sh(&b, &format!("rsync -aHAXnic --delete {}/ copy/", src.display()));
    assert_eq!(left, "");
    sh(&b, &format!("rsync -aHAX copy/ {}/", back.display()));
    assert_eq!(sh(&local, "rsync -aHAXnic --delete src/ back/"), "");
    sh(&a, "tar --acls --xattrs -cf tree.tar -C copy .; mkdir untar");
    sh(
        &b,
        "tar --acls --xattrs --xattrs-include='*' -xpf tree.tar -C untar",
    );
    assert_eq!(
        sh(&a, &format!("rsync -aHAXnic --delete {}/ untar/", src.display())),
        ""
    );
    sh(&a, "rm -rf copy untar tree.tar");
    assert_eq!(fs::read_dir(&b).unwrap().count(), 0);
}

#[test]
fn git_clones_commits_and_checks() {
    let cluster = Cluster::shared("git");
    let (a, b) = (cluster.dir(0), cluster.dir(1));
    // This project's own history, if this is a clone of it; else a repository made here.
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let origin = cluster.local_dir("git").join("origin");
    let identity = "-c user.name=test -c user.email=test@localhost";
    sh(
        &cluster.local_dir("git"),
        &format!(
            "git clone -q --no-local {} {origin} 2>/dev/null || {{
                 git init -q {origin}; cp -r {}/raftstore {origin}/; cd {origin}
                 git add -A; git {identity} commit -qm 'A start'; }}",
            source.display(),
            source.display(),
            origin = origin.display()
        ),
    );
    sh(
        &a,
        &format!("git clone -q --no-hardlinks {} clone", origin.display()),
    );
    sh(
        &b,
        "cd clone; git fsck --full --strict --no-progress; git status --porcelain >../status; test ! -s ../status",
    );
    sh(
        &b,
        &format!(
            "cd clone; for i in 1 2 3; do echo $i >new$i; git add new$i; git {identity} commit -qm \"Add $i\"; done
             git gc -q"
        ),
    );
    sh(
        &a,
        "cd clone; git fsck --full --no-progress; test \"$(git log --format=%s -n1)\" = 'Add 3'; git status --porcelain",
    );
}

#[test]
fn stress_ng_raises_no_error_and_no_kernel_warning() {
    let cluster = Cluster::shared("stress");
    let before = sh(Path::new("/"), "dmesg | wc -l")
        .trim()
        .parse::<usize>()
        .unwrap();
    // All of stress-ng's filesystem class that is not about something other than files (binderfs, procfs, ...), or
    // about what no FUSE filesystem has (verity).
    let groups = [
        "--access 1 --chdir 1 --chdir-dirs 64 --chmod 1 --chown 1 --copy-file 1 --copy-file-bytes 128M --dentry 1 \
         --dentries 200 --dir 1 --dir-dirs 64 --dirdeep 1 --dirdeep-dirs 2 --dirdeep-inodes 200 --dirmany 1 --dup 1",
        "--fallocate 1 --fallocate-bytes 16M --fcntl 1 --fiemap 1 --fiemap-bytes 4M --file-ioctl 1 --filename 1 \
         --flock 1 --fpunch 1 --fsize 1 --fstat 1 --getdent 1 --handle 1 --hdd 1 --hdd-bytes 8M",
        "--inotify 1 --iomix 1 --iomix-bytes 8M --lease 1 --link 1 --locka 1 --lockf 1 --lockofd 1 --mknod 1 \
         --mmap 1 --mmap-bytes 8M --mmap-file --open 1 --open-max 500",
        "--readahead 1 --readahead-bytes 8M --rename 1 --seek 1 --seek-size 8M --sendfile 1 --sendfile-size 1M \
         --symlink 1 --sync-file 1 --sync-file-bytes 8M --touch 1 --utime 1 --xattr 1",
    ];
    for (group, node) in groups.iter().zip([0, 1, 2, 0]) {
        let seconds = brief_or_full(4, 60);
        let command = format!("stress-ng --temp-path . --timeout {seconds} --verify {group} 2>&1");
        let output = try_sh(&cluster.dir(node), &command);
        assert!(output.status.success(), "{command}\n{}", describe(&output));
    }
    let kernel = sh(Path::new("/"), &format!("dmesg | tail -n +{}", before + 1));
    let warnings: Vec<_> = kernel
        .lines()
        .filter(|line| {
            ["WARNING:", "BUG:", "Oops", "hung task", "blocked for"]
                .iter()
                .any(|w| line.contains(w))
        })
        .collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
    for node in cluster.nodes() {
        assert!(bramble_tests::reference().is_some() || node.is_healthy());
    }
}

#[test]
fn sqlite_counts_right_in_both_journal_modes() {
    let cluster = Cluster::shared("sqlite");
    for mode in ["delete", "wal"] {
        let dir = cluster.dir(0);
        let database = format!("{mode}.db");
        sh(
            &dir,
            &format!(
                "sqlite3 {database} 'pragma journal_mode={mode}; create table t(n integer primary key, x);' >/dev/null"
            ),
        );
        let script: String = (0..brief_or_full(60, 500))
            .map(|n| format!("insert into t(x) values (hex(randomblob({})));\n", n * 3 % 500))
            .collect();
        fs::write(
            cluster.local_dir("sqlite").join("script"),
            format!("pragma synchronous=full;\n{script}"),
        )
        .unwrap();
        let script = cluster.local_dir("sqlite").join("script");
        // One node after the other; SQLite itself rules out sharing a WAL between machines.
        for node in [0, 1, 2] {
            sh(
                &cluster.dir(node),
                &format!("sqlite3 {database} <{}", script.display()),
            );
        }
        let found = sh(
            &cluster.dir(1),
            &format!("sqlite3 {database} 'pragma integrity_check; select count(*) from t;'"),
        );
        assert_eq!(found, format!("ok\n{}\n", 3 * brief_or_full(60, 500)), "{mode}");
    }
    // With a rollback journal, all nodes at once.
    let dir = cluster.dir(0);
    sh(&dir, "sqlite3 shared.db 'create table t(node, n);'");
    std::thread::scope(|scope| {
        for node in 0..3 {
            let dir = cluster.dir(node);
            scope.spawn(move || {
                let rounds = brief_or_full(8, 100);
                sh(&dir, &format!("for i in $(seq {rounds}); do sqlite3 -cmd '.timeout 60000' shared.db \"insert into t values({node}, $i)\"; done"));
            });
        }
    });
    let found = sh(
        &dir,
        "sqlite3 shared.db 'pragma integrity_check; select count(*) from t; select count(distinct node || n) from t;'",
    );
    let rows = 3 * brief_or_full(8, 100);
    assert_eq!(found, format!("ok\n{rows}\n{rows}\n"));
}

/// A MariaDB server whose data is on a mount.
struct MariaDb {
    process: Child,
    socket: String,
}

impl MariaDb {
    fn start(data: &Path, run_dir: &Path) -> Self {
        let socket = run_dir.join("socket").display().to_string();
        let log = fs::File::create(run_dir.join("log")).unwrap();
        let process = Command::new("/usr/sbin/mariadbd")
            .args([
                "--no-defaults",
                "--user=nobody",
                "--skip-networking",
                "--innodb-buffer-pool-size=16M",
            ])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={socket}"))
            .arg(format!("--pid-file={}/pid", run_dir.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut database = Self { process, socket };
        wait_for("MariaDB to answer", Duration::from_secs(90), || {
            let ended = database.process.try_wait().unwrap();
            let log = || fs::read_to_string(run_dir.join("log")).unwrap();
            assert!(ended.is_none(), "MariaDB ended: {ended:?}\n{}", log());
            database.try_query("select 1").then_some(())
        });
        database
    }

    fn try_query(&self, sql: &str) -> bool {
        let args = ["--no-defaults", "-uroot", "-S", &self.socket, "-e", sql];
        bramble_tests::run::try_run("mariadb", args).status.success()
    }

    fn query(&self, sql: &str) -> String {
        run(
            "mariadb",
            ["--no-defaults", "-uroot", "-S", &self.socket, "-N", "-e", sql],
        )
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn stop(mut self) {
        self.query("shutdown");
        wait_for("MariaDB to end", Duration::from_secs(60), || {
            self.process.try_wait().unwrap()
        });
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn mariadb_dirs(cluster: &Shared, node: usize) -> (std::path::PathBuf, std::path::PathBuf) {
    let run_dir = cluster.local_dir(&format!("mariadb{node}"));
    sh(&run_dir, "chown nobody .; chmod 755 . ..");
    (cluster.dir(node).join("data"), run_dir)
}

#[test]
fn mariadb_installs_loads_crashes_and_moves() {
    let cluster = Cluster::shared("mariadb");
    let (data, run_dir) = mariadb_dirs(&cluster, 0);
    sh(&cluster.dir(0), "chmod 755 .; mkdir data; chown nobody data");
    let datadir = format!("--datadir={}", data.display());
    run(
        "mariadb-install-db",
        [
            "--no-defaults",
            "--user=nobody",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            &datadir,
        ],
    );
    let database = MariaDb::start(&data, &run_dir);
    database.query("create database d; create table d.t (n int primary key auto_increment, x varchar(200)) engine=InnoDB");
    let rows = brief_or_full(2000, 50_000);
    // Many small transactions, then one large.
    for _ in 0..20 {
        database.query("insert into d.t (x) values (repeat('a', 100))");
    }
    database.query(&format!(
        "use d; insert into d.t (x) select concat('row ', seq) from seq_1_to_{rows}"
    ));
    let sum = database.query("select count(*), sum(crc32(x)) from d.t");
    database.kill();
    // It recovers on another node.
    let (data, run_dir) = mariadb_dirs(&cluster, 1);
    let database = MariaDb::start(&data, &run_dir);
    assert_eq!(database.query("select count(*), sum(crc32(x)) from d.t"), sum);
    assert!(database.query("check table d.t extended").contains("OK"));
    database.query("delete from d.t where n % 2 = 0");
    let sum = database.query("select count(*), sum(crc32(x)) from d.t");
    database.stop();
    let (data, run_dir) = mariadb_dirs(&cluster, 2);
    let database = MariaDb::start(&data, &run_dir);
    assert_eq!(database.query("select count(*), sum(crc32(x)) from d.t"), sum);
    assert!(database.query("check table d.t extended").contains("OK"));
    database.stop();
}
