//! What people write: chunker specs, attributes, environmental data and templates.
#![no_main]

use git_devops::chunk::ChunkerSpec;
use git_devops::host::env::{Env, Template};
use git_devops::repo::Attributes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Attributes::decode(data);
    let _ = Env::new(&[("main".to_owned(), data.to_vec())].into(), &[("hostname".to_owned(), "a".to_owned())].into());
    if let Ok(template) = Template::decode(data) {
        let _ = template.render(&Env::default());
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(spec) = text.parse::<ChunkerSpec>()
    {
        assert_eq!(spec.to_string().parse::<ChunkerSpec>().unwrap(), spec);
    }
});
