//! Links between hosts: their rate, and what went over them.

use crate::report::html::Named;
use crate::report::table::{self, Table};
use crate::{Error, Result};

/// Bytes of a host's link, with all headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

/// Reads eth0's line of `/proc/PID/net/dev`: eight figures of what was received, then eight of what was sent, each
/// beginning with bytes.
///
/// # Errors
/// If it is not there.
pub fn traffic(text: &str) -> Result<Traffic> {
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("eth0:"));
    let fields: Vec<u64> = line
        .into_iter()
        .flat_map(str::split_whitespace)
        .map_while(|field| field.parse().ok())
        .collect();
    match (fields.first(), fields.get(8)) {
        (Some(received), Some(sent)) => Ok(Traffic {
            sent: *sent,
            received: *received,
        }),
        _ => Err(Error::Usage(format!("cannot read a link's counters: {text:?}"))),
    }
}

/// Bytes a second of a rate in tc's words; its units are decimal, and bits unless they end in `bps`.
#[must_use]
pub fn bytes_per_second(rate: &str) -> Option<f64> {
    let rate = rate.trim().to_ascii_lowercase();
    let end = rate
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rate.len());
    let (number, unit) = rate.split_at(end);
    let (prefix, bytes) = match unit.strip_suffix("bit") {
        Some(prefix) => (prefix, 1.0 / 8.0),
        None => (unit.strip_suffix("bps").filter(|_| !unit.is_empty())?, 1.0),
    };
    let factor = match prefix {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor * bytes)
}

/// For each job that reads or writes bytes: its rate, as a share of the link's, and what each host's link carried for
/// each of those bytes.
#[must_use]
pub fn table(reports: &[Named], rate: &str) -> Table {
    let hosts = |(_, document): &Named| document.hosts.len();
    let most = reports.iter().map(hosts).max().unwrap_or(0);
    let mut head = vec![
        format!("on links of {rate}, per byte"),
        "MiB/s".to_owned(),
        "of the link".to_owned(),
    ];
    for host in 1..=most {
        head.extend([format!("{host} sent"), format!("{host} received")]);
    }
    let mut table = Table::new(head);
    for (name, document) in reports.iter().filter(|report| hosts(report) > 1) {
        for job in &document.jobs {
            let bytes = (job.read.io_bytes + job.write.io_bytes) as f64;
            let hosts = job.bramble_bench.as_ref().map_or(&[][..], |extra| &extra.hosts);
            if bytes <= 0.0 || hosts.is_empty() {
                continue;
            }
            let mib = job.mib_per_second();
            let share = bytes_per_second(rate).map(|link| mib * f64::from(1 << 20) / link);
            let mut cells = vec![
                format!("{name} {}", job.jobname),
                table::number(mib),
                share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0)),
            ];
            for host in hosts {
                cells.extend(
                    [host.sent_bytes, host.received_bytes]
                        .map(|on_link| format!("{:.2}", on_link as f64 / bytes)),
                );
            }
            table.row(cells);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Direction, Document, Extra, HostUse, JobReport};

    #[test]
    fn counters_are_those_of_the_kernel() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n  \
                    eth0: 83448814  195717 0 0 0 0 0 0 1026082454  187651 0 0 0 0 0 0\n";
        let expected = Traffic {
            sent: 1_026_082_454,
            received: 83_448_814,
        };
        assert_eq!(traffic(text).unwrap(), expected);
        assert!(traffic("eth0: 1 2 3").is_err() && traffic("").is_err());
    }

    #[test]
    fn rates_are_tcs() {
        for (text, bytes) in [
            ("1gbit", 125e6),
            ("100mbit", 12.5e6),
            ("10MBps", 10e6),
            ("8bit", 1.0),
            ("1.5kbit", 187.5),
        ] {
            assert_eq!(bytes_per_second(text), Some(bytes), "{text}");
        }
        for text in ["", "fast", "1", "1xbit", "gbit"] {
            assert_eq!(bytes_per_second(text), None, "{text}");
        }
    }

    #[test]
    fn a_job_is_shown_with_its_share_of_the_link_and_what_each_byte_cost() {
        let host = |sent_bytes, received_bytes| HostUse {
            sent_bytes,
            received_bytes,
            ..HostUse::default()
        };
        let job = JobReport {
            jobname: "seqwrite".to_owned(),
            write: Direction {
                io_bytes: 100 << 20,
                bw_bytes: 10_000_000,
                ..Direction::default()
            },
            bramble_bench: Some(Extra {
                hosts: vec![host(105 << 20, 1 << 20), host(0, 0)],
                ..Extra::default()
            }),
            ..JobReport::default()
        };
        let document = Document {
            jobs: vec![job],
            hosts: vec![HostUse::default(); 2],
            ..Document::default()
        };
        let text = table(&[("three", &document)], "100mbit").text();
        assert!(text.contains("| three seqwrite"), "{text}");
        for cell in ["80.0 %", "1.05", "0.01", "0.00"] {
            assert!(text.contains(cell), "{cell}: {text}");
        }
    }
}
