//! One self-contained HTML page for one report or several.

use std::fmt::Write as _;

use super::svg::{Line, Plot, Scale, escape};
use super::table::{self, Table};
use super::{Document, JobReport, Latency, Rates};

/// A named report.
pub type Named<'a> = (&'a str, &'a Document);

/// A page with tables, and for each job its latencies and its rates over time.
#[must_use]
pub fn page(title: &str, note: &str, tables: &[&Table], reports: &[Named]) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{}</style></head><body>\n<h1>{title}</h1>\n<p class=\"note\">{}</p>\n",
        include_str!("page.css"),
        escape(note),
        title = escape(title)
    );
    html.push_str("<div class=\"tables\">\n");
    for table in tables {
        html.push_str(&table_html(table));
    }
    html.push_str("</div>\n");
    for (name, document) in reports {
        for failure in document.failures() {
            let _ = writeln!(
                html,
                "<p class=\"note\">{} {}</p>",
                escape(name),
                escape(&failure)
            );
        }
    }
    html.push_str("<h2>Latencies and rates</h2>\n");
    html.push_str(
        "<p class=\"note\">Left: how long so many per cent took at most (among several reports: an operation and the \
         sync after it). Right: operations a second over time.</p>\n",
    );
    if reports.len() > 1 {
        legend(&mut html, reports.iter().map(|(name, _)| *name));
    }
    for name in job_names(reports) {
        panel(&mut html, name, reports);
    }
    html.push_str("</body></html>\n");
    html
}

/// All jobs' names, in the order of the first report that has them.
#[must_use]
pub fn job_names<'a>(reports: &[Named<'a>]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for (_, document) in reports {
        for job in &document.jobs {
            if !names.contains(&job.jobname.as_str()) {
                names.push(&job.jobname);
            }
        }
    }
    names
}

fn legend<'a>(html: &mut String, names: impl Iterator<Item = &'a str>) {
    html.push_str("<p class=\"legend\">");
    for (i, name) in names.enumerate() {
        let _ = write!(html, "<span class=\"b{}\">{}</span> ", i % 6, escape(name));
    }
    html.push_str("</p>\n");
}

fn panel(html: &mut String, name: &str, reports: &[Named]) {
    let jobs: Vec<(usize, &str, &JobReport)> = reports
        .iter()
        .enumerate()
        .filter_map(|(i, (label, document))| Some((i, *label, document.job(name)?)))
        .collect();
    let alone = reports.len() == 1;
    let _ = writeln!(html, "<section><h3>{}</h3>", escape(name));
    for (_, label, job) in &jobs {
        let who = if reports.len() > 1 {
            format!("{label}: ")
        } else {
            String::new()
        };
        let _ = writeln!(html, "<p>{}</p>", escape(&format!("{who}{}", sentence(job))));
    }
    if reports.len() == 1 {
        let sides: Vec<_> = jobs
            .iter()
            .flat_map(|(_, _, job)| sides(job, alone))
            .map(|side| side.0)
            .collect();
        if sides.len() > 1 {
            legend(html, sides.into_iter());
        }
    }
    html.push_str("<div class=\"plots\">");
    html.push_str(
        &Plot {
            title: "Latency",
            x_label: "per cent of operations",
            x: Scale::Percentile,
            y: Scale::Log,
            y_text: table::time,
            lines: &lines(&jobs, alone, |_, latency, _| latency.points()),
        }
        .svg(),
    );
    html.push_str(
        &Plot {
            title: "Operations a second",
            x_label: "seconds",
            x: Scale::Linear,
            y: Scale::Linear,
            y_text: table::number,
            lines: &lines(&jobs, alone, |side, _, rates| match rates {
                Some(rates) if side != "sync" => rates.points(),
                _ => Vec::new(),
            }),
        }
        .svg(),
    );
    html.push_str("</div></section>\n");
}

fn sentence(job: &JobReport) -> String {
    let options: Vec<_> = job
        .options
        .iter()
        .filter(|(key, _)| {
            !["stonewall", "group_reporting", "fallocate", "description"].contains(&key.as_str())
        })
        .map(|(key, value)| {
            if value.is_empty() {
                key.clone()
            } else {
                format!("{key}={value}")
            }
        })
        .collect();
    let mut text = format!(
        "{} operations/s, {} MiB/s, in {}",
        table::number(job.rate()),
        table::number(job.mib_per_second()),
        table::took(job)
    );
    if !options.is_empty() {
        let _ = write!(text, " ({})", options.join(", "));
    }
    text
}

type Side<'a> = (&'static str, &'a Latency, Option<&'a Rates>);

/// What a job did: reads, writes, syncs. Among several reports: what callers waited for, so that each has one line.
fn sides(job: &JobReport, alone: bool) -> Vec<Side<'_>> {
    let extra = job.bramble_bench.as_ref();
    let (read, write, sync) = (&job.read.clat_ns, &job.write.clat_ns, &job.sync.lat_ns);
    let rates = (
        extra.map(|extra| &extra.read),
        extra.map(|extra| &extra.write),
        extra.map(|extra| &extra.sync),
    );
    let all = if alone {
        vec![
            ("read", read, rates.0),
            ("write", write, rates.1),
            ("sync", sync, rates.2),
        ]
    } else {
        let most = if write.count > 0 { rates.1 } else { rates.0 };
        vec![("wait", job.waiting(), most)]
    };
    all.into_iter()
        .filter(|(_, latency, _)| latency.count > 0)
        .collect()
}

/// A line for each side of each report; in a page of one report colours tell sides, in others reports.
fn lines(
    jobs: &[(usize, &str, &JobReport)],
    alone: bool,
    points: impl Fn(&str, &Latency, Option<&Rates>) -> Vec<(f64, f64)>,
) -> Vec<Line> {
    let mut lines = Vec::new();
    for (report, label, job) in jobs {
        for (i, (side, latency, rates)) in sides(job, alone).into_iter().enumerate() {
            lines.push(Line {
                label: if alone { side } else { label }.to_owned(),
                colour: if alone { i } else { *report },
                dashed: side == "sync",
                points: points(side, latency, rates),
            });
        }
    }
    lines
}

fn table_html(table: &Table) -> String {
    let mut html = String::from("<div class=\"wide\"><table>\n");
    for (i, row) in table.rows().iter().enumerate() {
        let tag = if i == 0 { "th" } else { "td" };
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<{tag}>{}</{tag}>", escape(cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
    html
}
