//! Slow media: loop devices whose requests and bytes a second the kernel limits.

use std::path::{Path, PathBuf};

use super::command::words;
use super::janitor::{Janitor, Listed};
use crate::report::HostUse;
use crate::{Error, Result, files};

/// What kind of medium to imitate. Each is limited in requests and in bytes a second; a flush is a request too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Medium {
    /// A cheap USB stick: 60 writes and 1000 reads a second, 10 and 25 MiB/s.
    Usb,
    /// An SD card: 500 writes and 1500 reads a second, 15 and 40 MiB/s.
    Sd,
    /// As fast as this machine.
    None,
}

/// Limits a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Writes and flushes.
    pub write_requests: u64,
    /// Reads.
    pub read_requests: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
}

impl Medium {
    /// What the kernel is told; `None`: nothing.
    #[must_use]
    pub fn limits(self) -> Option<Limits> {
        let limits = |write_requests, read_requests, write_mib, read_mib: u64| Limits {
            write_requests,
            read_requests,
            write_bytes: write_mib << 20,
            read_bytes: read_mib << 20,
        };
        match self {
            Self::Usb => Some(limits(60, 1000, 10_u64, 25)),
            Self::Sd => Some(limits(500, 1500, 15_u64, 40)),
            Self::None => None,
        }
    }
}

const V1: &str = "/sys/fs/cgroup/blkio";
const V2: &str = "/sys/fs/cgroup";
const SIZE_BYTES: u64 = 4 << 30;
/// What mkfs.ext4 makes room for on such a medium unless it is told.
const INODES_USUAL: u64 = SIZE_BYTES >> 14;

/// A loop device with an ext4 in it, which is not mounted yet.
#[derive(Debug)]
pub struct Device {
    /// As /dev/loop7.
    pub path: String,
    /// What earlier users of the same loop device did: the kernel goes on counting.
    earlier: HostUse,
}

impl Device {
    /// Makes one that has room for so many files, with its own file in `dir`, and limits it.
    ///
    /// # Errors
    /// If the machine cannot do that.
    pub fn new(janitor: &Janitor, dir: &Path, medium: Medium, files: u64) -> Result<Self> {
        let image = dir.join("image");
        files::make_sparse(&image, SIZE_BYTES)?;
        // Nothing is left to be initialised in the background, which would be measured.
        let inodes = if files > INODES_USUAL / 2 {
            // GlusterFS keeps a second tree, of 65,536 directories at most.
            format!("-N {}", files + files / 8 + 100_000)
        } else {
            String::new()
        };
        words(&format!(
            "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 {inodes} {}",
            image.display()
        ))?;
        let path = words(&format!("losetup -f --show {}", image.display()))?
            .trim()
            .to_owned();
        janitor.list(Listed::Loop, &path)?;
        let mut device = Self {
            path,
            earlier: HostUse::default(),
        };
        device.earlier = device.counters()?;
        if let Some(limits) = medium.limits() {
            limit(janitor, &device.number()?, limits)?;
        }
        Ok(device)
    }

    fn sysfs(&self, file: &str) -> PathBuf {
        let name = self.path.trim_start_matches("/dev/");
        Path::new("/sys/block").join(name).join(file)
    }

    /// As 7:3.
    fn number(&self) -> Result<String> {
        Ok(files::read(&self.sysfs("dev"))?.trim().to_owned())
    }

    /// What the device has done since it was made.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn counters(&self) -> Result<HostUse> {
        Ok(counters(&files::read(&self.sysfs("stat"))?)?.since(&self.earlier))
    }

    /// Puts the kernel's own thread for the mounted filesystem under the limits, where these are set on a group.
    ///
    /// # Errors
    /// If the processes cannot be listed.
    pub fn adopt_kernel_threads(&self) -> Result<()> {
        let Some(group) = group_v2() else { return Ok(()) };
        let name = self.path.trim_start_matches("/dev/");
        let threads = words("ps -eo pid=,comm=")?;
        let ours = |line: &&str| line.contains(&format!("jbd2/{name}-"));
        for pid in threads
            .lines()
            .filter(ours)
            .filter_map(|line| line.split_whitespace().next())
        {
            files::write(&group.join("cgroup.procs"), pid)?;
        }
        Ok(())
    }
}

/// See the kernel's Documentation/block/stat.rst; sectors have 512 bytes.
fn counters(text: &str) -> Result<HostUse> {
    let fields: Vec<u64> = text
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    let field = |index: usize| fields.get(index).copied();
    let read = || -> Option<HostUse> {
        Some(HostUse {
            read_requests: field(0)?,
            read_bytes: field(2)? * 512,
            write_requests: field(4)?,
            written_bytes: field(6)? * 512,
            flushes: field(15).unwrap_or(0),
            ..HostUse::default()
        })
    };
    read().ok_or_else(|| Error::Usage(format!("cannot read a block device's counters: {text:?}")))
}

/// The second version of control groups has no limits in its root, so the lab has a group.
fn group_v2() -> Option<PathBuf> {
    let v1 = Path::new(V1).join("blkio.throttle.write_iops_device").exists();
    (!v1).then(|| Path::new(V2).join(format!("bramble-lab-{}", std::process::id())))
}

/// Limits a device for everything on this machine.
fn limit(janitor: &Janitor, number: &str, limits: Limits) -> Result<()> {
    let pid = std::process::id();
    let Some(group) = group_v2() else {
        // The root group's limits catch writeback too, but only of processes that are in it.
        files::write(&Path::new(V1).join("cgroup.procs"), &pid.to_string())?;
        for (file, limit) in [
            ("write_iops_device", limits.write_requests),
            ("read_iops_device", limits.read_requests),
            ("write_bps_device", limits.write_bytes),
            ("read_bps_device", limits.read_bytes),
        ] {
            let path = Path::new(V1).join(format!("blkio.throttle.{file}"));
            janitor.list(Listed::Limit, &format!("{} {number} 0", path.display()))?;
            files::write(&path, &format!("{number} {limit}"))?;
        }
        return Ok(());
    };
    if !group.exists() {
        let control = Path::new(V2).join("cgroup.subtree_control");
        files::write(&control, "+io +memory").map_err(|e| {
            Error::Usage(format!(
                "this machine cannot limit a block device by control groups: {e}"
            ))
        })?;
        files::make_dir(&group)?;
        files::write(&group.join("cgroup.procs"), &pid.to_string())?;
    }
    janitor.list(Listed::Cgroup, &group.to_string_lossy())?;
    files::write(
        &group.join("io.max"),
        &format!(
            "{number} wiops={} riops={} wbps={} rbps={}",
            limits.write_requests, limits.read_requests, limits.write_bytes, limits.read_bytes
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_of_the_kernel() {
        let text = "   10 1 80 5 20 2 400 9 0 14 15 0 0 0 0 7 3\n";
        let read = counters(text).unwrap();
        assert_eq!((read.read_requests, read.read_bytes), (10, 40_960));
        assert_eq!(
            (read.write_requests, read.written_bytes, read.flushes),
            (20, 204_800, 7)
        );
        assert!(counters("1 2 x").is_err());
    }
}
