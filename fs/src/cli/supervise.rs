//! What the daemon tells systemd: that it is ready, what it waits for, and that it is not stuck.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;

use crate::node::mount_probe::{MountProbe, Question, Silent};

/// In the time within which systemd wants a sign of life, so many are given.
const SIGNS: u32 = 4;

/// Tells systemd, if it runs this process.
pub(super) fn notify(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Says in `systemctl status` what the daemon is doing.
pub(super) fn say(what: &str) {
    // The protocol has one line for each value.
    notify(&[NotifyState::Status(&what.replace('\n', " "))]);
}

/// Signs of life for systemd's watchdog, while the daemon can do its work: its tasks get their turn, and the threads
/// that serve the mount answer. What waits for a quorum or for a slow medium is not stuck, so neither is asked for.
pub(super) struct Watchdog {
    every: Duration,
    task: JoinHandle<()>,
}

impl Watchdog {
    /// Signs of life of the daemon's tasks alone; none if systemd has not asked for any.
    pub(super) fn start() -> Option<Self> {
        let every = sd_notify::watchdog_enabled()? / SIGNS;
        let signs = async move {
            loop {
                notify(&[NotifyState::Watchdog]);
                tokio::time::sleep(every).await;
            }
        };
        Some(Self {
            every,
            task: tokio::spawn(signs),
        })
    }

    /// From now on the mount must answer, too.
    pub(super) fn watch_mount(&mut self, mount: &Path) {
        let (every, probe) = (self.every, MountProbe::new(mount, Question::Threads));
        let signs = async move {
            loop {
                match probe.ask(every).await {
                    Err(Silent::Late) => tracing::error!("the threads that serve the mount are stuck"),
                    // That no process can be started to ask is no sign of that.
                    Ok(()) | Err(Silent::Broken(_)) => notify(&[NotifyState::Watchdog]),
                }
                tokio::time::sleep(every).await;
            }
        };
        self.task.abort();
        self.task = tokio::spawn(signs);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.task.abort();
    }
}
