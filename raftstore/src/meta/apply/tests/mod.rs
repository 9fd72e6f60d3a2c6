//! Tests of `apply`, family by family, and with random operations against a model.

mod actions;
mod attributes;
mod batch;
mod damage;
mod data;
mod flush;
mod golden;
mod locks;
mod model;
mod namespace;
mod random;
mod rename;
mod sessions;
mod support;
mod volumes;
mod volumes_random;
mod xattr;
