//! What to do: one [`Job`], in fio's terms.

mod ini;
mod options;
mod units;

use std::time::Duration;

pub use ini::parse;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads and writes blocks of files (fio: `ioengine=sync`).
    Blocks,
    /// Creates empty files (fio: `filecreate`).
    FileCreate,
    /// Asks for files' attributes (fio: `filestat`).
    FileStat,
    /// Removes files (fio: `filedelete`).
    FileDelete,
    /// Creates files of one block in a fresh directory. Not in fio.
    CreateFiles,
    /// Replaces files of one block: writes a temporary one, syncs it, renames it. Not in fio.
    ReplaceFile,
    /// Opens, asks for the attributes of, reads and closes files of one block. Not in fio.
    ReadFiles,
    /// Makes a tree of directories and files of various sizes, as tar does. Not in fio.
    Untar,
    /// Makes files in directories of a thousand, until there are so many. Not in fio.
    TreeCreate,
    /// Asks for the attributes of random files among all there are in such a tree. Not in fio.
    TreeStat,
    /// Lists random directories of such a tree. Not in fio.
    TreeList,
}

/// Which way bytes go (fio: `rw`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Blocks in random order.
    pub random: bool,
    /// Of 100 operations so many read.
    pub read_percent: u32,
}

/// Files in each directory of the trees that jobs share.
pub const FILES_PER_DIR: u64 = 1000;

/// How files are opened (fio: `sync`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenSync {
    /// Ordinarily.
    None,
    /// O_DSYNC.
    Data,
    /// O_SYNC.
    All,
}

/// A job. Names are fio's where fio has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its section's name.
    pub name: String,
    /// What it does.
    pub kind: Kind,
    /// `rw`, `rwmixread`.
    pub access: Access,
    /// `bs`: bytes of one operation.
    pub block_bytes: u64,
    /// `size`: bytes of all files of one clone.
    pub size_bytes: u64,
    /// `filesize`: bytes of one file, instead of `size`.
    pub file_bytes: Option<u64>,
    /// `io_size`: bytes after which it ends, if not at `size`.
    pub io_bytes: Option<u64>,
    /// `nrfiles`: files of one clone.
    pub files: u64,
    /// `number_ios`: it ends after so many operations. With an engine that repeats itself, that is one round.
    pub operations_max: Option<u64>,
    /// `tree`: works in a directory of this name, which it shares with the jobs of the same `tree` before and after
    /// it. Not in fio.
    pub tree: Option<String>,
    /// `numjobs`: clones at a time, each with files of its own.
    pub clones: u32,
    /// `fsync`: an fsync after so many writes; 0 for none.
    pub fsync_every: u64,
    /// `fdatasync`: likewise.
    pub fdatasync_every: u64,
    /// `end_fsync`: an fsync of each file at the end, which counts into the time.
    pub end_fsync: bool,
    /// `direct`: O_DIRECT.
    pub direct: bool,
    /// `sync`.
    pub open_sync: OpenSync,
    /// `runtime`: it ends after this.
    pub runtime: Option<Duration>,
    /// `time_based`: starts again at its end until `runtime` is over.
    pub time_based: bool,
    /// `thinktime`: a pause after each operation.
    pub think: Duration,
    /// `rate_iops`: at most so many operations a second in each clone.
    pub rate_iops: Option<u32>,
    /// `randseed`.
    pub seed: u64,
    /// Not `norandommap`: each block once in a pass.
    pub random_map: bool,
    /// `overwrite`: files are written in full beforehand.
    pub overwrite: bool,
    /// `invalidate`: files are dropped from the kernel's cache beforehand.
    pub invalidate: bool,
    /// `pre_read`: files are read beforehand.
    pub pre_read: bool,
    /// `verify=crc32`: all is read back and checked afterwards.
    pub verify: bool,
    /// The options as they were given, for the report.
    pub options: Vec<(String, String)>,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: Kind::Blocks,
            access: Access {
                random: false,
                read_percent: 100,
            },
            block_bytes: 4096,
            size_bytes: 0,
            file_bytes: None,
            io_bytes: None,
            files: 1,
            operations_max: None,
            tree: None,
            clones: 1,
            fsync_every: 0,
            fdatasync_every: 0,
            end_fsync: false,
            direct: false,
            open_sync: OpenSync::None,
            runtime: None,
            time_based: false,
            think: Duration::ZERO,
            rate_iops: None,
            seed: 1,
            random_map: true,
            overwrite: false,
            invalidate: true,
            pre_read: false,
            verify: false,
            options: Vec::new(),
        }
    }
}

impl Job {
    /// Bytes of each file: whole blocks.
    #[must_use]
    pub fn bytes_of_file(&self) -> u64 {
        match self.kind {
            Kind::Blocks => {
                let bytes = self.file_bytes.unwrap_or(self.size_bytes / self.files.max(1));
                bytes / self.block_bytes * self.block_bytes
            }
            Kind::FileCreate => 0,
            Kind::FileStat | Kind::FileDelete | Kind::TreeCreate | Kind::TreeStat | Kind::TreeList => {
                self.file_bytes.unwrap_or(0)
            }
            Kind::CreateFiles | Kind::ReplaceFile | Kind::ReadFiles => self.block_bytes,
            Kind::Untar => self.size_bytes / self.files.max(1),
        }
    }

    /// Operations of one pass of one clone.
    #[must_use]
    pub fn operations(&self) -> u64 {
        let all = match self.kind {
            Kind::Blocks => {
                let all = self.bytes_of_file() * self.files;
                self.io_bytes.unwrap_or(all).div_ceil(self.block_bytes)
            }
            Kind::TreeList => self.files.div_ceil(FILES_PER_DIR),
            _ => self.files,
        };
        all.min(self.operations_max.unwrap_or(u64::MAX))
    }

    /// What its directory is called.
    #[must_use]
    pub fn directory(&self) -> &str {
        self.tree.as_deref().unwrap_or(&self.name)
    }

    /// The job's random choices in one clone are made from this.
    #[must_use]
    pub fn seed_of(&self, clone: u32) -> u64 {
        self.seed
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(u64::from(clone))
    }

    /// The same job with an eighth of the files and bytes, for a quick look.
    #[must_use]
    pub fn scaled_down(mut self) -> Self {
        const BY: u64 = 8;
        self.files = self.files.div_ceil(BY);
        let block = self.block_bytes;
        let bytes = [
            Some(&mut self.size_bytes),
            self.file_bytes.as_mut(),
            self.io_bytes.as_mut(),
        ];
        for bytes in bytes.into_iter().flatten() {
            *bytes = (*bytes / BY).max(block);
        }
        for (key, now) in [
            ("nrfiles", Some(self.files)),
            ("size", Some(self.size_bytes)),
            ("filesize", self.file_bytes),
            ("io_size", self.io_bytes),
        ] {
            self.note(key, now.unwrap_or(0));
        }
        self
    }

    /// Makes a time-based job run for so long; others end when they have done their work.
    pub fn run_for(&mut self, time: Duration) {
        if self.time_based {
            self.runtime = Some(time);
            self.note("runtime", time.as_secs());
        }
    }

    /// Makes the report tell an option's new value, if the option was given.
    fn note(&mut self, key: &str, value: u64) {
        if let Some((_, text)) = self.options.iter_mut().find(|(known, _)| known == key) {
            *text = match value {
                bytes if bytes > 0 && bytes.is_multiple_of(1 << 20) => format!("{}m", bytes >> 20),
                bytes if bytes > 0 && bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
                number => number.to_string(),
            };
        }
    }
}

#[cfg(test)]
mod tests;
