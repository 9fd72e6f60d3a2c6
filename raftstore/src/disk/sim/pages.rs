//! Contents of a simulated file: copy-on-write pages, so that a copy of a disk costs next to nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a page.
const PAGE_BYTES: usize = 4096;

/// A run of bytes; pages that are missing hold zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES]>>,
}

impl Pages {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` from `offset`; `false` if the contents end before that.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> bool {
        if offset.saturating_add(buf.len() as u64) > self.len {
            return false;
        }
        let mut done = 0;
        while done < buf.len() {
            let (page, at) = locate(offset + done as u64);
            let take = (PAGE_BYTES - at).min(buf.len() - done);
            let target = &mut buf[done..done + take];
            match self.pages.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[at..at + take]),
                None => target.fill(0),
            }
            done += take;
        }
        true
    }

    /// Writes `data` at `offset`, extending the contents as needed.
    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        let mut done = 0;
        while done < data.len() {
            let (page, at) = locate(offset + done as u64);
            let take = (PAGE_BYTES - at).min(data.len() - done);
            let source = &data[done..done + take];
            if self.pages.contains_key(&page) || source != &[0; PAGE_BYTES][..take] {
                let bytes = self
                    .pages
                    .entry(page)
                    .or_insert_with(|| Arc::new([0; PAGE_BYTES]));
                Arc::make_mut(bytes)[at..at + take].copy_from_slice(source);
            }
            done += take;
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    /// Cuts, or extends with zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (page, at) = locate(len);
            self.pages.split_off(&(page + u64::from(at > 0)));
            if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[at..].fill(0);
            }
        }
        self.len = len;
    }
}

/// The page that holds the byte at `offset`, and where in it.
fn locate(offset: u64) -> (u64, usize) {
    (offset / PAGE_BYTES as u64, (offset % PAGE_BYTES as u64) as usize)
}
