//! A simulated disk that loses, tears and reorders whatever was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::SeedableRng;
use rand::rngs::StdRng;

use self::inode::{SimDir, SimInode, Spare};

mod calls;
mod inode;
mod pages;

/// The root directory's inode.
const ROOT: u64 = 0;

/// When the power goes, seen from the sync that [`SimDisk::crash_at_sync`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashMode {
    /// The sync did nothing.
    Before,
    /// The sync took effect, but the program never learnt of it.
    After,
}

/// What was asked of a disk since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimCounters {
    /// Calls of `sync_data` and `sync_dir` that were tried.
    pub syncs: u64,
    /// Calls of `write_all_at` that were tried.
    pub writes: u64,
    /// Bytes written by those that succeeded.
    pub written_bytes: u64,
    /// Calls of `read_exact_at` that were tried.
    pub reads: u64,
    /// Bytes written but not synced that the power cut took which this disk came from.
    pub lost_bytes: u64,
    /// Creations, removals and renames that it took.
    pub lost_names: u64,
}

/// A disk in memory for crash tests.
///
/// It keeps what is on the medium apart from what only the running system sees. [`SimDisk::crash`] answers the disk
/// as a power cut at this moment may leave it: of the unsynced writes any subset, each whole or torn into sectors
/// of 512 bytes, and of the unsynced creations, removals and renames any subset. Names are durable once their
/// directory was synced, contents once the file was.
///
/// A clone is another handle on the same disk; [`SimDisk::fork`] makes an independent copy, and is cheap (pages
/// are shared until they are written).
///
/// ```
/// use raftstore::disk::{Disk, Open, SimDisk};
/// use std::path::Path;
///
/// let disk = SimDisk::new();
/// let file = disk.open(Path::new("/a"), Open::New)?;
/// disk.sync_dir(Path::new("/"))?;
/// file.write_all_at(b"kept", 0)?;
/// file.sync_data()?;
/// file.write_all_at(b"lost", 0)?; // perhaps
/// let after = disk.crash(1);
/// let bytes = after.contents(Path::new("/a"))?;
/// assert!(bytes == b"kept" || bytes == b"lost");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// Locked while the medium takes nothing.
    gate: Arc<Mutex<()>>,
}

#[derive(Clone)]
struct State {
    files: BTreeMap<u64, SimInode>,
    dirs: BTreeMap<u64, SimDir>,
    next_inode: u64,
    next_group: u64,
    counters: SimCounters,
    fail_sync: Option<u64>,
    fail_write: Option<u64>,
    crash_sync: Option<(u64, CrashMode)>,
    capacity_bytes: u64,
    power: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            dirs: BTreeMap::from([(ROOT, SimDir::default())]),
            next_inode: ROOT + 1,
            next_group: 0,
            counters: SimCounters::default(),
            fail_sync: None,
            fail_write: None,
            crash_sync: None,
            capacity_bytes: 1 << 40,
            power: true,
        }
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("SimDisk")
            .field("counters", &state.counters)
            .field("power", &state.power)
            .finish()
    }
}

impl SimDisk {
    /// An empty disk of 1 TiB.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An independent copy, unsynced changes included: what a program finds after it was killed and started again.
    /// The copy has its power on and no failures planned.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut state = self.lock().clone();
        state.power = true;
        (state.fail_sync, state.fail_write, state.crash_sync) = (None, None, None);
        Self {
            state: Arc::new(Mutex::new(state)),
            gate: Arc::default(),
        }
    }

    /// The disk as a power cut now may leave it; the same seed gives the same choice. This disk itself stays as it
    /// is. The new one has its power on, no failures planned, and counts from 0 (but for what was lost).
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let state = self.lock();
        let spare = Spare::pick(&mut rng);
        let groups: BTreeSet<u64> = state.dirs.values().flat_map(SimDir::unsynced_groups).collect();
        let spared: BTreeSet<u64> = groups.iter().copied().filter(|_| spare.keeps(&mut rng)).collect();
        let mut lost_bytes = 0;
        let mut crashed = State {
            files: state
                .files
                .iter()
                .map(|(id, file)| (*id, file.crashed(spare, &mut rng, &mut lost_bytes)))
                .collect(),
            dirs: state
                .dirs
                .iter()
                .map(|(id, dir)| (*id, dir.crashed(&spared)))
                .collect(),
            next_inode: state.next_inode,
            next_group: state.next_group,
            capacity_bytes: state.capacity_bytes,
            ..State::default()
        };
        crashed.counters.lost_bytes = lost_bytes;
        crashed.counters.lost_names = (groups.len() - spared.len()) as u64;
        Self {
            state: Arc::new(Mutex::new(crashed)),
            gate: Arc::default(),
        }
    }

    /// Makes the `n`-th sync from now (1 is the next) fail with EIO. As on Linux, the bytes it was to sync stay
    /// readable but never reach the medium, unless they are written again.
    pub fn fail_sync_at(&self, n: u64) {
        let mut state = self.lock();
        state.fail_sync = Some(state.counters.syncs + n);
    }

    /// Makes the `n`-th write from now (1 is the next) fail with EIO, having written nothing.
    pub fn fail_write_at(&self, n: u64) {
        let mut state = self.lock();
        state.fail_write = Some(state.counters.writes + n);
    }

    /// Cuts the power at the `n`-th sync from now (1 is the next): it and every later call fail. Then take
    /// [`SimDisk::crash`].
    pub fn crash_at_sync(&self, n: u64, mode: CrashMode) {
        let mut state = self.lock();
        state.crash_sync = Some((state.counters.syncs + n, mode));
    }

    /// Has syncs of files and write-backs wait until what this returns is dropped.
    pub fn hold_medium(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a planned power cut has happened.
    #[must_use]
    pub fn power_is_off(&self) -> bool {
        !self.lock().power
    }

    /// Cuts the power now: every later call fails.
    pub fn power_off(&self) {
        self.lock().power = false;
    }

    /// Sets the size of the medium. Writes that need more room fail with `StorageFull`; overwriting always works.
    pub fn set_capacity_bytes(&self, bytes: u64) {
        self.lock().capacity_bytes = bytes;
    }

    /// What was asked of the disk so far.
    #[must_use]
    pub fn counters(&self) -> SimCounters {
        self.lock().counters
    }

    /// All bytes of a file, as the running system sees them. Works without power too.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.lock();
        let file = state.file_at(path)?;
        let mut bytes = vec![0; usize::try_from(file.current.len()).map_err(io::Error::other)?];
        file.current.read(&mut bytes, 0);
        Ok(bytes)
    }

    /// Overwrites bytes of a file on the medium, behind the program's back. Works without power too.
    pub fn corrupt(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let id = state.resolve(path)?;
        let file = state.files.get_mut(&id).ok_or_else(not_a_file)?;
        if file.corrupt(bytes, offset) {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// Flips bits of one byte of a file on the medium.
    pub fn flip_bits(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut byte = [0];
        if !self.lock().file_at(path)?.current.read(&mut byte, offset) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.corrupt(path, offset, &[byte[0] ^ mask])
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, if there is power.
    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.power { Ok(state) } else { Err(no_power()) }
    }
}

impl State {
    /// Splits a path into the directory's inode and the last name.
    fn parent_of<'a>(&self, path: &'a Path) -> io::Result<(u64, &'a str)> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.resolve(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn resolve(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for component in path.components() {
            if let Component::Normal(name) = component {
                let dir = self.dirs.get(&at).ok_or(io::ErrorKind::NotADirectory)?;
                let name = name.to_str().ok_or(io::ErrorKind::InvalidInput)?;
                at = *dir.current.get(name).ok_or(io::ErrorKind::NotFound)?;
            }
        }
        Ok(at)
    }

    fn file_at(&self, path: &Path) -> io::Result<&SimInode> {
        self.files.get(&self.resolve(path)?).ok_or_else(not_a_file)
    }

    fn new_inode(&mut self) -> u64 {
        self.next_inode += 1;
        self.next_inode - 1
    }

    fn new_group(&mut self) -> u64 {
        self.next_group += 1;
        self.next_group - 1
    }

    fn change(&mut self, dir: u64, group: u64, name: &str, inode: Option<u64>) -> io::Result<()> {
        self.dirs
            .get_mut(&dir)
            .ok_or(io::ErrorKind::NotADirectory)?
            .change(group, name, inode);
        Ok(())
    }

    /// Bytes in files that have a name. (One that lost its name may still come back in a crash, so it is kept.)
    fn used_bytes(&self) -> u64 {
        let named = self.dirs.values().flat_map(|dir| dir.current.values());
        named
            .filter_map(|inode| self.files.get(inode))
            .map(|file| file.current.len())
            .sum()
    }

    /// Counts a sync and tells what is to come of it; fails if the power goes before it.
    fn begin_sync(&mut self) -> io::Result<SyncFate> {
        self.counters.syncs += 1;
        let now = self.counters.syncs;
        match self.crash_sync {
            Some((at, CrashMode::Before)) if at == now => {
                self.power = false;
                return Err(no_power());
            }
            Some((at, CrashMode::After)) if at == now => return Ok(SyncFate::ThenPowerOff),
            _ => {}
        }
        if self.fail_sync == Some(now) {
            Ok(SyncFate::Fail)
        } else {
            Ok(SyncFate::Succeed)
        }
    }

    fn end_sync(&mut self, fate: SyncFate) -> io::Result<()> {
        match fate {
            SyncFate::Succeed => Ok(()),
            SyncFate::Fail => Err(eio()),
            SyncFate::ThenPowerOff => {
                self.power = false;
                Err(no_power())
            }
        }
    }

    fn sync_dir(&mut self, dir: u64) -> io::Result<()> {
        let groups = self
            .dirs
            .get_mut(&dir)
            .ok_or(io::ErrorKind::NotADirectory)?
            .sync();
        for other in self.dirs.values_mut() {
            other.sync_groups(&groups);
        }
        Ok(())
    }

    /// Removes what `name` stands for in `dir`, with all that is in it.
    fn remove_tree(&mut self, dir: u64, name: &str, inode: u64) -> io::Result<()> {
        let children: Vec<(String, u64)> = match self.dirs.get(&inode) {
            Some(dir) => dir
                .current
                .iter()
                .map(|(name, inode)| (name.clone(), *inode))
                .collect(),
            None => Vec::new(),
        };
        for (child, child_inode) in children {
            self.remove_tree(inode, &child, child_inode)?;
        }
        let group = self.new_group();
        self.change(dir, group, name, None)
    }
}

/// What a sync that may begin comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SyncFate {
    Succeed,
    Fail,
    ThenPowerOff,
}

fn no_power() -> io::Error {
    io::Error::other("the simulated power is off")
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn not_a_file() -> io::Error {
    io::ErrorKind::IsADirectory.into()
}
