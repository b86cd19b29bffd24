//! The metadata of a directory: what decodes is what we would have written.
#![no_main]

use git_devops::metadata::DirMetadata;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(metadata) = DirMetadata::decode(data) {
        assert_eq!(metadata.encode(), data);
    }
});
