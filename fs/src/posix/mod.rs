//! Module posix.
