//! Trees and commits.
#![no_main]

use git_devops::git::CommitData;
use git_devops::git::object::decode_tree;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = decode_tree(data);
    if let Ok(commit) = CommitData::decode(data) {
        let _ = commit.encode();
    }
});
