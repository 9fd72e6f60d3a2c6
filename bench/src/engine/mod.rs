//! What does a job's work, one engine for each kind of work and one value for each clone.

mod blocks;
mod small;
mod tree;
mod untar;

use std::time::Duration;

use crate::clock::Clock;
use crate::job::{Job, Kind, OpenSync};
use crate::layer::{Files, Open, OpenFile};
use crate::pattern::Pattern;
use crate::stats::Recorder;
use crate::{Error, Result};

/// The work of one clone of a job.
pub trait Engine: Send {
    /// What must be there before the time is taken.
    ///
    /// # Errors
    /// Of the filesystem.
    fn prepare(&mut self) -> Result<()>;

    /// One operation, timed; false if the pass is at its end and nothing was done.
    ///
    /// # Errors
    /// Of the filesystem, or wrong data.
    fn step(&mut self, recorder: &mut Recorder) -> Result<bool>;

    /// Begins another pass; false if there is none.
    ///
    /// # Errors
    /// Of the filesystem.
    fn rewind(&mut self) -> Result<bool>;

    /// What the job's time includes at its end: `end_fsync`.
    ///
    /// # Errors
    /// Of the filesystem.
    fn finish(&mut self, recorder: &mut Recorder) -> Result<()>;

    /// Reads back what was written; returns the number of blocks checked.
    ///
    /// # Errors
    /// [`Error::Verify`] at the first wrong one.
    fn check(&mut self) -> Result<u64>;
}

/// Until when a job has to be done.
#[derive(Clone, Copy)]
pub struct Deadline<'a> {
    /// Tells the time.
    pub clock: &'a dyn Clock,
    /// The moment, by that clock; `None` for never.
    pub at: Option<Duration>,
}

impl Deadline<'_> {
    /// Whether it is over.
    ///
    /// # Errors
    /// If so.
    pub fn check(&self) -> Result<()> {
        match self.at {
            Some(at) if self.clock.now() > at => {
                Err(Error::Usage("took too long, and was given up".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// The engine for one clone of a job; its files are below `dir`, which is there.
pub fn new<'a>(
    files: &'a dyn Files,
    job: &'a Job,
    dir: &str,
    clone: u32,
    deadline: Deadline<'a>,
) -> Box<dyn Engine + 'a> {
    let context = Context {
        files,
        job,
        deadline,
        dir: format!("{dir}/{clone}"),
        seed: job.seed_of(clone),
        pattern: Pattern::new(job.seed_of(clone), job.verify),
    };
    match job.kind {
        Kind::Blocks => Box::new(blocks::Blocks::new(context)),
        Kind::Untar => Box::new(untar::Untar::new(context)),
        Kind::TreeCreate | Kind::TreeStat | Kind::TreeList => Box::new(tree::Tree::new(context)),
        _ => Box::new(small::SmallFiles::new(context)),
    }
}

/// What every engine has.
struct Context<'a> {
    files: &'a dyn Files,
    job: &'a Job,
    deadline: Deadline<'a>,
    /// This clone's own directory.
    dir: String,
    seed: u64,
    pattern: Pattern,
}

impl Context<'_> {
    /// To be called while files are laid out, which may take long.
    fn in_time(&self) -> Result<()> {
        self.deadline.check()
    }

    fn open(&self, path: &str, how: Open) -> Result<Box<dyn OpenFile>> {
        self.files.open(path, how).map_err(Error::io("open", path))
    }

    /// How a job's own files are opened.
    fn how(&self, base: Open) -> Open {
        Open {
            direct: self.job.direct,
            sync: self.job.open_sync == OpenSync::All,
            dsync: self.job.open_sync == OpenSync::Data,
            ..base
        }
    }

    fn mkdir(&self, path: &str) -> Result<()> {
        self.files.mkdir(path).map_err(Error::io("make", path))
    }

    fn check(&self, path: &str, block: &[u8], offset: u64, number: Option<u64>) -> Result<()> {
        self.pattern
            .check(block, offset, number)
            .map_err(|what| Error::Verify {
                file: path.to_owned(),
                offset,
                what,
            })
    }
}

#[cfg(test)]
mod tests;
