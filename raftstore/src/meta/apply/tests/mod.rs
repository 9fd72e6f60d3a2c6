//! Tests of `apply`, family by family, and with random operations against a model.

mod actions;
mod attributes;
mod damage;
mod data;
mod golden;
mod locks;
mod model;
mod namespace;
mod random;
mod rename;
mod sessions;
mod support;
mod xattr;
