//! MariaDB with stock durability, loaded by sysbench.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::command::wait_for;
use super::host::{Host, Hosts};
use super::meter::Meter;
use crate::job::Job;
use crate::report::{Direction, Extra, JobReport, Latency};
use crate::run::Observer as _;
use crate::{Error, Result};

const ROWS: u32 = 10_000;
const SOCKET: &str = "/run/lab-mariadb.sock";

/// What the row of so many threads is called.
#[must_use]
pub fn job_name(threads: u32) -> String {
    format!("mariadb-oltp-write-{threads}threads")
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
) -> Result<Vec<JobReport>> {
    let host = hosts.first()?;
    start(host, &mount.join("mariadb"))?;
    let reports = threads
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
            let text = sysbench(host, &format!("--threads={threads} --time={seconds} run"));
            meter.ended(&job);
            report(&job, &text?)
        })
        .collect();
    host.sh(&format!(
        "mariadb-admin --socket={SOCKET} shutdown; rm -rf {}",
        mount.join("mariadb").display()
    ))?;
    reports
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
        "sysbench oltp_write_only --db-driver=mysql --mysql-socket={SOCKET} --mysql-user=root --tables=1 \
         --table-size={ROWS} --rand-seed=1 {what}"
    ))
}

/// Reads what sysbench prints at its end; its latencies are in milliseconds.
fn report(job: &Job, text: &str) -> Result<JobReport> {
    let after = |label: &str| -> Option<&str> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label))?;
        line.split_whitespace().next()
    };
    let number = |label: &str| after(label).and_then(|word| word.trim_end_matches('s').parse::<f64>().ok());
    let ns = |label: &str| number(label).map(|ms| (ms * 1e6) as u64);
    let read = || -> Option<JobReport> {
        let (count, seconds) = (number("transactions:")? as u64, number("total time:")?);
        let latency = Latency {
            min: ns("min:")?,
            max: ns("max:")?,
            mean: ns("avg:")? as f64,
            stddev: 0.0,
            count,
            percentile: BTreeMap::from([("95.000000".to_owned(), ns("95th percentile:")?)]),
        };
        Some(JobReport {
            jobname: job.name.clone(),
            write: Direction {
                iops: count as f64 / seconds,
                runtime: (seconds * 1000.0) as u64,
                total_ios: count,
                clat_ns: latency,
                ..Direction::default()
            },
            job_runtime: (seconds * 1000.0) as u64,
            bramble_bench: Some(Extra {
                clones: job.clones,
                ..Extra::default()
            }),
            ..JobReport::default()
        })
    };
    read().ok_or_else(|| Error::Command {
        command: "sysbench".to_owned(),
        what: format!("its answer cannot be read:\n{text}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysbench_is_read() {
        let text = "SQL statistics:\n    transactions:                        292    (29.12 per sec.)\n\
                    General statistics:\n    total time:                          10.0250s\n\
                    Latency (ms):\n         min:    12.10\n         avg:    34.20\n         max:    310.90\n         \
                    95th percentile:     90.78\n         sum:   9986.00\n";
        let report = report(&Job::default(), text).unwrap();
        assert!((report.rate() - 292.0 / 10.025).abs() < 1e-6);
        assert_eq!(report.latency().at(95.0), Some(90_780_000));
        assert_eq!((report.latency().max, report.job_runtime), (310_900_000, 10_025));
        assert!(super::report(&Job::default(), "garbage").is_err());
    }
}
