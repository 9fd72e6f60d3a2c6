//! One option of a job. What is not here is refused, so that no file measures something else than it says.

use std::time::Duration;

use super::units::{boolean, bytes, time};
use super::{Access, Job, Kind, OpenSync};
use crate::pattern::BLOCK_BYTES_MIN;

/// What an option may not exceed: threads, files, and bytes of one operation.
const CLONES_MAX: u64 = 256;
const FILES_MAX: u64 = 10_000_000;
const BLOCK_BYTES_MAX: u64 = 64 << 20;

/// Sets one option; the error says what is wrong with it.
pub(super) fn apply(job: &mut Job, key: &str, value: &str) -> Result<(), String> {
    let known = set_kind(job, key, value)?
        || set_sizes(job, key, value)?
        || set_times(job, key, value)?
        || set_switches(job, key, value)?
        || accept(key, value)?;
    if known {
        return Ok(());
    }
    Err(format!(
        "this program does not know the option `{key}`; bench/README.md lists those it does"
    ))
}

/// What must hold for the options together.
pub(super) fn check(job: &Job) -> Result<(), String> {
    let untar_needs = BLOCK_BYTES_MIN * 4 * job.files;
    if job.block_bytes < BLOCK_BYTES_MIN || job.block_bytes > BLOCK_BYTES_MAX {
        return Err(format!(
            "bs must be from {BLOCK_BYTES_MIN} bytes to {} MiB",
            BLOCK_BYTES_MAX >> 20
        ));
    }
    match job.kind {
        Kind::Blocks if job.bytes_of_file() == 0 => Err(format!(
            "size (or filesize) must give each of the {} files at least one block of {} bytes",
            job.files, job.block_bytes
        )),
        Kind::Untar if job.size_bytes < untar_needs => {
            Err(format!("size must be at least {untar_needs} for so many files"))
        }
        Kind::Blocks if job.operations_max.is_some() && job.time_based => {
            Err("number_ios and time_based do not go together".to_owned())
        }
        Kind::TreeCreate | Kind::TreeStat | Kind::TreeList if job.verify => {
            Err("verify does not go with that ioengine".to_owned())
        }
        Kind::TreeCreate if job.time_based => {
            Err("treecreate ends when its files are there: no time_based".to_owned())
        }
        _ if job.time_based && job.runtime.is_none() => Err("time_based needs a runtime".to_owned()),
        _ if job.direct && !job.block_bytes.is_multiple_of(512) => {
            Err("direct needs a bs that is a multiple of 512".to_owned())
        }
        _ => Ok(()),
    }
}

fn set_kind(job: &mut Job, key: &str, value: &str) -> Result<bool, String> {
    match key {
        "rw" | "readwrite" => {
            let (random, kind) = match value.strip_prefix("rand") {
                Some(rest) => (true, rest),
                None => (false, value),
            };
            let read_percent = match kind {
                "read" => 100,
                "write" => 0,
                "rw" | "readwrite" if (1..100).contains(&job.access.read_percent) => job.access.read_percent,
                "rw" | "readwrite" => 50,
                _ => {
                    return Err(wrong(
                        key,
                        value,
                        "read, write, rw, randread, randwrite or randrw",
                    ));
                }
            };
            job.access = Access { random, read_percent };
        }
        "rwmixread" | "rwmixwrite" => {
            let percent = number(key, value, 100)?;
            let percent = u32::try_from(percent).unwrap_or(100);
            job.access.read_percent = if key == "rwmixread" {
                percent
            } else {
                100 - percent
            };
        }
        "ioengine" => {
            job.kind = match value {
                "sync" | "psync" => Kind::Blocks,
                "filecreate" => Kind::FileCreate,
                "filestat" => Kind::FileStat,
                "filedelete" => Kind::FileDelete,
                "createfiles" => Kind::CreateFiles,
                "replacefile" => Kind::ReplaceFile,
                "readfiles" => Kind::ReadFiles,
                "untar" => Kind::Untar,
                "treecreate" => Kind::TreeCreate,
                "treestat" => Kind::TreeStat,
                "treelist" => Kind::TreeList,
                _ => {
                    let kinds = "sync, psync, filecreate, filestat or filedelete, or of our own: \
                                 createfiles, replacefile, readfiles, untar, treecreate, treestat or treelist";
                    return Err(wrong(key, value, kinds));
                }
            };
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_sizes(job: &mut Job, key: &str, value: &str) -> Result<bool, String> {
    match key {
        "bs" | "blocksize" => job.block_bytes = size(key, value)?,
        "size" => job.size_bytes = size(key, value)?,
        "filesize" => job.file_bytes = Some(size(key, value)?),
        "io_size" => job.io_bytes = Some(size(key, value)?),
        "nrfiles" => job.files = number(key, value, FILES_MAX)?.max(1),
        "number_ios" => job.operations_max = Some(number(key, value, u64::MAX)?.max(1)),
        "tree" => job.tree = Some(name(value)?),
        "numjobs" => job.clones = u32::try_from(number(key, value, CLONES_MAX)?.max(1)).unwrap_or(1),
        "fsync" => job.fsync_every = number(key, value, u64::MAX)?,
        "fdatasync" => job.fdatasync_every = number(key, value, u64::MAX)?,
        "randseed" => job.seed = number(key, value, u64::MAX)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_times(job: &mut Job, key: &str, value: &str) -> Result<bool, String> {
    let parse = |bare| time(value, bare).ok_or_else(|| wrong(key, value, "a time like 10, 500ms or 2m"));
    match key {
        "runtime" => job.runtime = Some(parse(Duration::from_secs(1))?),
        "thinktime" => job.think = parse(Duration::from_micros(1))?,
        "rate_iops" => {
            let rate = number(key, value, u64::from(u32::MAX))?;
            job.rate_iops = u32::try_from(rate).ok().filter(|rate| *rate > 0);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_switches(job: &mut Job, key: &str, value: &str) -> Result<bool, String> {
    let switch = || boolean(value).ok_or_else(|| wrong(key, value, "0 or 1"));
    match key {
        "end_fsync" => job.end_fsync = switch()?,
        "direct" => job.direct = switch()?,
        "buffered" => job.direct = !switch()?,
        "time_based" => job.time_based = switch()?,
        "norandommap" => job.random_map = !switch()?,
        "overwrite" => job.overwrite = switch()?,
        "invalidate" => job.invalidate = switch()?,
        "pre_read" => job.pre_read = switch()?,
        "sync" => {
            job.open_sync = match value {
                "0" | "none" => OpenSync::None,
                "dsync" => OpenSync::Data,
                "" | "1" | "sync" => OpenSync::All,
                _ => return Err(wrong(key, value, "0, 1, none, sync or dsync")),
            };
        }
        "verify" => {
            job.verify = match value {
                "0" => false,
                "crc32" => true,
                _ => return Err(wrong(key, value, "0 or crc32")),
            };
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Options that tell fio to do what this program always does.
fn accept(key: &str, value: &str) -> Result<bool, String> {
    let only: &[&str] = match key {
        "stonewall" | "wait_for_previous" | "group_reporting" | "thread" => &["", "1"],
        "fallocate" => &["none", "0"],
        "iodepth" | "openfiles" => &["1"],
        "create_on_open" => &["0"],
        "randrepeat" => &["1"],
        "description" => return Ok(true),
        _ => return Ok(false),
    };
    if only.contains(&value) {
        return Ok(true);
    }
    Err(wrong(
        key,
        value,
        &format!("{}, which is what this program does", only[only.len() - 1]),
    ))
}

fn size(key: &str, value: &str) -> Result<u64, String> {
    bytes(value).ok_or_else(|| wrong(key, value, "a number of bytes like 512, 4k or 1m"))
}

/// A name that can be a directory's.
pub(super) fn name(value: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if value.is_empty() || value.len() > 100 || !value.chars().all(fits) || value.starts_with('.') {
        return Err(format!(
            "`{value}` cannot name a job or a tree: write letters, digits, -, _, . or +"
        ));
    }
    Ok(value.to_owned())
}

fn number(key: &str, value: &str, max: u64) -> Result<u64, String> {
    let parsed = value.parse().ok().filter(|number| *number <= max);
    parsed.ok_or_else(|| match max {
        u64::MAX => wrong(key, value, "a number"),
        max => wrong(key, value, &format!("a number, at most {max}")),
    })
}

fn wrong(key: &str, value: &str, wanted: &str) -> String {
    format!("{key} cannot be `{value}`: write {wanted}")
}
