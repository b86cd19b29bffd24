//! The git index, in all versions that git writes.
#![no_main]

use git_devops::git::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = Index::decode(data.to_vec()) {
        for entry in index.iter() {
            assert!(index.lookup(entry.path).is_some());
        }
    }
});
