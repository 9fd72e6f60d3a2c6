//! `bramble drain`: gives away what moves elsewhere, before a node is shut down or worked on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{Outcome, admin};

/// Another node that can lead does so within this time.
const LEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// Swarm stops a task within this time, or it is said which are left.
const TASKS_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn drain(store: &Path, undo: bool, swarm: bool) -> Outcome {
    if undo {
        admin::set_draining(store, false)?;
        println!("this node is not draining any more");
        return if swarm { set_availability("active") } else { Ok(()) };
    }
    // Tasks go first: while they end, the address and the leader are still where they were.
    if swarm {
        set_availability("drain")?;
        wait_for_tasks();
    }
    admin::set_draining(store, true)?;
    println!("this node is draining: it gives the virtual address and leadership away, and keeps its data");
    let status = || admin::parsed_status(store);
    let own = status()?.node.name;
    let moved = poll(LEADER_TIMEOUT, || {
        Ok(status()?.cluster.leader.filter(|leader| *leader != own))
    })?;
    match moved {
        Some(leader) => println!("{leader} leads"),
        None => println!("this node still leads: no other one can now"),
    }
    Ok(())
}

/// Looks until there is an answer, or the time is up.
fn poll<T>(
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<Option<T>, String> {
    let looks = limit.as_secs() / LOOK_INTERVAL.as_secs();
    for _ in 0..looks {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    look()
}

fn docker(args: &[&str]) -> Result<String, String> {
    let output = Command::new("docker").args(args).output();
    let output = output.map_err(|error| format!("docker cannot be run: {error}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(said(&output.stdout))
    } else {
        Err(format!("docker {}: {}", args.join(" "), said(&output.stderr)))
    }
}

/// Tells Swarm whether this node may have tasks.
fn set_availability(availability: &str) -> Outcome {
    let node = docker(&["info", "--format", "{{.Swarm.NodeID}}"])?;
    if node.is_empty() {
        return Err("this machine is in no Swarm: leave --swarm out".into());
    }
    docker(&["node", "update", "--availability", availability, &node])
        .map_err(|error| format!("{error}\nOnly a manager can do this: on one, run `docker node update --availability {availability} {node}`"))?;
    println!("Swarm: this node's availability is {availability}");
    Ok(())
}

/// Waits until Swarm has taken its tasks away.
fn wait_for_tasks() {
    let left = || docker(&["ps", "--quiet", "--filter", "label=com.docker.swarm.task.id"]);
    match poll(TASKS_TIMEOUT, || Ok(left()?.is_empty().then_some(()))) {
        Ok(Some(())) => println!("Swarm: its tasks have left"),
        Ok(None) => println!(
            "Swarm: after {} s there still are tasks here; `docker ps` shows them",
            TASKS_TIMEOUT.as_secs()
        ),
        Err(error) => println!("Swarm: {error}"),
    }
}
