//! Files in memory which count the calls on them and in which each call takes a set time.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Files, Open, OpenFile};
use crate::clock::FakeClock;

/// Calls, by name.
pub type Calls = BTreeMap<&'static str, u64>;

/// A directory in memory.
#[derive(Clone, Default)]
pub struct FakeFiles(Arc<Shared>);

#[derive(Default)]
struct Shared {
    clock: Arc<FakeClock>,
    /// Each call's duration.
    costs: BTreeMap<&'static str, Duration>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    calls: Calls,
    /// (file, offset) of each write.
    writes: Vec<(String, u64)>,
}

impl FakeFiles {
    /// A directory in which the named calls take time on `clock`.
    pub fn new(clock: Arc<FakeClock>, costs: &[(&'static str, Duration)]) -> Self {
        Self(Arc::new(Shared {
            clock,
            costs: costs.iter().copied().collect(),
            state: Mutex::default(),
        }))
    }

    /// The calls so far.
    pub fn calls(&self) -> Calls {
        self.0.state.lock().unwrap().calls.clone()
    }

    /// The writes so far, in order.
    pub fn writes(&self) -> Vec<(String, u64)> {
        self.0.state.lock().unwrap().writes.clone()
    }

    /// Turns a bit of each file over.
    pub fn corrupt(&self) {
        for bytes in self.0.state.lock().unwrap().files.values_mut() {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        }
    }

    fn call<T>(&self, name: &'static str, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        if let Some(cost) = self.0.costs.get(name) {
            self.0.clock.advance(*cost);
        }
        let mut state = self.0.state.lock().unwrap();
        *state.calls.entry(name).or_default() += 1;
        work(&mut state)
    }
}

impl Files for FakeFiles {
    fn open(&self, path: &str, how: Open) -> io::Result<Box<dyn OpenFile>> {
        self.call("open", |state| {
            if !state.files.contains_key(path) {
                if !how.create {
                    return Err(io::ErrorKind::NotFound.into());
                }
                state.files.insert(path.to_owned(), Vec::new());
            }
            if how.truncate {
                state.files.insert(path.to_owned(), Vec::new());
            }
            Ok(())
        })?;
        Ok(Box::new(FakeFile {
            files: self.clone(),
            path: path.to_owned(),
        }))
    }

    fn mkdir(&self, _: &str) -> io::Result<()> {
        self.call("mkdir", |_| Ok(()))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.call("rename", |state| {
            let bytes = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.files.insert(to.to_owned(), bytes);
            Ok(())
        })
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.call("unlink", |state| {
            let found = state.files.remove(path);
            found.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn stat(&self, path: &str) -> io::Result<u64> {
        self.call("stat", |state| {
            let bytes = state.files.get(path).ok_or(io::ErrorKind::NotFound)?;
            Ok(bytes.len() as u64)
        })
    }

    fn list(&self, path: &str) -> io::Result<u64> {
        self.call("list", |state| {
            let inside = |name: &&String| name.rsplit_once('/').is_some_and(|(dir, _)| dir == path);
            Ok(state.files.keys().filter(inside).count() as u64)
        })
    }

    fn drop_names(&self) -> io::Result<()> {
        self.call("drop_names", |_| Ok(()))
    }

    fn remove_tree(&self, path: &str) -> io::Result<()> {
        self.call("remove_tree", |state| {
            state.files.retain(|name, _| !name.starts_with(path));
            Ok(())
        })
    }

    fn sync_tree(&self, _: &str) -> io::Result<()> {
        self.call("sync_tree", |_| Ok(()))
    }
}

struct FakeFile {
    files: FakeFiles,
    path: String,
}

impl OpenFile for FakeFile {
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.files.call("read", |state| {
            let bytes = &state.files[&self.path];
            let start = bytes.len().min(offset as usize);
            let len = buffer.len().min(bytes.len() - start);
            buffer[..len].copy_from_slice(&bytes[start..start + len]);
            Ok(len)
        })
    }

    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        self.files.call("write", |state| {
            state.writes.push((self.path.clone(), offset));
            let bytes = state.files.get_mut(&self.path).unwrap();
            let end = offset as usize + buffer.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[offset as usize..end].copy_from_slice(buffer);
            Ok(buffer.len())
        })
    }

    fn fsync(&mut self) -> io::Result<()> {
        self.files.call("fsync", |_| Ok(()))
    }

    fn fdatasync(&mut self) -> io::Result<()> {
        self.files.call("fdatasync", |_| Ok(()))
    }

    fn size(&mut self) -> io::Result<u64> {
        self.files
            .call("fstat", |state| Ok(state.files[&self.path].len() as u64))
    }

    fn set_times(&mut self) -> io::Result<()> {
        self.files.call("futimens", |_| Ok(()))
    }

    fn drop_cache(&mut self) -> io::Result<()> {
        self.files.call("fadvise", |_| Ok(()))
    }
}
