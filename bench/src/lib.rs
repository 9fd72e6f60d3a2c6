//! Benchmarks of directories, in fio's terms, with a generator of their own.
//!
//! A [`job::Job`] says what to do; [`job::parse`] reads jobs from `.fio` files, [`suite`] has those that are built in.
//! [`run::run`] does them on a directory ([`layer::Files`]) and returns a [`report::Document`], which is also fio's
//! JSON; tables, HTML pages and comparisons are made from documents alone, so fio's own reports do as well. [`lab`]
//! builds slow-media hosts on this machine and runs the same jobs on several filesystems there.

pub mod clock;
pub mod engine;
pub mod error;
pub mod files;
pub mod job;
pub mod lab;
pub mod layer;
pub mod offsets;
pub mod pattern;
pub mod progress;
pub mod report;
pub mod run;
pub mod stats;
pub mod suite;

pub use error::{Error, Result};
