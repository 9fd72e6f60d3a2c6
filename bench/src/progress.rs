//! What a terminal shows while jobs run; nothing where standard error is no terminal.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::job::Job;
use crate::report::table::{bytes, number};
use crate::run::Observer;
use crate::stats::Live;

/// A line on the terminal, which is cleared when this is dropped.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    prefix: String,
}

impl Progress {
    /// Each line begins with `prefix`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
            prefix: prefix.to_owned(),
        }
    }

    /// Replaces the line.
    pub fn say(&self, text: &str) {
        if self.shown {
            // A terminal that has gone away is no reason to end a measurement.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}{text}", self.prefix);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.prefix.clear();
        self.say("");
    }
}

impl Observer for Progress {
    fn prepares(&self, job: &Job) {
        self.say(&format!("{}: laying out files", job.name));
    }

    fn begins(&self, _: &Job) {}

    fn runs(&self, job: &Job, elapsed: Duration, live: &Live) {
        let seconds = elapsed.as_secs_f64();
        let per_second = |value: u64| value as f64 / seconds.max(0.001);
        let limit = match job.runtime {
            Some(limit) if job.time_based => format!(" of {:.0}", limit.as_secs_f64()),
            _ => String::new(),
        };
        self.say(&format!(
            "{}: {seconds:.0}{limit} s, {} ops/s, {}/s",
            job.name,
            number(per_second(live.operations.load(Ordering::Relaxed))),
            bytes(per_second(live.bytes.load(Ordering::Relaxed)))
        ));
    }

    fn ended(&self, job: &Job) {
        self.say(&format!("{}: removing files", job.name));
    }
}
