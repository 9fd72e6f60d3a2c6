//! Starts the daemon, or has it started.

use std::path::Path;
use std::time::Duration;

use super::machine::Machine;
use crate::cli::admin::NO_DAEMON;
use crate::cli::{Outcome, admin};
use crate::docker::PluginSocket;
use crate::node::transport::wire::WireError;

/// The store that the unit serves.
pub(super) const UNIT_STORE: &str = "/var/lib/bramble/store";
/// The unit.
const UNIT: &str = "bramble.service";
/// Between two looks whether the node is healthy.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// So often it is looked: the medium is measured at the first start, and an election may be due.
const LOOKS_MAX: u32 = 1200;

/// So often in a row there may be no daemon after it was started.
const ABSENT_MAX: u32 = 60;

/// Who starts the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Start {
    /// systemd, if it runs this machine; else the daemon is started in the background, once.
    #[default]
    Auto,
    /// systemd: the unit is enabled and started.
    Systemd,
    /// This command, in the background; not again at the next boot.
    Background,
    /// Somebody else, who runs `bramble run`; it is waited for.
    Other,
}

/// Sees to it that the daemon of `store` runs.
pub(super) fn start(
    machine: &dyn Machine,
    how: Start,
    store: &Path,
    plugin: &PluginSocket,
    say: &dyn Fn(&str),
) -> Outcome {
    let how = match how {
        Start::Auto if machine.has_systemd() => Start::Systemd,
        Start::Auto => Start::Background,
        how => how,
    };
    match how {
        Start::Auto | Start::Systemd => with_systemd(machine, store, say),
        Start::Background if is_running(store) => {
            say("the daemon runs already");
            Ok(())
        }
        Start::Background => in_the_background(machine, store, plugin, say),
        Start::Other => Ok(()),
    }
}

/// Whether a daemon answers.
fn is_running(store: &Path) -> bool {
    admin::parsed_status(store).is_ok()
}

fn with_systemd(machine: &dyn Machine, store: &Path, say: &dyn Fn(&str)) -> Outcome {
    if store != Path::new(UNIT_STORE) {
        return Err(format!(
            "{UNIT} serves {UNIT_STORE}, not {}: leave --store out (--disk puts it on a disk of its own), or start the \
             daemon otherwise and add --start other",
            store.display()
        ));
    }
    let is = |what: &str| machine.run("systemctl", &["--quiet", what, UNIT]).is_ok();
    if machine.run("systemctl", &["cat", UNIT]).is_err() {
        return Err(format!("there is no {UNIT}: install Bramble's package first"));
    }
    if is("is-enabled") && is("is-active") {
        say(&format!("{UNIT} is enabled and runs already"));
        return Ok(());
    }
    machine.run("systemctl", &["enable", UNIT])?;
    // It is ready only with a quorum; what it waits for is said by the wait that follows.
    machine.run("systemctl", &["start", "--no-block", UNIT])?;
    say(&format!("{UNIT} is enabled and started"));
    Ok(())
}

fn in_the_background(
    machine: &dyn Machine,
    store: &Path,
    plugin: &PluginSocket,
    say: &dyn Fn(&str),
) -> Outcome {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let log = store.with_file_name("bramble.log");
    let plugin = match plugin {
        PluginSocket::Auto => "auto".to_owned(),
        PluginSocket::Off => "off".to_owned(),
        PluginSocket::At(path) => path.display().to_string(),
    };
    let script = r#"exec "$1" run --store "$2" --docker-plugin "$3" >>"$4" 2>&1 </dev/null"#;
    let [program, store, at] = [&program, store, &log].map(|path: &Path| path.display().to_string());
    let args = [
        "--fork", "/bin/sh", "-c", script, "bramble", &program, &store, &plugin, &at,
    ];
    machine.run("setsid", &args)?;
    say(&format!("the daemon is started; its log is {at}"));
    Ok(())
}

/// Waits until the node is healthy.
pub(super) fn wait_healthy(store: &Path, how: Start, say: &dyn Fn(&str)) -> Outcome {
    let (mut told, mut absent) = (String::new(), 0);
    for _ in 0..LOOKS_MAX {
        let why = match admin::is_healthy(store) {
            Ok(_) => return Ok(()),
            Err(why) => why,
        };
        if why.contains(&WireError::Removed.to_string()) {
            return Err(why);
        }
        let log = "`journalctl -u bramble`, or the log beside the store, says why";
        absent = if why.contains(NO_DAEMON) { absent + 1 } else { 0 };
        if absent > ABSENT_MAX && how != Start::Other {
            return Err(format!("the daemon does not stay up: {log}"));
        }
        if why != told {
            say(&format!("waiting: {why}"));
            told = why;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Err(format!(
        "the node is not healthy after {} s: {told}. The daemon goes on trying; repeat this command later",
        LOOKS_MAX / 2
    ))
}
