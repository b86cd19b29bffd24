//! What this host keeps of itself and finds on itself: the mirror, announced moves, git's configuration, refs and logs, what a restore and a merge note,
//! the list of repositories, the ledger, the log of the host, and the database of dpkg.
#![no_main]

use git_devops::git::{Config, Mirror};
use git_devops::{endline, git, host, journal, placement, repo};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Config::decode(data);
    let mirror = endline::add(data);
    if let Ok(decoded) = Mirror::decode(&mirror) {
        assert_eq!(decoded.encode(), mirror);
    }
    let _ = Mirror::decode(data);
    git::fuzz(data);
    placement::ledger::fuzz(data);
    journal::fuzz(data);
    repo::fuzz(data);
    host::fuzz(data);
});
