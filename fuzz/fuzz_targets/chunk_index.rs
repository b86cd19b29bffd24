//! A chunk index, or the list of a segment: what decodes is what we would have written.
#![no_main]

use git_devops::file::index::{ChunkIndex, decode_list};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = ChunkIndex::decode(data) {
        assert_eq!(index.encode(), data);
    }
    let _ = decode_list(data, 1 << 20, 4);
});
