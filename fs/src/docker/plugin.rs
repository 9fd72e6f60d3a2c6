//! The plugin from start to end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::driver::{Here, VolumeDriver};
use super::primer::Primer;
use super::server;
use super::socket::{PluginSocket, SocketFile};
use super::tree::MountedTree;
use crate::volumes::Volumes;

/// Between two looks at the socket's file, and at whether there is a new Docker.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// As that, until Docker knows the plugin.
const FIRST_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The plugin, served in the background as long as this lives.
pub struct DockerPlugin {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// The plugin while it is served.
struct Served {
    file: SocketFile,
    server: JoinHandle<()>,
    primer: Primer,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl DockerPlugin {
    /// Serves the tree that this daemon has just mounted at `mount`, on the node of this name; not if it is not mounted.
    pub async fn of_mount(
        setting: PluginSocket,
        volumes: Arc<Volumes>,
        (mount, node): (&Path, &str),
    ) -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let here = Here {
            node: node.to_owned(),
            boot: boot.trim().replace('-', ""),
        };
        match MountedTree::at(mount) {
            Ok(tree) => Some(Self::start(setting, VolumeDriver::new(volumes, tree, here)).await),
            Err(error) => {
                tracing::error!(%error, "Docker's volume plugin is not served");
                None
            }
        }
    }

    /// Serves `driver`. If it is wanted now and nothing is in the way, Docker can ask once this returns; else it is tried
    /// again in the background. A node does without the plugin rather than not start.
    pub async fn start(setting: PluginSocket, driver: VolumeDriver) -> Self {
        let driver = Arc::new(driver);
        let (stop, stopped) = oneshot::channel();
        let mut keeper = Keeper {
            setting,
            driver,
            served: None,
            complained: false,
            settled: false,
        };
        keeper.look().await;
        let task = tokio::spawn(async move {
            tokio::select! {
                () = keeper.keep() => {}
                _ = stopped => {}
            }
            if let Some(served) = &mut keeper.served {
                served.server.abort();
                let _ = (&mut served.server).await;
            }
        });
        Self { stop, task }
    }

    /// Breaks the connections and removes the socket.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// Keeps the plugin where Docker finds it.
struct Keeper {
    setting: PluginSocket,
    driver: Arc<VolumeDriver>,
    served: Option<Served>,
    complained: bool,
    /// What ended with the machine's last boot has been taken back.
    settled: bool,
}

impl Keeper {
    async fn keep(&mut self) {
        loop {
            let primed = match &mut self.served {
                Some(served) => served.primer.look().await,
                None => true,
            };
            if !self.settled && self.served.is_some() {
                self.settled = self.driver.forget_earlier_boots().await.is_ok();
            }
            tokio::time::sleep(if primed {
                LOOK_INTERVAL
            } else {
                FIRST_LOOK_INTERVAL
            })
            .await;
            self.look().await;
        }
    }

    /// Serves if it is wanted and not done.
    async fn look(&mut self) {
        if self.served.as_ref().is_some_and(|served| served.file.is_there()) {
            return;
        }
        self.served = None;
        let Some(path) = self.setting.wanted().map(Path::to_owned) else {
            return;
        };
        match SocketFile::bind(&path).await {
            Ok((listener, file)) => {
                tracing::info!(socket = %path.display(), "Docker's volume plugin is served");
                let server = tokio::spawn(server::serve(listener, Arc::clone(&self.driver)));
                let primer = Primer::new(&path);
                self.served = Some(Served { file, server, primer });
                self.complained = false;
            }
            Err(error) if !self.complained => {
                tracing::warn!(%error, "Docker's volume plugin is not served; tried again every {LOOK_INTERVAL:?}");
                self.complained = true;
            }
            Err(_) => {}
        }
    }
}
