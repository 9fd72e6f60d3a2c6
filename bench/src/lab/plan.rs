//! Roughly how long the lab will take.

use super::medium::{Limits, Medium};
use super::system::System;
use crate::job::{Job, Kind};

/// What will be run.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// In files.
    pub jobs: &'a [Job],
    /// Of each host.
    pub medium: Medium,
    /// Of each row that is time-based.
    pub seconds: u64,
    /// Rows of SQLite.
    pub sqlite_rows: u64,
    /// Rows of MariaDB.
    pub mariadb_rows: u64,
}

/// Media have to be quiet before a row and after it.
const QUIET_SECONDS: f64 = 5.0;
/// A prepared MariaDB, and the seconds to prepare it in memory and to start it twice.
const MARIADB_BYTES: f64 = 190e6;
const MARIADB_SECONDS: f64 = 25.0;
/// A medium without limits: what this program was written on.
const FAST: Limits = Limits {
    write_requests: 10_000,
    read_requests: 10_000,
    write_bytes: 300 << 20,
    read_bytes: 300 << 20,
};

impl Plan<'_> {
    /// A sentence.
    #[must_use]
    pub fn text(&self, systems: &[System]) -> String {
        let parts: Vec<_> = systems
            .iter()
            .map(|system| {
                format!(
                    "{} {:.0}",
                    system.name(),
                    (self.seconds_of(*system) / 60.0).ceil()
                )
            })
            .collect();
        let sum: f64 = systems.iter().map(|system| self.seconds_of(*system)).sum();
        let rows = self.jobs.len() as u64 + self.sqlite_rows + self.mariadb_rows;
        format!(
            "{rows} rows on each of {} filesystems: about {:.0} minutes ({}).",
            systems.len(),
            (sum / 60.0).ceil(),
            parts.join(", ")
        )
    }

    fn seconds_of(&self, system: System) -> f64 {
        let start = match system {
            System::Ext4 => 3.0,
            System::Glusterfs => 25.0,
            System::Bramble => 20.0,
        };
        let jobs: f64 = self.jobs.iter().map(|job| self.job_seconds(system, job)).sum();
        let limits = self.limits();
        let mariadb = match self.mariadb_rows {
            0 => 0.0,
            _ => MARIADB_SECONDS + MARIADB_BYTES / limits.write_bytes as f64,
        };
        let databases = (self.sqlite_rows + self.mariadb_rows) as f64;
        start + jobs + mariadb + databases * (self.seconds as f64 + QUIET_SECONDS)
    }

    fn limits(&self) -> Limits {
        self.medium.limits().unwrap_or(FAST)
    }

    /// With the layout of the job's files, and until the media are quiet.
    fn job_seconds(&self, system: System, job: &Job) -> f64 {
        let limits = self.limits();
        let clones = f64::from(job.clones);
        let written = |bytes: u64| bytes as f64 * clones / limits.write_bytes as f64;
        // A change to a file or to a place of it: in place, or in a log.
        let requests = |each: f64| each * clones / limits.write_requests as f64;
        let file = match system {
            System::Ext4 => 0.5,
            System::Glusterfs => 4.0,
            System::Bramble => 0.05,
        };
        let all = job.bytes_of_file() * job.files;
        let ends = |seconds: f64| {
            job.runtime
                .map_or(seconds, |runtime| seconds.min(runtime.as_secs_f64()))
        };
        let timed = job
            .runtime
            .filter(|_| job.time_based)
            .map(|runtime| runtime.as_secs_f64());
        let (layout, work) = match job.kind {
            Kind::Blocks => {
                let layout = if job.overwrite || job.access.read_percent > 0 {
                    written(all)
                } else {
                    0.0
                };
                let scattered = job.access.random && system != System::Bramble;
                let work = match (job.access.read_percent, scattered) {
                    (0, true) => requests(job.operations() as f64),
                    (0, false) => written(job.operations() * job.block_bytes),
                    _ => all as f64 / limits.read_bytes as f64,
                };
                (layout, work)
            }
            Kind::CreateFiles | Kind::Untar | Kind::FileCreate | Kind::TreeCreate => {
                let work = requests(file * job.files as f64) + written(all);
                (0.0, work + job.files as f64 / 4000.0)
            }
            Kind::TreeStat | Kind::TreeList => (0.0, job.operations() as f64 / 10_000.0),
            _ => (requests(file * job.files as f64) + written(all), 0.0),
        };
        QUIET_SECONDS + layout + timed.unwrap_or_else(|| ends(work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Suite;
    use std::time::Duration;

    fn plan(jobs: &[Job], medium: Medium, seconds: u64) -> f64 {
        let plan = Plan {
            jobs,
            medium,
            seconds,
            sqlite_rows: 2,
            mariadb_rows: 2,
        };
        let all = [System::Ext4, System::Glusterfs, System::Bramble];
        assert!(
            plan.text(&all)
                .starts_with(&format!("{} rows on each of 3", jobs.len() + 4))
        );
        all.iter().map(|system| plan.seconds_of(*system)).sum::<f64>() / 60.0
    }

    #[test]
    fn slower_media_and_longer_rows_take_longer() {
        let jobs = |seconds| {
            let mut jobs = Suite::Core.jobs().unwrap();
            for job in &mut jobs {
                job.run_for(Duration::from_secs(seconds));
            }
            jobs
        };
        let short = plan(&jobs(6), Medium::Usb, 6);
        assert!((10.0..25.0).contains(&short), "{short} minutes");
        assert!(plan(&jobs(20), Medium::Usb, 20) > short + 5.0);
        assert!(plan(&jobs(6), Medium::Sd, 6) < short);
    }
}
