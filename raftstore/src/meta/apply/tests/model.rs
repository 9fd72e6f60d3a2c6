//! A filesystem as plain maps and byte vectors: what the state machine is compared with.

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::Timestamp;
use crate::meta::{Fallocate, FileKind, Ino, ROOT_INO, Refusal, RenameMode};

/// A regular file: its bytes, and which bytes (also behind the end) are allocated.
#[derive(Debug, Clone, Default)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) allocated: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
pub(super) enum Node {
    File(File),
    Directory(BTreeMap<String, Ino>),
    Symlink,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    /// All that is not reaped.
    pub(super) nodes: BTreeMap<Ino, Node>,
    /// mtimes that changes of contents have given.
    pub(super) mtimes: BTreeMap<Ino, BTreeSet<Timestamp>>,
}

type Done = Result<(), Refusal>;

impl Model {
    pub(super) fn new() -> Self {
        let mut model = Self::default();
        model.nodes.insert(ROOT_INO, Node::Directory(BTreeMap::new()));
        model
    }

    /// Every name that an inode has.
    pub(super) fn names_of(&self, ino: Ino) -> Vec<(Ino, String)> {
        let mut names = Vec::new();
        for (parent, node) in &self.nodes {
            if let Node::Directory(entries) = node {
                names.extend(
                    entries
                        .iter()
                        .filter(|e| *e.1 == ino)
                        .map(|e| (*parent, e.0.clone())),
                );
            }
        }
        names
    }

    pub(super) fn is_orphan(&self, ino: Ino) -> bool {
        ino != ROOT_INO && self.nodes.contains_key(&ino) && self.names_of(ino).is_empty()
    }

    fn is_directory(&self, ino: Ino) -> bool {
        matches!(self.nodes.get(&ino), Some(Node::Directory(_)))
    }

    fn entries(&mut self, ino: Ino) -> Result<&mut BTreeMap<String, Ino>, Refusal> {
        if self.is_orphan(ino) && self.is_directory(ino) {
            return Err(Refusal::NotFound);
        }
        match self.nodes.get_mut(&ino) {
            None => Err(Refusal::NotFound),
            Some(Node::Directory(entries)) => Ok(entries),
            Some(_) => Err(Refusal::NotDirectory),
        }
    }

    pub(super) fn file(&mut self, ino: Ino) -> Result<&mut File, Refusal> {
        match self.nodes.get_mut(&ino) {
            None => Err(Refusal::Stale),
            Some(Node::File(file)) => Ok(file),
            Some(Node::Directory(_)) => Err(Refusal::IsDirectory),
            Some(Node::Symlink) => Err(Refusal::Invalid),
        }
    }

    pub(super) fn can_create(&mut self, parent: Ino, name: &str) -> Done {
        if self.entries(parent)?.contains_key(name) {
            Err(Refusal::Exists)
        } else {
            Ok(())
        }
    }

    pub(super) fn create(&mut self, parent: Ino, name: &str, kind: FileKind, ino: Ino) {
        let node = match kind {
            FileKind::Directory => Node::Directory(BTreeMap::new()),
            FileKind::Symlink => Node::Symlink,
            _ => Node::File(File::default()),
        };
        self.nodes.insert(ino, node);
        self.entries(parent).unwrap().insert(name.into(), ino);
    }

    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &str) -> Done {
        self.can_create(parent, name)?;
        if !self.nodes.contains_key(&ino) {
            return Err(Refusal::NotFound);
        }
        if self.is_directory(ino) {
            return Err(Refusal::NotPermitted);
        }
        if self.is_orphan(ino) {
            return Err(Refusal::NotFound);
        }
        self.entries(parent)?.insert(name.into(), ino);
        Ok(())
    }

    pub(super) fn unlink(&mut self, parent: Ino, name: &str) -> Done {
        let ino = *self.entries(parent)?.get(name).ok_or(Refusal::NotFound)?;
        if self.is_directory(ino) {
            return Err(Refusal::IsDirectory);
        }
        self.entries(parent)?.remove(name);
        Ok(())
    }

    pub(super) fn rmdir(&mut self, parent: Ino, name: &str) -> Done {
        let ino = *self.entries(parent)?.get(name).ok_or(Refusal::NotFound)?;
        match &self.nodes[&ino] {
            Node::Directory(entries) if entries.is_empty() => {}
            Node::Directory(_) => return Err(Refusal::NotEmpty),
            _ => return Err(Refusal::NotDirectory),
        }
        self.entries(parent)?.remove(name);
        Ok(())
    }

    /// Whether `ino` is `above` or lies in it.
    fn is_within(&self, ino: Ino, above: Ino) -> bool {
        ino == above
            || self
                .names_of(ino)
                .iter()
                .any(|(parent, _)| self.is_within(*parent, above))
    }

    pub(super) fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Done {
        self.entries(from.0)?;
        self.entries(to.0)?;
        let moved = *self.entries(from.0)?.get(from.1).ok_or(Refusal::NotFound)?;
        let found = self.entries(to.0)?.get(to.1).copied();
        if mode == RenameMode::NoReplace && found.is_some() {
            return Err(Refusal::Exists);
        }
        if mode == RenameMode::Exchange && found.is_none() {
            return Err(Refusal::NotFound);
        }
        if found == Some(moved) {
            return Ok(());
        }
        if self.is_directory(moved) && self.is_within(to.0, moved) {
            return Err(Refusal::Invalid);
        }
        if let (RenameMode::Exchange, Some(found)) = (mode, found) {
            if self.is_directory(found) && self.is_within(from.0, found) {
                return Err(Refusal::Invalid);
            }
            self.entries(from.0)?.insert(from.1.into(), found);
            self.entries(to.0)?.insert(to.1.into(), moved);
            return Ok(());
        }
        if let Some(found) = found {
            match (self.is_directory(moved), &self.nodes[&found]) {
                (true, Node::Directory(entries)) if !entries.is_empty() => return Err(Refusal::NotEmpty),
                (true, Node::Directory(_)) => {}
                (true, _) => return Err(Refusal::NotDirectory),
                (false, Node::Directory(_)) => return Err(Refusal::IsDirectory),
                (false, _) => {}
            }
        }
        self.entries(from.0)?.remove(from.1);
        self.entries(to.0)?.insert(to.1.into(), moved);
        Ok(())
    }

    pub(super) fn truncate(&mut self, ino: Ino, size: u64) -> Done {
        let file = self.file(ino)?;
        if size <= file.bytes.len() as u64 {
            file.allocated.retain(|at| *at < size);
        }
        file.bytes.resize(usize::try_from(size).unwrap(), 0);
        Ok(())
    }

    pub(super) fn write(&mut self, ino: Ino, offset: Option<u64>, data: &[u8]) -> Result<u64, Refusal> {
        let file = self.file(ino)?;
        let offset = offset.unwrap_or(file.bytes.len() as u64);
        if !data.is_empty() {
            let start = usize::try_from(offset).unwrap();
            let end = start + data.len();
            file.bytes.resize(file.bytes.len().max(end), 0);
            file.bytes[start..end].copy_from_slice(data);
            file.allocated.extend(offset..offset + data.len() as u64);
        }
        Ok(offset)
    }

    pub(super) fn fallocate(&mut self, ino: Ino, what: Fallocate, offset: u64, len: u64) -> Done {
        if len == 0 {
            return Err(Refusal::Invalid);
        }
        let file = self.file(ino)?;
        let end = offset + len;
        if matches!(what, Fallocate::Allocate | Fallocate::ZeroRange) {
            file.bytes
                .resize(file.bytes.len().max(usize::try_from(end).unwrap()), 0);
        }
        let zeroes = !matches!(what, Fallocate::Allocate | Fallocate::AllocateKeepSize);
        for at in offset..end {
            if zeroes && let Some(byte) = file.bytes.get_mut(usize::try_from(at).unwrap()) {
                *byte = 0;
            }
            match what {
                Fallocate::PunchHole => file.allocated.remove(&at),
                _ => file.allocated.insert(at),
            };
        }
        Ok(())
    }

    pub(super) fn copy(
        &mut self,
        (source, source_offset): (Ino, u64),
        (target, target_offset): (Ino, u64),
        len: u64,
    ) -> Result<u64, Refusal> {
        let from = self.file(source)?.clone();
        let to = self.file(target)?;
        let len = len.min((from.bytes.len() as u64).saturating_sub(source_offset));
        if len == 0 {
            return Ok(0);
        }
        if source == target && source_offset < target_offset + len && target_offset < source_offset + len {
            return Err(Refusal::Invalid);
        }
        to.bytes.resize(
            to.bytes.len().max(usize::try_from(target_offset + len).unwrap()),
            0,
        );
        for i in 0..len {
            let read = usize::try_from(source_offset + i).unwrap();
            to.bytes[usize::try_from(target_offset + i).unwrap()] = from.bytes[read];
            match from.allocated.contains(&(source_offset + i)) {
                true => to.allocated.insert(target_offset + i),
                false => to.allocated.remove(&(target_offset + i)),
            };
        }
        Ok(len)
    }

    pub(super) fn reap(&mut self, inodes: &[Ino]) {
        for ino in inodes {
            if self.is_orphan(*ino) {
                self.nodes.remove(ino);
            }
        }
    }
}
