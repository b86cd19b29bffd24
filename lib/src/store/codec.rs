//! The compression of chunks by itself, without their ids, checksums and files: for benchmarks.

use super::{pack, writer};
use crate::error::Result;

/// Hands `take` what a writer stores of a chunk: its zstd frame, or `plain` itself where that does not pay.
///
/// Each thread remembers how the last chunks did: after several that did not pay it tries only some.
pub fn compress<T>(plain: &[u8], level: i32, take: impl FnOnce(&[u8]) -> T) -> Result<T> {
    writer::with_compressed(plain, level, |_, stored| Ok(take(stored)))
}

/// Puts the `plain_len` bytes of a zstd frame in the place of what `out` holds.
pub fn decompress(frame: &[u8], plain_len: usize, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    pack::decompress_frame(frame, plain_len, out)
}
