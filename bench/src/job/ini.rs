//! `.fio` files: sections with options, `[global]` for all that follow.

use super::{Job, options};
use crate::{Error, Result};

/// The jobs of a file; `file` names it in errors.
///
/// # Errors
/// [`Error::JobFile`] for what this program does not do as fio does.
pub fn parse(file: &str, text: &str) -> Result<Vec<Job>> {
    let mut reader = Reader {
        global: Job::default(),
        jobs: Vec::new(),
        place: Place::None,
    };
    for (i, line) in text.lines().enumerate() {
        reader.line(line.trim()).map_err(|what| Error::JobFile {
            file: file.to_owned(),
            line: i + 1,
            what,
        })?;
    }
    reader.finish().map_err(|(line, what)| Error::JobFile {
        file: file.to_owned(),
        line: line + 1,
        what,
    })?;
    let last = text.lines().count().max(1);
    for (i, job) in reader.jobs.iter().enumerate() {
        let at = |what| Error::JobFile {
            file: file.to_owned(),
            line: section_line(text, &job.name).unwrap_or(last),
            what,
        };
        options::check(job).map_err(|what| at(format!("[{}]: {what}", job.name)))?;
        let waits = job.options.iter().any(|(key, _)| key == "stonewall");
        if i > 0 && !waits {
            let what =
                "jobs run one after the other here: write stonewall into [global], so that fio does the same";
            return Err(at(what.to_owned()));
        }
    }
    Ok(reader.jobs)
}

struct Reader {
    global: Job,
    jobs: Vec<Job>,
    place: Place,
}

enum Place {
    None,
    Global,
    Job,
}

impl Reader {
    fn line(&mut self, line: &str) -> std::result::Result<(), String> {
        if line.is_empty() || line.starts_with([';', '#']) {
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.strip_suffix(']').ok_or("a section's name ends with ]")?;
            return self.section(name);
        }
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let (key, value) = (key.trim(), value.trim());
        let job = match self.place {
            Place::None => return Err("options come after a [section]".to_owned()),
            Place::Global => &mut self.global,
            Place::Job => self.jobs.last_mut().ok_or("options come after a [section]")?,
        };
        options::apply(job, key, value)?;
        job.options.retain(|(known, _)| known != key);
        job.options.push((key.to_owned(), value.to_owned()));
        Ok(())
    }

    fn section(&mut self, name: &str) -> std::result::Result<(), String> {
        if name == "global" {
            self.place = Place::Global;
            return Ok(());
        }
        let name = options::name(name)?;
        if self.jobs.iter().any(|job| job.name == name) {
            return Err(format!("there is a job named {name} already"));
        }
        self.place = Place::Job;
        self.jobs.push(Job {
            name,
            ..self.global.clone()
        });
        Ok(())
    }

    fn finish(&self) -> std::result::Result<(), (usize, String)> {
        if self.jobs.is_empty() {
            return Err((
                0,
                "there is no job in this file: begin one with [name]".to_owned(),
            ));
        }
        Ok(())
    }
}

fn section_line(text: &str, name: &str) -> Option<usize> {
    let header = format!("[{name}]");
    text.lines().position(|line| line.trim() == header).map(|i| i + 1)
}
