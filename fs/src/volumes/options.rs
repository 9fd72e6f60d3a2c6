//! Options of volumes, as people write them.

use std::collections::BTreeMap;

use raftstore::meta::{ProjectLimits, VolumeChange, VolumeOptions};

/// The options that there are, each with what it takes.
pub const OPTIONS: [(&str, &str); 8] = [
    ("size", "the most that it may hold, as in 500M, 10G or 1T"),
    ("inodes", "the most files and directories that it may hold"),
    ("uid", "owner of its directory, a number"),
    ("gid", "group of its directory, a number"),
    ("mode", "permissions of its directory, octal, as in 0750"),
    (
        "path",
        "its directory in the tree, as in data/web; volumes/NAME if not given",
    ),
    (
        "replicas",
        "copies of its data: as many as the cluster keeps of everything",
    ),
    ("keep", "true: removing the volume leaves its directory"),
];

/// Reads options by name.
///
/// # Errors
/// A sentence that says what is wrong with which option, and what there is.
pub fn parse_options(given: &BTreeMap<String, String>) -> Result<VolumeOptions, String> {
    let mut options = VolumeOptions::default();
    let mut limits = ProjectLimits::default();
    for (name, value) in given {
        match name.as_str() {
            "size" => limits.bytes = parse_size(value)?,
            "inodes" => limits.inodes = positive(name, value)?,
            "uid" => options.uid = Some(number(name, value)?),
            "gid" => options.gid = Some(number(name, value)?),
            "mode" => options.mode = Some(parse_mode(value)?),
            "path" => options.path = parse_path(value)?,
            "replicas" => options.replicas = Some(number(name, value)?),
            "keep" => options.keep = parse_bool(name, value)?,
            _ => return Err(unknown(name)),
        }
    }
    options.limits = limits;
    Ok(options)
}

/// Reads options that are to change; `none` takes a limit away.
///
/// # Errors
/// A sentence that says what is wrong with which option, and what can be changed.
pub fn parse_change(given: &BTreeMap<String, String>) -> Result<VolumeChange, String> {
    let mut change = VolumeChange::default();
    for (name, value) in given {
        match (name.as_str(), value.as_str()) {
            ("size", "none") => change.bytes = Some(0),
            ("inodes", "none") => change.inodes = Some(0),
            ("size", value) => change.bytes = Some(parse_size(value)?),
            ("inodes", value) => change.inodes = Some(positive(name, value)?),
            ("keep", value) => change.keep = Some(parse_bool(name, value)?),
            _ => return Err(format!("{name} cannot be changed: size, inodes and keep can")),
        }
    }
    Ok(change)
}

fn unknown(name: &str) -> String {
    let known: Vec<String> = OPTIONS
        .iter()
        .map(|(name, takes)| format!("{name} ({takes})"))
        .collect();
    format!("there is no option {name:?}; there are: {}", known.join(", "))
}

/// A number of bytes: digits, and K, M, G or T for powers of 1024 (also KiB or KB, and so on).
///
/// # Errors
/// If it is none, or 0.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("size {text:?} is no size: give a number with K, M, G or T, as in 500M or 10G");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
    if bytes == 0 {
        return Err("a size of 0 holds nothing: give more, or none for no limit".into());
    }
    Ok(bytes)
}

fn number(name: &str, value: &str) -> Result<u32, String> {
    value
        .parse()
        .map_err(|_| format!("{name}={value:?} is no number"))
}

fn positive(name: &str, value: &str) -> Result<u64, String> {
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("{name}={value:?} is no number above 0"))
}

fn parse_mode(value: &str) -> Result<u32, String> {
    let digits = value.strip_prefix("0o").unwrap_or(value);
    let plain = digits.chars().all(|c| c.is_ascii_digit());
    let mode = u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| plain && *mode <= 0o7777);
    mode.ok_or_else(|| format!("mode={value:?} is no octal number of permissions, as 0750 is"))
}

fn parse_bool(name: &str, value: &str) -> Result<bool, String> {
    match value {
        // `-o keep` alone asks for it, too.
        "" | "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("{name}={value:?} is neither true nor false")),
    }
}

/// A path in the tree, without slashes at its ends.
fn parse_path(value: &str) -> Result<String, String> {
    let path = value.trim_matches('/');
    let parts = || path.split('/');
    if path.is_empty() || parts().any(|part| matches!(part, "" | "." | "..") || part.contains('\0')) {
        return Err(format!(
            "path={value:?} is no path in the tree: give names with slashes between, without . and .."
        ));
    }
    if path.starts_with(".snapshots") {
        return Err(format!("path={value:?}: snapshots are there"));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VolumeOptions, String> {
        let pairs = text.split(',').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let given: BTreeMap<String, String> = pairs.map(|(k, v)| (k.into(), v.into())).collect();
        parse_options(&given)
    }

    #[test]
    fn options_are_understood() {
        assert_eq!(parse("").unwrap(), VolumeOptions::default());
        let options = parse("size=10G,uid=33,gid=44,mode=0750,path=/data/web/,replicas=3,keep").unwrap();
        assert_eq!(options.limits.bytes, 10 << 30);
        assert_eq!(
            (options.uid, options.gid, options.mode),
            (Some(33), Some(44), Some(0o750))
        );
        assert_eq!(options.path, "data/web");
        assert_eq!((options.replicas, options.keep), (Some(3), true));
        for (text, bytes) in [("1", 1), ("2k", 2048), ("3MiB", 3 << 20), ("4TB", 4 << 40)] {
            assert_eq!(parse_size(text).unwrap(), bytes);
        }
    }

    #[test]
    fn limits_can_be_taken_away() {
        let change = |name: &str, value: &str| parse_change(&BTreeMap::from([(name.into(), value.into())]));
        assert_eq!(change("size", "none").unwrap().bytes, Some(0));
        assert_eq!(change("size", "1G").unwrap().bytes, Some(1 << 30));
        assert_eq!(change("keep", "false").unwrap().keep, Some(false));
        assert!(change("size", "0").is_err());
        assert!(change("uid", "1").unwrap_err().contains("size, inodes and keep"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_there_is() {
        let unknown = parse("sise=10G").unwrap_err();
        assert!(
            OPTIONS.iter().all(|(name, _)| unknown.contains(name)),
            "{unknown}"
        );
        for wrong in [
            "size=0",
            "size=",
            "size=G",
            "size=-1",
            "size=1.5G",
            "size=10X",
            "size=99999999999T",
            "uid=root",
            "uid=-1",
            "mode=0999",
            "mode=10000",
            "mode=rwx",
            "mode=+7",
            "path=",
            "path=/",
            "path=a/../b",
            "path=a//b",
            "path=.snapshots/v",
            "replicas=all",
            "keep=perhaps",
            "inodes=0",
        ] {
            let error = parse(wrong).unwrap_err();
            let name = wrong.split('=').next().unwrap();
            assert!(error.contains(name) || error.contains("size"), "{wrong}: {error}");
        }
    }
}
