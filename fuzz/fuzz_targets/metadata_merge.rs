//! A merge of three metadata files, divided at zero bytes: a side that equals the base gives way to the other.
#![no_main]

use git_devops::metadata::merge;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(3, |&b| b == 0);
    let (base, ours, theirs) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let _ = merge(base, ours, theirs);
    if let Ok(merged) = merge(base, base, theirs) {
        assert_eq!(merged.bytes, theirs);
    }
});
