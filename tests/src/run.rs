//! Running programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The `bramble` program under test: `BRAMBLE`, or the one that cargo built beside this test.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn bramble() -> PathBuf {
    if let Some(path) = std::env::var_os("BRAMBLE") {
        return path.into();
    }
    // target/debug/deps/cluster-0123 -> target/debug/bramble
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("bramble");
    assert!(
        path.exists(),
        "there is no {}: run these tests with `scripts/test cluster`",
        path.display()
    );
    path
}

/// One of the test programs that `scripts/test` installs with cargo.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let dir = std::env::var_os("BRAMBLE_TEST_TOOLS").expect("run these tests with `scripts/test cluster`");
    let path = Path::new(&dir).join(name);
    assert!(
        path.exists(),
        "there is no {}: run these tests with `scripts/test cluster`",
        path.display()
    );
    path
}

/// Runs a program without standard input and returns its output, whatever its exit status.
///
/// # Panics
/// If it cannot be started.
pub fn try_run<I: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = I>) -> Output {
    let mut command = Command::new(&program);
    command.args(args).stdin(Stdio::null());
    command
        .output()
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", program.as_ref().display()))
}

/// Runs a program that must succeed; returns its standard output.
///
/// # Panics
/// If it fails, with what it printed.
pub fn run<I: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = I>) -> String {
    let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    let output = try_run(&program, &args);
    assert!(
        output.status.success(),
        "{} {args:?}: {}",
        program.as_ref().display(),
        describe(&output)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a shell script that must succeed, in `dir`; returns its standard output.
///
/// # Panics
/// If it fails, with what it printed.
pub fn sh(dir: &Path, script: &str) -> String {
    let output = try_sh(dir, script);
    assert!(output.status.success(), "`{script}`: {}", describe(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a shell script in `dir`, stopping at its first failing command.
///
/// # Panics
/// If there is no shell.
#[must_use]
pub fn try_sh(dir: &Path, script: &str) -> Output {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-euc", script])
        .current_dir(dir)
        .stdin(Stdio::null());
    command
        .output()
        .unwrap_or_else(|e| panic!("cannot run a shell in {}: {e}", dir.display()))
}

/// Exit status and the end of what a program printed.
#[must_use]
pub fn describe(output: &Output) -> String {
    let tail = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    };
    format!(
        "{}\n{}\n{}",
        output.status,
        tail(&output.stdout),
        tail(&output.stderr)
    )
}
