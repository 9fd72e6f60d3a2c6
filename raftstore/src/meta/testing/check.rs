//! Does the state hang together? Checks what `apply` must keep true whatever it is asked for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::kv::{KvError, Read, prefix_range};
use crate::meta::keys::{self, Table};
use crate::meta::tables::{self, NamedEntry};
use crate::meta::volume_tables as tables_of_volumes;
use crate::meta::{
    ChunkId, FileKind, Hold, Ino, Inode, Lock, NO_PROJECT, ProjectId, ProjectKind, ROOT_INO, Reader,
    SessionId, Source, Usage, value,
};

/// Checks the whole state; every broken rule as a sentence. Holds all inodes in memory: for tests.
pub fn broken_rules(reader: &Reader) -> Result<Vec<String>, KvError> {
    let kv = reader.kv();
    let mut check = Check {
        kv,
        inodes: BTreeMap::new(),
        doomed: tables_of_volumes::doomed(kv, 0, usize::MAX)?
            .into_iter()
            .collect(),
        broken: Vec::new(),
    };
    for pair in kv.scan(prefix_range(&keys::table(Table::Inode)), false) {
        let (key, coded) = pair?;
        let inode = value::decode_inode(&coded)?;
        check.rule(keys::inode(inode.ino) == key, || {
            format!("inode {} has the wrong key", inode.ino)
        });
        check.inodes.insert(inode.ino, inode);
    }
    check.entries()?;
    check.orphans()?;
    check.extents()?;
    check.xattrs()?;
    check.sessions()?;
    check.projects()?;
    check.volumes()?;
    Ok(check.broken)
}

fn rows<T: DeserializeOwned>(kv: &dyn Read, table: Table) -> Result<Vec<(Bytes, T)>, KvError> {
    let row = |pair: Result<(Bytes, Bytes), KvError>| {
        let (key, coded) = pair?;
        let decoded = value::decode(&format!("a row of {table:?}"), &coded)?;
        Ok((key, decoded))
    };
    kv.scan(prefix_range(&keys::table(table)), false)
        .map(row)
        .collect()
}

fn part(key: &[u8], at: usize) -> u64 {
    keys::u64_at(key, at).unwrap_or(u64::MAX)
}

struct Check<'a> {
    kv: &'a dyn Read,
    inodes: BTreeMap<Ino, Inode>,
    /// Directories whose names are gone, and that are to go with all that is in them.
    doomed: BTreeSet<Ino>,
    broken: Vec<String>,
}

impl Check<'_> {
    fn rule(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(what());
        }
    }

    /// Names, their two tables, link counts, parents.
    fn entries(&mut self) -> Result<(), KvError> {
        let by_name = rows::<crate::meta::Dirent>(self.kv, Table::EntryByName)?;
        let by_cookie = rows::<NamedEntry>(self.kv, Table::EntryByCookie)?;
        self.rule(by_name.len() == by_cookie.len(), || {
            "the two tables of entries differ in length".into()
        });
        let mut links: BTreeMap<Ino, u32> = BTreeMap::new();
        let mut subdirectories: BTreeMap<Ino, u32> = BTreeMap::new();
        let mut sizes: BTreeMap<Ino, u64> = BTreeMap::new();
        for (key, entry) in by_name {
            let (parent, name) = (part(&key, 1), key.slice(9..));
            let twin: Option<NamedEntry> = self
                .kv
                .get(&keys::entry_by_cookie(parent, entry.cookie))?
                .map(|coded| value::decode("an entry", &coded))
                .transpose()?;
            let expected = NamedEntry {
                name: name.clone(),
                ino: entry.ino,
                kind: entry.kind,
            };
            self.rule(twin == Some(expected), || {
                format!("entry {name:?} of {parent} differs by cookie")
            });
            *links.entry(entry.ino).or_default() += 1;
            *sizes.entry(parent).or_default() += 1;
            let kind = self.inodes.get(&entry.ino).map(|inode| inode.kind);
            self.rule(kind == Some(entry.kind), || {
                format!("entry {name:?} of {parent} is a {kind:?}")
            });
            if entry.kind == FileKind::Directory {
                *subdirectories.entry(parent).or_default() += 1;
                let up = self.inodes.get(&entry.ino).map(|inode| inode.parent);
                self.rule(up == Some(parent), || {
                    format!("directory {} has the parent {up:?}", entry.ino)
                });
            }
            let next = self
                .inodes
                .get(&parent)
                .filter(|inode| inode.nlink > 0)
                .map(|inode| inode.next_cookie);
            self.rule(next > Some(entry.cookie), || {
                format!("entry {name:?} of {parent} has a cookie to come")
            });
        }
        for (ino, inode) in self.inodes.clone() {
            let found = links.get(&ino).copied().unwrap_or(0);
            if inode.kind == FileKind::Directory {
                let below = subdirectories.get(&ino).copied().unwrap_or(0);
                let named = found == 1 || ino == ROOT_INO || self.doomed.contains(&ino);
                let expected = if named { 2 + below } else { 0 };
                self.rule(inode.nlink == expected, || {
                    format!("directory {ino} has {} links", inode.nlink)
                });
                let size = sizes.get(&ino).copied().unwrap_or(0);
                self.rule(inode.size == size, || {
                    format!("directory {ino} has the size {}", inode.size)
                });
                self.rule(self.leads_to_root(ino), || {
                    format!("directory {ino} is not below the root")
                });
            } else {
                self.rule(inode.nlink == found, || {
                    format!("inode {ino} has {} links", inode.nlink)
                });
            }
        }
        Ok(())
    }

    fn leads_to_root(&self, ino: Ino) -> bool {
        let mut at = ino;
        for _ in 0..=self.inodes.len() {
            match self.inodes.get(&at) {
                Some(inode) if inode.nlink == 0 => return at == ino && inode.parent == 0,
                Some(_) if at == ROOT_INO => return true,
                Some(inode) if self.doomed.contains(&at) => return inode.parent == 0,
                Some(inode) => at = inode.parent,
                None => return false,
            }
        }
        false
    }

    fn orphans(&mut self) -> Result<(), KvError> {
        let found: BTreeSet<Ino> = rows::<()>(self.kv, Table::Orphan)?
            .iter()
            .map(|(key, ())| part(key, 1))
            .collect();
        let expected: BTreeSet<Ino> = self
            .inodes
            .values()
            .filter(|inode| inode.nlink == 0)
            .map(|inode| inode.ino)
            .collect();
        self.rule(found == expected, || {
            format!("orphans are {found:?}, should be {expected:?}")
        });
        Ok(())
    }

    /// Extents, what they add up to, and the chunk references.
    fn extents(&mut self) -> Result<(), KvError> {
        let mut allocated: BTreeMap<Ino, u64> = BTreeMap::new();
        let mut refs: BTreeMap<(ChunkId, Ino), u64> = BTreeMap::new();
        let mut last = (0, 0);
        for (key, row) in rows::<tables::ExtentValue>(self.kv, Table::Extent)? {
            let (ino, end) = (part(&key, 1), part(&key, 9));
            let start = end.checked_sub(row.len);
            self.rule(row.len > 0 && start.is_some(), || {
                format!("extent of {ino} has the length {}", row.len)
            });
            self.rule(last.0 != ino || start >= Some(last.1), || {
                format!("extents of {ino} overlap at {end}")
            });
            last = (ino, end);
            let sum = allocated.entry(ino).or_default();
            *sum = sum.saturating_add(row.len);
            let file = self
                .inodes
                .get(&ino)
                .filter(|inode| inode.kind == FileKind::Regular);
            let size = file.map(|inode| inode.size);
            self.rule(size.is_some(), || format!("extent of {ino}, which is no file"));
            if let Source::Chunk { id, .. } = row.source {
                let sum = refs.entry((id, ino)).or_default();
                *sum = sum.saturating_add(row.len);
                self.rule(Some(end) <= size, || {
                    format!("an extent of {ino} has bytes behind the end")
                });
            }
        }
        let mut usage = Usage::default();
        for (ino, inode) in self.inodes.clone() {
            usage.inodes += 1;
            usage.allocated_bytes = usage.allocated_bytes.saturating_add(inode.allocated_bytes);
            let sum = allocated.get(&ino).copied().unwrap_or(0);
            self.rule(inode.allocated_bytes == sum, || {
                format!("inode {ino} has {sum} allocated bytes")
            });
        }
        let told = tables::usage(self.kv)?;
        self.rule(told == usage, || {
            format!("the usage is {told:?}, should be {usage:?}")
        });
        let mut counted = BTreeMap::new();
        for (key, bytes) in rows::<u64>(self.kv, Table::ChunkRef)? {
            counted.insert(
                (
                    ChunkId {
                        session: part(&key, 1),
                        seq: part(&key, 9),
                    },
                    part(&key, 17),
                ),
                bytes,
            );
        }
        self.rule(counted == refs, || {
            format!("chunk references are {counted:?}, should be {refs:?}")
        });
        Ok(())
    }

    fn xattrs(&mut self) -> Result<(), KvError> {
        let found: BTreeSet<Ino> = rows::<Bytes>(self.kv, Table::Xattr)?
            .iter()
            .map(|(key, _)| part(key, 1))
            .collect();
        let expected: BTreeSet<Ino> = self
            .inodes
            .values()
            .filter(|inode| inode.has_xattrs)
            .map(|inode| inode.ino)
            .collect();
        self.rule(found == expected, || {
            format!("inodes with attributes: {found:?}, marked: {expected:?}")
        });
        Ok(())
    }

    /// Sessions, their locks and kept answers.
    fn sessions(&mut self) -> Result<(), KvError> {
        let sessions: BTreeSet<SessionId> = tables::sessions(self.kv)?
            .into_iter()
            .map(|session| session.id)
            .collect();
        let mut locked = BTreeSet::new();
        for (key, lock) in rows::<Lock>(self.kv, Table::Lock)? {
            let ino = part(&key, 1);
            locked.insert((lock.owner.session, ino));
            self.rule(lock.start <= lock.end, || format!("lock on {ino} is upside down"));
            self.rule(self.inodes.contains_key(&ino), || {
                format!("lock on {ino}, which is gone")
            });
            self.rule(sessions.contains(&lock.owner.session), || {
                format!("lock on {ino} of no session")
            });
        }
        let listed: BTreeSet<(SessionId, Ino)> = rows::<()>(self.kv, Table::SessionLock)?
            .iter()
            .map(|(key, ())| (SessionId(part(key, 1)), part(key, 9)))
            .collect();
        self.rule(listed == locked, || {
            format!("locks are {locked:?}, listed are {listed:?}")
        });
        for (key, _) in self
            .kv
            .scan(prefix_range(&keys::table(Table::Answer)), false)
            .flatten()
        {
            let session = SessionId(part(&key, 1));
            self.rule(sessions.contains(&session), || {
                format!("an answer is kept for {session:?}")
            });
        }
        Ok(())
    }

    /// What projects use is what their inodes add up to, and their directories are theirs.
    fn projects(&mut self) -> Result<(), KvError> {
        let mut used: BTreeMap<ProjectId, Usage> = BTreeMap::new();
        for inode in self.inodes.values().filter(|inode| inode.project != NO_PROJECT) {
            let usage = used.entry(inode.project).or_default();
            usage.inodes += 1;
            usage.allocated_bytes = usage.allocated_bytes.saturating_add(inode.allocated_bytes);
        }
        let projects = tables_of_volumes::projects(self.kv)?;
        let roots: BTreeMap<ProjectId, Ino> = projects
            .iter()
            .map(|project| (project.id, project.root))
            .collect();
        for project in projects {
            let counted = used.remove(&project.id).unwrap_or_default();
            self.rule(project.usage == counted, || {
                format!(
                    "project {} uses {counted:?}, but says {:?}",
                    project.id, project.usage
                )
            });
            self.rule(counted.inodes > 0, || format!("project {} is empty", project.id));
            let root = self.inodes.get(&project.root).cloned();
            let of_root = root
                .as_ref()
                .map(|inode| (inode.project, inode.kind, inode.nlink > 0));
            let expected = (project.id, FileKind::Directory, true);
            self.rule(project.root == 0 || of_root == Some(expected), || {
                format!("the directory of project {} is {of_root:?}", project.id)
            });
        }
        self.rule(used.is_empty(), || format!("projects are missing: {used:?}"));
        for (ino, inode) in self.inodes.clone() {
            let above = self.inodes.get(&inode.parent).map(|parent| parent.project);
            let is_root = roots.get(&inode.project) == Some(&ino) || self.doomed.contains(&ino);
            let alike = above == Some(inode.project);
            let checked = inode.kind == FileKind::Directory && inode.nlink > 0;
            self.rule(!checked || alike || is_root, || {
                format!(
                    "directory {ino} of project {} is in one of {above:?}",
                    inode.project
                )
            });
        }
        Ok(())
    }

    /// Volumes and snapshots have the directories and projects that they name.
    fn volumes(&mut self) -> Result<(), KvError> {
        let mut trees = Vec::new();
        let volumes = tables_of_volumes::volumes(self.kv)?;
        for volume in &volumes {
            let project = tables_of_volumes::project(self.kv, volume.project)?;
            let limits = project.as_ref().map(|project| project.limits);
            self.rule(limits == Some(volume.options.limits), || {
                format!("volume {} has other limits than its project", volume.name)
            });
            let what = (volume.name.clone(), ProjectKind::Volume);
            trees.push((what, volume.root, volume.entry.clone(), project));
        }
        for snapshot in tables_of_volumes::snapshots(self.kv, None)? {
            let project = tables_of_volumes::project(self.kv, snapshot.project)?;
            let what = (snapshot.volume, ProjectKind::Snapshot);
            trees.push((what, snapshot.root, snapshot.name.into(), project));
        }
        for ((name, kind), root, entry, project) in trees {
            let found = project.map(|project| (project.kind, project.root));
            self.rule(found == Some((kind, root)), || {
                format!("{name} has the project {found:?}, not {kind:?} of {root}")
            });
            let parent = self.inodes.get(&root).map_or(0, |inode| inode.parent);
            let named = tables::entry(self.kv, parent, &entry)?.map(|entry| entry.ino);
            self.rule(named == Some(root), || {
                format!("{name} is {root}, but {entry:?} of {parent} is {named:?}")
            });
        }
        for (key, hold) in rows::<Hold>(self.kv, Table::Hold)? {
            let of = volumes
                .iter()
                .find(|volume| keys::hold(&volume.name, hold.node, &hold.id) == key);
            self.rule(of.is_some() && hold.count > 0, || {
                format!("{hold:?} is on no volume")
            });
        }
        Ok(())
    }
}
