//! What the lab has measured so far: shown and written row by row, so that a run that is cut off leaves what it did.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::clock::{Clock as _, SystemClock};
use crate::report::{Document, HostUse, table};
use crate::run::Outcome;
use crate::{Error, Result, files};

/// The systems' documents.
#[derive(Debug, Default)]
pub struct Results {
    json: Option<PathBuf>,
    documents: Vec<(&'static str, Document)>,
    failures: Vec<String>,
}

impl Results {
    /// None yet; they are written to `json`.
    #[must_use]
    pub fn new(json: Option<PathBuf>) -> Self {
        Self {
            json,
            ..Self::default()
        }
    }

    /// The next rows are those of this system.
    pub fn begin(&mut self, system: &'static str) {
        self.documents
            .push((system, Document::new(&[], SystemClock.unix_ms())));
    }

    /// A row has ended: what it cost each host, and what all of them have used so far.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub fn add(&mut self, outcome: &Outcome, costs: Vec<HostUse>, used: Vec<HostUse>) -> Result<()> {
        let Some((system, document)) = self.documents.last_mut() else {
            return Ok(());
        };
        let job = document.add(outcome);
        if let Some(extra) = &mut job.bramble_bench {
            extra.hosts = costs;
        }
        match &outcome.failure {
            None => println!(
                "{system:<10} {:<32} {:>12} /s",
                job.jobname,
                table::number(job.rate())
            ),
            Some(failure) => println!("{system:<10} {:<32} {:>12}    {failure}", job.jobname, "-"),
        }
        document.hosts = used;
        document.date(SystemClock.unix_ms());
        self.write()
    }

    /// The system is done, or its error ended it.
    pub fn end(&mut self, minutes: f64, error: Option<Error>) {
        let Some((system, document)) = self.documents.last() else {
            return;
        };
        println!("\n{system}, in {minutes:.1} minutes:");
        if !document.jobs.is_empty() {
            println!("{}", table::summary(document).text());
        }
        if let Some(error) = error {
            let failure = format!("{system} could not be measured to the end: {error}");
            eprintln!("{failure}\n");
            // The rest of it is above.
            self.failures.extend(failure.lines().next().map(str::to_owned));
        }
    }

    /// All of them.
    #[must_use]
    pub fn documents(&self) -> &[(&'static str, Document)] {
        &self.documents
    }

    /// What made a system fail as a whole.
    ///
    /// # Errors
    /// If one did.
    pub fn failure(self) -> Result<()> {
        if self.failures.is_empty() {
            return Ok(());
        }
        Err(Error::Usage(self.failures.join("\n")))
    }

    fn write(&self) -> Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let all: BTreeMap<_, _> = self
            .documents
            .iter()
            .map(|(name, document)| (name, document))
            .collect();
        let json = serde_json::to_string_pretty(&all).map_err(|e| Error::Usage(e.to_string()))?;
        files::replace(path, &(json + "\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;
    use crate::stats::Stats;

    #[test]
    fn what_is_there_is_written_even_if_a_later_row_or_system_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let mut results = Results::new(Some(path.clone()));
        let job = |name: &str| Job {
            name: name.to_owned(),
            ..Job::default()
        };
        let names = |system: &str| -> Vec<String> {
            let all: BTreeMap<String, Document> = serde_json::from_str(&files::read(&path).unwrap()).unwrap();
            all[system].jobs.iter().map(|job| job.jobname.clone()).collect()
        };
        results.begin("one");
        let good = Outcome::new(job("good"), Stats::new().unwrap(), 0);
        let host = HostUse {
            sent_bytes: 5,
            ..HostUse::default()
        };
        results.add(&good, vec![host], vec![host]).unwrap();
        assert_eq!(names("one"), ["good"]);
        let bad = Outcome::failed(job("bad"), Error::Usage("why".to_owned())).unwrap();
        results.add(&bad, Vec::new(), vec![host]).unwrap();
        results.end(0.1, None);
        results.begin("two");
        results.end(0.1, Some(Error::Usage("does not start".to_owned())));
        assert_eq!(names("one"), ["good", "bad"]);
        assert_eq!(results.documents().len(), 2);
        let why = results.failure().unwrap_err().to_string();
        assert!(why.contains("two") && why.contains("does not start"), "{why}");
    }
}
