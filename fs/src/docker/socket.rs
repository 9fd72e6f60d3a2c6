//! The plugin's socket in the file system: where Docker looks for it, and whose it is.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{UnixListener, UnixStream};

use crate::swarm::DockerSocket;

/// Docker's own directory for what lives as long as the machine is up.
const DOCKER_RUN: &str = "/run/docker";
/// The name of the file is the name of the plugin.
const SOCKET: &str = "/run/docker/plugins/bramble.sock";
/// Where Docker's daemon is, if it is installed.
const DOCKERD: [&str; 4] = [
    "/usr/bin/dockerd",
    "/usr/sbin/dockerd",
    "/usr/local/bin/dockerd",
    "/usr/local/sbin/dockerd",
];

/// Whether and where the plugin is served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PluginSocket {
    /// Where Docker looks for it, if Docker is installed or has run.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// There.
    At(PathBuf),
}

impl FromStr for PluginSocket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::At(path.into())),
            _ => Err("give auto, off, or the absolute path of the socket".into()),
        }
    }
}

impl PluginSocket {
    /// The Docker whose plugin this is: RUN/docker/plugins/NAME.sock belongs to RUN/docker.sock. None if it is not served.
    #[must_use]
    pub fn docker(&self) -> Option<DockerSocket> {
        match self {
            Self::Off => None,
            Self::At(path) => Some(DockerSocket::new(&docker_socket(path), true)),
            Self::Auto => {
                let installed = DOCKERD.iter().any(|path| Path::new(path).exists());
                Some(DockerSocket::new(&docker_socket(Path::new(SOCKET)), installed))
            }
        }
    }

    /// Where to serve now. Docker may be installed later, so this is to be asked again.
    #[must_use]
    pub fn wanted(&self) -> Option<&Path> {
        match self {
            Self::Off => None,
            Self::At(path) => Some(path),
            Self::Auto => {
                // After a boot Docker's directory is missing until Docker has started, and then it wants its plugins.
                let docker = [DOCKER_RUN]
                    .iter()
                    .chain(&DOCKERD)
                    .any(|path| Path::new(path).exists());
                docker.then_some(Path::new(SOCKET))
            }
        }
    }
}

/// Where the Docker listens that looks for its plugins where `plugin` is.
pub(super) fn docker_socket(plugin: &Path) -> PathBuf {
    let run = plugin.ancestors().nth(3).unwrap_or(Path::new("/run"));
    run.join("docker.sock")
}

/// Why the plugin cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// By another daemon.
    #[error("{0} is served by another process, a second bramble on this machine?")]
    Busy(PathBuf),
    /// Not a socket.
    #[error("{0} is not a socket: remove it")]
    Strange(PathBuf),
    /// Anything else.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

/// The socket's file; removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`, which only root can connect to. What a killed daemon has left there is replaced.
    ///
    /// # Errors
    /// [`SocketError`] says what to do.
    pub async fn bind(path: &Path) -> Result<(UnixListener, Self), SocketError> {
        let failed = |error| SocketError::Io(path.to_owned(), error);
        make_directories(path).map_err(failed)?;
        clear(path).await?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        let identity = identity(path).map_err(failed)?;
        let path = path.to_owned();
        Ok((listener, Self { path, identity }))
    }

    /// Whether the file is still there, and still this one.
    #[must_use]
    pub fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Makes the socket's directory as Docker would: others may pass through Docker's, and see nothing of the plugins'.
fn make_directories(path: &Path) -> io::Result<()> {
    let Some(plugins) = path.parent() else {
        return Ok(());
    };
    if let Some(docker) = plugins.parent() {
        DirBuilder::new().recursive(true).mode(0o711).create(docker)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(plugins)
}

/// Removes a socket that nobody listens to any more.
async fn clear(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::Io(path.to_owned(), error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::Strange(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::Io(path.to_owned(), error)),
        Ok(_) => return Err(SocketError::Busy(path.to_owned())),
    }
    fs::remove_file(path).map_err(|error| SocketError::Io(path.to_owned(), error))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files of a test")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_belongs_to_one_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker/plugins/bramble.sock");
        let (listener, file) = SocketFile::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(file.is_there());
        let second = SocketFile::bind(&path).await;
        assert!(matches!(second, Err(SocketError::Busy(_))), "{second:?}");
        assert!(file.is_there(), "the first one's is left alone");
        drop(listener);
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_a_killed_daemon_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bramble.sock");
        // The file stays when a listener is merely dropped.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, file) = SocketFile::bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!file.is_there());
        fs::write(&path, "x").unwrap();
        drop(file);
        assert!(path.exists(), "what is not the socket stays");
        assert!(matches!(
            SocketFile::bind(&path).await,
            Err(SocketError::Strange(_))
        ));
    }

    #[test]
    fn settings_are_understood() {
        assert_eq!("auto".parse(), Ok(PluginSocket::Auto));
        assert_eq!("off".parse(), Ok(PluginSocket::Off));
        assert_eq!("/x/y.sock".parse(), Ok(PluginSocket::At("/x/y.sock".into())));
        assert!("on".parse::<PluginSocket>().is_err());
        assert_eq!(PluginSocket::Off.wanted(), None);
    }
}
