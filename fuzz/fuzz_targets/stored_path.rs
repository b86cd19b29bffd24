//! Paths in a commit: what stands for a file of the work tree is where we would store that file.
#![no_main]

use git_devops::git::name::{Stored, meta_path, stored_path, work_path};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match work_path(data) {
        Stored::File(path) => assert_eq!(&*stored_path(path), data),
        Stored::Alt(path) => assert_eq!(&*stored_path(&path), data),
        Stored::Meta(dir) => assert_eq!(meta_path(&dir), data),
        Stored::Other => (),
    }
});
