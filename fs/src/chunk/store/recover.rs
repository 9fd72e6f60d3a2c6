//! Finding out what a store holds, after any crash.
//!
//! Sealed packs end with a directory, so two reads tell what is in one. Only the newest pack may have been written
//! to when the power went: each record says up to which block its pack was durable when it was written, so
//! whatever lies beyond the highest such mark is checked byte by byte, and cut off if it is not whole. It was
//! never acknowledged. What is wrong below the mark is damage: it is counted, and repair fetches it from a peer.

use std::io;
use std::path::Path;
use std::sync::Arc;

use raftstore::disk::{Disk, DiskFile};

use super::error::StoreError;
use super::files::{PackFiles, at_block};
use super::format::{
    BLOCK_BYTES, DirectoryEntry, FORMAT_VERSION, PackHeader, Place, StoreIdentity, body_blocks,
    decode_chunk_header, decode_directory, decode_directory_header, decode_pack_header, decode_void,
    encode_pack_header, encode_void, pack_name, parse_pack_name, record_blocks,
};
use super::index::{Index, Location};

/// The pack that goes on being appended to.
pub(super) struct Active {
    pub(super) pack: u32,
    pub(super) file: Arc<dyn DiskFile>,
    /// First free block.
    pub(super) end: u32,
    /// Blocks below this are on the medium.
    pub(super) durable_to: u32,
    /// What the directory will say.
    pub(super) entries: Vec<DirectoryEntry>,
}

/// What [`recover`] found.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) active: Option<Active>,
    /// Number for the next new pack.
    pub(super) next_pack: u32,
    /// Stretches of damaged blocks.
    pub(super) bad_blocks: u64,
}

struct Scan {
    entries: Vec<DirectoryEntry>,
    sealed: bool,
    /// First block after the last good record.
    end: u32,
    /// Everything below this block was on the medium once.
    durable_to: u32,
    /// The pack's first block is not what it should be.
    headless: bool,
    bad_blocks: u64,
}

/// Reads all packs in `dir`, and makes durable and clean the one that was last written to.
pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    files: &PackFiles,
    identity: StoreIdentity,
) -> Result<Recovered, StoreError> {
    let io = |error: io::Error| StoreError::Io(format!("{}: {error}", dir.display()));
    disk.create_dir_all(dir).map_err(io)?;
    let mut packs: Vec<u32> = disk
        .list(dir)
        .map_err(io)?
        .iter()
        .filter_map(|name| parse_pack_name(name))
        .collect();
    packs.sort_unstable();
    // A name that a crash may still take back must not hold what is about to be called durable.
    disk.sync_dir(dir).map_err(io)?;
    let newest = packs.last().copied();
    let mut recovered = Recovered {
        index: Index::default(),
        active: None,
        next_pack: newest.map_or(1, |pack| pack.saturating_add(1)),
        bad_blocks: 0,
    };
    for pack in packs {
        let file = files.get(pack).map_err(io)?;
        let scan = scan_pack(file.as_ref(), identity, pack, newest == Some(pack)).map_err(io_or(io))?;
        recovered.bad_blocks += scan.bad_blocks;
        if scan.entries.is_empty() {
            if scan.bad_blocks > 0 {
                tracing::error!(pack, "a pack is damaged throughout; it is set aside");
                files.set_aside(pack).map_err(io)?;
            } else {
                files.remove(pack).map_err(io)?;
            }
            continue;
        }
        for entry in &scan.entries {
            recovered
                .index
                .insert(entry.id, Location::new(pack, entry.block, entry.len));
        }
        let records_end = scan
            .entries
            .iter()
            .map(|entry| entry.block + record_blocks(entry.len))
            .max();
        let info = recovered.index.pack_mut(pack);
        info.sealed = true;
        info.record_blocks = records_end.unwrap_or(1) - 1;
        info.blocks = blocks_of(file.as_ref()).map_err(io)?;
        if newest == Some(pack) {
            if !scan.sealed {
                cover_torn(file.as_ref(), identity, pack, &scan).map_err(io)?;
                file.set_len(at_block(scan.end)).map_err(io)?;
                info.sealed = false;
                info.blocks = scan.end;
            }
            if scan.headless {
                file.write_all_at(&encode_pack_header(&identity, pack), 0)
                    .map_err(io)?;
            }
            file.sync_data().map_err(io)?;
            recovered.active = (!scan.sealed).then_some(Active {
                pack,
                file,
                end: scan.end,
                durable_to: scan.end,
                entries: scan.entries,
            });
        }
    }
    Ok(recovered)
}

enum ScanError {
    Io(io::Error),
    Store(StoreError),
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn io_or(io: impl Fn(io::Error) -> StoreError) -> impl Fn(ScanError) -> StoreError {
    move |error| match error {
        ScanError::Io(error) => io(error),
        ScanError::Store(error) => error,
    }
}

fn blocks_of(file: &dyn DiskFile) -> io::Result<u32> {
    Ok(u32::try_from(file.len()? / BLOCK_BYTES as u64).unwrap_or(u32::MAX))
}

fn scan_pack(
    file: &dyn DiskFile,
    identity: StoreIdentity,
    pack: u32,
    newest: bool,
) -> Result<Scan, ScanError> {
    let blocks = blocks_of(file)?;
    let headless = match read_block(file, 0).map_or(PackHeader::Damaged, |block| decode_pack_header(&block)) {
        PackHeader::Newer(found) => {
            return Err(ScanError::Store(StoreError::NewerFormat {
                found,
                supported: FORMAT_VERSION,
            }));
        }
        PackHeader::Good { identity: found, .. } if found != identity => {
            return Err(ScanError::Store(StoreError::Foreign(pack_name(pack))));
        }
        PackHeader::Good { .. } => false,
        PackHeader::Damaged => true,
    };
    let mut scan = match read_directory(file, identity, pack, blocks) {
        Some((durable_to, entries)) => {
            let durable_to = if newest { durable_to } else { blocks };
            Scan {
                entries,
                sealed: true,
                end: blocks,
                durable_to,
                headless,
                bad_blocks: 0,
            }
        }
        None => scan_records(file, identity, pack, blocks, newest),
    };
    let durable_to = scan.durable_to;
    let listed = scan.entries.len();
    scan.entries
        .retain(|entry| entry.block < durable_to || is_whole(file, identity, pack, entry));
    // What was torn must not be listed: the directory goes, and the pack grows on.
    scan.sealed &= scan.entries.len() == listed;
    if !scan.sealed {
        scan.end = scan
            .entries
            .last()
            .map_or(1, |entry| entry.block + record_blocks(entry.len));
    }
    scan.headless = headless;
    // The newest pack may have been cut off while it was made.
    scan.bad_blocks += u64::from(headless && durable_to > 0);
    Ok(scan)
}

/// The directory of a sealed pack, and up to which block the pack was durable when it was sealed.
fn read_directory(
    file: &dyn DiskFile,
    identity: StoreIdentity,
    pack: u32,
    blocks: u32,
) -> Option<(u32, Vec<DirectoryEntry>)> {
    let place = Place {
        identity,
        pack,
        block: blocks.checked_sub(1)?,
    };
    let header = decode_directory_header(&read_block(file, place.block)?, &place)?;
    let mut body = vec![0; header.len as usize];
    file.read_exact_at(&mut body, at_block(place.block - body_blocks(header.len)))
        .ok()?;
    let entries = decode_directory(&header, &place, &body)?;
    Some((header.durable_to, entries))
}

/// Makes what a power cut tore between whole records of the newest pack known as nothing: later records will say
/// that everything before them was durable.
fn cover_torn(file: &dyn DiskFile, identity: StoreIdentity, pack: u32, scan: &Scan) -> io::Result<()> {
    let mut past = 1;
    for entry in &scan.entries {
        if past >= scan.durable_to && entry.block > past {
            let place = Place {
                identity,
                pack,
                block: past,
            };
            file.write_all_at(&encode_void(&place, entry.block - past), at_block(past))?;
        }
        past = entry.block + record_blocks(entry.len);
    }
    Ok(())
}

/// Walks from header to header; where there is none, block by block to the next.
fn scan_records(file: &dyn DiskFile, identity: StoreIdentity, pack: u32, blocks: u32, newest: bool) -> Scan {
    let mut entries = Vec::new();
    let mut gaps = Vec::new();
    let mut durable_to = if newest { 0 } else { blocks };
    let mut in_gap = false;
    let mut at = 1;
    while at < blocks {
        let place = Place {
            identity,
            pack,
            block: at,
        };
        let block = read_block(file, at).unwrap_or_default();
        if let Some(void) = decode_void(&block, &place) {
            at = at.saturating_add(void);
            in_gap = false;
            continue;
        }
        match decode_chunk_header(&block, &place) {
            Some(header) if at + record_blocks(header.len) <= blocks => {
                durable_to = durable_to.max(header.durable_to);
                entries.push(DirectoryEntry {
                    id: header.id,
                    block: at,
                    len: header.len,
                });
                at += record_blocks(header.len);
                in_gap = false;
            }
            _ => {
                if !in_gap {
                    gaps.push(at);
                }
                in_gap = true;
                at += 1;
            }
        }
    }
    let bad_blocks = gaps.iter().filter(|gap| **gap < durable_to).count() as u64;
    Scan {
        entries,
        sealed: !newest,
        end: blocks,
        durable_to,
        headless: false,
        bad_blocks,
    }
}

/// Whether a record can be read and all its bytes are right.
fn is_whole(file: &dyn DiskFile, identity: StoreIdentity, pack: u32, entry: &DirectoryEntry) -> bool {
    let place = Place {
        identity,
        pack,
        block: entry.block,
    };
    let Some(header) = read_block(file, entry.block).and_then(|block| decode_chunk_header(&block, &place))
    else {
        return false;
    };
    let mut body = vec![0; header.len as usize];
    (header.id, header.len) == (entry.id, entry.len)
        && file.read_exact_at(&mut body, at_block(entry.block + 1)).is_ok()
        && header.bad_blocks(0, &body) == 0
}

fn read_block(file: &dyn DiskFile, block: u32) -> Option<Vec<u8>> {
    let mut bytes = vec![0; BLOCK_BYTES];
    file.read_exact_at(&mut bytes, at_block(block)).ok()?;
    Some(bytes)
}
