//! The program as its users meet it. One binary, so that it is linked once, and no file waits for the slowest test of another.

mod common;

mod attributes;
mod commands;
mod converge;
mod dpkg;
mod env;
mod evil;
mod git;
mod guides;
mod holders;
mod maintenance;
mod memory;
mod mend;
mod merge;
mod network;
mod output;
mod preview;
mod proof;
mod replay;
mod restore;
mod root;
mod running;
mod scan;
mod schedule;
mod secret;
mod storage;
mod streaming;
mod topologies;
mod tour;
mod trial;
mod trust;
mod types;

#[test]
fn every_file_of_tests_is_in_the_list() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = name.trim_end_matches(".rs");
        assert!(name == "main" || include_str!("main.rs").contains(&format!("\nmod {name};\n")), "{name}");
    }
}
