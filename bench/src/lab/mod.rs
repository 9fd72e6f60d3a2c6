//! The lab: hosts with slow media on this one machine, and the same jobs on several filesystems there, in one run.

mod command;
mod database;
mod host;
mod janitor;
mod mariadb;
mod medium;
mod meter;
mod system;

use std::path::{Path, PathBuf};
use std::time::Duration;

use host::Hosts;
use medium::Medium;
use meter::Meter;
use system::System;

use crate::clock::{Clock as _, SystemClock};
use crate::job::{self, Job};
use crate::progress::Progress;
use crate::report::compare::{self, Figure};
use crate::report::table::{self, Table};
use crate::report::{Document, HostUse, html};
use crate::suite::Suite;
use crate::{Error, Result, files, run};

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
    /// The rate of each host's link, in tc's words.
    #[arg(long, default_value = "1gbit")]
    link: String,
    /// Where the media's files are.
    #[arg(long, default_value = "/var/tmp")]
    images: PathBuf,
    /// Writes the reports, an object by filesystem.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes a page with plots.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// Runs the lab.
///
/// # Errors
/// If the machine lacks something, or a filesystem fails; everything is cleaned up then too.
pub fn run(options: &Options) -> Result<()> {
    check_machine(options)?;
    let jobs = jobs(options)?;
    let mut documents = Vec::new();
    for system in &options.systems {
        documents.push((system.name(), measure(*system, &jobs, options)?));
    }
    report(options, &documents)
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
        programs.push("sqlite3");
    }
    if !mariadb_rows(options).is_empty() {
        programs.extend(["mariadbd", "mariadb-install-db", "mariadb-admin", "sysbench"]);
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

/// Databases are measured with the built-in jobs, not with those of a file.
fn database_row(options: &Options, name: &str) -> bool {
    options.jobs.is_none() && wanted(options, name)
}

/// Numbers of threads, and their rows' names.
fn mariadb_rows(options: &Options) -> Vec<(u32, String)> {
    let rows = [1, 8].map(|threads| (threads, mariadb::job_name(threads)));
    rows.into_iter()
        .filter(|(_, name)| database_row(options, name))
        .collect()
}

fn measure(system: System, jobs: &[Job], options: &Options) -> Result<Document> {
    let prefix = format!("{}: ", system.name());
    let progress = Progress::new(&prefix);
    progress.say("building hosts");
    let hosts = Hosts::new(
        &absolute(&options.images)?,
        system.name(),
        system.hosts(),
        options.medium,
        &options.link,
    )?;
    progress.say("starting");
    let mount = system.start(&hosts, &absolute(&options.bramble)?)?;
    let first = hosts.first()?;
    let meter = Meter::new(&hosts, Progress::new(&prefix));
    let mut outcomes = run::run(&first.directory(&mount)?, &SystemClock, jobs, &meter)
        .map_err(|e| Error::Usage(format!("{}: {e}\n{}", system.name(), hosts.logs())))?;
    let time = Duration::from_secs(options.seconds);
    for mode in database::Journal::ALL {
        if database_row(options, mode.job_name()) {
            outcomes.push(database::sqlite(first, &mount, mode, time, &meter)?);
        }
    }
    let threads = mariadb_rows(options);
    if !threads.is_empty() {
        progress.say("preparing MariaDB");
        let done = mariadb::oltp(&hosts, &mount, &threads, time, &meter)
            .map_err(|e| Error::Usage(format!("MariaDB on {}: {e}\n{}", system.name(), hosts.logs())))?;
        outcomes.extend(done);
    }
    let mut document = Document::new(&outcomes, SystemClock.unix_ms());
    document.hosts = meter.used()?;
    for (job, hosts) in document.jobs.iter_mut().zip(meter.finish()?) {
        if let Some(extra) = &mut job.bramble_bench {
            extra.hosts = hosts;
        }
    }
    progress.say("cleaning up");
    Ok(document)
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
    ];
    let mut tables: Vec<Table> = figures
        .iter()
        .map(|figure| figure.table(&reports, &pairs))
        .collect();
    tables.push(host_table(documents));
    for table in &tables {
        println!("{}", table.text());
    }
    if let Some(path) = &options.json {
        let all: std::collections::BTreeMap<_, _> = documents
            .iter()
            .map(|(name, document)| (name, document))
            .collect();
        let json = serde_json::to_string_pretty(&all).map_err(|e| Error::Usage(e.to_string()))?;
        files::write(path, &(json + "\n"))?;
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
    ]);
    for (name, document) in documents {
        for (i, host) in document.hosts.iter().enumerate() {
            table.row(host_cells(&format!("{name} {}", i + 1), host));
        }
    }
    table
}

fn host_cells(name: &str, host: &HostUse) -> [String; 9] {
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
    ]
}
