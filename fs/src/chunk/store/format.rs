//! The bytes of a pack file; `docs/FORMAT.md` draws them.

use raftstore::meta::{CHUNK_BYTES_MAX, ChunkId};
use sha2::{Digest, Sha256};

/// Everything in a pack is aligned to blocks of this many bytes, and each block of a chunk has its own crc32.
pub const BLOCK_BYTES: usize = 4096;
/// The format that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

const PACK_MAGIC: [u8; 8] = *b"BRMBLPAK";
const RECORD_MAGIC: [u8; 8] = *b"BRMBLREC";
const PACK_CRC_AT: usize = 60;
const RECORD_CRC_AT: usize = 60;
const TABLE_AT: usize = 64;
const KIND_CHUNK: u32 = 1;
const KIND_DIRECTORY: u32 = 2;
const KIND_VOID: u32 = 3;
const ENTRY_BYTES: usize = 24;

/// Largest body of a directory record: as many blocks as its crc table has room for.
const DIRECTORY_BYTES_MAX: usize = (BLOCK_BYTES - TABLE_AT) / 4 * BLOCK_BYTES;
/// Most chunks that a pack may hold, so that its directory fits.
pub const PACK_CHUNKS_MAX: usize = DIRECTORY_BYTES_MAX / ENTRY_BYTES;

/// What tells a store's packs from another cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreIdentity(pub [u8; 16]);

impl StoreIdentity {
    /// The identity of every chunk store of the cluster with this id: the first half of the id's SHA-256.
    #[must_use]
    pub fn of_cluster(cluster_id: &str) -> Self {
        let digest = Sha256::digest(cluster_id.as_bytes());
        let mut identity = [0; 16];
        identity.copy_from_slice(&digest[..16]);
        Self(identity)
    }

    fn tag(&self) -> u32 {
        crc32fast::hash(&self.0)
    }
}

/// What the first block of a pack says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackHeader {
    /// A pack of this format.
    Good {
        /// Whose it is.
        identity: StoreIdentity,
        /// Its number.
        pack: u32,
    },
    /// A pack of a later format version.
    Newer(u32),
    /// No pack, or a damaged one.
    Damaged,
}

/// The first block of pack number `pack`.
#[must_use]
pub fn encode_pack_header(identity: &StoreIdentity, pack: u32) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    block[..8].copy_from_slice(&PACK_MAGIC);
    put_u32(&mut block, 8, FORMAT_VERSION);
    put_u32(&mut block, 12, pack);
    block[16..32].copy_from_slice(&identity.0);
    let crc = crc32fast::hash(&block[..PACK_CRC_AT]);
    put_u32(&mut block, PACK_CRC_AT, crc);
    block
}

/// Reads the first block of a pack.
#[must_use]
pub fn decode_pack_header(block: &[u8]) -> PackHeader {
    if block.len() < PACK_CRC_AT + 4
        || block[..8] != PACK_MAGIC
        || crc32fast::hash(&block[..PACK_CRC_AT]) != get_u32(block, PACK_CRC_AT)
    {
        return PackHeader::Damaged;
    }
    let version = get_u32(block, 8);
    if version > FORMAT_VERSION {
        return PackHeader::Newer(version);
    }
    let mut identity = [0; 16];
    identity.copy_from_slice(&block[16..32]);
    PackHeader::Good {
        identity: StoreIdentity(identity),
        pack: get_u32(block, 12),
    }
}

/// Where a record stands: what its header must agree with. A copy of a pack inside a chunk does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whose pack.
    pub identity: StoreIdentity,
    /// Which pack.
    pub pack: u32,
    /// Which block of it the record's header is.
    pub block: u32,
}

/// The header of a chunk's record; the chunk's bytes follow in the next block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// The chunk.
    pub id: ChunkId,
    /// Its length in bytes, 1 to [`CHUNK_BYTES_MAX`].
    pub len: u32,
    /// All blocks of the pack below this were on the medium when the record was written.
    pub durable_to: u32,
    /// crc32 of each block of the body; the last one may be shorter than a block.
    pub crcs: Vec<u32>,
}

/// Blocks that `len` bytes take.
#[must_use]
pub fn body_blocks(len: u32) -> u32 {
    len.div_ceil(BLOCK_BYTES as u32)
}

/// Blocks that the record of a chunk of `len` bytes takes, header included.
#[must_use]
pub fn record_blocks(len: u32) -> u32 {
    1 + body_blocks(len)
}

fn block_crcs(body: &[u8]) -> impl Iterator<Item = u32> {
    body.chunks(BLOCK_BYTES).map(crc32fast::hash)
}

fn encode_record(
    place: &Place,
    kind: u32,
    id: ChunkId,
    len: u32,
    durable_to: u32,
    crcs: impl Iterator<Item = u32>,
) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    block[..8].copy_from_slice(&RECORD_MAGIC);
    put_u32(&mut block, 8, place.identity.tag());
    put_u32(&mut block, 12, place.pack);
    put_u32(&mut block, 16, place.block);
    put_u32(&mut block, 20, durable_to);
    put_u64(&mut block, 24, id.session);
    put_u64(&mut block, 32, id.seq);
    put_u32(&mut block, 40, len);
    put_u32(&mut block, 44, kind);
    for (slot, crc) in crcs.enumerate() {
        put_u32(&mut block, TABLE_AT + 4 * slot, crc);
    }
    let crc = record_crc(&block);
    put_u32(&mut block, RECORD_CRC_AT, crc);
    block
}

/// crc32 of a header block without its own crc field.
fn record_crc(block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..RECORD_CRC_AT]);
    hasher.update(&block[TABLE_AT..]);
    hasher.finalize()
}

/// Whether this is the header of a record of this kind at this place, and whole.
fn check_record(block: &[u8], place: &Place, kind: u32) -> bool {
    block.len() == BLOCK_BYTES
        && block[..8] == RECORD_MAGIC
        && get_u32(block, 8) == place.identity.tag()
        && get_u32(block, 12) == place.pack
        && get_u32(block, 16) == place.block
        && get_u32(block, 44) == kind
        && record_crc(block) == get_u32(block, RECORD_CRC_AT)
}

/// Reads what chunk records and directories have in common.
fn decode_record(block: &[u8], place: &Place, kind: u32, len_max: usize) -> Option<RecordHeader> {
    if !check_record(block, place, kind) {
        return None;
    }
    let len = get_u32(block, 40);
    if len == 0 || len as usize > len_max {
        return None;
    }
    let crcs = (0..body_blocks(len) as usize)
        .map(|slot| get_u32(block, TABLE_AT + 4 * slot))
        .collect();
    Some(RecordHeader {
        id: ChunkId {
            session: get_u64(block, 24),
            seq: get_u64(block, 32),
        },
        len,
        durable_to: get_u32(block, 20),
        crcs,
    })
}

/// The header block of the record of a chunk; `body` is 1 to [`CHUNK_BYTES_MAX`] bytes long.
#[must_use]
pub fn encode_chunk_header(place: &Place, id: ChunkId, body: &[u8], durable_to: u32) -> Vec<u8> {
    encode_record(
        place,
        KIND_CHUNK,
        id,
        body.len() as u32,
        durable_to,
        block_crcs(body),
    )
}

/// Reads the header block of a chunk's record; `None` if it is damaged or stands for something else.
#[must_use]
pub fn decode_chunk_header(block: &[u8], place: &Place) -> Option<RecordHeader> {
    decode_record(block, place, KIND_CHUNK, CHUNK_BYTES_MAX as usize)
}

/// The header block over `blocks` blocks (itself included) that hold nothing: what a power cut tore is covered
/// with it.
#[must_use]
pub fn encode_void(place: &Place, blocks: u32) -> Vec<u8> {
    let id = ChunkId { session: 0, seq: 0 };
    encode_record(place, KIND_VOID, id, blocks, place.block, std::iter::empty())
}

/// How many blocks hold nothing, if this is the header over such.
#[must_use]
pub fn decode_void(block: &[u8], place: &Place) -> Option<u32> {
    check_record(block, place, KIND_VOID)
        .then(|| get_u32(block, 40))
        .filter(|blocks| *blocks > 0)
}

impl RecordHeader {
    /// Counts the blocks of `bytes` that are bad; `bytes` begins with block `first` of the body, and ends with a
    /// whole block or with the body.
    #[must_use]
    pub fn bad_blocks(&self, first: usize, bytes: &[u8]) -> u64 {
        let bad = |(slot, crc): (usize, u32)| self.crcs.get(first + slot) != Some(&crc);
        block_crcs(bytes).enumerate().filter(|&block| bad(block)).count() as u64
    }
}

/// A chunk of a sealed pack, as the pack's directory lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The chunk.
    pub id: ChunkId,
    /// Its header's block.
    pub block: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// The directory that seals a pack, from block `first` to the end of the file: the body, then its header, so that
/// the last block of the file leads to it.
#[must_use]
pub fn encode_directory(
    identity: StoreIdentity,
    pack: u32,
    first: u32,
    entries: &[DirectoryEntry],
    durable_to: u32,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(entries.len() * ENTRY_BYTES + 2 * BLOCK_BYTES);
    for entry in entries {
        body.extend_from_slice(&entry.id.session.to_le_bytes());
        body.extend_from_slice(&entry.id.seq.to_le_bytes());
        body.extend_from_slice(&entry.block.to_le_bytes());
        body.extend_from_slice(&entry.len.to_le_bytes());
    }
    let len = body.len() as u32;
    let place = Place {
        identity,
        pack,
        block: first + body_blocks(len),
    };
    let id = ChunkId { session: 0, seq: 0 };
    let header = encode_record(&place, KIND_DIRECTORY, id, len, durable_to, block_crcs(&body));
    body.resize(body_blocks(len) as usize * BLOCK_BYTES, 0);
    body.extend_from_slice(&header);
    body
}

/// Reads the last block of a pack; `None` if the pack was not sealed or the block is damaged. The directory's
/// body stands right before this block.
#[must_use]
pub fn decode_directory_header(block: &[u8], place: &Place) -> Option<RecordHeader> {
    let header = decode_record(block, place, KIND_DIRECTORY, DIRECTORY_BYTES_MAX)?;
    (body_blocks(header.len) < place.block).then_some(header)
}

/// Reads the body of a directory; `None` if it is damaged or lists what cannot be.
#[must_use]
pub fn decode_directory(header: &RecordHeader, place: &Place, body: &[u8]) -> Option<Vec<DirectoryEntry>> {
    let end = place.block - body_blocks(header.len);
    if body.len() != header.len as usize
        || header.bad_blocks(0, body) > 0
        || !body.len().is_multiple_of(ENTRY_BYTES)
    {
        return None;
    }
    let entry = |bytes: &[u8]| {
        let entry = DirectoryEntry {
            id: ChunkId {
                session: get_u64(bytes, 0),
                seq: get_u64(bytes, 8),
            },
            block: get_u32(bytes, 16),
            len: get_u32(bytes, 20),
        };
        let fits = (1..=CHUNK_BYTES_MAX).contains(&entry.len)
            && entry.block >= 1
            && entry
                .block
                .checked_add(record_blocks(entry.len))
                .is_some_and(|past| past <= end);
        fits.then_some(entry)
    };
    body.chunks_exact(ENTRY_BYTES).map(entry).collect()
}

/// The file name of a pack.
#[must_use]
pub fn pack_name(pack: u32) -> String {
    format!("pack-{pack:08x}")
}

/// The number in a pack's file name.
#[must_use]
pub fn parse_pack_name(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("pack-")?;
    (digits.len() == 8)
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

fn put_u32(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get_u32(block: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn get_u64(block: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: StoreIdentity = StoreIdentity([7; 16]);

    fn place(block: u32) -> Place {
        Place {
            identity: IDENTITY,
            pack: 3,
            block,
        }
    }

    #[test]
    fn headers_survive_a_round_trip_and_stand_for_one_place_only() {
        assert_eq!(
            decode_pack_header(&encode_pack_header(&IDENTITY, 3)),
            PackHeader::Good {
                identity: IDENTITY,
                pack: 3
            }
        );
        let id = ChunkId { session: 5, seq: 9 };
        let body = vec![1; BLOCK_BYTES + 1];
        let block = encode_chunk_header(&place(17), id, &body, 4);
        let header = decode_chunk_header(&block, &place(17)).expect("good header");
        assert_eq!(
            (header.id, header.len, header.durable_to, header.crcs.len()),
            (id, 4097, 4, 2)
        );
        assert_eq!(header.bad_blocks(0, &body), 0);
        assert_eq!(header.bad_blocks(1, &body[BLOCK_BYTES..]), 0);
        assert_eq!(header.bad_blocks(0, &[1, 2, 3]), 1);
        assert_eq!(decode_chunk_header(&block, &place(18)), None);
        let other = Place {
            identity: StoreIdentity([8; 16]),
            ..place(17)
        };
        assert_eq!(decode_chunk_header(&block, &other), None);
    }

    #[test]
    fn a_later_version_is_recognised() {
        let mut block = encode_pack_header(&IDENTITY, 3);
        put_u32(&mut block, 8, FORMAT_VERSION + 1);
        let crc = crc32fast::hash(&block[..PACK_CRC_AT]);
        put_u32(&mut block, PACK_CRC_AT, crc);
        assert_eq!(decode_pack_header(&block), PackHeader::Newer(FORMAT_VERSION + 1));
    }

    #[test]
    fn a_directory_survives_a_round_trip() {
        let entries: Vec<_> = (0..700)
            .map(|n| DirectoryEntry {
                id: ChunkId { session: 1, seq: n },
                block: 1 + 2 * n as u32,
                len: 10,
            })
            .collect();
        let bytes = encode_directory(IDENTITY, 3, 1401, &entries, 9);
        let last = 1401 + (bytes.len() / BLOCK_BYTES) as u32 - 1;
        let block = &bytes[bytes.len() - BLOCK_BYTES..];
        let header = decode_directory_header(block, &place(last)).expect("good header");
        let body = &bytes[..header.len as usize];
        assert_eq!(decode_directory(&header, &place(last), body), Some(entries));
        let mut flipped = body.to_vec();
        flipped[5] ^= 1;
        assert_eq!(decode_directory(&header, &place(last), &flipped), None);
    }

    #[test]
    fn a_void_survives_a_round_trip() {
        let block = encode_void(&place(9), 1);
        assert_eq!(decode_void(&block, &place(9)), Some(1));
        assert_eq!(decode_void(&block, &place(8)), None);
        assert_eq!(decode_chunk_header(&block, &place(9)), None);
    }

    #[test]
    fn names() {
        assert_eq!(parse_pack_name(&pack_name(0xab)), Some(0xab));
        for name in [
            "pack-",
            "pack-1",
            "pack-0000000g",
            "pakc-00000000",
            "pack-000000001",
        ] {
            assert_eq!(parse_pack_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_never_taken_for_a_header(
            bytes in proptest::collection::vec(any::<u8>(), 0..2 * BLOCK_BYTES),
            block in any::<u32>(),
        ) {
            prop_assert_eq!(decode_pack_header(&bytes), PackHeader::Damaged);
            prop_assert_eq!(decode_chunk_header(&bytes, &place(block)), None);
            prop_assert_eq!(decode_directory_header(&bytes, &place(block)), None);
            prop_assert_eq!(decode_void(&bytes, &place(block)), None);
        }

        #[test]
        fn a_flipped_bit_is_noticed(bit in 0..BLOCK_BYTES * 8, len in 1..5 * BLOCK_BYTES) {
            let body = vec![0xa5; len];
            let id = ChunkId { session: 5, seq: 9 };
            let mut block = encode_chunk_header(&place(1), id, &body, 0);
            block[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode_chunk_header(&block, &place(1)), None);
        }
    }
}
