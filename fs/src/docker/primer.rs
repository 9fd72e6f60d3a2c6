//! Lets Docker find the plugin. Docker learns of one only when somebody asks for it, and Swarm's scheduler gives tasks with
//! a volume of ours only to nodes whose Docker has.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::socket::docker_socket;

/// Docker asks each volume plugin for its volumes before it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// So often a Docker that does not answer is asked, once at each look.
const ATTEMPTS_MAX: u32 = 60;

/// Which Docker listens at the socket: another after each of its starts.
type Identity = (u64, u64, i64, i64);

/// Asks each Docker that comes up for its volumes, once.
#[derive(Debug)]
pub struct Primer {
    socket: PathBuf,
    /// Which one was asked last, and how often in vain; 0 once it has answered.
    asked: Option<(Identity, u32)>,
}

impl Primer {
    /// For the Docker whose plugin socket is `plugin`.
    #[must_use]
    pub fn new(plugin: &Path) -> Self {
        Self {
            socket: docker_socket(plugin),
            asked: None,
        }
    }

    /// Asks, if there is a Docker that has not been asked. Says whether the one that is there has answered or was given
    /// up; false if there is none.
    pub async fn look(&mut self) -> bool {
        let Ok(found) = identity(&self.socket) else {
            return false;
        };
        let failed = match self.asked {
            Some((asked, 0)) if asked == found => return true,
            Some((asked, failed)) if asked == found => failed,
            _ => 0,
        };
        if failed >= ATTEMPTS_MAX {
            return true;
        }
        let failed = match tokio::time::timeout(ANSWER_TIMEOUT, ask(&self.socket)).await {
            Ok(Ok(())) => {
                tracing::info!(docker = %self.socket.display(), "Docker knows the volume plugin");
                0
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "Docker does not answer yet");
                failed + 1
            }
            Err(_) => failed + 1,
        };
        if failed == ATTEMPTS_MAX {
            tracing::warn!(
                docker = %self.socket.display(),
                "Docker does not answer: run `docker volume ls` on this node, so that Swarm learns of the plugin"
            );
        }
        self.asked = Some((found, failed));
        failed == 0
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let found = std::fs::metadata(path)?;
    Ok((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

/// `docker volume ls`.
async fn ask(socket: &Path) -> io::Result<()> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let request = Request::get("/volumes")
        .header(HOST, "docker")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        // To the end: Docker has asked its plugins only then.
        Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(io::Error::other)?;
        match status {
            StatusCode::OK => Ok(()),
            other => Err(io::Error::other(format!("Docker answers {other}"))),
        }
    };
    tokio::pin!(talk);
    tokio::select! {
        answer = &mut talk => answer,
        // The connection may end with the answer.
        _ = connection => talk.await,
    }
}
