//! Tests of `apply`, family by family, and with random operations against a model.

mod namespace;
mod support;
