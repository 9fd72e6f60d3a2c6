//! Tables of text.

use super::{Document, JobReport, Latency};

/// A table: columns are as wide as they must be, the first is left-aligned.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these column names.
    #[must_use]
    pub fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        let mut table = Self::default();
        table.row(head);
        table
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The names of the columns, and the rows.
    #[must_use]
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// As Markdown, aligned, so that it reads well in a terminal and in a document.
    #[must_use]
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (i, row) in self.rows.iter().enumerate() {
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                let cell = match column {
                    0 => format!("| {cell:<width$} "),
                    _ => format!("| {cell:>width$} "),
                };
                text.push_str(&cell);
            }
            text.push_str("|\n");
            if i == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let line = "-".repeat(width + 1);
                    text.push_str(&format!("|{line}{}", if column == 0 { "-" } else { ":" }));
                }
                text.push_str("|\n");
            }
        }
        text
    }
}

/// One line a job: rates, latencies of operations, latencies of syncs.
#[must_use]
pub fn summary(document: &Document) -> Table {
    let mut table = Table::new([
        "job", "ops/s", "MiB/s", "p50", "p95", "p99", "p99.9", "max", "syncs", "sync p50", "p99", "max",
        "took",
    ]);
    for job in &document.jobs {
        let mut cells = vec![job.jobname.clone()];
        cells.extend([job.rate(), job.mib_per_second()].map(|rate| match job.error {
            0 => number(rate),
            _ => "-".to_owned(),
        }));
        cells.extend(latency_cells(job.latency(), &[50.0, 95.0, 99.0, 99.9]));
        cells.push(match job.sync.lat_ns.count {
            0 => "-".to_owned(),
            count => count.to_string(),
        });
        cells.extend(latency_cells(&job.sync.lat_ns, &[50.0, 99.0]));
        cells.push(took(job));
        table.row(cells);
    }
    table
}

/// How long a job ran.
#[must_use]
pub fn took(job: &JobReport) -> String {
    let ms = [job.job_runtime, job.read.runtime, job.write.runtime]
        .into_iter()
        .max();
    format!("{:.1} s", ms.unwrap_or(0) as f64 / 1000.0)
}

fn latency_cells(latency: &Latency, percentiles: &[f64]) -> Vec<String> {
    let known = latency.count > 0;
    let mut cells: Vec<_> = percentiles
        .iter()
        .map(|percent| {
            latency
                .at(*percent)
                .filter(|_| known)
                .map_or("-".to_owned(), |ns| time(ns as f64))
        })
        .collect();
    cells.push(if known {
        time(latency.max as f64)
    } else {
        "-".to_owned()
    });
    cells
}

/// A number with about three digits that count.
#[must_use]
pub fn number(value: f64) -> String {
    match value {
        v if v <= 0.0 => "0".to_owned(),
        v if v < 0.995 => format!("{v:.2}"),
        v if v < 99.5 => format!("{v:.1}"),
        v => grouped(v.round() as u64),
    }
}

/// Thousands set off.
#[must_use]
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Nanoseconds with a unit that fits.
#[must_use]
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => return format!("{ns:.0} ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// Bytes with a unit that fits.
#[must_use]
pub fn bytes(value: f64) -> String {
    match value {
        v if v < 1024.0 => format!("{v:.0} B"),
        v if v < 1024.0 * 1024.0 => format!("{:.1} KiB", v / 1024.0),
        v => format!("{:.1} MiB", v / 1024.0 / 1024.0),
    }
}
