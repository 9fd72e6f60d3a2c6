//! Tests of `apply`, family by family, and with random operations against a model.

mod model;
mod namespace;
mod random;
mod support;
