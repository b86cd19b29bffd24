//! The git index, in all versions that git writes.
#![no_main]

use git_devops::git::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // With a checksum that holds, or hardly any input would get past it.
    let mut data = data.to_vec();
    if let Some((body, checksum)) = data.split_last_chunk_mut::<20>() {
        let mut hasher = sha1dc::Hasher::new();
        hasher.update(body);
        let Ok(right) = hasher.finalize() else { return };
        *checksum = right.to_bytes();
    }
    if let Ok(index) = Index::decode(data) {
        for entry in index.iter() {
            assert!(index.lookup(entry.path).is_some());
        }
    }
});
