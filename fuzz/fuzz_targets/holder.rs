//! What a holder tells: its record, and a list of chunks.
#![no_main]

use git_devops::placement::record::{Holdings, ListLine, Record, decode_list, encode_list};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(record) = Record::decode(data) {
        assert_eq!(record.encode().as_bytes(), data);
    }
    let hash = *blake3::hash(data).as_bytes();
    let line = ListLine { is_held: true, n_chunks: data.len() / 8, hash };
    if let Ok(list) = decode_list(data, &line) {
        assert_eq!(encode_list(&list), data);
        let wanted = [0, 1, u64::MAX / 2, u64::MAX];
        let mut holdings = Holdings::new(&wanted);
        holdings.take(&list, true);
        let expected: Vec<bool> = wanted.iter().map(|wanted| list.binary_search(wanted).is_ok()).collect();
        assert_eq!(holdings.finish(), expected);
    }
});
