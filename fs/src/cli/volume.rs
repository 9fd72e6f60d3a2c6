//! `bramble volume`.

use std::collections::HashMap;
use std::path::Path;

use bramble_proto::volume_request::Action;
use bramble_proto::{
    QuotaSet, VolumeCreate, VolumeList as ListRequest, VolumeRemove, VolumeRequest, VolumeRestore, VolumeSet,
    VolumeSnapshot,
};
use serde::de::DeserializeOwned;

use super::Outcome;
use super::admin::{TIMEOUT, ask};
use super::args::{MakeVolumeArgs, VolumeCommand, VolumeOptionArgs};
use crate::volumes::{SnapshotStatus, VolumeList, VolumeStatus};

pub(super) fn volume(command: VolumeCommand) -> Outcome {
    match command {
        VolumeCommand::Create { name, make } => create(name, None, make),
        VolumeCommand::Clone { source, name, make } => create(name, Some(&source), make),
        VolumeCommand::Rm {
            store,
            name,
            keep,
            purge,
            force,
        } => {
            let (name, snapshot) = split(&name);
            let keep = (keep || purge).then_some(keep);
            let action = VolumeRemove {
                name,
                snapshot,
                keep,
                force,
            };
            run(&store, Action::Remove(action)).map(drop)
        }
        VolumeCommand::Ls { store, json } => list(&store, json),
        VolumeCommand::Set { store, name, options } => {
            let options = options.given()?;
            if options.is_empty() {
                return Err("say what is to change: --size, --inodes or --keep".into());
            }
            show(&store, Action::Set(VolumeSet { name, options }))
        }
        VolumeCommand::Snapshot { store, volume, name } => {
            let action = Action::Snapshot(VolumeSnapshot { volume, name });
            let taken: SnapshotStatus = parse(&run(&store, action)?)?;
            println!("{}@{}: {}", taken.volume, taken.name, taken.path);
            Ok(())
        }
        VolumeCommand::Restore {
            store,
            volume,
            snapshot,
            force,
        } => show(
            &store,
            Action::Restore(VolumeRestore {
                volume,
                snapshot,
                force,
            }),
        ),
        VolumeCommand::Quota {
            store,
            directory: path,
            options,
        } => {
            let options = options.given()?;
            if options.is_empty() {
                return Err("say how much: --size 10G, or --size none".into());
            }
            run(&store, Action::Quota(QuotaSet { path, options })).map(drop)
        }
    }
}

/// VOLUME, or VOLUME@SNAPSHOT.
fn split(name: &str) -> (String, String) {
    let (volume, snapshot) = name.split_once('@').unwrap_or((name, ""));
    (volume.to_owned(), snapshot.to_owned())
}

fn create(name: String, source: Option<&str>, make: MakeVolumeArgs) -> Outcome {
    let (source_volume, source_snapshot) = source.map(split).unwrap_or_default();
    let mut labels = HashMap::new();
    for label in make.label {
        let (key, value) = label.split_once('=').unwrap_or((&label, ""));
        labels.insert(key.to_owned(), value.to_owned());
    }
    let action = VolumeCreate {
        name,
        options: make.options.given()?,
        labels,
        source_volume,
        source_snapshot,
    };
    show(&make.store, Action::Create(action))
}

impl VolumeOptionArgs {
    /// By name, as they were given.
    fn given(self) -> Result<HashMap<String, String>, String> {
        let mut given = HashMap::new();
        for option in self.option {
            let (key, value) = option.split_once('=').unwrap_or((&option, ""));
            given.insert(key.to_owned(), value.to_owned());
        }
        let named = [
            ("size", self.size),
            ("inodes", self.inodes),
            ("uid", self.uid),
            ("gid", self.gid),
            ("mode", self.mode),
            ("path", self.path),
            ("replicas", self.replicas),
            ("keep", self.keep),
        ];
        for (key, value) in named {
            let Some(value) = value else { continue };
            if given.insert(key.to_owned(), value).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(given)
    }
}

fn run(store: &Path, action: Action) -> Result<String, String> {
    let request = VolumeRequest { action: Some(action) };
    ask(store, TIMEOUT, async |mut client| {
        Ok(client.volume(request).await?.into_inner().json)
    })
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| format!("the daemon is of another version: {error}"))
}

/// Prints the volume that came of it.
fn show(store: &Path, action: Action) -> Outcome {
    let volume: VolumeStatus = parse(&run(store, action)?)?;
    let path = volume.path.as_deref().unwrap_or("moved");
    println!("{}: {path}", volume.name);
    Ok(())
}

fn list(store: &Path, json: bool) -> Outcome {
    let answer = run(store, Action::List(ListRequest {}))?;
    if json {
        println!("{answer}");
    } else {
        print!("{}", parse::<VolumeList>(&answer)?.to_text());
    }
    Ok(())
}
