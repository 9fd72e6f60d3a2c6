//! Asks through the kernel whether the mounted tree answers, as any program would.
//!
//! Another process asks, never this one: a process that is killed while one of its own threads waits for its own mount
//! never ends. The thread cannot leave before it is answered, and the mount is not given up before the last thread has
//! left.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;

use super::mountpoint;
use crate::fuse::ALIVE_XATTR;

/// What a question came to; `None` while it hangs.
type Answer = Option<Result<(), String>>;

/// The name of the program's command that calls [`look`], and its options.
pub const COMMAND: &str = "probe-mount";
/// This program, also after its file was replaced.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// Asks one question at a time. While the tree does not answer, whoever asks waits for the question that is under way:
/// however often `health` is called without a quorum, it costs one process.
pub struct MountProbe {
    command: Vec<OsString>,
    under_way: Mutex<Option<watch::Receiver<Answer>>>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silent {
    /// None came in time: most often there is no quorum.
    Late,
    /// The tree is not there.
    Broken(String),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Whether the tree is mounted and answers; without a quorum this may take until there is one.
    Tree,
    /// Whether the threads that serve the mount answer, whatever is behind them.
    Threads,
}

impl MountProbe {
    /// For the tree that is, or will be, mounted at `mount`.
    #[must_use]
    pub fn new(mount: &Path, question: Question) -> Self {
        let mut command: Vec<OsString> = vec![
            THIS_PROGRAM.into(),
            COMMAND.into(),
            "--mount".into(),
            mount.into(),
        ];
        if question == Question::Threads {
            command.push("--threads".into());
        }
        Self::with_command(command)
    }

    fn with_command(command: Vec<OsString>) -> Self {
        Self {
            command,
            under_way: Mutex::new(None),
        }
    }

    /// Asks, and waits for at most `limit`.
    ///
    /// # Errors
    /// [`Silent`] says what is wrong.
    pub async fn ask(&self, limit: Duration) -> Result<(), Silent> {
        let mut answer = self.question();
        match tokio::time::timeout(limit, answer.wait_for(Option::is_some)).await {
            Err(_) => Err(Silent::Late),
            Ok(Err(_)) => Err(Silent::Broken("the process that asked the tree is gone".into())),
            Ok(Ok(answer)) => match &*answer {
                Some(Err(why)) => Err(Silent::Broken(why.clone())),
                _ => Ok(()),
            },
        }
    }

    /// The question that is under way, or a new one.
    fn question(&self) -> watch::Receiver<Answer> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = under_way.as_ref()
            && receiver.borrow().is_none()
            && receiver.has_changed().is_ok()
        {
            return receiver.clone();
        }
        let (sender, receiver) = watch::channel(None);
        let command = self.command.clone();
        tokio::spawn(async move {
            sender.send_replace(Some(run(&command).await));
        });
        *under_way = Some(receiver.clone());
        receiver
    }
}

async fn run(command: &[OsString]) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else {
        return Err("no question".into());
    };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .await
        .map_err(|error| format!("the tree cannot be asked: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let why = String::from_utf8_lossy(&output.stderr);
        Err(why.trim().trim_start_matches("bramble: ").to_owned())
    }
}

/// What the other process does: answers a question.
///
/// # Errors
/// Why the answer is no.
pub fn look(mount: &Path, question: Question) -> Result<(), String> {
    if question == Question::Threads {
        // Any answer will do, also an error: it comes from those threads, or from the kernel once they are gone, and then
        // the daemon is on its way out by itself.
        let _ = rustix::fs::getxattr(mount, ALIVE_XATTR, &mut [0_u8; 16][..]);
        return Ok(());
    }
    let kind = mountpoint::mounted(mount).map_err(|error| error.to_string())?;
    if kind.as_deref() != Some(mountpoint::MOUNT_TYPE) {
        return Err(format!("{} is not mounted", mount.display()));
    }
    // A listing: the kernel may still know the attributes of what has just died.
    std::fs::read_dir(mount)
        .and_then(|mut entries| entries.next().transpose())
        .map(drop)
        .map_err(|error| format!("{}: {error}", mount.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> MountProbe {
        MountProbe::with_command(["/bin/sh", "-c", script].map(OsString::from).to_vec())
    }

    #[test]
    fn says_what_is_not_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let why = look(dir.path(), Question::Tree).unwrap_err();
        assert!(why.contains("is not mounted"), "{why}");
        assert!(look(dir.path(), Question::Threads).is_ok());
    }

    #[tokio::test]
    async fn hands_the_answer_on() {
        let limit = Duration::from_secs(60);
        assert_eq!(shell("exit 0").ask(limit).await, Ok(()));
        let probe = shell("echo bramble: not now >&2; exit 1");
        for _ in 0..3 {
            assert_eq!(probe.ask(limit).await, Err(Silent::Broken("not now".into())));
        }
    }

    #[tokio::test]
    async fn one_question_is_under_way_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (asked, go) = (dir.path().join("asked"), dir.path().join("go"));
        let script = format!(
            "echo >>{}; while [ ! -e {} ]; do sleep 0.01; done",
            asked.display(),
            go.display()
        );
        let probe = shell(&script);
        for _ in 0..3 {
            assert_eq!(probe.ask(Duration::from_millis(50)).await, Err(Silent::Late));
        }
        std::os::unix::fs::symlink("/", &go).unwrap();
        let limit = Duration::from_secs(60);
        assert_eq!(probe.ask(limit).await, Ok(()));
        assert_eq!(std::fs::read(&asked).unwrap().len(), 1);
        // That one is over: the next is asked anew.
        assert_eq!(probe.ask(limit).await, Ok(()));
        assert_eq!(std::fs::read(&asked).unwrap().len(), 2);
    }
}
