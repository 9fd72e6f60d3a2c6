//! Typed reading of the state, for [`super::Reader`] and for `apply` alike.

use std::ops::Bound;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::keys::{self, Counter, Table};
use super::reader::{ChunkUse, DirItem, LivePayload};
use super::types::*;
use super::value;
use crate::kv::{KvError, Pair, Read, Scan, prefix_range};

/// Value of the table of entries by cookie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedEntry {
    pub(crate) name: Bytes,
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
}

/// Value of the table of extents; the end is in the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExtentValue {
    pub(crate) len: u64,
    pub(crate) source: Source,
}

pub(super) fn get<T: DeserializeOwned>(kv: &dyn Read, what: &str, key: &[u8]) -> Result<Option<T>, KvError> {
    kv.get(key)?.map(|coded| value::decode(what, &coded)).transpose()
}

pub(super) fn prefixed<'a>(kv: &'a dyn Read, prefix: &[u8]) -> Scan<'a> {
    kv.scan(prefix_range(prefix), false)
}

/// The number at byte `at` of a key that was read back.
pub(super) fn number(what: &str, key: &[u8], at: usize) -> Result<u64, KvError> {
    keys::u64_at(key, at).ok_or_else(|| KvError::Damaged(format!("{what} has a key of {} bytes", key.len())))
}

/// Whether any key starts with `prefix`.
pub(crate) fn any(kv: &dyn Read, prefix: &[u8]) -> Result<bool, KvError> {
    Ok(prefixed(kv, prefix).next().transpose()?.is_some())
}

pub(crate) fn counter(kv: &dyn Read, counter: Counter) -> Result<Option<u64>, KvError> {
    get(kv, "a counter", &keys::counter(counter))
}

pub(crate) fn usage(kv: &dyn Read) -> Result<Usage, KvError> {
    Ok(get(kv, "the usage", &keys::counter(Counter::Usage))?.unwrap_or_default())
}

pub(crate) fn cluster(kv: &dyn Read) -> Result<Option<ClusterInfo>, KvError> {
    get(kv, "the cluster's record", &keys::cluster())
}

pub(crate) fn inode(kv: &dyn Read, ino: Ino) -> Result<Option<Inode>, KvError> {
    kv.get(&keys::inode(ino))?
        .map(|coded| value::decode_inode(&coded))
        .transpose()
}

pub(crate) fn entry(kv: &dyn Read, parent: Ino, name: &[u8]) -> Result<Option<Dirent>, KvError> {
    get(kv, "a directory entry", &keys::entry_by_name(parent, name))
}

pub(crate) fn list(
    kv: &dyn Read,
    parent: Ino,
    after: u64,
    items_max: usize,
) -> Result<Vec<DirItem>, KvError> {
    let Some(from) = after.checked_add(1) else {
        return Ok(Vec::new());
    };
    let (_, end) = prefix_range(&keys::entry_by_cookie(parent, 0)[..9]);
    let range = (Bound::Included(keys::entry_by_cookie(parent, from)), end);
    let item = |pair: Result<Pair, KvError>| {
        let (key, coded) = pair?;
        let cookie = number("a directory entry", &key, 9)?;
        let NamedEntry { name, ino, kind } = value::decode("a directory entry", &coded)?;
        Ok(DirItem {
            name,
            entry: Dirent { ino, kind, cookie },
        })
    };
    kv.scan(range, false).take(items_max).map(item).collect()
}

pub(crate) fn xattr(kv: &dyn Read, ino: Ino, name: &[u8]) -> Result<Option<Bytes>, KvError> {
    get(kv, "an extended attribute", &keys::xattr(ino, name))
}

pub(crate) fn xattr_names(kv: &dyn Read, ino: Ino) -> Result<Vec<Bytes>, KvError> {
    prefixed(kv, &keys::xattr(ino, b""))
        .map(|pair| Ok(pair?.0.slice(9..)))
        .collect()
}

fn extent(pair: Pair) -> Result<Extent, KvError> {
    let (key, coded) = pair;
    let ExtentValue { len, source } = value::decode("an extent", &coded)?;
    let end = number("an extent", &key, 9)?;
    match end.checked_sub(len) {
        Some(offset) if len > 0 => Ok(Extent { offset, len, source }),
        _ => Err(KvError::Damaged(format!(
            "an extent that ends at {end} has the length {len}"
        ))),
    }
}

/// Up to `extents_max` extents that intersect `offset..end`, whole, in order, all as of the same moment.
pub(crate) fn extents(
    kv: &dyn Read,
    ino: Ino,
    offset: u64,
    end: u64,
    extents_max: usize,
) -> Result<Vec<Extent>, KvError> {
    let mut found = Vec::new();
    if offset >= end {
        return Ok(found);
    }
    for pair in kv
        .scan(keys::extents_ending_after(ino, offset), false)
        .take(extents_max)
    {
        let extent = extent(pair?)?;
        if extent.offset >= end {
            break;
        }
        found.push(extent);
    }
    Ok(found)
}

pub(crate) fn locks_with(kv: &dyn Read, prefix: &[u8]) -> Result<Vec<Lock>, KvError> {
    prefixed(kv, prefix)
        .map(|pair| value::decode("a lock", &pair?.1))
        .collect()
}

/// Inodes on which a session has locks.
pub(crate) fn locked_inodes(kv: &dyn Read, session: SessionId) -> Result<Vec<Ino>, KvError> {
    prefixed(kv, &keys::session_locks(session))
        .map(|pair| number("a session's lock", &pair?.0, 9))
        .collect()
}

pub(crate) fn session(kv: &dyn Read, id: SessionId) -> Result<Option<Session>, KvError> {
    get(kv, "a session", &keys::session(id))
}

pub(crate) fn sessions(kv: &dyn Read) -> Result<Vec<Session>, KvError> {
    prefixed(kv, &keys::table(Table::Session))
        .map(|pair| value::decode("a session", &pair?.1))
        .collect()
}

pub(crate) fn node(kv: &dyn Read, id: NodeId) -> Result<Option<NodeInfo>, KvError> {
    get(kv, "a node", &keys::node(id))
}

pub(crate) fn nodes(kv: &dyn Read) -> Result<Vec<NodeInfo>, KvError> {
    prefixed(kv, &keys::table(Table::Node))
        .map(|pair| value::decode("a node", &pair?.1))
        .collect()
}

pub(crate) fn placement(kv: &dyn Read, group: u32) -> Result<Vec<NodeId>, KvError> {
    Ok(get(kv, "a placement group", &keys::placement(group))?.unwrap_or_default())
}

pub(crate) fn token(kv: &dyn Read, hash: &[u8; 32]) -> Result<Option<u64>, KvError> {
    get(kv, "a join token", &keys::token(hash))
}

pub(crate) fn tokens(kv: &dyn Read) -> Result<Vec<([u8; 32], u64)>, KvError> {
    let token = |pair: Result<Pair, KvError>| {
        let (key, coded) = pair?;
        let hash = key.get(1..).and_then(|hash| hash.try_into().ok());
        let hash = hash.ok_or_else(|| KvError::Damaged("a join token's key has a wrong length".into()))?;
        Ok((hash, value::decode("a join token", &coded)?))
    };
    prefixed(kv, &keys::table(Table::Token)).map(token).collect()
}

/// Live bytes of a chunk in one file.
pub(crate) fn chunk_ref(kv: &dyn Read, id: ChunkId, ino: Ino) -> Result<u64, KvError> {
    Ok(get(kv, "a chunk reference", &keys::chunk_ref(id, ino))?.unwrap_or(0))
}

pub(crate) fn chunk_is_live(kv: &dyn Read, id: ChunkId) -> Result<bool, KvError> {
    any(kv, &keys::chunk(id))
}

fn chunk_of(key: &[u8]) -> Result<ChunkId, KvError> {
    let what = "a chunk reference";
    Ok(ChunkId {
        session: number(what, key, 1)?,
        seq: number(what, key, 9)?,
    })
}

/// Where the references to chunks after `after` begin; session 0 names log payloads, and is left out.
fn chunks_after(after: Option<ChunkId>) -> Bound<Vec<u8>> {
    let first = ChunkId { session: 1, seq: 0 };
    match after.filter(|id| *id >= first) {
        Some(id) => Bound::Excluded(keys::chunk_ref(id, u64::MAX)),
        None => Bound::Included(keys::chunk(first)),
    }
}

pub(crate) fn chunks(
    kv: &dyn Read,
    after: Option<ChunkId>,
    chunks_max: usize,
) -> Result<Vec<ChunkId>, KvError> {
    let (_, end) = prefix_range(&keys::table(Table::ChunkRef));
    let mut found: Vec<ChunkId> = Vec::new();
    for pair in kv.scan((chunks_after(after), end), false) {
        let id = chunk_of(&pair?.0)?;
        if found.last() != Some(&id) {
            if found.len() >= chunks_max {
                break;
            }
            found.push(id);
        }
    }
    Ok(found)
}

/// References to up to `chunks_max` chunks (not log payloads) after `after`: each chunk once, with all its files.
pub(crate) fn chunk_uses(
    kv: &dyn Read,
    after: Option<ChunkId>,
    chunks_max: usize,
) -> Result<Vec<ChunkUse>, KvError> {
    let (_, end) = prefix_range(&keys::table(Table::ChunkRef));
    let mut found: Vec<ChunkUse> = Vec::new();
    for pair in kv.scan((chunks_after(after), end), false) {
        let (key, coded) = pair?;
        let id = chunk_of(&key)?;
        if found.last().is_none_or(|chunk| chunk.id != id) {
            if found.len() >= chunks_max {
                break;
            }
            found.push(ChunkUse {
                id,
                files: Vec::new(),
            });
        }
        let ino = number("a chunk reference", &key, 17)?;
        let live_bytes = value::decode("a chunk reference", &coded)?;
        if let Some(chunk) = found.last_mut() {
            chunk.files.push((ino, live_bytes));
        }
    }
    Ok(found)
}

pub(crate) fn live_payloads(kv: &dyn Read, from: u64, items_max: usize) -> Result<Vec<LivePayload>, KvError> {
    let start = keys::chunk(ChunkId::payload(from));
    let (_, end) = prefix_range(&start[..9]);
    let item = |pair: Result<Pair, KvError>| {
        let (key, coded) = pair?;
        let ino = number("a chunk reference", &key, 17)?;
        let live_bytes = value::decode("a chunk reference", &coded)?;
        Ok(LivePayload {
            log_index: chunk_of(&key)?.seq,
            ino,
            live_bytes,
        })
    };
    kv.scan((Bound::Included(start), end), false)
        .take(items_max)
        .map(item)
        .collect()
}

pub(crate) fn is_orphan(kv: &dyn Read, ino: Ino) -> Result<bool, KvError> {
    Ok(kv.get(&keys::orphan(ino))?.is_some())
}

pub(crate) fn orphans(kv: &dyn Read, after: Ino, inodes_max: usize) -> Result<Vec<Ino>, KvError> {
    let (_, end) = prefix_range(&keys::table(Table::Orphan));
    let range = (Bound::Excluded(keys::orphan(after)), end);
    kv.scan(range, false)
        .take(inodes_max)
        .map(|pair| number("an orphan", &pair?.0, 1))
        .collect()
}
