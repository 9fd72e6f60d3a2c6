//! Takes systemd's place: hears what a daemon says of itself.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Node;

/// Within this time a daemon has to give a sign of life.
pub const WATCHDOG: Duration = Duration::from_secs(4);

/// That a daemon said it was ready.
#[derive(Debug, Clone)]
pub struct Ready {
    /// When.
    pub at: Instant,
    /// How long it took, from then, to change the tree through the mount and to read it; or why that did not work.
    pub mount: Result<Duration, String>,
}

/// What was heard since [`Listener::forget`].
#[derive(Debug, Default)]
struct Heard {
    readies: Vec<Ready>,
    signs: u64,
    status: String,
}

/// Listens to the daemon of one node, over all its runs.
pub struct Listener {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens; when the daemon says that it is ready, tries its mount at once.
    ///
    /// # Panics
    /// If the socket cannot be made.
    #[must_use]
    pub fn start(node: &Node) -> Self {
        let socket = UnixDatagram::bind(node.notify_socket()).expect("a new socket");
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped, mount) = (Arc::clone(&heard), Arc::clone(&stop), node.mount.clone());
        let name = node.name.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(len) = socket.recv(&mut buffer) else {
                    continue;
                };
                let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                hear(&text, &shared, &mount, &name);
            }
        });
        Self {
            heard,
            stop,
            thread: Some(thread),
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each time that the daemon said it was ready.
    #[must_use]
    pub fn readies(&self) -> Vec<Ready> {
        self.heard().readies.clone()
    }

    /// Number of signs of life.
    #[must_use]
    pub fn signs(&self) -> u64 {
        self.heard().signs
    }

    /// What it last said it was doing.
    #[must_use]
    pub fn status(&self) -> String {
        self.heard().status.clone()
    }

    /// Forgets what was heard so far.
    pub fn forget(&self) {
        *self.heard() = Heard::default();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn hear(text: &str, heard: &Mutex<Heard>, mount: &Path, name: &str) {
    let lock = || heard.lock().unwrap_or_else(PoisonError::into_inner);
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => {
                let at = Instant::now();
                let mount = use_mount(mount, name).map(|()| at.elapsed());
                lock().readies.push(Ready { at, mount });
            }
            Some(("WATCHDOG", "1")) => lock().signs += 1,
            Some(("STATUS", status)) => status.clone_into(&mut lock().status),
            _ => {}
        }
    }
}

/// Changes the tree through the mount, durably, and reads what it wrote.
fn use_mount(mount: &Path, name: &str) -> Result<(), String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let is_ours = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == mount.to_str() && fields.next() == Some("fuse.bramble")
    };
    if !mounts.lines().any(is_ours) {
        return Err("not mounted".into());
    }
    let (path, text) = (
        mount.join(format!("ready-{name}")),
        format!("{:?}", Instant::now()),
    );
    let write = || -> std::io::Result<String> {
        std::fs::write(&path, &text)?;
        std::fs::File::open(&path)?.sync_all()?;
        std::fs::read_to_string(&path)
    };
    match write() {
        Ok(read) if read == text => Ok(()),
        Ok(read) => Err(format!("read {read:?} after {text:?} was written")),
        Err(error) => Err(error.to_string()),
    }
}
