//! Mounts an in-memory filesystem on each of the directories given, as if each were a node of one cluster, until
//! Ctrl-C or SIGTERM. For trying the POSIX and FUSE layers without daemons:
//!
//! `cargo run --example local_mount -- /tmp/a /tmp/b`

use std::path::Path;

use bramble::fuse::{MountOptions, mount};
use bramble::posix::Limits;
use bramble::posix::testing::LocalCluster;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

/// Room that the filesystem claims to have, bytes.
const CAPACITY_BYTES: u64 = 8 << 30;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let cluster = LocalCluster::new(CAPACITY_BYTES)?;
    let mut mounts = Vec::new();
    for path in std::env::args_os().skip(1) {
        let vfs = cluster.vfs(Limits::default())?;
        mounts.push(mount(
            vfs,
            Handle::current(),
            Path::new(&path),
            MountOptions::default(),
        )?);
    }
    println!("mounted");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    for mount in mounts {
        let path = mount.path().to_owned();
        let how = tokio::task::spawn_blocking(|| mount.unmount()).await??;
        println!("{}: {how:?}", path.display());
    }
    Ok(())
}
