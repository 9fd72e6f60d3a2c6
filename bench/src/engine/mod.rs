//! What does a job's work, one engine for each kind of work and one value for each clone.

mod blocks;
mod small;
mod untar;

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

/// The engine for one clone of a job; its files are below `dir`, which is there.
///
/// # Errors
/// If its buffers would be too large.
pub fn new<'a>(files: &'a dyn Files, job: &'a Job, dir: &str, clone: u32) -> Box<dyn Engine + 'a> {
    let context = Context {
        files,
        job,
        dir: format!("{dir}/{clone}"),
        seed: job.seed_of(clone),
        pattern: Pattern::new(job.seed_of(clone), job.verify),
    };
    match job.kind {
        Kind::Blocks => Box::new(blocks::Blocks::new(context)),
        Kind::Untar => Box::new(untar::Untar::new(context)),
        _ => Box::new(small::SmallFiles::new(context)),
    }
}

/// What every engine has.
struct Context<'a> {
    files: &'a dyn Files,
    job: &'a Job,
    /// This clone's own directory.
    dir: String,
    seed: u64,
    pattern: Pattern,
}

impl Context<'_> {
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
