//! What bootstrapping asks of the machine; tests put another in its place.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

/// The machine that is bootstrapped.
pub(super) trait Machine {
    /// Runs a program to its end; what it printed.
    ///
    /// # Errors
    /// What it said of its failure.
    fn run(&self, program: &str, args: &[&str]) -> Result<String, String>;
    /// Whether the first bytes of a device are all 0.
    fn is_blank(&self, device: &Path) -> Result<bool, String>;
    /// What a person types after this question; none without a person.
    fn ask(&self, question: &str) -> Option<String>;
    /// Whether systemd runs it.
    fn has_systemd(&self) -> bool;
}

/// This machine.
pub(super) struct ThisMachine;

/// So many bytes of a device tell whether anything was ever written to it: labels of filesystems, partition tables and
/// volume managers all are in there.
const START_BYTES: usize = 4 << 20;

impl Machine for ThisMachine {
    fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{program} cannot be run: {error}"))?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(said(&output.stdout))
        } else {
            let why = said(&output.stderr);
            Err(format!("{program} {}: {why} ({})", args.join(" "), output.status))
        }
    }

    fn is_blank(&self, device: &Path) -> Result<bool, String> {
        #[expect(clippy::disallowed_methods, reason = "a disk that is none of a store's yet")]
        let file = std::fs::File::open(device);
        let cannot = |error: std::io::Error| format!("{} cannot be read: {error}", device.display());
        let mut start = Vec::new();
        let limit = u64::try_from(START_BYTES).unwrap_or(u64::MAX);
        file.and_then(|file| file.take(limit).read_to_end(&mut start))
            .map_err(cannot)?;
        Ok(start.iter().all(|byte| *byte == 0))
    }

    fn ask(&self, question: &str) -> Option<String> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        print!("{question} ");
        std::io::stdout().flush().ok()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).ok()?;
        Some(answer.trim().to_owned())
    }

    fn has_systemd(&self) -> bool {
        Path::new("/run/systemd/system").is_dir()
    }
}
