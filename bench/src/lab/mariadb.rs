//! MariaDB with stock durability, loaded by sysbench.

use std::path::Path;
use std::time::Duration;

use super::command::{run, wait_for};
use super::database::Bench;
use super::host::Host;
use crate::job::Job;
use crate::run::{Observer as _, Outcome};
use crate::stats::{Series, Stats};
use crate::{Error, Result};

const TABLES: u32 = 4;
const ROWS: u32 = 25_000;
const SOCKET: &str = "/run/lab-mariadb.sock";
const PID: &str = "/run/lab-mariadb.pid";

/// What the row of so many threads is called.
#[must_use]
pub fn job_name(threads: u32) -> String {
    format!("mariadb-oltp-write-{threads}-at-a-time")
}

/// The row of so many threads.
#[must_use]
pub fn job(threads: u32, time: Duration) -> Job {
    Job {
        name: job_name(threads),
        clones: threads,
        runtime: Some(time),
        ..Job::default()
    }
}

/// Runs sysbench's oltp_write_only with each number of threads, on a database on the first host. A row that fails has
/// an outcome, too.
///
/// # Errors
/// Those of `each`.
pub fn oltp(bench: &Bench, threads: &[u32], each: &mut dyn FnMut(Outcome) -> Result<()>) -> Result<()> {
    let database = Database::start(bench);
    for threads in threads {
        let job = job(*threads, bench.time);
        let outcome = match &database {
            Ok(database) => database.measure(bench, job.clone()),
            Err(error) => Err(Error::Usage(format!("MariaDB does not start: {error}"))),
        };
        each(outcome.or_else(|failure| Outcome::failed(job, failure))?)?;
    }
    // It ends with its host: what it would write before is not measured.
    Ok(())
}

/// A server that runs on the first host.
struct Database<'a> {
    host: &'a Host,
    limit: Duration,
}

impl<'a> Database<'a> {
    /// Starts a server on the filesystem that is measured, and loads its tables there: pages that are not written back
    /// wait in its memory then, as they always do in a database at work, and are written back while it is measured.
    fn start(bench: &Bench<'a>) -> Result<Self> {
        let this = Self {
            host: bench.hosts.first()?,
            limit: bench.limit,
        };
        let data = bench.mount.join("mariadb");
        // Its system tables are thousands of small writes that nobody wants to wait for. The redo log is another matter:
        // with this size it is made anew by the server, so it is a young database's, not yet written to its end.
        this.sh(&format!(
            "mariadb-install-db --no-defaults --user=root --datadir={memory} --auth-root-authentication-method=normal \
               --skip-test-db --innodb-log-file-size=8M >/dev/null
             cp -r {memory} {data}; rm -r {memory}; sync -f {data}",
            memory = "/run/mariadb",
            data = data.display()
        ))?;
        this.run_server(&data)?;
        this.sql("CREATE DATABASE sbtest; SET GLOBAL innodb_flush_log_at_trx_commit=0")?;
        this.sysbench("prepare")?;
        this.sql("SET GLOBAL innodb_flush_log_at_trx_commit=1")?;
        Ok(this)
    }

    fn run_server(&self, data: &Path) -> Result<()> {
        self.sh(&format!(
            "mariadbd --no-defaults --user=root --datadir={} --socket={SOCKET} --skip-networking \
               --pid-file={PID} >>{} 2>&1 </dev/null &",
            data.display(),
            self.host.log.display()
        ))?;
        wait_for("MariaDB to answer", self.limit, || Ok(self.sql("DO 0").is_ok()))
    }

    fn measure(&self, bench: &Bench, job: Job) -> Result<Outcome> {
        bench.meter.begins(&job);
        let seconds = bench.time.as_secs().max(1);
        let text = self.sysbench(&format!(
            "--threads={} --time={seconds} --histogram --report-interval=1 run",
            job.clones
        ));
        bench.meter.ended(&job);
        outcome(job, &text?)
    }

    fn sql(&self, text: &str) -> Result<()> {
        self.sh(&format!("mariadb --socket={SOCKET} -e '{text}'"))
            .map(drop)
    }

    fn sysbench(&self, what: &str) -> Result<String> {
        self.sh(&format!(
            "sysbench oltp_write_only --db-driver=mysql --mysql-socket={SOCKET} --mysql-user=root \
             --tables={TABLES} --table-size={ROWS} --rand-seed=1 {what}"
        ))
    }

    /// Runs a script on the host, which is ended if it takes too long.
    fn sh(&self, script: &str) -> Result<String> {
        let limit = self.limit.as_secs().to_string();
        let mut command = self.host.command("timeout");
        run(command.args(["-k", "5", &limit, "/bin/sh", "-euc", script]))
    }
}

/// Reads what sysbench prints: a line each second, a histogram in milliseconds, and sums.
fn outcome(job: Job, text: &str) -> Result<Outcome> {
    let unreadable = || Error::Command {
        command: "sysbench".to_owned(),
        what: format!("its answer cannot be read:\n{text}"),
    };
    let sum = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("total time:"));
    let seconds = sum.and_then(|time| time.trim().trim_end_matches('s').parse::<f64>().ok());
    let bucket = |line: &str| {
        let (value, rest) = line.split_once('|')?;
        let ms: f64 = value.trim().parse().ok()?;
        let count = rest.split_whitespace().next_back()?.parse().ok()?;
        Some((Duration::try_from_secs_f64(ms / 1000.0).ok()?, count))
    };
    let each_second = |line: &str| {
        let (_, rest) = line.split_once("tps:")?;
        Some(rest.split_whitespace().next()?.parse::<f64>().ok()?.round() as u64)
    };
    let series = Series {
        interval: Duration::from_secs(1),
        counts: text.lines().filter_map(each_second).collect(),
    };
    let mut stats = Stats::new()?;
    stats.write.add_timed(text.lines().filter_map(bucket), series);
    stats.step = stats.write.clone();
    stats.elapsed = seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(unreadable)?;
    if stats.write.count() == 0 {
        return Err(unreadable());
    }
    Ok(Outcome::new(job, stats, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysbench_is_read() {
        let text = "[ 1s ] thds: 1 tps: 29.00 qps: 180.92 (r/w/o: 0.00/120.94/59.98) lat (ms,95%): 90.78\n\
                    [ 2s ] thds: 1 tps: 31.00 qps: 180.92 (r/w/o: 0.00/120.94/59.98) lat (ms,95%): 90.78\n\
                    Latency histogram (values are in milliseconds)\n\
                    \x20      value  ------------- distribution ------------- count\n\
                    \x20     12.100 |****************************************  50\n\
                    \x20     34.200 |********                                  10\n\
                    SQL statistics:\n    transactions:                        60    (29.93 per sec.)\n\
                    General statistics:\n    total time:                          2.0050s\n";
        let outcome = outcome(Job::default(), text).unwrap();
        assert_eq!(outcome.stats.write.count(), 60);
        assert_eq!(
            (outcome.stats.write.min_ns, outcome.stats.write.max_ns),
            (12_100_000, 34_200_000)
        );
        assert_eq!(outcome.stats.write.series.counts.iter().sum::<u64>(), 60);
        assert_eq!(outcome.stats.elapsed, Duration::from_micros(2_005_000));
        assert!(super::outcome(Job::default(), "garbage").is_err());
        assert!(super::outcome(Job::default(), "total time: 1.0s").is_err());
    }
}
