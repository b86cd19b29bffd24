//! Deflate as git's objects pass through it, by itself, without their names and files: for benchmarks.

use libdeflater::Decompressor;

use super::{ObjectKind, inflate, pack};
use crate::error::Result;

/// Hands `take` a blob as it stands in a pack: its header, then the deflated content.
pub fn deflate<T>(data: &[u8], level: i32, take: impl FnOnce(&[u8]) -> T) -> T {
    pack::with_encoded(ObjectKind::Blob, data, level, |encoded, _| take(encoded))
}

/// What inflates short objects: made once, used for many.
pub struct Inflater(Decompressor);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompressor::new())
    }
}

impl Inflater {
    /// Inflates what gives exactly `size` bytes; `None` of what does not.
    pub fn inflate(&mut self, deflated: &[u8], size: u64) -> Result<Option<Vec<u8>>> {
        inflate::inflate_whole(&mut self.0, deflated, size)
    }
}
