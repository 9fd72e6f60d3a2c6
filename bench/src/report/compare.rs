//! Several reports side by side.

use super::html::{Named, job_names};
use super::table::{self, Table};

/// Rates of each report, and how many times the first one's they are.
#[must_use]
pub fn rates(reports: &[Named]) -> Table {
    let mut head = vec!["ops/s".to_owned()];
    head.extend(reports.iter().map(|(name, _)| (*name).to_owned()));
    head.extend(ratio_heads(reports));
    let mut table = Table::new(head);
    for job in job_names(reports) {
        let values: Vec<_> = reports
            .iter()
            .map(|(_, document)| document.job(job).map(super::JobReport::rate))
            .collect();
        table.row(cells(job, &values, table::number));
    }
    table
}

/// What callers waited for: the latencies of syncs, or of operations where there are none, at a percentile.
#[must_use]
pub fn latencies(reports: &[Named], percent: f64) -> Table {
    let mut head = vec![format!("p{percent} of syncs, or of operations without")];
    head.extend(reports.iter().map(|(name, _)| (*name).to_owned()));
    head.extend(ratio_heads(reports));
    let mut table = Table::new(head);
    for job in job_names(reports) {
        let values: Vec<_> = reports
            .iter()
            .map(|(_, document)| {
                let latency = document.job(job)?.waiting();
                latency
                    .at(percent)
                    .filter(|_| latency.count > 0)
                    .map(|ns| ns as f64)
            })
            .collect();
        table.row(cells(job, &values, table::time));
    }
    table
}

fn ratio_heads<'a>(reports: &'a [Named]) -> impl Iterator<Item = String> + 'a {
    let first = reports.first().map_or("", |(name, _)| name);
    reports
        .iter()
        .skip(1)
        .map(move |(name, _)| format!("{name} / {first}"))
}

fn cells(job: &str, values: &[Option<f64>], text: fn(f64) -> String) -> Vec<String> {
    let mut cells = vec![job.to_owned()];
    cells.extend(values.iter().map(|value| value.map_or("-".to_owned(), text)));
    let first = values.first().copied().flatten();
    cells.extend(values.iter().skip(1).map(|value| ratio(*value, first)));
    cells
}

/// `2.5 x`, or `-` if one is missing.
#[must_use]
pub fn ratio(value: Option<f64>, base: Option<f64>) -> String {
    match (value, base) {
        (Some(value), Some(base)) if base > 0.0 => format!("{} x", table::number(value / base)),
        _ => "-".to_owned(),
    }
}
