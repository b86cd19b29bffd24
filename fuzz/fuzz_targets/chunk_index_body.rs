//! A chunk index under a right root, so that what stands behind the root is reached.
#![no_main]

use git_devops::file::index::{ChunkIndex, MAGIC};
use git_devops::id::ChunkId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let root = ChunkId::of(data);
    let text = [MAGIC, format!("root {root}\n").as_bytes(), data].concat();
    if let Ok(index) = ChunkIndex::decode(&text) {
        assert_eq!(index.encode(), text);
    }
});
