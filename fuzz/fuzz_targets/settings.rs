//! What people write: chunker specs, attributes.
#![no_main]

use git_devops::chunk::ChunkerSpec;
use git_devops::repo::Attributes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Attributes::decode(data);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(spec) = text.parse::<ChunkerSpec>()
    {
        assert_eq!(spec.to_string().parse::<ChunkerSpec>().unwrap(), spec);
    }
});
