//! The lab: hosts with slow media on this one machine, and the same jobs on several filesystems there, in one run.

mod command;
mod database;
mod host;
mod janitor;
mod link;
mod mariadb;
mod medium;
mod meter;
mod plan;
mod results;
mod system;

use std::path::{Path, PathBuf};
use std::time::Duration;

use database::Bench;
use host::{Hardware, Hosts};
use medium::Medium;
use meter::Meter;
use plan::Plan;
use results::Results;
use system::System;

use crate::clock::{Clock as _, SystemClock};
use crate::job::{self, Job};
use crate::progress::Progress;
use crate::report::compare::{self, Figure};
use crate::report::table::{self, Table};
use crate::report::{Document, HostUse, html};
use crate::run::{Outcome, Runner};
use crate::suite::Suite;
use crate::{Error, Result, files};

/// What to compare, and on what.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The kind of medium of each host.
    #[arg(long, value_enum, default_value = "usb")]
    medium: Medium,
    /// Which filesystems; the others' rates are shown as ratios to ext4's and GlusterFS's.
    #[arg(
        long = "only",
        value_enum,
        value_delimiter = ',',
        default_value = "ext4,glusterfs,bramble"
    )]
    systems: Vec<System>,
    /// The bramble program.
    #[arg(long, default_value = "target/release/bramble")]
    bramble: PathBuf,
    /// How long each time-based job runs.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Jobs to run: built in.
    #[arg(long, value_enum, default_value = "core")]
    suite: Suite,
    /// Jobs to run: a .fio file.
    #[arg(long, conflicts_with = "suite")]
    jobs: Option<PathBuf>,
    /// Runs only jobs whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    job: Vec<String>,
    /// Gives a row up after so many seconds; 600, or an hour with the suite `metadata`.
    #[arg(long)]
    limit: Option<u64>,
    /// The rate of each host's link, in tc's words.
    #[arg(long, default_value = "1gbit")]
    link: String,
    /// Where the media's files are.
    #[arg(long, default_value = "/var/tmp")]
    images: PathBuf,
    /// Writes the reports, an object by filesystem; anew after each row.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes a page with plots.
    #[arg(long)]
    html: Option<PathBuf>,
}

impl Options {
    /// When a row is given up.
    fn limit(&self) -> Duration {
        let usual = match self.suite {
            Suite::Metadata => 3600,
            _ => 600,
        };
        Duration::from_secs(self.limit.unwrap_or(usual.max(2 * self.seconds)))
    }
}

/// Runs the lab.
///
/// # Errors
/// If the machine lacks something, or a filesystem fails as a whole; everything is cleaned up then too, and what was
/// measured before is reported.
pub fn run(options: &Options) -> Result<()> {
    check_machine(options)?;
    let jobs = jobs(options)?;
    let databases = database::Journal::ALL
        .iter()
        .filter(|mode| database_row(options, mode.job_name()))
        .count();
    let plan = Plan {
        jobs: &jobs,
        medium: options.medium,
        seconds: options.seconds,
        sqlite_rows: databases as u64,
        mariadb_rows: mariadb_rows(options).len() as u64,
    };
    println!("{}\n", plan.text(&options.systems));
    let mut results = Results::new(options.json.clone());
    for system in &options.systems {
        let start = SystemClock.now();
        results.begin(system.name());
        let done = measure(*system, &jobs, options, &mut results);
        let minutes = SystemClock.now().saturating_sub(start).as_secs_f64() / 60.0;
        results.end(minutes, done.err());
    }
    report(options, results.documents())?;
    results.failure()
}

fn check_machine(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Usage(
            "the lab makes namespaces and mounts: run it as root".to_owned(),
        ));
    }
    let mut programs = vec!["ip", "tc", "nsenter", "unshare", "losetup", "mkfs.ext4", "xargs"];
    if database::Journal::ALL
        .iter()
        .any(|mode| database_row(options, mode.job_name()))
    {
        programs.extend(["sqlite3", "timeout"]);
    }
    if !mariadb_rows(options).is_empty() {
        programs.extend(["mariadbd", "mariadb-install-db", "mariadb", "sysbench"]);
    }
    if options.systems.contains(&System::Glusterfs) {
        programs.push("glusterd");
    }
    for program in programs {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
        if !found {
            let packages = "iproute2 util-linux e2fsprogs findutils procps glusterfs-server sqlite3 \
                            mariadb-client-core mariadb-server-core sysbench";
            return Err(Error::Usage(format!(
                "there is no {program}: apt-get install {packages}; or choose other rows (--job) or filesystems (--only)"
            )));
        }
    }
    if options.systems.contains(&System::Bramble) && !options.bramble.exists() {
        let what = format!(
            "there is no {}: build it (cargo build --release -p bramble) or say where it is (--bramble)",
            options.bramble.display()
        );
        return Err(Error::Usage(what));
    }
    Ok(())
}

fn jobs(options: &Options) -> Result<Vec<Job>> {
    let mut jobs = match &options.jobs {
        Some(path) => job::parse(&path.display().to_string(), &files::read(path)?)?,
        None => options.suite.jobs()?,
    };
    for job in &mut jobs {
        job.run_for(Duration::from_secs(options.seconds));
    }
    jobs.retain(|job| wanted(options, &job.name));
    Ok(jobs)
}

fn wanted(options: &Options, name: &str) -> bool {
    options.job.is_empty() || options.job.iter().any(|part| name.contains(part))
}

/// Databases are measured with the suites that have a bit of everything.
fn database_row(options: &Options, name: &str) -> bool {
    options.jobs.is_none() && options.suite != Suite::Metadata && wanted(options, name)
}

/// Numbers of threads of the rows that are wanted.
fn mariadb_rows(options: &Options) -> Vec<u32> {
    let wanted = |threads: &u32| database_row(options, &mariadb::job_name(*threads));
    [1, 8].into_iter().filter(wanted).collect()
}

/// Measures one system; what it did until an error is in `results` then.
fn measure(system: System, jobs: &[Job], options: &Options, results: &mut Results) -> Result<()> {
    let prefix = format!("{}: ", system.name());
    let progress = Progress::new(&prefix);
    progress.say("building hosts");
    let hardware = Hardware {
        medium: options.medium,
        link: &options.link,
        files: jobs
            .iter()
            .map(|job| job.files * u64::from(job.clones))
            .max()
            .unwrap_or(0),
    };
    let hosts = Hosts::new(
        &absolute(&options.images)?,
        system.name(),
        system.hosts(),
        hardware,
    )?;
    progress.say("starting");
    let mount = system.start(&hosts, &absolute(&options.bramble)?)?;
    let meter = Meter::new(&hosts, Progress::new(&prefix));
    let mut logs_shown = false;
    let mut each = |outcome: Outcome| {
        progress.say("");
        if outcome.failure.is_some() && !std::mem::replace(&mut logs_shown, true) {
            eprintln!("{}", hosts.logs());
        }
        results.add(&outcome, meter.take()?, meter.used()?)
    };
    let directory = hosts.first()?.directory(&mount)?;
    let limit = options.limit();
    let runner = Runner {
        files: &directory,
        clock: &SystemClock,
        observer: &meter,
        limit: Some(limit),
        keep: true,
    };
    runner.run(jobs, &mut each)?;
    let bench = Bench {
        hosts: &hosts,
        mount: &mount,
        time: Duration::from_secs(options.seconds),
        limit,
        meter: &meter,
    };
    for mode in database::Journal::ALL {
        if database_row(options, mode.job_name()) {
            let done = database::sqlite(&bench, mode);
            each(done.or_else(|failure| Outcome::failed(mode.job(bench.time), failure))?)?;
        }
    }
    let threads = mariadb_rows(options);
    if !threads.is_empty() {
        progress.say("preparing MariaDB");
        mariadb::oltp(&bench, &threads, &mut each)?;
    }
    progress.say("cleaning up");
    Ok(())
}

/// Programs on the hosts have another working directory, or none.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}

const WRITTEN: Figure = Figure {
    name: "written to a medium per operation",
    value: |job| job.per_operation(|host| host.written_bytes as f64),
    text: table::bytes,
};

const REQUESTS: Figure = Figure {
    name: "write requests to a medium per operation",
    value: |job| job.per_operation(|host| host.write_requests as f64),
    text: table::number,
};

const CPU: Figure = Figure {
    name: "processor time of a node per operation",
    value: |job| job.per_operation(|host| host.cpu_seconds * 1e9),
    text: table::time,
};

fn report(options: &Options, documents: &[(&str, Document)]) -> Result<()> {
    let reports: Vec<html::Named> = documents
        .iter()
        .map(|(name, document)| (*name, document))
        .collect();
    let pairs = pairs(&reports);
    let figures = [
        compare::RATE,
        compare::WAIT_P50,
        compare::WAIT_P99,
        WRITTEN,
        REQUESTS,
        CPU,
        MEMORY,
    ];
    let mut tables: Vec<Table> = figures
        .iter()
        .map(|figure| figure.table(&reports, &pairs))
        .collect();
    tables.push(link::table(&reports, &options.link));
    tables.push(host_table(documents));
    for table in tables.iter().filter(|table| table.rows().len() > 1) {
        println!("{}", table.text());
    }
    for (name, document) in documents {
        for failure in document.failures() {
            println!("{name} {failure}");
        }
    }
    if let Some(path) = &options.html {
        let note = format!(
            "Medium: {:?}; links: {}; {} s a job.",
            options.medium, options.link, options.seconds
        );
        let tables: Vec<_> = tables.iter().collect();
        files::write(path, &html::page("Lab", &note, &tables, &reports))?;
    }
    Ok(())
}

/// Bramble to each of the others; without it, each to the first.
fn pairs(reports: &[html::Named]) -> Vec<(usize, usize)> {
    match reports
        .iter()
        .position(|(name, _)| *name == System::Bramble.name())
    {
        Some(bramble) => (0..reports.len())
            .filter(|index| *index != bramble)
            .map(|index| (bramble, index))
            .collect(),
        None => compare::to_first(reports),
    }
}

const MEMORY: Figure = Figure {
    name: "peak memory of a node so far",
    value: |job| {
        let hosts = &job.bramble_bench.as_ref()?.hosts;
        hosts
            .iter()
            .map(|host| host.memory_peak_bytes as f64)
            .reduce(f64::max)
    },
    text: table::bytes,
};

fn host_table(documents: &[(&str, Document)]) -> Table {
    let mut table = Table::new([
        "host, since its daemons started",
        "memory",
        "peak",
        "processor",
        "written",
        "write requests",
        "flushes",
        "read",
        "read requests",
        "sent",
        "received",
    ]);
    for (name, document) in documents {
        for (i, host) in document.hosts.iter().enumerate() {
            table.row(host_cells(&format!("{name} {}", i + 1), host));
        }
    }
    table
}

fn host_cells(name: &str, host: &HostUse) -> [String; 11] {
    [
        name.to_owned(),
        table::bytes(host.memory_bytes as f64),
        table::bytes(host.memory_peak_bytes as f64),
        format!("{:.1} s", host.cpu_seconds),
        table::bytes(host.written_bytes as f64),
        table::grouped(host.write_requests),
        table::grouped(host.flushes),
        table::bytes(host.read_bytes as f64),
        table::grouped(host.read_requests),
        table::bytes(host.sent_bytes as f64),
        table::bytes(host.received_bytes as f64),
    ]
}
