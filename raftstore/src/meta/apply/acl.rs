//! POSIX.1e access control lists, in the form in which Linux passes them as extended attributes: a little-endian
//! version (2), then entries of tag (u16), permissions (u16) and id (u32).

use bytes::Bytes;

use crate::meta::Refusal;

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// One line of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// Decodes and checks a list; `None` for one without entries, which stands for none at all.
    pub(super) fn decode(coded: &[u8]) -> Result<Option<Self>, Refusal> {
        if coded.is_empty() {
            return Ok(None);
        }
        let (version, coded) = coded
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(Refusal::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Refusal::NotSupported);
        }
        let (entries, rest) = coded.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(Refusal::Invalid);
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Self(entries.iter().map(decode_entry).collect());
        if acl.is_valid() {
            Ok(Some(acl))
        } else {
            Err(Refusal::Invalid)
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut coded = Vec::with_capacity(HEADER_BYTES + self.0.len() * ENTRY_BYTES);
        coded.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.0 {
            coded.extend_from_slice(&entry.tag.to_le_bytes());
            coded.extend_from_slice(&entry.perm.to_le_bytes());
            coded.extend_from_slice(&entry.id.to_le_bytes());
        }
        coded.into()
    }

    /// One owner, group and other entry each, in the order of the tags; a mask if anyone is named.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        self.0.iter().all(|entry| entry.perm <= 0o7)
            && self
                .0
                .iter()
                .all(|entry| matches!(entry.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER))
            && self.0.is_sorted_by_key(|entry| entry.tag)
            && [USER_OBJ, GROUP_OBJ, OTHER]
                .into_iter()
                .all(|tag| count(tag) == 1)
            && (count(MASK) == 1 || count(MASK) == 0 && named == 0)
    }

    fn perm(&self, tag: u16) -> Option<u32> {
        self.0
            .iter()
            .find(|entry| entry.tag == tag)
            .map(|entry| u32::from(entry.perm))
    }

    /// Limits the permissions of `tag` to `allowed` (three bits).
    fn limit(&mut self, tag: u16, allowed: u32) {
        self.set(tag, |perm| perm & allowed);
    }

    fn set(&mut self, tag: u16, perm: impl Fn(u32) -> u32) {
        for entry in self.0.iter_mut().filter(|entry| entry.tag == tag) {
            entry.perm = u16::try_from(perm(u32::from(entry.perm)) & 0o7).unwrap_or(0);
        }
    }

    /// The entry that the group bits of the mode stand for.
    fn group_class(&self) -> u16 {
        if self.perm(MASK).is_some() {
            MASK
        } else {
            GROUP_OBJ
        }
    }

    /// The nine permission bits that stand for the list.
    pub(super) fn mode_bits(&self) -> u32 {
        let perm = |tag| self.perm(tag).unwrap_or(0);
        perm(USER_OBJ) << 6 | perm(self.group_class()) << 3 | perm(OTHER)
    }

    /// Whether the nine permission bits say all that the list says.
    pub(super) fn is_minimal(&self) -> bool {
        self.0
            .iter()
            .all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// After chmod: the list as the new mode wants it.
    pub(super) fn chmod(&mut self, mode: u32) {
        self.set(USER_OBJ, |_| mode >> 6);
        self.set(self.group_class(), |_| mode >> 3);
        self.set(OTHER, |_| mode);
    }

    /// The access list of an inode that is made with `mode` under a directory that has this default list.
    pub(super) fn inherited(&self, mode: u32) -> Self {
        let mut access = self.clone();
        access.limit(USER_OBJ, mode >> 6);
        access.limit(self.group_class(), mode >> 3);
        access.limit(OTHER, mode);
        access
    }
}

fn decode_entry(coded: &[u8; ENTRY_BYTES]) -> Entry {
    let [tag_low, tag_high, perm_low, perm_high, id @ ..] = *coded;
    Entry {
        tag: u16::from_le_bytes([tag_low, tag_high]),
        perm: u16::from_le_bytes([perm_low, perm_high]),
        id: u32::from_le_bytes(id),
    }
}
