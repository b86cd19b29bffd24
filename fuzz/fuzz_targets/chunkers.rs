//! Cutting: the pieces make up the data, and none is longer than allowed.
#![no_main]

use git_devops::chunk::{Chunker, ChunkerSpec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for spec in ["gear:min=64,avg=256,max=1024", "rabin:window=16,avg=256,min=64,max=1024", "fixed:size=100"] {
        let spec: ChunkerSpec = spec.parse().unwrap();
        let mut chunker = Chunker::new(&spec);
        let mut rest = data;
        while !rest.is_empty() {
            let len = chunker.cut(rest);
            assert!(len > 0 && len <= spec.max_len().min(rest.len()));
            rest = &rest[len..];
        }
    }
});
