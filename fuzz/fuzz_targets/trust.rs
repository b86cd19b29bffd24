//! What decides whom a host believes: releases, root documents, the floor, keys, and what gpgv says.
#![no_main]

use git_devops::trust::floor::Floor;
use git_devops::trust::gpg::decode_status;
use git_devops::trust::openpgp::{Certificate, armor, dearmor};
use git_devops::trust::release::Signed;
use git_devops::trust::root::RootFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(signed) = Signed::decode(data) {
        assert_eq!(signed.encode(), data);
        assert!(data.starts_with(&signed.text));
    }
    if let Ok(file) = RootFile::decode(data) {
        assert_eq!(file.encode(), data);
    }
    let _ = Floor::decode(data);
    let _ = decode_status(true, data);
    for one in Certificate::decode_all(data).unwrap_or_default() {
        assert_eq!(Certificate::decode(&one.bytes).unwrap(), one);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(packets) = dearmor(text, 4)
    {
        assert_eq!(packets.iter().map(|packet| armor(packet)).collect::<String>(), text);
    }
});
