//! The list of unowned paths: what decodes is what we would have written.
#![no_main]

use git_devops::repo::unowned::Unowned;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(list) = Unowned::decode(data) {
        assert_eq!(list.encode(), data);
    }
});
