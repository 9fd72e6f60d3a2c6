//! Files in directories of a thousand, which several jobs share: so many are made, and those there are asked for.

use std::io::ErrorKind;

use super::{Context, Engine};
use crate::job::{FILES_PER_DIR, Kind};
use crate::layer::{self, Open};
use crate::offsets::Offsets;
use crate::pattern::Buffer;
use crate::stats::{Recorder, Side};
use crate::{Error, Result};

pub(super) struct Tree<'a> {
    context: Context<'a>,
    /// Files that are there: those with lower numbers.
    there: u64,
    /// Which file or directory comes next.
    offsets: Offsets,
    buffer: Buffer,
    /// Operations of this round.
    done: u64,
}

impl<'a> Tree<'a> {
    pub(super) fn new(context: Context<'a>) -> Self {
        let mut buffer = Buffer::new(usize::try_from(context.job.bytes_of_file()).unwrap_or(0));
        context.pattern.fill(buffer.all());
        Self {
            offsets: offsets(&context),
            there: 0,
            buffer,
            done: 0,
            context,
        }
    }

    fn dir(&self, dir: u64) -> String {
        format!("{}/d{dir:05}", self.context.dir)
    }

    fn path(&self, file: u64) -> String {
        format!("{}/f{file:07}", self.dir(file / FILES_PER_DIR))
    }

    /// How many files earlier jobs have made. They were made in order, so the first that is missing tells.
    fn find_there(&self) -> Result<u64> {
        let (mut there, mut missing) = (0, self.context.job.files);
        while there < missing {
            let middle = there + (missing - there) / 2;
            let path = self.path(middle);
            match self.context.files.stat(&path) {
                Ok(_) => there = middle + 1,
                Err(error) if error.kind() == ErrorKind::NotFound => missing = middle,
                Err(error) => return Err(Error::io("stat", &path)(error)),
            }
        }
        Ok(there)
    }

    /// Makes the next file, and its directory before the first one in it.
    fn create_next(&mut self) -> Result<()> {
        if self.there.is_multiple_of(FILES_PER_DIR) {
            self.mkdir_if_missing(&self.dir(self.there / FILES_PER_DIR))?;
        }
        let path = self.path(self.there);
        self.there += 1;
        let bytes = self.buffer.all();
        if !bytes.is_empty() {
            self.context.pattern.stamp(bytes, 0, self.there);
        }
        let made = self.context.files.open(&path, self.context.how(Open::FRESH));
        made.and_then(|mut file| layer::write_all(&mut *file, bytes, 0))
            .map_err(Error::io("create", &path))
    }

    fn mkdir_if_missing(&self, path: &str) -> Result<()> {
        match self.context.files.mkdir(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Error::io("make", path)(error)),
            _ => Ok(()),
        }
    }

    fn stat(&self, file: u64) -> Result<()> {
        let path = self.path(file);
        let size = self.context.files.stat(&path).map_err(Error::io("stat", &path))?;
        self.expect(&path, size, self.context.job.bytes_of_file())
    }

    fn list(&self, dir: u64) -> Result<u64> {
        let path = self.dir(dir);
        let names = self.context.files.list(&path).map_err(Error::io("list", &path))?;
        let expected = (self.context.job.files - dir * FILES_PER_DIR).min(FILES_PER_DIR);
        // Another job may have made more, but never fewer.
        self.expect(&path, names.min(expected), expected)?;
        Ok(names)
    }

    fn expect(&self, path: &str, found: u64, expected: u64) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        Err(Error::Verify {
            file: path.to_owned(),
            offset: 0,
            what: format!("{found} bytes or names instead of {expected}"),
        })
    }
}

/// The same random choices in each round.
fn offsets(context: &Context) -> Offsets {
    let job = context.job;
    match job.kind {
        Kind::TreeList => Offsets::shuffled(job.files.div_ceil(FILES_PER_DIR), context.seed),
        _ => Offsets::shuffled(job.files, context.seed),
    }
}

impl Engine for Tree<'_> {
    fn prepare(&mut self) -> Result<()> {
        let job = self.context.job;
        self.mkdir_if_missing(&self.context.dir)?;
        self.there = self.find_there()?;
        if job.kind == Kind::TreeCreate {
            return Ok(());
        }
        while self.there < job.files {
            self.context.in_time()?;
            self.create_next()?;
        }
        if job.pre_read {
            for _ in 0..job.operations() {
                let next = self.offsets.next_block();
                match job.kind {
                    Kind::TreeList => self.list(next).map(drop)?,
                    _ => self.stat(next)?,
                }
            }
            self.rewind()?;
        } else if job.invalidate {
            // What is dirty would stay.
            let dir = &self.context.dir;
            self.context
                .files
                .sync_tree(dir)
                .map_err(Error::io("sync", dir))?;
            // Only root may.
            let _ = self.context.files.drop_names();
        }
        Ok(())
    }

    fn step(&mut self, recorder: &mut Recorder) -> Result<bool> {
        let job = self.context.job;
        let over = match job.kind {
            Kind::TreeCreate => self.there >= job.files || self.done >= job.operations(),
            _ => self.done >= job.operations(),
        };
        if over {
            return Ok(false);
        }
        self.done += 1;
        match job.kind {
            Kind::TreeCreate => {
                recorder.timed(Side::Write, job.bytes_of_file(), |_| self.create_next())?;
            }
            Kind::TreeList => {
                let dir = self.offsets.next_block();
                recorder.timed_reads(|| self.list(dir))?;
            }
            _ => {
                let file = self.offsets.next_block();
                recorder.timed(Side::Read, 0, |_| self.stat(file))?;
            }
        }
        Ok(true)
    }

    fn rewind(&mut self) -> Result<bool> {
        self.done = 0;
        self.offsets = offsets(&self.context);
        Ok(self.context.job.kind != Kind::TreeCreate)
    }

    fn finish(&mut self, recorder: &mut Recorder) -> Result<()> {
        let dir = &self.context.dir;
        if self.context.job.end_fsync {
            recorder
                .timed(Side::Sync, 0, |_| self.context.files.sync_tree(dir))
                .map_err(Error::io("sync", dir))?;
        }
        Ok(())
    }

    fn check(&mut self) -> Result<u64> {
        Ok(0)
    }
}
