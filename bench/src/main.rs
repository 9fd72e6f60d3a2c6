//! `bramble-bench`: see bench/README.md.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bramble_bench::clock::{Clock as _, SystemClock};
use bramble_bench::layer::Directory;
use bramble_bench::progress::Progress;
use bramble_bench::report::{Document, compare, html, table};
use bramble_bench::run::Runner;
use bramble_bench::suite::Suite;
use bramble_bench::{Error, Result, files, job, lab};
use clap::{Args, Parser, Subcommand};

/// Benchmarks of directories in fio's terms, and a lab that compares filesystems on slow media.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs jobs on a directory.
    Run(RunArgs),
    /// Shows reports side by side, with ratios to the first one; reads fio's JSON too.
    Compare(CompareArgs),
    /// Builds hosts with slow media on this machine and runs the jobs on several filesystems there. Needs root.
    Lab(lab::Options),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The directory to be measured; files are made in a new directory in it, and removed.
    #[arg(long)]
    dir: PathBuf,
    /// Jobs to run: a .fio file.
    #[arg(long, conflicts_with = "suite")]
    jobs: Option<PathBuf>,
    /// Jobs to run: built in.
    #[arg(long, value_enum, default_value = "quick")]
    suite: Suite,
    /// Runs only jobs whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// How long each time-based job runs.
    #[arg(long)]
    seconds: Option<u64>,
    /// Writes the report, as fio does with --output-format=json.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes a page with plots.
    #[arg(long)]
    html: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// Reports; the first one is what the others are compared with.
    #[arg(required = true, num_args = 2..)]
    reports: Vec<PathBuf>,
    /// Writes a page with plots.
    #[arg(long)]
    html: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run_jobs(&args),
        Command::Compare(args) => compare_reports(&args),
        Command::Lab(options) => lab::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bramble-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_jobs(args: &RunArgs) -> Result<()> {
    let mut jobs = match &args.jobs {
        Some(path) => job::parse(&path.display().to_string(), &files::read(path)?)?,
        None => args.suite.jobs()?,
    };
    if let Some(part) = &args.only {
        jobs.retain(|job| job.name.contains(part));
    }
    if let Some(seconds) = args.seconds {
        for job in &mut jobs {
            job.run_for(Duration::from_secs(seconds));
        }
    }
    if jobs.is_empty() {
        return Err(Error::Usage("no job has a name like that".to_owned()));
    }
    let dir = Directory::open(&args.dir).map_err(Error::io("open", &args.dir))?;
    let mut document = Document::new(&[], SystemClock.unix_ms());
    let runner = Runner {
        files: &dir,
        clock: &SystemClock,
        observer: &Progress::new(""),
        limit: None,
        keep: false,
    };
    let ran = runner.run(&jobs, &mut |outcome| {
        document.add(&outcome);
        Ok(())
    });
    document.date(SystemClock.unix_ms());
    let summary = table::summary(&document);
    print!("{}", summary.text());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&document).map_err(|e| Error::Usage(e.to_string()))?;
        files::write(path, &(json + "\n"))?;
    }
    if let Some(path) = &args.html {
        let note = format!("{}, measured by {}", args.dir.display(), document.version);
        let page = html::page("Benchmark", &note, &[&summary], &[("", &document)]);
        files::write(path, &page)?;
    }
    ran?;
    let failures: Vec<_> = document.failures().collect();
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::Usage(failures.join("\n")))
}

fn compare_reports(args: &CompareArgs) -> Result<()> {
    let documents = args
        .reports
        .iter()
        .map(|path| Ok((name(path), read_report(path)?)))
        .collect::<Result<Vec<_>>>()?;
    let reports: Vec<html::Named> = documents
        .iter()
        .map(|(name, document)| (name.as_str(), document))
        .collect();
    let pairs = compare::to_first(&reports);
    let figures = [compare::RATE, compare::WAIT_P50, compare::WAIT_P99];
    let tables = figures.map(|figure| figure.table(&reports, &pairs));
    for table in &tables {
        println!("{}", table.text());
    }
    if let Some(path) = &args.html {
        let note = "Ratios are to the first report. A wait is that for an operation and the sync after it.";
        files::write(
            path,
            &html::page("Comparison", note, &tables.each_ref(), &reports),
        )?;
    }
    Ok(())
}

fn read_report(path: &Path) -> Result<Document> {
    serde_json::from_str(&files::read(path)?).map_err(|source| Error::Report {
        path: path.to_owned(),
        source,
    })
}

/// A report's file name without its ending.
fn name(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
