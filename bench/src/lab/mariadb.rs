//! MariaDB with stock durability, loaded by sysbench.

use std::path::Path;
use std::time::Duration;

use super::command::wait_for;
use super::host::{Host, Hosts};
use super::meter::Meter;
use crate::job::Job;
use crate::run::{Observer as _, Outcome};
use crate::stats::{Series, Stats};
use crate::{Error, Result};

const TABLES: u32 = 4;
const ROWS: u32 = 25_000;
const SOCKET: &str = "/run/lab-mariadb.sock";

/// What the row of so many threads is called.
#[must_use]
pub fn job_name(threads: u32) -> String {
    format!("mariadb-oltp-write-{threads}-at-a-time")
}

/// Runs sysbench's oltp_write_only with each number of threads, on a database on the first host.
///
/// # Errors
/// If a program fails.
pub fn oltp(
    hosts: &Hosts,
    mount: &Path,
    threads: &[(u32, String)],
    time: Duration,
    meter: &Meter,
) -> Result<Vec<Outcome>> {
    let host = hosts.first()?;
    start(host, &mount.join("mariadb"))?;
    let outcomes = threads
        .iter()
        .map(|(threads, name)| {
            let job = Job {
                name: name.clone(),
                clones: *threads,
                runtime: Some(time),
                ..Job::default()
            };
            meter.begins(&job);
            let seconds = time.as_secs().max(1);
            let text = sysbench(
                host,
                &format!("--threads={threads} --time={seconds} --histogram --report-interval=1 run"),
            );
            meter.ended(&job);
            outcome(job, &text?)
        })
        .collect();
    host.sh(&format!(
        "mariadb-admin --socket={SOCKET} shutdown; rm -rf {}",
        mount.join("mariadb").display()
    ))?;
    outcomes
}

fn start(host: &Host, data: &Path) -> Result<()> {
    let data = data.display();
    // Made in memory and copied: only the measured time has to be on the slow medium.
    host.sh(&format!(
        "mariadb-install-db --no-defaults --user=root --datadir=/run/mariadb --auth-root-authentication-method=normal \
           --skip-test-db >/dev/null
         cp -r /run/mariadb {data}; rm -r /run/mariadb
         mariadbd --no-defaults --user=root --datadir={data} --socket={SOCKET} --skip-networking \
           --pid-file=/run/lab-mariadb.pid >>{} 2>&1 </dev/null &",
        host.log.display()
    ))?;
    wait_for("MariaDB to answer", Duration::from_secs(300), || {
        Ok(host.sh(&format!("mariadb-admin --socket={SOCKET} ping")).is_ok())
    })?;
    let sql = |text: &str| host.sh(&format!("mariadb --socket={SOCKET} -e '{text}'"));
    sql("CREATE DATABASE sbtest; SET GLOBAL innodb_flush_log_at_trx_commit=0")?;
    sysbench(host, "prepare")?;
    sql("SET GLOBAL innodb_flush_log_at_trx_commit=1").map(drop)
}

fn sysbench(host: &Host, what: &str) -> Result<String> {
    host.sh(&format!(
        "sysbench oltp_write_only --db-driver=mysql --mysql-socket={SOCKET} --mysql-user=root --tables={TABLES} \
         --table-size={ROWS} --rand-seed=1 {what}"
    ))
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
    Ok(Outcome {
        job,
        stats,
        verified: 0,
    })
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
