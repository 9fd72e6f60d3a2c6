//! Reads and writes of blocks.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Context, Engine};
use crate::layer::{self, Open, OpenFile};
use crate::offsets::Offsets;
use crate::pattern::Buffer;
use crate::stats::{Recorder, Side};
use crate::{Error, Result};

/// Files are laid out in writes of about so many bytes.
const LAYOUT_BYTES: u64 = 1 << 20;
/// In `last_write`: nothing was written there.
const NEVER: u64 = u64::MAX;

pub(super) struct Blocks<'a> {
    context: Context<'a>,
    files: Vec<(String, Box<dyn OpenFile>)>,
    blocks_per_file: u64,
    offsets: Offsets,
    mix: StdRng,
    buffer: Buffer,
    /// Operations of this pass, and writes of all.
    done: u64,
    writes: u64,
    /// With `verify`, for each block the number of the write that made it.
    last_write: Vec<u64>,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(context: Context<'a>) -> Self {
        let job = context.job;
        let blocks_per_file = (job.bytes_of_file() / job.block_bytes).max(1);
        let all = blocks_per_file.saturating_mul(job.files);
        let offsets = match (job.access.random, job.random_map) {
            (false, _) => Offsets::sequential(all),
            (true, true) => Offsets::shuffled(all, context.seed),
            (true, false) => Offsets::uniform(all, context.seed),
        };
        let mut buffer = Buffer::new(usize::try_from(job.block_bytes).unwrap_or(usize::MAX));
        context.pattern.fill(buffer.all());
        let seen = if job.verify { all } else { 0 };
        Self {
            files: Vec::new(),
            blocks_per_file,
            offsets,
            mix: StdRng::seed_from_u64(!context.seed),
            buffer,
            done: 0,
            writes: 0,
            last_write: vec![NEVER; usize::try_from(seen).unwrap_or(0)],
            context,
        }
    }

    fn layout(&mut self, path: &str) -> Result<()> {
        let job = self.context.job;
        let bytes = self.blocks_per_file * job.block_bytes;
        let chunk_bytes = (LAYOUT_BYTES / job.block_bytes).max(1) * job.block_bytes;
        let block = usize::try_from(job.block_bytes).unwrap_or(usize::MAX);
        let mut chunk = vec![0; usize::try_from(chunk_bytes.min(bytes)).unwrap_or(0)];
        self.context.pattern.fill(&mut chunk);
        let mut file = self.context.open(path, Open::FRESH)?;
        let mut offset = 0;
        while offset < bytes {
            self.context.in_time()?;
            let len = chunk
                .len()
                .min(usize::try_from(bytes - offset).unwrap_or(usize::MAX));
            for (i, part) in chunk[..len].chunks_mut(block).enumerate() {
                self.context.pattern.stamp(part, offset + (i * block) as u64, 0);
            }
            layer::write_all(&mut *file, &chunk[..len], offset).map_err(Error::io("lay out", path))?;
            offset += len as u64;
        }
        file.fsync().map_err(Error::io("sync", path))?;
        if job.invalidate {
            // Some filesystems do not have it.
            let _ = file.drop_cache();
        }
        self.last_write.fill(0);
        Ok(())
    }

    /// Reads a file through the very handle that is measured: some filesystems forget its pages when it is opened.
    fn read_before(&mut self, file: usize) -> Result<()> {
        let (path, open) = &mut self.files[file];
        let block = self.context.job.block_bytes;
        for number in 0..self.blocks_per_file {
            layer::read_all(&mut **open, self.buffer.all(), number * block)
                .map_err(Error::io("read", &*path))?;
        }
        self.context.pattern.fill(self.buffer.all());
        Ok(())
    }

    fn read(&mut self, recorder: &mut Recorder, block: u64) -> Result<()> {
        let (file, offset) = self.place(block);
        let (path, open) = &mut self.files[file];
        let buffer = self.buffer.all();
        let bytes = buffer.len() as u64;
        recorder
            .timed(Side::Read, bytes, |_| {
                layer::read_all(&mut **open, buffer, offset)
            })
            .map_err(Error::io("read", &*path))?;
        if let Some(number) = self.last_write.get(usize::try_from(block).unwrap_or(usize::MAX))
            && *number != NEVER
        {
            self.context.check(path, buffer, offset, Some(*number))?;
            // The next write must not be of what was read.
            if self.context.job.access.read_percent < 100 {
                self.context.pattern.fill(buffer);
            }
        }
        Ok(())
    }

    fn write(&mut self, recorder: &mut Recorder, block: u64) -> Result<()> {
        let (file, offset) = self.place(block);
        self.writes += 1;
        let (path, open) = &mut self.files[file];
        let buffer = self.buffer.all();
        let bytes = buffer.len() as u64;
        self.context.pattern.stamp(buffer, offset, self.writes);
        recorder
            .timed(Side::Write, bytes, |_| {
                layer::write_all(&mut **open, buffer, offset)
            })
            .map_err(Error::io("write", &*path))?;
        if let Some(number) = self
            .last_write
            .get_mut(usize::try_from(block).unwrap_or(usize::MAX))
        {
            *number = self.writes;
        }
        let job = self.context.job;
        if job.fsync_every > 0 && self.writes.is_multiple_of(job.fsync_every) {
            recorder
                .timed(Side::Sync, 0, |_| open.fsync())
                .map_err(Error::io("fsync", &*path))?;
        }
        if job.fdatasync_every > 0 && self.writes.is_multiple_of(job.fdatasync_every) {
            recorder
                .timed(Side::Sync, 0, |_| open.fdatasync())
                .map_err(Error::io("fdatasync", &*path))?;
        }
        Ok(())
    }

    /// Blocks go round the files, as fio does with `file_service_type=roundrobin`.
    fn place(&self, block: u64) -> (usize, u64) {
        let files = self.context.job.files;
        let file = usize::try_from(block % files).unwrap_or(0);
        (file, block / files * self.context.job.block_bytes)
    }
}

impl Engine for Blocks<'_> {
    fn prepare(&mut self) -> Result<()> {
        let job = self.context.job;
        self.context.mkdir(&self.context.dir)?;
        for i in 0..job.files {
            let path = format!("{}/{i}", self.context.dir);
            if job.overwrite || job.access.read_percent > 0 {
                self.layout(&path)?;
            }
            let base = Open {
                write: job.access.read_percent < 100,
                create: true,
                ..Open::READ
            };
            let file = self.context.open(&path, self.context.how(base))?;
            self.files.push((path, file));
            if job.pre_read {
                self.read_before(self.files.len() - 1)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, recorder: &mut Recorder) -> Result<bool> {
        if self.done >= self.context.job.operations() {
            return Ok(false);
        }
        self.done += 1;
        let block = self.offsets.next_block();
        let read = match self.context.job.access.read_percent {
            0 => false,
            100 => true,
            percent => self.mix.random_range(0..100) < percent,
        };
        if read {
            self.read(recorder, block)?;
        } else {
            self.write(recorder, block)?;
        }
        Ok(true)
    }

    fn rewind(&mut self) -> Result<bool> {
        self.done = 0;
        Ok(true)
    }

    fn finish(&mut self, recorder: &mut Recorder) -> Result<()> {
        if self.context.job.end_fsync {
            for (path, file) in &mut self.files {
                recorder
                    .timed(Side::Sync, 0, |_| file.fsync())
                    .map_err(Error::io("fsync", &*path))?;
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<u64> {
        let mut checked = 0;
        for file in 0..self.files.len() {
            let path = self.files[file].0.clone();
            let mut open = self.context.open(&path, Open::READ)?;
            let _ = open.drop_cache();
            for (block, number) in self.last_write.iter().enumerate() {
                let (at, offset) = self.place(block as u64);
                if at != file || *number == NEVER {
                    continue;
                }
                let buffer = self.buffer.all();
                layer::read_all(&mut *open, buffer, offset).map_err(Error::io("read back", &path))?;
                self.context.check(&path, buffer, offset, Some(*number))?;
                checked += 1;
            }
        }
        Ok(checked)
    }
}
