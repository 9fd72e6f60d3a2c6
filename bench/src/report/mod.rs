//! What is reported: a [`Document`], which is fio's JSON (`fio --output-format=json`) with one object more, and what is
//! made of documents: tables, pages, comparisons.

pub mod compare;
pub mod html;
pub mod svg;
pub mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::run::Outcome;
use crate::stats::{Series, Tally};

/// The percentiles that fio reports.
const PERCENTILES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99,
];

/// A run's report.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Document {
    /// The program and its version.
    #[serde(rename = "fio version")]
    pub version: String,
    /// When it ended, in seconds since 1970.
    #[serde(default)]
    pub timestamp: u64,
    /// The same in milliseconds.
    #[serde(default)]
    pub timestamp_ms: u64,
    /// The jobs, in the order in which they ran.
    #[serde(default)]
    pub jobs: Vec<JobReport>,
    /// In the lab: what was used of each host from the start of its daemons to the end of the last job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostUse>,
}

/// One job's part; its clones are one group.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct JobReport {
    /// Its name.
    pub jobname: String,
    /// Its place in the report.
    #[serde(default)]
    pub groupid: u64,
    /// Not 0: the job failed, and has no figures.
    #[serde(default)]
    pub error: i32,
    /// Seconds that it took.
    #[serde(default)]
    pub elapsed: u64,
    /// The options as they were given.
    #[serde(rename = "job options", default)]
    pub options: BTreeMap<String, String>,
    /// Reads.
    #[serde(default)]
    pub read: Direction,
    /// Writes.
    #[serde(default)]
    pub write: Direction,
    /// Nothing here trims.
    #[serde(default)]
    pub trim: Direction,
    /// fsync, fdatasync, syncfs.
    #[serde(default)]
    pub sync: Syncs,
    /// Milliseconds that it took.
    #[serde(default)]
    pub job_runtime: u64,
    /// What fio does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bramble_bench: Option<Extra>,
}

/// What fio's JSON has no place for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Extra {
    /// Clones that ran at a time.
    pub clones: u32,
    /// Blocks read back and found right.
    pub verified_blocks: u64,
    /// What a caller waits for: an operation and the sync after it, if there is one.
    #[serde(default)]
    pub step_ns: Latency,
    /// Reads over time.
    pub read: Rates,
    /// Writes over time.
    pub write: Rates,
    /// Syncs over time.
    pub sync: Rates,
    /// Why the job failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// In the lab: what the job cost each host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostUse>,
}

/// What was used of one host of the lab.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostUse {
    /// Bytes written to its medium.
    pub written_bytes: u64,
    /// Write requests to its medium; one that only flushes is one too.
    pub write_requests: u64,
    /// Flushes of its medium.
    pub flushes: u64,
    /// Bytes read from its medium.
    pub read_bytes: u64,
    /// Read requests to its medium.
    pub read_requests: u64,
    /// Bytes that it sent over its link.
    pub sent_bytes: u64,
    /// Bytes that it received over its link.
    pub received_bytes: u64,
    /// Processor seconds of its daemons.
    pub cpu_seconds: f64,
    /// Resident memory of its daemons at the end.
    pub memory_bytes: u64,
    /// The sum of the most that each of its daemons had.
    pub memory_peak_bytes: u64,
}

/// Operations over time.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Length of each interval.
    pub interval_ms: u64,
    /// Operations in each interval.
    pub counts: Vec<u64>,
}

/// Reads or writes of a job.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "fio's names, explained in its documentation")]
pub struct Direction {
    pub io_bytes: u64,
    pub io_kbytes: u64,
    /// Bytes a second.
    pub bw_bytes: u64,
    /// KiB a second.
    pub bw: u64,
    pub iops: f64,
    /// Milliseconds.
    pub runtime: u64,
    pub total_ios: u64,
    pub short_ios: u64,
    pub drop_ios: u64,
    pub slat_ns: Latency,
    pub clat_ns: Latency,
    pub lat_ns: Latency,
    pub bw_min: u64,
    pub bw_max: u64,
    pub bw_agg: f64,
    pub bw_mean: f64,
    pub bw_dev: f64,
    pub bw_samples: u64,
    pub iops_min: u64,
    pub iops_max: u64,
    pub iops_mean: f64,
    pub iops_stddev: f64,
    pub iops_samples: u64,
}

/// Syncs of a job.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Syncs {
    /// Their number. (fio leaves it 0; see `lat_ns.N`.)
    pub total_ios: u64,
    /// Their latencies.
    pub lat_ns: Latency,
}

/// Latencies in nanoseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// The shortest.
    pub min: u64,
    /// The longest.
    pub max: u64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub stddev: f64,
    /// Their number.
    #[serde(rename = "N")]
    pub count: u64,
    /// By percentile, as "99.900000".
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub percentile: BTreeMap<String, u64>,
}

impl HostUse {
    /// What came after `before`; memory as it is now.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
            write_requests: self.write_requests.saturating_sub(before.write_requests),
            flushes: self.flushes.saturating_sub(before.flushes),
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
            read_requests: self.read_requests.saturating_sub(before.read_requests),
            sent_bytes: self.sent_bytes.saturating_sub(before.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(before.received_bytes),
            cpu_seconds: (self.cpu_seconds - before.cpu_seconds).max(0.0),
            ..*self
        }
    }
}

impl Document {
    /// The report of what was run; `unix_ms` dates it.
    #[must_use]
    pub fn new(outcomes: &[Outcome], unix_ms: u64) -> Self {
        let mut document = Self {
            version: format!("bramble-bench-{}", env!("CARGO_PKG_VERSION")),
            ..Self::default()
        };
        document.date(unix_ms);
        for outcome in outcomes {
            document.add(outcome);
        }
        document
    }

    /// Says when it was made.
    pub fn date(&mut self, unix_ms: u64) {
        self.timestamp = unix_ms / 1000;
        self.timestamp_ms = unix_ms;
    }

    /// Adds what another job did.
    pub fn add(&mut self, outcome: &Outcome) -> &mut JobReport {
        let index = self.jobs.len();
        self.jobs.push(JobReport::new((index, outcome)));
        &mut self.jobs[index]
    }

    /// A line for each job that failed: its name and why.
    pub fn failures(&self) -> impl Iterator<Item = String> + '_ {
        self.jobs.iter().filter(|job| job.error != 0).map(|job| {
            let why = job
                .bramble_bench
                .as_ref()
                .and_then(|extra| extra.failure.as_deref());
            let line = why.unwrap_or("failed").lines().next().unwrap_or_default();
            format!("{}: {line}", job.jobname)
        })
    }

    /// The job of that name.
    #[must_use]
    pub fn job(&self, name: &str) -> Option<&JobReport> {
        self.jobs.iter().find(|job| job.jobname == name)
    }
}

impl JobReport {
    fn new((index, outcome): (usize, &Outcome)) -> Self {
        let stats = &outcome.stats;
        let seconds = stats.elapsed.as_secs_f64();
        let extra = Extra {
            clones: outcome.job.clones,
            verified_blocks: outcome.verified,
            step_ns: Latency::new(&stats.step),
            read: Rates::new(&stats.read.series),
            write: Rates::new(&stats.write.series),
            sync: Rates::new(&stats.sync.series),
            failure: outcome.failure.as_ref().map(ToString::to_string),
            hosts: Vec::new(),
        };
        Self {
            jobname: outcome.job.name.clone(),
            groupid: index as u64,
            error: outcome.failure.as_ref().map_or(0, Error::number),
            elapsed: stats.elapsed.as_secs_f64().ceil() as u64,
            options: outcome.job.options.iter().cloned().collect(),
            read: Direction::new(&stats.read, seconds),
            write: Direction::new(&stats.write, seconds),
            trim: Direction::default(),
            sync: Syncs {
                total_ios: stats.sync.count(),
                lat_ns: Latency::new(&stats.sync),
            },
            job_runtime: (seconds * 1000.0).round() as u64,
            bramble_bench: Some(extra),
        }
    }

    /// Reads and writes a second, unless the job failed.
    #[must_use]
    pub fn known_rate(&self) -> Option<f64> {
        (self.error == 0).then(|| self.rate())
    }

    /// Reads and writes a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.read.iops + self.write.iops
    }

    /// MiB read and written a second.
    #[must_use]
    pub fn mib_per_second(&self) -> f64 {
        (self.read.bw_bytes + self.write.bw_bytes) as f64 / f64::from(1 << 20)
    }

    /// Operations: reads and writes.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.read.total_ios + self.write.total_ios
    }

    /// The latencies that say most: of writes if there are any, otherwise of reads.
    #[must_use]
    pub fn latency(&self) -> &Latency {
        if self.write.total_ios > 0 {
            &self.write.clat_ns
        } else {
            &self.read.clat_ns
        }
    }

    /// The greatest use of one of the lab's hosts, for each operation.
    #[must_use]
    pub fn per_operation(&self, value: impl Fn(&HostUse) -> f64) -> Option<f64> {
        let hosts = &self.bramble_bench.as_ref()?.hosts;
        let most = hosts.iter().map(value).reduce(f64::max)?;
        (self.operations() > 0).then(|| most / self.operations() as f64)
    }

    /// What a caller waits for: an operation and the sync after it. fio does not tell; of its reports, these are the
    /// syncs if there are any, and the operations otherwise.
    #[must_use]
    pub fn waiting(&self) -> &Latency {
        match &self.bramble_bench {
            Some(extra) if extra.step_ns.count > 0 => &extra.step_ns,
            _ if self.sync.lat_ns.count > 1 => &self.sync.lat_ns,
            _ => self.latency(),
        }
    }
}

impl Rates {
    fn new(series: &Series) -> Self {
        Self {
            interval_ms: u64::try_from(series.interval.as_millis()).unwrap_or(u64::MAX),
            counts: series.counts.clone(),
        }
    }

    /// Points (seconds, operations a second) in the middle of each full interval.
    #[must_use]
    pub fn points(&self) -> Vec<(f64, f64)> {
        let seconds = self.interval_ms as f64 / 1000.0;
        let full = self.counts.len().saturating_sub(1);
        let rate = |(i, count): (usize, &u64)| ((i as f64 + 0.5) * seconds, *count as f64 / seconds);
        self.counts.iter().take(full).enumerate().map(rate).collect()
    }
}

impl Direction {
    fn new(tally: &Tally, seconds: f64) -> Self {
        let count = tally.count();
        if count == 0 {
            return Self::default();
        }
        let per_second = |value: f64| if seconds > 0.0 { value / seconds } else { 0.0 };
        let latency = Latency::new(tally);
        let rates: Vec<f64> = Rates::new(&tally.series)
            .points()
            .iter()
            .map(|(_, rate)| *rate)
            .collect();
        let (min, max, mean, deviation) = spread(&rates);
        let kib = tally.bytes as f64 / count as f64 / 1024.0;
        let bandwidth = per_second(tally.bytes as f64);
        Self {
            io_bytes: tally.bytes,
            io_kbytes: tally.bytes / 1024,
            bw_bytes: bandwidth as u64,
            bw: (bandwidth / 1024.0) as u64,
            iops: per_second(count as f64),
            runtime: (seconds * 1000.0).round() as u64,
            total_ios: count,
            short_ios: 0,
            drop_ios: 0,
            slat_ns: Latency::default(),
            lat_ns: Latency {
                percentile: BTreeMap::new(),
                ..latency.clone()
            },
            clat_ns: latency,
            bw_min: (min * kib) as u64,
            bw_max: (max * kib) as u64,
            bw_agg: 100.0,
            bw_mean: mean * kib,
            bw_dev: deviation * kib,
            bw_samples: rates.len() as u64,
            iops_min: min as u64,
            iops_max: max as u64,
            iops_mean: mean,
            iops_stddev: deviation,
            iops_samples: rates.len() as u64,
        }
    }
}

/// Least, greatest, mean, standard deviation.
fn spread(values: &[f64]) -> (f64, f64, f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0, 0.0, 0.0);
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(0.0, f64::max);
    (min, max, mean, variance.sqrt())
}

impl Latency {
    fn new(tally: &Tally) -> Self {
        if tally.count() == 0 {
            return Self::default();
        }
        let histogram = &tally.latency_ns;
        let percentile = PERCENTILES.iter().map(|percent| {
            // The histogram's answer is the end of a bucket; nothing took longer than the longest.
            let value = histogram.value_at_quantile(percent / 100.0).min(tally.max_ns);
            (format!("{percent:.6}"), value)
        });
        Self {
            min: tally.min_ns,
            max: tally.max_ns,
            mean: tally.mean_ns(),
            stddev: histogram.stdev(),
            count: tally.count(),
            percentile: percentile.collect(),
        }
    }

    /// The latency at a percentile that fio reports.
    #[must_use]
    pub fn at(&self, percent: f64) -> Option<u64> {
        self.percentile.get(&format!("{percent:.6}")).copied()
    }

    /// Points (percentile, nanoseconds), rising.
    #[must_use]
    pub fn points(&self) -> Vec<(f64, f64)> {
        let parse = |(key, value): (&String, &u64)| Some((key.parse::<f64>().ok()?, *value as f64));
        let mut points: Vec<_> = self.percentile.iter().filter_map(parse).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }
}

#[cfg(test)]
mod tests;
