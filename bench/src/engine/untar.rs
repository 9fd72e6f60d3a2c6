//! A tree as tar unpacks it: directories and files of very different sizes.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Context, Engine};
use crate::layer::{self, Open};
use crate::pattern::{BLOCK_BYTES_MIN, Buffer};
use crate::stats::{Recorder, Side};
use crate::{Error, Result};

/// GNU tar writes records of 20 blocks.
const WRITE_BYTES: usize = 20 * 512;
const FILES_PER_DIR: usize = 17;
const DEPTH_MAX: usize = 4;

pub(super) struct Untar<'a> {
    context: Context<'a>,
    plan: Plan,
    buffer: Buffer,
    next: usize,
    pass: u64,
}

/// What a tree is made of; the same for the same seed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Paths in the tree, parents first; the first is the tree itself.
    pub(super) dirs: Vec<String>,
    /// For each file its directory and its bytes.
    pub(super) files: Vec<(usize, u64)>,
}

impl Plan {
    /// `files` files of `bytes` together.
    pub(super) fn new(files: u64, bytes: u64, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = usize::try_from(files).unwrap_or(usize::MAX);
        let mut dirs = vec![String::new()];
        for i in 1..count.div_ceil(FILES_PER_DIR) {
            let parent = rng.random_range(0..i);
            let parent = if dirs[parent].matches('/').count() < DEPTH_MAX {
                parent
            } else {
                0
            };
            dirs.push(format!("{}/d{i:03}", dirs[parent]));
        }
        // Most files are small, and few files hold most of the bytes, as in source trees.
        let weights: Vec<f64> = (0..count)
            .map(|_| rng.random_range(0.0_f64..1.0).powi(6) + 0.002)
            .collect();
        let sum: f64 = weights.iter().sum();
        let mut left = bytes;
        let mut sizes: Vec<u64> = weights
            .iter()
            .map(|weight| {
                let size =
                    ((weight / sum * bytes as f64) as u64).clamp(BLOCK_BYTES_MIN, left.max(BLOCK_BYTES_MIN));
                left = left.saturating_sub(size);
                size
            })
            .collect();
        if let Some(last) = sizes.last_mut() {
            *last += left;
        }
        let files = sizes
            .into_iter()
            .enumerate()
            .map(|(i, size)| (i / FILES_PER_DIR, size))
            .collect();
        Self { dirs, files }
    }
}

impl<'a> Untar<'a> {
    pub(super) fn new(context: Context<'a>) -> Self {
        let plan = Plan::new(context.job.files, context.job.size_bytes, context.seed);
        let largest = plan.files.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        let mut buffer = Buffer::new(usize::try_from(largest).unwrap_or(0));
        context.pattern.fill(buffer.all());
        Self {
            context,
            plan,
            buffer,
            next: 0,
            pass: 0,
        }
    }

    fn tree(&self) -> String {
        format!("{}.{}", self.context.dir, self.pass)
    }

    fn path(&self, file: usize) -> String {
        let (dir, _) = self.plan.files[file];
        format!("{}{}/f{file:06}", self.tree(), self.plan.dirs[dir])
    }

    fn write_file(&mut self, path: &str, file: usize) -> std::io::Result<()> {
        let (_, bytes) = self.plan.files[file];
        let block = self.buffer.part(usize::try_from(bytes).unwrap_or(0));
        self.context.pattern.stamp(block, 0, file as u64);
        let mut open = self.context.files.open(path, Open::FRESH)?;
        for (i, part) in block.chunks(WRITE_BYTES).enumerate() {
            layer::write_all(&mut *open, part, (i * WRITE_BYTES) as u64)?;
        }
        open.set_times()
    }
}

impl Engine for Untar<'_> {
    fn prepare(&mut self) -> Result<()> {
        self.context.mkdir(&self.tree())
    }

    fn step(&mut self, recorder: &mut Recorder) -> Result<bool> {
        let Some((dir, bytes)) = self.plan.files.get(self.next).copied() else {
            return Ok(false);
        };
        if dir > 0 && self.next.is_multiple_of(FILES_PER_DIR) {
            let path = format!("{}{}", self.tree(), self.plan.dirs[dir]);
            recorder
                .timed(Side::Write, 0, |_| self.context.files.mkdir(&path))
                .map_err(Error::io("make", &path))?;
        }
        let path = self.path(self.next);
        recorder
            .timed(Side::Write, bytes, |_| self.write_file(&path, self.next))
            .map_err(Error::io("create", &path))?;
        self.next += 1;
        Ok(true)
    }

    fn rewind(&mut self) -> Result<bool> {
        self.next = 0;
        self.pass += 1;
        self.context.mkdir(&self.tree())?;
        Ok(true)
    }

    fn finish(&mut self, recorder: &mut Recorder) -> Result<()> {
        let tree = self.tree();
        if self.context.job.end_fsync {
            recorder
                .timed(Side::Sync, 0, |_| self.context.files.sync_tree(&tree))
                .map_err(Error::io("sync", &tree))?;
        }
        Ok(())
    }

    fn check(&mut self) -> Result<u64> {
        if !self.context.pattern.verified() {
            return Ok(0);
        }
        for file in 0..self.next {
            let path = self.path(file);
            let block = self
                .buffer
                .part(usize::try_from(self.plan.files[file].1).unwrap_or(0));
            let mut open = self.context.open(&path, Open::READ)?;
            layer::read_all(&mut *open, block, 0).map_err(Error::io("read back", &path))?;
            self.context.check(&path, block, 0, Some(file as u64))?;
        }
        Ok(self.next as u64)
    }
}
