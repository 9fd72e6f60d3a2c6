//! Scans that own what they read from.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::{KeyRange, KvError, Pair, Read};

/// Pairs fetched at once, at most.
const PAGE_PAIRS_MAX: usize = 128;

/// A scan in pages: each page is a scan of its own that goes on where the last one ended. It sees one state of the
/// data only if `read` does.
pub(super) struct PagedScan<R: ?Sized> {
    read: Arc<R>,
    /// What is left; `None` at the end.
    rest: Option<KeyRange>,
    reverse: bool,
    /// The page, last pair first.
    page: Vec<Pair>,
    page_pairs: usize,
}

impl<R: Read + ?Sized> PagedScan<R> {
    pub(super) fn new(read: Arc<R>, range: KeyRange, reverse: bool) -> Self {
        // Most scans end after a few pairs: begin with a small page.
        Self {
            read,
            rest: Some(range),
            reverse,
            page: Vec::new(),
            page_pairs: 8,
        }
    }

    fn fetch(&mut self, range: KeyRange) -> Result<(), KvError> {
        let page: Result<Vec<Pair>, KvError> = self
            .read
            .scan(range.clone(), self.reverse)
            .take(self.page_pairs)
            .collect();
        self.page = page?;
        if self.page.len() == self.page_pairs {
            self.rest = self
                .page
                .last()
                .map(|(last, _)| rest_after(range, last, self.reverse));
        }
        self.page.reverse();
        self.page_pairs = (self.page_pairs * 4).min(PAGE_PAIRS_MAX);
        Ok(())
    }
}

impl<R: Read + ?Sized> Iterator for PagedScan<R> {
    type Item = Result<Pair, KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty() {
            let range = self.rest.take()?;
            if let Err(error) = self.fetch(range) {
                return Some(Err(error));
            }
        }
        self.page.pop().map(Ok)
    }
}

/// What is left of `range` once a scan has passed `key`.
pub(crate) fn rest_after(range: KeyRange, key: &Bytes, reverse: bool) -> KeyRange {
    let passed = Bound::Excluded(key.to_vec());
    if reverse {
        (range.0, passed)
    } else {
        (passed, range.1)
    }
}

/// Whether no key can be in `range`; also true for ranges that end before they start.
#[must_use]
pub fn is_empty_range(range: &KeyRange) -> bool {
    match range {
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end))
        | (Bound::Excluded(start), Bound::Included(end)) => start >= end,
        _ => false,
    }
}
