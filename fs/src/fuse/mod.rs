//! Module fuse.
