//! Values of the state: a version byte, then postcard.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::kv::KvError;

/// The version that this build writes, and the only one it reads.
const VERSION: u8 = 1;

/// Codes a value.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, KvError> {
    let coded = postcard::to_extend(value, vec![VERSION]);
    coded
        .map(Bytes::from)
        .map_err(|e| KvError::Io(format!("a value cannot be coded: {e}")))
}

/// Decodes a value; `what` names it in the error.
pub(crate) fn decode<T: DeserializeOwned>(what: &str, coded: &[u8]) -> Result<T, KvError> {
    let body = match coded.split_first() {
        Some((&VERSION, body)) => body,
        Some((version, _)) => return Err(KvError::Damaged(format!("{what} has unknown version {version}"))),
        None => return Err(KvError::Damaged(format!("{what} is empty"))),
    };
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(KvError::Damaged(format!(
            "{what} has {} bytes too many",
            rest.len()
        ))),
        Err(e) => Err(KvError::Damaged(format!("{what} cannot be decoded: {e}"))),
    }
}
