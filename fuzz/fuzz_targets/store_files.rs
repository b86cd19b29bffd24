//! Everything in a chunk store: packs, their records, reference packs, index segments and their list.
#![no_main]

use git_devops::store::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = decode::pack(data);
    let _ = decode::record(data);
    let _ = decode::reference_pack(data);
    let _ = decode::reference_pack(&[data, blake3::hash(data).as_bytes()].concat());
    let _ = decode::index_segment(data);
    let _ = decode::segment_list(data);
});
