//! One self-contained HTML page for one report or several.

use std::fmt::Write as _;

use super::svg::{Line, Plot, Scale, escape};
use super::table::{self, Table};
use super::{Document, JobReport, Latency, Rates};

/// A named report.
pub type Named<'a> = (&'a str, &'a Document);

/// A page with a table of everything and, for each job, its latencies and its rates over time; `tables` come first,
/// each with its heading.
#[must_use]
pub fn page(title: &str, note: &str, tables: &[(&str, &Table)], reports: &[Named]) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{}</style></head><body>\n<h1>{title}</h1>\n<p class=\"note\">{}</p>\n",
        include_str!("page.css"),
        escape(note),
        title = escape(title)
    );
    for (heading, table) in tables {
        let _ = write!(html, "<h2>{}</h2>\n{}", escape(heading), table_html(table));
    }
    html.push_str("<h2>Latencies and rates</h2>\n");
    html.push_str(
        "<p class=\"note\">Left: how long so many per cent of the operations took at most. Right: operations a \
         second over time. Syncs are dashed.</p>\n",
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
            .flat_map(|(_, _, job)| sides(job))
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
            lines: &lines(&jobs, reports.len(), |_, latency, _| latency.points()),
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
            lines: &lines(&jobs, reports.len(), |_, _, rates| {
                rates.map(Rates::points).unwrap_or_default()
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

/// What a job did: reads, writes, syncs.
fn sides(job: &JobReport) -> Vec<Side<'_>> {
    let extra = job.bramble_bench.as_ref();
    let all = [
        ("read", &job.read.clat_ns, extra.map(|extra| &extra.read)),
        ("write", &job.write.clat_ns, extra.map(|extra| &extra.write)),
        ("sync", &job.sync.lat_ns, extra.map(|extra| &extra.sync)),
    ];
    all.into_iter()
        .filter(|(_, latency, _)| latency.count > 0)
        .collect()
}

/// A line for each side of each report; in a page of one report colours tell sides, in others reports.
fn lines(
    jobs: &[(usize, &str, &JobReport)],
    reports: usize,
    points: impl Fn(&str, &Latency, Option<&Rates>) -> Vec<(f64, f64)>,
) -> Vec<Line> {
    let mut lines = Vec::new();
    for (report, label, job) in jobs {
        for (i, (side, latency, rates)) in sides(job).into_iter().enumerate() {
            lines.push(Line {
                label: if reports > 1 {
                    format!("{label}, {side}")
                } else {
                    side.to_owned()
                },
                colour: if reports > 1 { *report } else { i },
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
