//! Calls of other programs.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::clock::{Clock as _, SystemClock};
use crate::{Error, Result};

/// Runs a program that must succeed; returns what it printed.
///
/// # Errors
/// With the end of what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(20)..].join("\n");
    Err(Error::Command {
        command: describe(command),
        what: format!("{}\n{tail}", output.status),
    })
}

/// Runs a program to its end.
///
/// # Errors
/// If it cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|e| Error::Command {
        command: describe(command),
        what: e.to_string(),
    })
}

/// Runs `program` with arguments that are separated by spaces.
///
/// # Errors
/// As [`run`].
pub fn words(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    run(Command::new(words.next().unwrap_or_default()).args(words))
}

/// Calls `check` until it answers true.
///
/// # Errors
/// Those of `check`; or that `what` did not come within the limit.
pub fn wait_for(what: &str, limit: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = SystemClock.now();
    while !check()? {
        if SystemClock.now().saturating_sub(start) > limit {
            return Err(Error::Usage(format!(
                "waited {} s for {what}, in vain",
                limit.as_secs()
            )));
        }
        SystemClock.sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
