//! The command line.

mod admin;
mod args;
mod bootstrap;
mod demo;
mod drain;
mod generate;
mod memory;
mod run;
mod supervise;
mod tree;
mod vip;
mod vip_check;
mod volume;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use raftstore::disk::RealDisk;

use crate::docker::describe;
use crate::node;
use crate::node::config::{Config, Limits};
use crate::node::mount_probe::{self, Question};
use crate::node::mountpoint;
use args::{Cli, Command, MakeArgs, NodeCommand};

/// What a command ends with: nothing, or a message for the user.
pub(crate) type Outcome = Result<(), String>;

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bramble: {message}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Init { make, token_valid } => init(make, token_valid),
        Command::Join { make, peer, token } => join(make, peer, &token),
        Command::Bootstrap(args) => bootstrap::bootstrap(&args),
        Command::Run {
            store,
            die_with_parent,
            docker_plugin,
        } => run::run(&store, die_with_parent, docker_plugin),
        Command::Status { store, json } => admin::status(&store, json),
        Command::Token {
            store,
            valid,
            valid_s,
        } => {
            let valid = valid_s.map_or(valid, std::time::Duration::from_secs);
            admin::token(&store, valid)
        }
        Command::Node {
            command: NodeCommand::Ls { store },
        } => admin::nodes(&store),
        Command::Node {
            command: NodeCommand::Rm { store, node, force },
        } => admin::remove(&store, node, force),
        Command::Volume { command } => volume::volume(command),
        Command::Health {
            store,
            vip: true,
            docker,
        } => vip_check::check(&store, &docker),
        Command::Health { store, .. } => admin::health(&store),
        Command::Vip(args) => vip::vip(args),
        Command::Drain { store, undo, swarm } => drain::drain(&store, undo, swarm),
        Command::Generate { man, completions } => generate::generate(man.as_deref(), completions.as_deref()),
        Command::ProbeMount {
            mount,
            directory: Some(directory),
            device,
            ..
        } => {
            println!("{}", describe(&mount, &directory, device.unwrap_or(0)));
            Ok(())
        }
        Command::ProbeMount { mount, threads, .. } => {
            let question = if threads {
                Question::Threads
            } else {
                Question::Tree
            };
            mount_probe::look(&mount, question)
        }
        Command::ProbeWrite { mount, name } => vip_check::probe_write(&mount, &name),
        Command::Wait { store } => admin::wait(&store),
        Command::Demo { dir } => demo::demo(dir.as_deref()),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The configuration that the arguments ask for, checked as far as this machine is concerned.
fn config_of(make: &MakeArgs) -> Result<Config, String> {
    let name = make.name.clone().unwrap_or_else(host_name);
    let config = Config {
        name,
        listen: make.listen,
        mount: make.mount.clone(),
        engine: make.engine,
        on_quorum_loss: make.on_quorum_loss,
        limits: Limits::default(),
    };
    config.validate().map_err(text)?;
    mountpoint::check_privileges().map_err(text)?;
    mountpoint::check_new(&config.mount).map_err(text)?;
    Ok(config)
}

/// The machine's name, without its domain.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn init(make: MakeArgs, token_valid: std::time::Duration) -> Outcome {
    let config = config_of(&make)?;
    let token = node::bootstrap::init(Arc::new(RealDisk), &make.store, &config, token_valid).map_err(text)?;
    let store = make.store.display();
    println!(
        "Node {} is ready in {store}. Start it:\n\n    bramble run --store {store}\n\nOn the next machine, while this one \
         runs (the token is good for one join; `bramble token --store {store}` makes more):\n\n    bramble join --store DIR \
         --listen IP:PORT --mount DIR --peer {} --token {token}",
        config.name, config.listen
    );
    Ok(())
}

fn join(make: MakeArgs, peer: std::net::SocketAddr, token: &str) -> Outcome {
    let token = token.parse().map_err(text)?;
    let config = config_of(&make)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    let node = runtime
        .block_on(node::bootstrap::join(
            Arc::new(RealDisk),
            &make.store,
            &config,
            peer,
            &token,
        ))
        .map_err(text)?;
    let store = make.store.display();
    println!(
        "Node {} joined as node {node}, its store is {store}. Start it:\n\n    bramble run --store {store}",
        config.name
    );
    Ok(())
}
