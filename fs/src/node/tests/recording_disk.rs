//! A simulated disk that keeps, for each sync, what a power cut just before it and just after it finds.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use raftstore::disk::{CrashMode, Disk, DiskFile, Open, SimDisk, Space};

/// What a node was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `init`.
    Making,
    /// From the opening of the store until there is a session: recovery, election, founding.
    Starting,
    /// Serving, or stopping.
    Working,
}

/// What the world had been told when the power went.
#[derive(Debug, Clone)]
pub struct Known {
    pub phase: Phase,
    /// The join token that `init` printed.
    pub token: Option<[u8; 32]>,
    /// Steps of the workload of which everything was acknowledged.
    pub done: usize,
    /// Steps that had begun.
    pub begun: usize,
    /// What was acknowledged of the step after those done.
    pub acked: BTreeSet<usize>,
}

/// The medium at one moment.
pub struct Cut {
    pub disk: SimDisk,
    /// Where the store's parent directory is on it.
    pub root: PathBuf,
    pub known: Known,
    /// Which sync since the recording began, from 1.
    pub sync: usize,
    pub mode: CrashMode,
}

/// See the module.
pub struct RecordingDisk {
    sim: SimDisk,
    root: PathBuf,
    recording: Arc<Recording>,
}

struct Recording {
    known: Mutex<Known>,
    /// `None` once nothing is recorded any more.
    cuts: Mutex<Option<Vec<Cut>>>,
}

impl RecordingDisk {
    pub fn new(sim: SimDisk, root: &Path, known: Known) -> Arc<Self> {
        let recording = Recording {
            known: Mutex::new(known),
            cuts: Mutex::new(Some(Vec::new())),
        };
        Arc::new(Self {
            sim,
            root: root.to_owned(),
            recording: Arc::new(recording),
        })
    }

    /// What the world is told from now on.
    pub fn tell<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        change(&mut self.recording.known.lock().unwrap())
    }

    /// Ends the recording.
    pub fn take(&self) -> Vec<Cut> {
        self.recording.cuts.lock().unwrap().take().unwrap_or_default()
    }

    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.keep(CrashMode::Before);
        sync()?;
        self.keep(CrashMode::After);
        Ok(())
    }

    fn keep(&self, mode: CrashMode) {
        let mut cuts = self.recording.cuts.lock().unwrap();
        let Some(cuts) = cuts.as_mut() else { return };
        // In this order: what was acknowledged before the cut must be there, what had not begun after it must not.
        let mut known = self.tell(|known| known.clone());
        let disk = self.sim.fork();
        known.begun = self.tell(|known| known.begun);
        let before = cuts.iter().filter(|cut| cut.mode == CrashMode::Before).count();
        cuts.push(Cut {
            disk,
            root: self.root.clone(),
            known,
            sync: before + usize::from(mode == CrashMode::Before),
            mode,
        });
    }

    fn handle(&self) -> Self {
        Self {
            sim: self.sim.clone(),
            root: self.root.clone(),
            recording: Arc::clone(&self.recording),
        }
    }
}

impl Disk for RecordingDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.sim.open(path, how)?;
        let disk = self.handle();
        Ok(Arc::new(RecordingFile { file, disk }))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.sim.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.sim.create_dir_all(dir)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.sim.remove(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.sim.remove_dir_all(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.sim.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sync(|| self.sim.sync_dir(dir))
    }
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.sim.set_mode(path, mode)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.sim.space(path)
    }
}

struct RecordingFile {
    file: Arc<dyn DiskFile>,
    disk: RecordingDisk,
}

impl DiskFile for RecordingFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync(|| self.file.sync_data())
    }
    fn write_back(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.write_back(offset, len)
    }
}
