//! Memory for large reads, used again. Malloc keeps it too, but has to be asked for zeros each time, which a read then puts its
//! bytes over: a sequential read came at 2,100 to 3,100 MiB/s with that, and comes at 3,000 to 3,600.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raftstore::meta::CHUNK_BYTES_MAX;

/// Smaller ones malloc keeps itself.
const LARGE_BYTES_MIN: usize = 256 << 10;
/// A reader that goes through a file has two reads under way: one that is answered, and one ahead.
const KEPT_MAX: usize = 2;

/// Buffers that nobody uses now.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    fn kept(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of `len` bytes, whatever they are.
    pub(super) fn take(&self, len: usize) -> Buffer {
        let whole = CHUNK_BYTES_MAX as usize;
        if !(LARGE_BYTES_MIN..=whole).contains(&len) {
            let bytes = vec![0; len];
            return Buffer { bytes, home: None };
        }
        let kept = self.kept().pop();
        // So that it suits any.
        let mut bytes = kept.unwrap_or_else(|| Vec::with_capacity(whole));
        bytes.resize(len, 0);
        Buffer {
            bytes,
            home: Some(self.clone()),
        }
    }
}

/// Bytes that go back where they came from when they are dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Option<Buffers>,
}

impl Buffer {
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let mut kept = home.kept();
            if kept.len() < KEPT_MAX {
                kept.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_come_back_and_no_more_are_kept_than_a_reader_needs() {
        let buffers = Buffers::default();
        let whole = CHUNK_BYTES_MAX as usize;
        let first = buffers.take(whole - 1);
        let place = first.as_ref().as_ptr();
        let bytes = first.freeze();
        let part = bytes.slice(5..10);
        drop(bytes);
        assert!(buffers.kept().is_empty(), "a part of it is still used");
        drop(part);
        let again = buffers.take(whole);
        assert_eq!((again.as_ref().as_ptr(), again.as_ref().len()), (place, whole));
        drop((again, buffers.take(whole), buffers.take(LARGE_BYTES_MIN)));
        assert_eq!(buffers.kept().len(), KEPT_MAX);
        drop((buffers.take(LARGE_BYTES_MIN - 1), buffers.take(whole + 1)));
        assert!(buffers.kept().iter().all(|kept| kept.capacity() == whole));
    }
}
