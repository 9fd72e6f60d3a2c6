//! Many small files: created, replaced, asked for, read, removed.

use std::collections::BTreeMap;

use super::{Context, Engine};
use crate::job::Kind;
use crate::layer::{self, Open};
use crate::offsets::Offsets;
use crate::pattern::Buffer;
use crate::stats::{Recorder, Side};
use crate::{Error, Result};

pub(super) struct SmallFiles<'a> {
    context: Context<'a>,
    offsets: Offsets,
    buffer: Buffer,
    /// Operations of this pass, passes before it, and writes of all.
    done: u64,
    pass: u64,
    writes: u64,
    /// With `verify`: the paths that were written, and by which write.
    written: BTreeMap<String, u64>,
}

impl<'a> SmallFiles<'a> {
    pub(super) fn new(context: Context<'a>) -> Self {
        let job = context.job;
        let offsets = if job.access.random {
            Offsets::shuffled(job.files, context.seed)
        } else {
            Offsets::sequential(job.files)
        };
        let mut buffer = Buffer::new(usize::try_from(job.bytes_of_file()).unwrap_or(0));
        context.pattern.fill(buffer.all());
        Self {
            offsets,
            buffer,
            done: 0,
            pass: 0,
            writes: 0,
            written: BTreeMap::new(),
            context,
        }
    }

    /// Creating starts in a fresh directory in each pass.
    fn dir(&self) -> String {
        match self.context.job.kind {
            Kind::FileCreate | Kind::CreateFiles => format!("{}.{}", self.context.dir, self.pass),
            _ => self.context.dir.clone(),
        }
    }

    fn path(&self, file: u64) -> String {
        format!("{}/f{file:07}", self.dir())
    }

    /// A file of one stamped block, not synced.
    fn write_file(&mut self, path: &str) -> std::io::Result<Box<dyn layer::OpenFile>> {
        self.writes += 1;
        let bytes = self.buffer.all();
        if !bytes.is_empty() {
            self.context.pattern.stamp(bytes, 0, self.writes);
        }
        let mut file = self.context.files.open(path, self.context.how(Open::FRESH))?;
        layer::write_all(&mut *file, bytes, 0)?;
        Ok(file)
    }

    /// One round that is not timed, of the engines that ask for what is there: what is measured is the cached state.
    fn warm_up(&mut self) -> Result<()> {
        let job = self.context.job;
        for file in 0..job.files {
            let path = self.path(file);
            match job.kind {
                Kind::FileStat => self.context.files.stat(&path).map(drop),
                Kind::ReadFiles => self
                    .context
                    .files
                    .open(&path, self.context.how(Open::READ))
                    .and_then(|mut open| {
                        open.size()?;
                        layer::read_all(&mut *open, self.buffer.all(), 0)
                    }),
                _ => return Ok(()),
            }
            .map_err(Error::io("read", &path))?;
        }
        Ok(())
    }

    fn note(&mut self, path: String) {
        if self.context.pattern.verified() {
            self.written.insert(path, self.writes);
        }
    }

    fn replace(&mut self, recorder: &mut Recorder, path: &str) -> Result<()> {
        let temporary = format!("{path}.new");
        let bytes = self.context.job.block_bytes;
        recorder
            .timed(Side::Write, bytes, |recorder| {
                let mut file = self.write_file(&temporary)?;
                recorder.timed(Side::Sync, 0, |_| file.fsync())?;
                drop(file);
                self.context.files.rename(&temporary, path)
            })
            .map_err(Error::io("replace", path))
    }

    fn read(&mut self, recorder: &mut Recorder, path: &str) -> Result<()> {
        let bytes = self.context.job.block_bytes;
        let buffer = self.buffer.all();
        let files = self.context.files;
        let how = self.context.how(Open::READ);
        recorder
            .timed(Side::Read, bytes, |_| {
                let mut file = files.open(path, how)?;
                file.size()?;
                layer::read_all(&mut *file, buffer, 0)
            })
            .map_err(Error::io("read", path))?;
        if self.context.pattern.verified() {
            self.context.check(path, buffer, 0, None)?;
        }
        Ok(())
    }
}

impl Engine for SmallFiles<'_> {
    fn prepare(&mut self) -> Result<()> {
        self.context.mkdir(&self.dir())?;
        let job = self.context.job;
        if matches!(job.kind, Kind::FileCreate | Kind::CreateFiles) {
            return Ok(());
        }
        for file in 0..job.files {
            self.context.in_time()?;
            let path = self.path(file);
            self.write_file(&path).map_err(Error::io("lay out", &path))?;
        }
        self.warm_up()
    }

    fn step(&mut self, recorder: &mut Recorder) -> Result<bool> {
        if self.done >= self.context.job.operations() {
            return Ok(false);
        }
        self.done += 1;
        let file = self.offsets.next_block();
        let path = self.path(file);
        let files = self.context.files;
        match self.context.job.kind {
            Kind::FileStat => {
                recorder
                    .timed(Side::Read, 0, |_| files.stat(&path))
                    .map_err(Error::io("stat", &path))?;
            }
            Kind::FileDelete => {
                recorder
                    .timed(Side::Read, 0, |_| files.unlink(&path))
                    .map_err(Error::io("remove", &path))?;
            }
            Kind::ReadFiles => self.read(recorder, &path)?,
            Kind::ReplaceFile => {
                self.replace(recorder, &path)?;
                self.note(path);
            }
            Kind::FileCreate => {
                recorder
                    .timed(Side::Read, 0, |_| self.write_file(&path).map(drop))
                    .map_err(Error::io("create", &path))?;
            }
            _ => {
                let bytes = self.context.job.block_bytes;
                recorder
                    .timed(Side::Write, bytes, |_| self.write_file(&path).map(drop))
                    .map_err(Error::io("create", &path))?;
                self.note(path);
            }
        }
        Ok(true)
    }

    fn rewind(&mut self) -> Result<bool> {
        self.done = 0;
        self.pass += 1;
        match self.context.job.kind {
            Kind::FileDelete => return Ok(false),
            Kind::FileCreate | Kind::CreateFiles => self.context.mkdir(&self.dir())?,
            _ => {}
        }
        Ok(true)
    }

    fn finish(&mut self, recorder: &mut Recorder) -> Result<()> {
        let dir = self.dir();
        if self.context.job.end_fsync {
            recorder
                .timed(Side::Sync, 0, |_| self.context.files.sync_tree(&dir))
                .map_err(Error::io("sync", &dir))?;
        }
        Ok(())
    }

    fn check(&mut self) -> Result<u64> {
        for (path, number) in &self.written {
            let mut file = self.context.open(path, Open::READ)?;
            let buffer = self.buffer.all();
            layer::read_all(&mut *file, buffer, 0).map_err(Error::io("read back", path))?;
            self.context.check(path, buffer, 0, Some(*number))?;
        }
        Ok(self.written.len() as u64)
    }
}
