//! The machine's filesystem.
/// The machine's filesystem.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;
