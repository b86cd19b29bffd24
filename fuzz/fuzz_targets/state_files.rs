//! What this host keeps of itself: the mirror, and what git tells of its configuration.
#![no_main]

use git_devops::git::{Config, Mirror};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Config::decode(data);
    let end = format!("end {}\n", blake3::hash(data).to_hex());
    let mirror = [data, end.as_bytes()].concat();
    if let Ok(decoded) = Mirror::decode(&mirror) {
        assert_eq!(decoded.encode(), mirror);
    }
    let _ = Mirror::decode(data);
});
