//! Module node.
