//! Prepares the disk that the store is to be on. Nothing that may be data is ever written over unasked.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::machine::Machine;
use crate::cli::{Outcome, text};
use crate::node::mountpoint;

/// Kinds of filesystems that a store can be on.
const USABLE: [&str; 4] = ["ext4", "xfs", "btrfs", "f2fs"];
/// How the filesystem is mounted; a disk that comes late, or not at all, does not keep the machine from booting.
const FSTAB_OPTIONS: &str = "noatime,nofail,x-systemd.device-timeout=infinity";

/// What is to be done.
pub(super) struct Wanted<'a> {
    /// A partition, or a whole disk.
    pub(super) device: &'a Path,
    /// The device that may be erased.
    pub(super) erase: Option<&'a Path>,
    /// Where it is to be mounted.
    pub(super) at: &'a Path,
    /// Where that is to be written down.
    pub(super) fstab: &'a Path,
}

/// What is on a device.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Nothing: it holds zeros.
    Blank,
    /// A filesystem with nothing in it.
    Empty,
    /// A filesystem with a store in it.
    Store,
    /// Anything else, in words.
    Data(String),
}

#[derive(Debug, Deserialize)]
struct Lsblk {
    blockdevices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
struct Device {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    size: u64,
    #[serde(default)]
    mountpoints: Vec<Option<String>>,
    #[serde(default)]
    children: Vec<Device>,
}

impl Device {
    /// Where it, or a part of it, is in use.
    fn uses(&self) -> Vec<String> {
        let own = self.mountpoints.iter().flatten().cloned();
        own.chain(self.children.iter().flat_map(Self::uses)).collect()
    }
}

/// Sees to it that the wanted device is mounted, with a filesystem that holds a store or nothing.
pub(super) fn prepare(machine: &dyn Machine, wanted: &Wanted, say: &dyn Fn(&str)) -> Outcome {
    let (name, at) = (
        wanted.device.display().to_string(),
        wanted.at.display().to_string(),
    );
    let device = look(machine, &name)?;
    let uses = device.uses();
    if uses.contains(&at) {
        say(&format!("{name} is mounted at {at} already"));
        return Ok(());
    }
    if !uses.is_empty() {
        return Err(format!(
            "{name} is in use ({}): it was left alone. Unmount it first, or choose another disk with --disk",
            uses.join(", ")
        ));
    }
    check_place(wanted.at)?;
    let found = what_is_on(machine, &device)?;
    match &found {
        Found::Store => say(&format!("{name} holds a store: it is used as it is")),
        Found::Empty => say(&format!("{name} has an empty filesystem: it is used as it is")),
        Found::Blank if device.kind == "part" => format(machine, &name, say)?,
        Found::Blank | Found::Data(_) => {
            confirm(machine, wanted, &device, &found)?;
            format(machine, &name, say)?;
        }
    }
    mount(machine, wanted, say)
}

fn look(machine: &dyn Machine, name: &str) -> Result<Device, String> {
    let columns = "PATH,TYPE,SIZE,MOUNTPOINTS";
    let listed = machine.run("lsblk", &["--json", "--bytes", "--output", columns, name]);
    let none =
        |why: String| format!("{name} is no disk or partition of this machine ({why}): `lsblk` lists them");
    let listed: Lsblk = serde_json::from_str(&listed.map_err(none)?).map_err(|error| none(text(error)))?;
    let device = listed.blockdevices.into_iter().next();
    device.ok_or_else(|| none("it is not listed".into()))
}

/// The place of the mount is a directory with nothing in it that would be hidden.
fn check_place(at: &Path) -> Outcome {
    std::fs::create_dir_all(at).map_err(|error| format!("{} cannot be made: {error}", at.display()))?;
    if let Some(kind) = mountpoint::mounted(at).map_err(text)? {
        return Err(format!(
            "something else ({kind}) is mounted at {}: unmount it first",
            at.display()
        ));
    }
    let mut entries = std::fs::read_dir(at).map_err(text)?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(format!(
            "{} is not empty: a disk mounted there would hide what it holds. Leave --disk out to use the directory as it is, \
             or move it away",
            at.display()
        )),
    }
}

fn what_is_on(machine: &dyn Machine, device: &Device) -> Result<Found, String> {
    if !device.children.is_empty() {
        let parts = device.children.iter().map(|part| part.path.clone());
        return Ok(Found::Data(format!(
            "partitions: {}",
            parts.collect::<Vec<_>>().join(", ")
        )));
    }
    // Fails if it knows nothing of what is there.
    let probed = machine
        .run("blkid", &["-p", "-o", "export", &device.path])
        .unwrap_or_default();
    let value = |key: &str| {
        let line = probed
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(str::to_owned)
    };
    if let Some(kind) = value("TYPE") {
        let label = value("LABEL").map_or_else(String::new, |label| format!(", labelled {label}"));
        if !USABLE.contains(&kind.as_str()) {
            return Ok(Found::Data(format!("{kind}{label}")));
        }
        return look_into(machine, &device.path, &format!("a filesystem ({kind}{label})"));
    }
    if let Some(kind) = value("PTTYPE") {
        return Ok(Found::Data(format!("a partition table ({kind})")));
    }
    if machine.is_blank(Path::new(&device.path))? {
        return Ok(Found::Blank);
    }
    Ok(Found::Data("data of an unknown kind".into()))
}

/// What is in a filesystem; it is mounted for a moment, and not written to.
fn look_into(machine: &dyn Machine, device: &str, what: &str) -> Result<Found, String> {
    let dir = tempfile::tempdir().map_err(text)?;
    let at = dir.path().display().to_string();
    if machine
        .run("mount", &["-o", "ro,nosuid,nodev", device, &at])
        .is_err()
    {
        return Ok(Found::Data(format!("{what} that cannot be mounted")));
    }
    let listed = list(dir.path());
    let unmounted = machine.run("umount", &[&at]);
    let names = listed.map_err(|error| format!("{device} cannot be read: {error}"))?;
    unmounted?;
    Ok(match names.as_slice() {
        [] => Found::Empty,
        names if names.iter().any(|name| name == "store") => Found::Store,
        names => Found::Data(format!("{what} with {} in it", some_of(names))),
    })
}

/// Names in a directory; if there is a directory `store`, it counts only with an identity in it.
fn list(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        match name.as_str() {
            "lost+found" => {}
            "store" if !dir.join("store/identity").exists() => {
                names.push("store (which is no store of Bramble)".into())
            }
            _ => names.push(name),
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// Asks before a device is written over.
fn confirm(machine: &dyn Machine, wanted: &Wanted, device: &Device, found: &Found) -> Outcome {
    let name = wanted.device.display().to_string();
    if let Some(erase) = wanted.erase {
        if erase == wanted.device {
            return Ok(());
        }
        return Err(format!(
            "--yes-erase names {}, and --disk {name}: nothing was written",
            erase.display()
        ));
    }
    let holds = match found {
        Found::Data(what) => format!("{name} is not empty: it holds {what}"),
        _ => format!("{name} is a whole disk, and seems to be blank"),
    };
    let size = crate::node::status::human_bytes(device.size);
    let question = format!("{holds}.\nAll of it ({size}) would be erased. Type {name} to do that:");
    match machine.ask(&question) {
        Some(answer) if answer == name => Ok(()),
        Some(_) => Err("that was something else: nothing was written".into()),
        None => Err(format!(
            "{holds}. Nothing was written. If all of it ({size}) may be erased, add --yes-erase {name}"
        )),
    }
}

fn format(machine: &dyn Machine, name: &str, say: &dyn Fn(&str)) -> Outcome {
    say(&format!("making a filesystem (ext4) on {name}"));
    machine.run("wipefs", &["--all", "--quiet", name])?;
    machine
        .run("mkfs.ext4", &["-q", "-F", "-L", "bramble", name])
        .map(drop)
}

fn mount(machine: &dyn Machine, wanted: &Wanted, say: &dyn Fn(&str)) -> Outcome {
    let (name, at) = (
        wanted.device.display().to_string(),
        wanted.at.display().to_string(),
    );
    let value = |tag: &str| machine.run("blkid", &["-p", "-s", tag, "-o", "value", &name]);
    let (uuid, kind) = (value("UUID")?, value("TYPE")?);
    write_down(wanted.fstab, &uuid, &kind, wanted.at)?;
    if machine.has_systemd() {
        machine.run("systemctl", &["daemon-reload"])?;
    }
    machine.run("mount", &["-o", "noatime", &name, &at])?;
    say(&format!("{name} is mounted at {at}, now and at each boot"));
    Ok(())
}

/// Adds a line to fstab, unless the filesystem, or the place, is in it.
fn write_down(fstab: &Path, uuid: &str, kind: &str, at: &Path) -> Outcome {
    let path = fstab.display();
    let old = match std::fs::read_to_string(fstab) {
        Ok(old) => old,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("{path} cannot be read: {error}")),
    };
    let (device, at) = (format!("UUID={uuid}"), at.display().to_string());
    for line in old.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            [what, place, ..] if *what == device && *place == at => return Ok(()),
            [what, place, ..] if *place == at => {
                return Err(format!("{path} mounts {what} at {at}: remove that line first"));
            }
            _ => {}
        }
    }
    let newline = if old.is_empty() || old.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let new = format!("{old}{newline}{device}  {at}  {kind}  {FSTAB_OPTIONS}  0  2\n");
    let draft: PathBuf = fstab.with_extension("bramble-new");
    #[expect(
        clippy::disallowed_methods,
        reason = "a file of the machine's, replaced whole"
    )]
    let written = std::fs::write(&draft, new).and_then(|()| std::fs::rename(&draft, fstab));
    written.map_err(|error| format!("{path} cannot be written: {error}"))
}
