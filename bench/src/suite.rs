//! The jobs that are built in: those of `bench/jobs`.

use std::time::Duration;

use crate::Result;
use crate::job::{self, Job};

/// Which of them to run, and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// An eighth of the files and bytes, two seconds a job.
    Quick,
    /// All jobs as they are.
    Core,
    /// Creates, stats and listings with 10,000, 100,000 and 1,000,000 files.
    Metadata,
}

impl Suite {
    /// Its jobs.
    ///
    /// # Errors
    /// None: a test reads the files.
    pub fn jobs(self) -> Result<Vec<Job>> {
        if self == Self::Metadata {
            return job::parse("metadata.jobs", include_str!("../jobs/metadata.jobs"));
        }
        let mut jobs = job::parse("core.fio", include_str!("../jobs/core.fio"))?;
        jobs.extend(job::parse("own.jobs", include_str!("../jobs/own.jobs"))?);
        Ok(match self {
            Self::Core | Self::Metadata => jobs,
            Self::Quick => jobs
                .into_iter()
                .map(|job| {
                    let mut job = job.scaled_down();
                    job.run_for(Duration::from_secs(2));
                    job
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suites_can_be_read() {
        let core = Suite::Core.jobs().unwrap();
        assert_eq!(core.len(), 12);
        assert_eq!(Suite::Quick.jobs().unwrap().len(), 12);
        let untar = core.iter().find(|job| job.name == "untar-1700-files").unwrap();
        assert_eq!((untar.files, untar.size_bytes), (1700, 32 << 20));
        let names: std::collections::BTreeSet<_> = core.iter().map(|job| &job.name).collect();
        assert_eq!(names.len(), 12, "their names are unique");
    }

    #[test]
    fn each_stage_of_the_metadata_suite_has_the_same_rows() {
        let jobs = Suite::Metadata.jobs().unwrap();
        for (size, files) in [("10k", 10_000), ("100k", 100_000), ("1m", 1_000_000)] {
            let of = jobs.iter().filter(|job| job.name.ends_with(&format!("-{size}")));
            let names: Vec<_> = of
                .inspect(|job| assert_eq!((job.files, job.directory()), (files, "metadata")))
                .map(|job| job.name.trim_end_matches(size))
                .collect();
            let parts = ["create", "stat", "stat-cached", "list"];
            assert_eq!(names, parts.map(|part| format!("metadata-{part}-")));
        }
    }

    #[test]
    fn fio_reads_the_jobs_that_it_shares() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs/core.fio");
        let asked = std::process::Command::new("fio")
            .args(["--parse-only", file])
            .output();
        let Ok(output) = asked else {
            eprintln!("SKIPPED: there is no fio on this machine to ask");
            return;
        };
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
