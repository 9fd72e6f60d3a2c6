//! `bramble run`: the daemon, from start to end.

use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use raftstore::clock::{Clock, SystemClock};
use raftstore::disk::RealDisk;
use raftstore::meta::{Ino, Observer};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::memory;
use super::supervise::{Watchdog, notify, say};
use super::{Outcome, text};
use crate::backend::{Backend, SyncWhat};
use crate::behind::{self, BehindOptions, LeasedBackend};
use crate::docker::{DockerPlugin, PluginSocket};
use crate::fuse::{self, MountHandle, MountOptions};
use crate::node::bootstrap::listen_error;
use crate::node::config::OnQuorumLoss;
use crate::node::housekeeping;
use crate::node::inspect::Inspector;
use crate::node::mountpoint;
use crate::node::process::memory_resident_bytes;
use crate::node::running::{Running, Surroundings, Trouble};
use crate::node::service::meta::OpenFiles;
use crate::node::session::SessionState;
use crate::node::store::{Layout, Store};
use crate::node::transport::wire::WireError;
use crate::posix::{Limits, OpenInodes, Vfs};
use crate::swarm::Docker;
use crate::volumes::{Nodes, OpenSomewhere, Volumes, VolumesParts};

/// Two cores are busy enough with two; what blocks has threads of its own.
const WORKERS: usize = 2;
/// Threads for calls that wait for the medium.
const BLOCKING_THREADS_MAX: usize = 32;
/// Stack of each thread, bytes.
const STACK_BYTES: usize = 1 << 20;
/// After this time without an answer, `on_quorum_loss = error` fails a call.
const QUORUM_PATIENCE: Duration = Duration::from_secs(8);
/// A part that does not end within this time is left to the kernel.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks whether a tree that has just been mounted answers.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How the daemon ended.
enum End {
    /// As it was told to.
    Asked,
    /// To begin again and repair what is damaged.
    Restart,
}

pub(super) fn run(store: &Path, die_with_parent: bool, plugin: PluginSocket) -> Outcome {
    if die_with_parent {
        let signal = Some(rustix::process::Signal::TERM);
        rustix::process::set_parent_process_death_signal(signal).map_err(text)?;
    }
    memory::set_up();
    start_log();
    raftstore::kv::abort_on_other_panics();
    let store = Store::open(Arc::new(RealDisk), store).map_err(text)?;
    mountpoint::check_privileges().map_err(text)?;
    mountpoint::check(&store.config.mount).map_err(text)?;
    let listen = store.config.listen;
    let listener = TcpListener::bind(listen).map_err(|error| listen_error(listen, error).to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(text)?;
    let pid_file = PidFile(store.layout.clone());
    let end = runtime.block_on(daemon(store, listener, plugin));
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(pid_file);
    match end? {
        End::Asked => Ok(()),
        End::Restart => Err(restart()),
    }
}

/// Begins again as a new program under the same process id. Returns only if that fails.
fn restart() -> String {
    use std::os::unix::process::CommandExt;
    tracing::warn!("starting again to repair what is damaged");
    match std::env::current_exe() {
        Ok(program) => std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .exec()
            .to_string(),
        Err(error) => error.to_string(),
    }
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BRAMBLE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,openraft=error,lsm_tree=warn"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    // A second start in one process (a test) keeps the first one's log.
    let _ = log.try_init();
}

/// Says in the store which process runs it; gone when the daemon ends by itself.
struct PidFile(Layout);

impl PidFile {
    fn write(layout: &Layout) -> std::io::Result<()> {
        #[expect(clippy::disallowed_methods, reason = "a hint for people, not data")]
        std::fs::write(layout.pid(), format!("{}\n", std::process::id()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0.pid());
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The mount's table of open inodes, for the leader's question.
struct MountedFiles(Arc<OpenInodes>);

impl OpenFiles for MountedFiles {
    fn open_of(&self, inodes: &[Ino]) -> Vec<Ino> {
        self.0.open_among(inodes)
    }
}

async fn daemon(store: Store, listener: TcpListener, plugin: PluginSocket) -> Result<End, String> {
    let mut signals = Signals::new().map_err(text)?;
    tokio::spawn(memory::keep_small());
    let around = Surroundings {
        clock: Arc::new(SystemClock),
        housekeeping_interval: housekeeping::INTERVAL,
        docker: plugin.docker().map(|docker| Arc::new(docker) as Arc<dyn Docker>),
    };
    let (layout, mount) = (store.layout.clone(), store.config.mount.clone());
    let node = tokio::select! {
        started = Running::start(store, listener, around) => started.map_err(text)?,
        () = signals.next() => return Ok(End::Asked),
    };
    if let Err(error) = PidFile::write(&layout) {
        tracing::warn!(%error, "the process id could not be written down");
    }
    let mut trouble = node.trouble();
    let mut watchdog = Watchdog::start();
    let waits = tokio::spawn(tell_what_it_waits_for(node.session_state()));
    let ready = tokio::select! {
        ready = node.ready() => ready.map_err(text),
        () = signals.next() => return Ok(stop(node, None, &mut signals).await),
        what = next_trouble(&mut trouble) => return finish(node, None, what, &mut signals).await,
    };
    waits.abort();
    if let Err(error) = ready {
        stop(node, None, &mut signals).await;
        return Err(error);
    }
    let mounted = match mount_tree(&node, &mount, plugin).await {
        Ok(mounted) => mounted,
        Err(error) => {
            stop(node, None, &mut signals).await;
            return Err(error);
        }
    };
    tracing::info!(mount = %mount.display(), "the tree is mounted");
    if let Some(watchdog) = &mut watchdog {
        watchdog.watch_mount(&mount);
    }
    serve(node, mounted, trouble, &mut signals).await
}

/// Until a session is open, `systemctl status` shows what is missing.
async fn tell_what_it_waits_for(mut session: watch::Receiver<SessionState>) {
    loop {
        if let SessionState::Opening(why) = &*session.borrow_and_update() {
            say(&format!("waiting: {why}"));
        }
        if session.changed().await.is_err() {
            return;
        }
    }
}

/// Says that the daemon is ready once the tree answers through its mount and a quorum decides: what is started after
/// it, as Docker is, finds a tree that it can use.
async fn tell_when_ready(inspector: Arc<Inspector>) -> std::convert::Infallible {
    while let Err(why) = inspector.health().await {
        say(&format!("mounted, and waiting: {why}"));
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    tracing::info!("ready");
    notify(&[NotifyState::Ready, NotifyState::Status("the tree is mounted")]);
    std::future::pending().await
}

/// Lets the mounted node work until it is told to end, or has to.
async fn serve(
    node: Running,
    mut mounted: Mounted,
    mut trouble: watch::Receiver<Option<Trouble>>,
    signals: &mut Signals,
) -> Result<End, String> {
    let mut session = node.session_state();
    let removed = async {
        let gone = session
            .wait_for(|state| *state == SessionState::Removed)
            .await
            .is_ok();
        if !gone {
            std::future::pending::<()>().await;
        }
    };
    let telling = tell_when_ready(Arc::clone(node.inspector()));
    tokio::select! {
        never = telling => match never {},
        () = signals.next() => Ok(stop(node, Some(mounted), signals).await),
        what = next_trouble(&mut trouble) => finish(node, Some(mounted), what, signals).await,
        _ = &mut mounted.flusher => {
            let what = Trouble::Fatal("changes on it cannot be committed any more".into());
            finish(node, Some(mounted), what, signals).await
        }
        () = removed => {
            let what = Trouble::Fatal(WireError::Removed.to_string());
            finish(node, Some(mounted), what, signals).await
        }
    }
}

async fn next_trouble(trouble: &mut watch::Receiver<Option<Trouble>>) -> Trouble {
    match trouble.wait_for(Option::is_some).await.map(|what| what.clone()) {
        Ok(Some(what)) => what,
        _ => std::future::pending().await,
    }
}

/// Ends a node that cannot go on.
async fn finish(
    node: Running,
    mounted: Option<Mounted>,
    what: Trouble,
    signals: &mut Signals,
) -> Result<End, String> {
    stop(node, mounted, signals).await;
    match what {
        Trouble::MetadataDamaged(_) => Ok(End::Restart),
        Trouble::Fatal(why) => Err(format!("this node has left the cluster's quorum: {why}")),
    }
}

/// The mounted tree, and what it stands on.
struct Mounted {
    /// Hands its directories out to Docker.
    plugin: Option<DockerPlugin>,
    handle: MountHandle,
    backend: Arc<LeasedBackend>,
    /// Pushes what programs have changed.
    flusher: JoinHandle<()>,
}

async fn mount_tree(node: &Running, mount: &Path, plugin: PluginSocket) -> Result<Mounted, String> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let patience = match node.store().config.on_quorum_loss {
        OnQuorumLoss::Wait => None,
        OnQuorumLoss::Error => Some(QUORUM_PATIENCE),
    };
    let options = node
        .medium()
        .as_ref()
        .map_or_else(BehindOptions::default, BehindOptions::for_medium);
    let backend = LeasedBackend::new(
        Arc::clone(node.backend()) as Arc<dyn Backend>,
        node.meta().applied(),
        Arc::clone(&clock),
        (options, patience),
    );
    let vfs = Vfs::new(Arc::clone(&backend) as Arc<dyn Backend>, clock, Limits::behind());
    let upper: Weak<Vfs> = Arc::downgrade(&vfs);
    backend.set_upper(upper);
    node.meta().observe(Arc::clone(&backend) as Arc<dyn Observer>);
    node.meta().observe(Arc::clone(&vfs) as Arc<dyn Observer>);
    let flusher = tokio::spawn(Arc::clone(&backend).run(memory_resident_bytes));
    node.lease_holder().set(behind::holder(&backend));
    node.open_files()
        .set(Arc::new(MountedFiles(Arc::clone(vfs.open_inodes()))));
    let volumes = Arc::new(Volumes::new(VolumesParts {
        node: node.id(),
        cluster: Arc::clone(node.backend()) as Arc<dyn Backend>,
        tree: Arc::clone(&backend) as Arc<dyn Backend>,
        vfs: Arc::clone(&vfs),
        nodes: Arc::clone(node.volume_host()) as Arc<dyn Nodes>,
        open: Arc::clone(node.volume_host()) as Arc<dyn OpenSomewhere>,
    }));
    node.volumes().set(Arc::clone(&volumes));
    let (runtime, path) = (tokio::runtime::Handle::current(), mount.to_owned());
    let mounting = move || {
        mountpoint::prepare(&path).map_err(text)?;
        fuse::mount(vfs, runtime, &path, MountOptions::default()).map_err(text)
    };
    let handle = tokio::task::spawn_blocking(mounting).await.map_err(text)??;
    node.mounted().store(true, Ordering::Relaxed);
    let plugin = DockerPlugin::of_mount(plugin, volumes, (mount, node.store().config.name.as_str())).await;
    Ok(Mounted {
        plugin,
        handle,
        backend,
        flusher,
    })
}

/// Unmounts, hands leadership over, flushes. A second signal ends the process at once.
async fn stop(node: Running, mounted: Option<Mounted>, signals: &mut Signals) -> End {
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping");
    let mount = node.store().config.mount.clone();
    let orderly = async {
        node.mounted().store(false, Ordering::Relaxed);
        if let Some(mounted) = mounted {
            let Mounted {
                plugin,
                handle,
                backend,
                flusher,
            } = mounted;
            // First, so that Docker is sent nowhere any more.
            if let Some(plugin) = plugin {
                plugin.stop().await;
            }
            let unmounting = tokio::task::spawn_blocking(|| handle.unmount());
            match tokio::time::timeout(STOP_TIMEOUT, unmounting).await {
                Ok(Ok(Ok(how))) => tracing::info!(?how, "unmounted"),
                Ok(Ok(Err(error))) => tracing::warn!(%error, "not unmounted"),
                Ok(Err(error)) => tracing::warn!(%error, "not unmounted"),
                Err(_) => {
                    tracing::warn!("unmounting takes too long: the mount is detached");
                    if let Err(error) = mountpoint::detach(&mount) {
                        tracing::warn!(%error, "the mount stays");
                    }
                }
            }
            match tokio::time::timeout(STOP_TIMEOUT, backend.sync(SyncWhat::Everything)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "what was not synced is lost"),
                Err(_) => tracing::error!("no quorum: what was not synced is lost"),
            }
            flusher.abort();
        }
        if tokio::time::timeout(STOP_TIMEOUT, node.stop()).await.is_err() {
            tracing::warn!("the node did not end in time; its journal has all that counts");
        }
    };
    tokio::select! {
        () = orderly => {}
        () = signals.next() => {
            tracing::warn!("told twice: ending at once");
            let _ = mountpoint::detach(&mount);
            std::process::exit(1);
        }
    }
    End::Asked
}
