//! The calls that programs make of a simulated disk.

use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use super::inode::{SimDir, SimInode};
use super::{ROOT, SimDisk, SyncFate, eio, not_a_file};
use crate::disk::{Disk, DiskFile, Open, Space};

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.powered()?;
        let (dir, name) = state.parent_of(path)?;
        let names = &state.dirs.get(&dir).ok_or(io::ErrorKind::NotADirectory)?.current;
        let inode = match (names.get(name).copied(), how) {
            (Some(_), Open::New) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, Open::Existing | Open::Read) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                let (inode, group) = (state.new_inode(), state.new_group());
                state.files.insert(inode, SimInode::default());
                state.change(dir, group, name, Some(inode))?;
                inode
            }
        };
        if !state.files.contains_key(&inode) {
            return Err(not_a_file());
        }
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.powered()?;
        let inode = state.resolve(dir)?;
        let dir = state.dirs.get(&inode).ok_or(io::ErrorKind::NotADirectory)?;
        Ok(dir.current.keys().cloned().collect())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let mut at = ROOT;
        for component in dir.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            let name = name.to_str().ok_or(io::ErrorKind::InvalidInput)?;
            let known = state
                .dirs
                .get(&at)
                .ok_or(io::ErrorKind::NotADirectory)?
                .current
                .get(name)
                .copied();
            at = match known {
                Some(inode) => inode,
                None => {
                    let (inode, group) = (state.new_inode(), state.new_group());
                    state.dirs.insert(inode, SimDir::default());
                    state.change(at, group, name, Some(inode))?;
                    state.sync_dir(at)?;
                    inode
                }
            };
        }
        if state.dirs.contains_key(&at) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotADirectory.into())
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let inode = state.resolve(path)?;
        if !state.files.contains_key(&inode) {
            return Err(not_a_file());
        }
        let (dir, name) = state.parent_of(path)?;
        let group = state.new_group();
        state.change(dir, group, name, None)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let inode = match state.resolve(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        };
        if !state.dirs.contains_key(&inode) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let (parent, name) = state.parent_of(dir)?;
        state.remove_tree(parent, name, inode)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let inode = state.resolve(from)?;
        let (from_dir, from_name) = state.parent_of(from)?;
        let (to_dir, to_name) = state.parent_of(to)?;
        if (from_dir, from_name) == (to_dir, to_name) {
            return Ok(());
        }
        let target = state
            .dirs
            .get(&to_dir)
            .ok_or(io::ErrorKind::NotADirectory)?
            .current
            .get(to_name)
            .copied();
        if let Some(target) = target
            && (state.dirs.contains_key(&target) || state.dirs.contains_key(&inode))
        {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let group = state.new_group();
        state.change(from_dir, group, from_name, None)?;
        state.change(to_dir, group, to_name, Some(inode))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let inode = state.resolve(dir)?;
        let fate = state.begin_sync()?;
        if fate == SyncFate::Fail {
            state
                .dirs
                .get_mut(&inode)
                .ok_or(io::ErrorKind::NotADirectory)?
                .lose_unsynced();
        } else {
            state.sync_dir(inode)?;
        }
        state.end_sync(fate)
    }

    /// Whoever can open the simulation may do anything in it.
    fn set_mode(&self, path: &Path, _mode: u32) -> io::Result<()> {
        self.powered()?.resolve(path).map(drop)
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let state = self.powered()?;
        let capacity_bytes = state.capacity_bytes;
        Ok(Space {
            capacity_bytes,
            available_bytes: capacity_bytes.saturating_sub(state.used_bytes()),
        })
    }
}

/// An open file of a [`SimDisk`].
struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl SimFile {
    /// Runs `call` on the file, if there is room for `grown_len` bytes in it.
    fn change(&self, grown_len: u64, call: impl FnOnce(&mut SimInode)) -> io::Result<()> {
        let mut state = self.disk.powered()?;
        let used_bytes = state.used_bytes();
        let capacity_bytes = state.capacity_bytes;
        let file = state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let growth = grown_len.saturating_sub(file.current.len());
        if growth > 0 && used_bytes + growth > capacity_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        call(file);
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.powered()?;
        state.counters.reads += 1;
        let file = state.files.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        if file.current.read(buf, offset) {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let fails = {
            let mut state = self.disk.powered()?;
            state.counters.writes += 1;
            state.fail_write == Some(state.counters.writes)
        };
        if fails {
            return Err(eio());
        }
        self.change(offset + buf.len() as u64, |file| file.write(buf, offset))?;
        self.disk.powered()?.counters.written_bytes += buf.len() as u64;
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.powered()?;
        Ok(state
            .files
            .get(&self.inode)
            .ok_or(io::ErrorKind::NotFound)?
            .current
            .len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(len, |file| file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let _taken = self.disk.hold_medium();
        let mut state = self.disk.powered()?;
        let fate = state.begin_sync()?;
        let file = state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        if fate == SyncFate::Fail {
            file.lose_unsynced();
        } else {
            file.sync();
        }
        state.end_sync(fate)
    }

    /// What is on its way to the medium may be lost like any that was not synced.
    fn write_back(&self, _offset: u64, _len: u64) -> io::Result<()> {
        let _taken = self.disk.hold_medium();
        self.disk.powered().map(drop)
    }
}
