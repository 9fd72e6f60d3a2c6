//! The harness of the cluster tests: a [`Cluster`] of real `bramble` processes with real mounts, on this machine.
//!
//! What a test makes on the machine (processes, mounts, network namespaces, loop devices, directories) is listed in
//! the cluster's state directory, and removed by a [`janitor`](janitor::Janitor) process when the test ends, in
//! whatever way it ends.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests use the real clock, disk and randomness, and a failed step is a failed test"
)]

pub mod boot;
pub mod cluster;
pub mod corrupt;
pub mod docker;
pub mod hosts;
pub mod images;
pub mod janitor;
pub mod load;
pub mod machine;
pub mod meeting;
pub mod net;
pub mod node;
pub mod notify;
pub mod package;
pub mod run;
pub mod seed;
pub mod status;
pub mod sys;

pub use cluster::{Cluster, Options, Own, Shared};
pub use meeting::Meeting;
pub use node::Node;
pub use run::{bramble, run, sh, try_run};
pub use seed::Seed;

use std::time::{Duration, Instant};

/// True if the long versions of the tests were asked for (`BRAMBLE_TEST_FULL=1`).
#[must_use]
pub fn full() -> bool {
    std::env::var_os("BRAMBLE_TEST_FULL").is_some_and(|value| value != "0")
}

/// Directories (`BRAMBLE_TEST_REFERENCE`, with colons between) to be taken for the nodes' mounts, in turn. With one
/// directory of a local filesystem, this shows whether a test of calls and programs asks for what Linux itself does;
/// with the mounts of the `local_mount` example, it tests the POSIX and FUSE layers alone.
#[must_use]
pub fn reference() -> Option<Vec<std::path::PathBuf>> {
    let dirs = std::env::var_os("BRAMBLE_TEST_REFERENCE")?;
    Some(std::env::split_paths(&dirs).collect())
}

/// `brief` in an ordinary run, `full` in a long one.
pub fn brief_or_full<T>(brief: T, full: T) -> T {
    if self::full() { full } else { brief }
}

/// Calls `check` until it answers `Some`, at most for `limit`.
///
/// # Panics
/// When the time is up, naming `what` was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = check() {
            return answer;
        }
        assert!(
            start.elapsed() < limit,
            "waited {} s for {what}, in vain",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
