//! The Debian package, of a debug build.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::run::describe;

/// Builds it into a directory that has no other in it; the package.
///
/// # Panics
/// If that does not work.
#[must_use]
pub fn build(out: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/package");
    let mut command = Command::new(script);
    // What cargo tells a test of its package. Given to cargo again, it changes what some crates are compiled from, and all that
    // stands on them is compiled anew: here, and by the next that calls cargo without it.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let output = command
        .args(["--debug", "--out", out.to_str().unwrap()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "scripts/package: {}", describe(&output));
    let files = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    let mut packages = files.filter(|path| path.extension().is_some_and(|end| end == "deb"));
    let package = packages.next().expect("scripts/package made a package");
    assert_eq!(packages.next(), None);
    package
}
