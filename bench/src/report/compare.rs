//! Several reports side by side.

use super::JobReport;
use super::html::{Named, job_names};
use super::table::{self, Table};

/// A figure of each job, in each report, and the ratios of the pairs `(a, b)` of reports, a / b.
#[derive(Clone, Copy)]
pub struct Figure {
    /// What it is, for the table's head.
    pub name: &'static str,
    /// Reads it from a job's report.
    pub value: fn(&JobReport) -> Option<f64>,
    /// Writes it.
    pub text: fn(f64) -> String,
}

/// Operations a second.
pub const RATE: Figure = Figure {
    name: "operations/s",
    value: JobReport::known_rate,
    text: table::number,
};

/// Half of the callers waited no longer than this for an operation and the sync after it, if there is one.
pub const WAIT_P50: Figure = Figure {
    name: "wait, p50",
    value: |job| wait(job, 50.0),
    text: table::time,
};

/// All but one per cent of the callers waited no longer than this.
pub const WAIT_P99: Figure = Figure {
    name: "wait, p99",
    value: |job| wait(job, 99.0),
    text: table::time,
};

fn wait(job: &JobReport, percent: f64) -> Option<f64> {
    let latency = job.waiting();
    latency
        .at(percent)
        .filter(|_| latency.count > 0)
        .map(|ns| ns as f64)
}

impl Figure {
    /// The table.
    #[must_use]
    pub fn table(&self, reports: &[Named], pairs: &[(usize, usize)]) -> Table {
        let name = |index: usize| reports.get(index).map_or("", |(name, _)| name);
        let mut head = vec![self.name.to_owned()];
        head.extend(reports.iter().map(|(name, _)| (*name).to_owned()));
        head.extend(pairs.iter().map(|(a, b)| format!("{} / {}", name(*a), name(*b))));
        let mut table = Table::new(head);
        for job in job_names(reports) {
            let values: Vec<_> = reports
                .iter()
                .map(|(_, document)| document.job(job).and_then(self.value))
                .collect();
            let value = |index: usize| values.get(index).copied().flatten();
            let mut cells = vec![job.to_owned()];
            cells.extend(values.iter().map(|value| value.map_or("-".to_owned(), self.text)));
            cells.extend(pairs.iter().map(|(a, b)| ratio(value(*a), value(*b))));
            table.row(cells);
        }
        table
    }
}

/// Each report to the first one.
#[must_use]
pub fn to_first(reports: &[Named]) -> Vec<(usize, usize)> {
    (1..reports.len()).map(|index| (index, 0)).collect()
}

/// `2.5 x`, or `-` if one is missing.
fn ratio(value: Option<f64>, base: Option<f64>) -> String {
    match (value, base) {
        (Some(value), Some(base)) if base > 0.0 => format!("{} x", table::number(value / base)),
        _ => "-".to_owned(),
    }
}
