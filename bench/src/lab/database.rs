//! Databases on a host. Each transaction is timed: SQLite's shell answers each statement with a line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use super::host::{Host, Hosts};
use super::meter::Meter;
use crate::clock::{Clock as _, SystemClock};
use crate::job::Job;
use crate::run::{Observer as _, Outcome};
use crate::stats::{Live, Recorder, Side};
use crate::{Error, Result};

/// What databases are measured on and by.
#[derive(Clone, Copy)]
pub struct Bench<'a> {
    /// The databases run on the first one.
    pub hosts: &'a Hosts,
    /// The filesystem, as the host sees it.
    pub mount: &'a Path,
    /// How long each row runs.
    pub time: Duration,
    /// A row that takes longer, with what it needs first, fails.
    pub limit: Duration,
    /// Is told of each row.
    pub meter: &'a Meter<'a>,
}

/// How SQLite keeps a transaction whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// A write-ahead log.
    Wal,
    /// A journal to roll back with.
    Rollback,
}

impl Journal {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Wal, Self::Rollback];

    /// What its row is called.
    #[must_use]
    pub fn job_name(self) -> &'static str {
        match self {
            Self::Wal => "sqlite-insert-wal",
            Self::Rollback => "sqlite-insert-rollback",
        }
    }

    /// Its row.
    #[must_use]
    pub fn job(self, time: Duration) -> Job {
        Job {
            name: self.job_name().to_owned(),
            runtime: Some(time),
            time_based: true,
            options: vec![("journal_mode".to_owned(), self.pragma().to_owned())],
            ..Job::default()
        }
    }

    fn pragma(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Rollback => "delete",
        }
    }
}

/// SQLite's shell, with a database on the host.
struct Shell {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(host: &Host, file: &Path, limit: Duration) -> Result<Self> {
        let failed = |what: &str| Error::Command {
            command: "sqlite3".to_owned(),
            what: format!("{what}: apt-get install sqlite3"),
        };
        let mut process = host
            .command("timeout")
            .args(["-s", "KILL", &limit.as_secs().to_string(), "sqlite3", "-batch"])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| failed(&e.to_string()))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(failed("no pipes"));
        };
        Ok(Self {
            process,
            input,
            output: BufReader::new(output),
        })
    }

    /// Runs statements, and waits until they are done.
    fn ask(&mut self, sql: &str) -> std::io::Result<()> {
        writeln!(self.input, "{sql}\nSELECT 'done';")?;
        self.input.flush()?;
        let mut line = String::new();
        while line.trim() != "done" {
            line.clear();
            if self.output.read_line(&mut line)? == 0 {
                let what = "sqlite3 ended, or was ended since it took too long; its message is above";
                return Err(std::io::Error::new(std::io::ErrorKind::BrokenPipe, what));
            }
        }
        Ok(())
    }

    fn end(mut self) {
        drop(self.input);
        let _ = self.process.wait();
    }
}

/// Inserts rows of 100 bytes, each in a transaction of its own, with synchronous=full.
///
/// # Errors
/// If SQLite fails, or takes longer than `limit`.
pub fn sqlite(bench: &Bench, mode: Journal) -> Result<Outcome> {
    let Bench {
        hosts,
        mount,
        time,
        limit,
        meter,
    } = *bench;
    let host = hosts.first()?;
    let job = mode.job(time);
    let file = mount.join(format!("{}.db", job.name));
    let doing = |source| Error::Io {
        doing: format!("SQLite on {}", file.display()),
        source,
    };
    let mut shell = Shell::start(host, &file, limit)?;
    let prepare = format!(
        ".bail on\nPRAGMA journal_mode={};\nPRAGMA synchronous=full;\nCREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT);",
        mode.pragma()
    );
    shell.ask(&prepare).map_err(doing)?;
    meter.begins(&job);
    let live = Live::default();
    let mut recorder = Recorder::new(&SystemClock, &live)?;
    let row = "x".repeat(100);
    let insert = format!("INSERT INTO t(text) VALUES('{row}');");
    let mut shown = SystemClock.now();
    while recorder.elapsed() < time {
        recorder
            .step(|recorder| {
                recorder.timed(Side::Write, 100, |_| shell.ask(&insert))?;
                Ok(true)
            })
            .map_err(doing)?;
        if SystemClock.now().saturating_sub(shown) > Duration::from_millis(200) {
            shown = SystemClock.now();
            meter.runs(&job, recorder.elapsed(), &live);
        }
    }
    let stats = recorder.finish();
    meter.ended(&job);
    shell.end();
    host.sh(&format!("rm -f {}*", file.display()))?;
    Ok(Outcome::new(job, stats, 0))
}
