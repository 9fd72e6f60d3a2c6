//! Values of the state: a version byte, then postcard.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::Inode;
use crate::kv::KvError;

/// The version of most values, and the only one of those.
const VERSION: u8 = 1;
/// The version of values that have an inode in them: before, it had no project.
const INODE_VERSION: u8 = 2;

fn encode_as<T: Serialize>(version: u8, value: &T) -> Result<Bytes, KvError> {
    let coded = postcard::to_extend(value, vec![version]);
    coded
        .map(Bytes::from)
        .map_err(|e| KvError::Io(format!("a value cannot be coded: {e}")))
}

/// Codes a value.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, KvError> {
    encode_as(VERSION, value)
}

/// Codes an inode.
pub(crate) fn encode_inode(inode: &Inode) -> Result<Bytes, KvError> {
    encode_as(INODE_VERSION, inode)
}

/// Codes an answer: inodes are in some.
pub(crate) fn encode_answer<T: Serialize>(answer: &T) -> Result<Bytes, KvError> {
    encode_as(INODE_VERSION, answer)
}

/// The version of a value, and what follows it.
fn split<'a>(what: &str, coded: &'a [u8]) -> Result<(u8, &'a [u8]), KvError> {
    let parts = coded.split_first().map(|(version, body)| (*version, body));
    parts.ok_or_else(|| KvError::Damaged(format!("{what} is empty")))
}

fn unknown(what: &str, version: u8) -> KvError {
    KvError::Damaged(format!("{what} has unknown version {version}"))
}

fn decode_body<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, KvError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(KvError::Damaged(format!(
            "{what} has {} bytes too many",
            rest.len()
        ))),
        Err(e) => Err(KvError::Damaged(format!("{what} cannot be decoded: {e}"))),
    }
}

/// Decodes a value; `what` names it in the error.
pub(crate) fn decode<T: DeserializeOwned>(what: &str, coded: &[u8]) -> Result<T, KvError> {
    match split(what, coded)? {
        (VERSION, body) => decode_body(what, body),
        (version, _) => Err(unknown(what, version)),
    }
}

/// Decodes an inode, also of the version that had no project, the last field.
pub(crate) fn decode_inode(coded: &[u8]) -> Result<Inode, KvError> {
    let what = "an inode";
    match split(what, coded)? {
        (INODE_VERSION, body) => decode_body(what, body),
        (VERSION, body) => decode_body(what, &[body, &[0]].concat()),
        (version, _) => Err(unknown(what, version)),
    }
}

/// Decodes an answer; `None` for one that a program of an earlier version has kept. Whoever it was for has ended.
pub(crate) fn decode_answer<T: DeserializeOwned>(coded: &[u8]) -> Result<Option<T>, KvError> {
    let what = "an answer";
    match split(what, coded)? {
        (INODE_VERSION, body) => decode_body(what, body).map(Some),
        (VERSION, _) => Ok(None),
        (version, _) => Err(unknown(what, version)),
    }
}
