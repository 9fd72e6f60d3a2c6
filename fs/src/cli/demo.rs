//! `bramble demo`: three nodes on this machine.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use raftstore::disk::RealDisk;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::{Outcome, admin, text};
use crate::node::bootstrap;
use crate::node::config::{Config, EngineChoice, Limits, OnQuorumLoss};
use crate::node::mountpoint;

/// How many.
const NODES: usize = 3;
/// A node that takes longer to start has failed.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A node that takes longer to stop is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// A node that was killed comes back after this time.
const RESTART_AFTER: Duration = Duration::from_secs(20);
/// Between two looks at the nodes.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// In the demo's directory: says that a demo made what is in it.
const MARKER: &str = ".bramble-demo";

pub(super) fn demo(dir: Option<&Path>) -> Outcome {
    mountpoint::check_privileges().map_err(text)?;
    let dir = match dir {
        Some(dir) => std::path::absolute(dir).map_err(text)?,
        None => std::env::temp_dir().join("bramble-demo"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    let place = Place::take(&dir)?;
    let result = runtime.block_on(play(&place));
    place.clear();
    result
}

/// The demo's directory.
struct Place {
    dir: PathBuf,
    made: bool,
    _lock: fs::File,
}

impl Place {
    /// Takes the directory, and removes what a killed demo has left in it.
    fn take(dir: &Path) -> Result<Self, String> {
        let made = !dir.exists();
        fs::create_dir_all(dir).map_err(|error| format!("cannot use {}: {error}", dir.display()))?;
        let marker = dir.join(MARKER);
        let left_over = marker.exists();
        #[expect(clippy::disallowed_methods, reason = "a lock file holds no data")]
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&marker)
            .map_err(text)?;
        if lock.try_lock().is_err() {
            return Err(format!(
                "a demo is running in {}: stop that one first, or choose another directory",
                dir.display()
            ));
        }
        let place = Self {
            dir: dir.to_owned(),
            made,
            _lock: lock,
        };
        let taken = (1..=NODES)
            .flat_map(|n| [place.mount(n), place.store(n)])
            .find(|path| path.symlink_metadata().is_ok());
        match taken {
            Some(_) if left_over => place.remove_nodes(),
            Some(path) => {
                let _ = fs::remove_file(marker);
                return Err(format!(
                    "{} exists already: choose another directory",
                    path.display()
                ));
            }
            None => {}
        }
        Ok(place)
    }

    fn mount(&self, n: usize) -> PathBuf {
        self.dir.join(format!("node{n}"))
    }

    fn store(&self, n: usize) -> PathBuf {
        self.dir.join(format!("store{n}"))
    }

    fn log(&self, n: usize) -> PathBuf {
        self.dir.join(format!("log{n}"))
    }

    fn remove_nodes(&self) {
        for n in 1..=NODES {
            let mount = self.mount(n);
            while mountpoint::mounted(&mount)
                .ok()
                .flatten()
                .is_some_and(|kind| kind == mountpoint::MOUNT_TYPE)
            {
                if mountpoint::detach(&mount).is_err() {
                    break;
                }
            }
            // Not with all that is in it: should something still be mounted there, it stays.
            let _ = fs::remove_dir(mount);
            let _ = fs::remove_dir_all(self.store(n));
            let _ = fs::remove_file(self.log(n));
        }
    }

    fn clear(&self) {
        self.remove_nodes();
        let _ = fs::remove_file(self.dir.join(MARKER));
        if self.made {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// A node of the demo.
struct Actor {
    n: usize,
    child: Child,
    /// When it is to be started again, if it has ended.
    ended: Option<tokio::time::Instant>,
}

async fn play(place: &Place) -> Outcome {
    let mut terminate = signal(SignalKind::terminate()).map_err(text)?;
    let mut actors = Vec::new();
    let result = tokio::select! {
        result = perform(place, &mut actors) => result,
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    println!("stopping the nodes ...");
    for actor in &mut actors {
        end(actor).await;
    }
    result
}

async fn perform(place: &Place, actors: &mut Vec<Actor>) -> Outcome {
    let addresses = free_addresses()?;
    for n in 1..=NODES {
        fs::create_dir(place.mount(n)).map_err(text)?;
        let config = Config {
            name: format!("node{n}"),
            listen: addresses[n - 1],
            mount: place.mount(n),
            engine: EngineChoice::default(),
            on_quorum_loss: OnQuorumLoss::default(),
            limits: Limits::default(),
        };
        if n == 1 {
            bootstrap::init(
                Arc::new(RealDisk),
                &place.store(n),
                &config,
                Duration::from_secs(60),
            )
            .map_err(text)?;
        } else {
            let token = admin::create_token(&place.store(1), Duration::from_secs(60)).await?;
            let token = token.parse().map_err(text)?;
            bootstrap::join(Arc::new(RealDisk), &place.store(n), &config, addresses[0], &token)
                .await
                .map_err(text)?;
        }
        actors.push(Actor {
            n,
            child: spawn(place, n)?,
            ended: None,
        });
        wait_healthy(place, actors).await?;
    }
    let mut explained = false;
    loop {
        // Until every node votes, the loss of one may stop the others.
        if !explained
            && admin::count_voters(&place.store(1))
                .await
                .is_ok_and(|voters| voters >= NODES as u64)
        {
            explain(place, actors);
            explained = true;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        for actor in actors.iter_mut() {
            look_after(place, actor)?;
        }
    }
}

fn free_addresses() -> Result<Vec<SocketAddr>, String> {
    // All are held until all are chosen, so that they differ.
    let listeners: Vec<TcpListener> = (0..NODES)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .map_err(text)?;
    listeners
        .iter()
        .map(|listener| listener.local_addr().map_err(text))
        .collect()
}

fn spawn(place: &Place, n: usize) -> Result<Child, String> {
    #[expect(clippy::disallowed_methods, reason = "a log for people")]
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(place.log(n))
        .map_err(text)?;
    let program = std::env::current_exe().map_err(text)?;
    Command::new(program)
        .args(["run", "--die-with-parent", "--docker-plugin", "off", "--store"])
        .arg(place.store(n))
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(text)?)
        .stderr(log)
        .spawn()
        .map_err(text)
}

async fn wait_healthy(place: &Place, actors: &mut [Actor]) -> Outcome {
    let Some(newest) = actors.last_mut() else {
        return Ok(());
    };
    let n = newest.n;
    let log = || fs::read_to_string(place.log(n)).unwrap_or_default();
    let healthy = async {
        loop {
            if admin::check_health(&place.store(n)).await.is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = newest.child.try_wait() {
                return Err(format!("node {n} has ended ({status}):\n{}", log()));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    match tokio::time::timeout(START_TIMEOUT, healthy).await {
        Ok(result) => result,
        Err(_) => Err(format!("node {n} does not come up:\n{}", log())),
    }
}

fn explain(place: &Place, actors: &[Actor]) {
    let dir = place.dir.display();
    println!("\nThree nodes share one tree, mounted at {dir}/node1, {dir}/node2 and {dir}/node3. Try:\n");
    println!("    echo hello > {dir}/node1/greeting");
    println!("    cat {dir}/node3/greeting");
    if let Some(pid) = actors.get(1).and_then(|actor| actor.child.id()) {
        println!("    kill -9 {pid}                     # node 2: the others go on");
    }
    println!("    bramble status --store {dir}/store1\n");
    println!(
        "A node that you kill comes back after {} s and catches up. Ctrl-C stops and removes everything.",
        RESTART_AFTER.as_secs()
    );
}

/// Notices that a node has ended, and starts it again after a while.
fn look_after(place: &Place, actor: &mut Actor) -> Outcome {
    match actor.ended {
        None => {
            if let Ok(Some(status)) = actor.child.try_wait() {
                println!(
                    "node {} has ended ({status}); the others go on. It starts again in {} s and catches up.",
                    actor.n,
                    RESTART_AFTER.as_secs()
                );
                actor.ended = Some(tokio::time::Instant::now());
            }
        }
        Some(ended) if ended.elapsed() >= RESTART_AFTER => {
            actor.child = spawn(place, actor.n)?;
            actor.ended = None;
            println!(
                "node {} starts again, process {}",
                actor.n,
                actor.child.id().unwrap_or(0)
            );
        }
        Some(_) => {}
    }
    Ok(())
}

async fn end(actor: &mut Actor) {
    let pid = actor
        .child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(rustix::process::Pid::from_raw);
    let Some(pid) = pid else { return };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    if tokio::time::timeout(STOP_TIMEOUT, actor.child.wait())
        .await
        .is_err()
    {
        let _ = actor.child.kill().await;
    }
}
