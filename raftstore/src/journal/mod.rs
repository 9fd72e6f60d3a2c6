//! The journal: Raft's log, votes and the payload of small writes, in recycled segments (docs/FORMAT.md).
