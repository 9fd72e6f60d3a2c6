//! The whole plugin, over its socket, on volumes in memory.

mod memory;
mod protocol;
mod refusals;
mod surroundings;

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::*;
use crate::volumes::OPTIONS;
use memory::{MemoryVolumes, Mood, NODE};

/// A plugin of a test's own.
struct Host {
    dir: tempfile::TempDir,
    volumes: Arc<MemoryVolumes>,
    plugin: Option<DockerPlugin>,
}

impl Host {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        let volumes = Arc::new(MemoryVolumes::new(dir.path().join("mnt")));
        let mut host = Self {
            dir,
            volumes,
            plugin: None,
        };
        host.start().await;
        host
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/docker/plugins/bramble.sock")
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A daemon that has mounted the tree.
    async fn start(&mut self) {
        let device = std::fs::metadata(self.mount()).unwrap().dev();
        self.start_on(device, "boot").await;
    }

    async fn start_on(&mut self, device: u64, boot: &str) {
        let volumes = Arc::clone(&self.volumes) as Arc<dyn VolumeStore>;
        let driver = VolumeDriver::new(volumes, MountedTree::new(&self.mount(), device), here(boot));
        let setting = PluginSocket::At(self.socket());
        self.plugin = Some(DockerPlugin::start(setting, driver).await);
    }

    async fn stop(&mut self) {
        self.plugin.take().unwrap().stop().await;
    }

    /// What the plugin sends back for these bytes, to the end of the connection.
    async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        // What is refused early need not be read to its end.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(30), reading)
            .await
            .expect("the connection ends");
        answer
    }

    /// Status and body; `None` if the connection was broken without an answer.
    async fn post(&self, path: &str, body: &[u8]) -> Option<(u16, Value)> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: plugin\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = self.raw(&[head.as_bytes(), body].concat()).await;
        if answer.is_empty() {
            return None;
        }
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let typed = head
            .to_ascii_lowercase()
            .contains("content-type: application/vnd.docker.plugins.v1.2+json");
        assert!(typed, "{head}");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some((status, serde_json::from_str(body).unwrap()))
    }

    /// The body of an answer that there is.
    async fn call(&self, call: &str, body: Value) -> Value {
        let answer = self.post(&format!("/{call}"), body.to_string().as_bytes()).await;
        let (status, value) = answer.unwrap_or_else(|| panic!("{call} {body}: no answer"));
        assert_eq!(status, 200, "{call} {body}: {value}");
        value
    }

    /// As [`Host::call`], for one that succeeds.
    async fn ok(&self, call: &str, body: Value) -> Value {
        let answer = self.call(&format!("VolumeDriver.{call}"), body.clone()).await;
        assert_eq!(answer["Err"], "", "{call} {body}");
        answer
    }

    /// As [`Host::call`], for one that is refused: why.
    async fn refused(&self, call: &str, body: Value) -> String {
        let answer = self.call(&format!("VolumeDriver.{call}"), body.clone()).await;
        let why = answer["Err"].as_str().unwrap_or_default().to_owned();
        assert!(!why.is_empty(), "{call} {body}: {answer}");
        why
    }
}

fn here(boot: &str) -> Here {
    Here {
        node: NODE.into(),
        boot: boot.into(),
    }
}

fn name(name: &str) -> Value {
    json!({ "Name": name })
}

fn mount(name: &str, id: &str) -> Value {
    json!({ "Name": name, "ID": id })
}

async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited for {what}, in vain");
}
