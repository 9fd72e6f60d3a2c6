//! The harness of the cluster tests.
