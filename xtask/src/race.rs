//! `cargo xtask race`: a user who swaps names, against what root does in that user's directory.
//!
//! The race itself is `lib/examples/path_race.rs`, because a million runs of the program would take days. It judges by looking at the files outside,
//! not by anything that the library says.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use crate::command::{Context, Failure, Result, code_of, repository, target_dir};
use crate::ensure;

/// Tries of each operation, in the short form and for good.
const SHORT: &str = "20000";
const FULL: &str = "1000000";

/// Runs `cargo xtask race`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let (mut tries, mut rest) = (SHORT, Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--full") => tries = FULL,
            Some("--scratch") => rest.extend(["--scratch".into(), args.next().ok_or("--scratch needs a directory")?]),
            Some(name) if !name.starts_with('-') => rest.push(arg),
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    ensure!(rustix::process::geteuid().is_root(), "only root can be raced: run this as root");
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet", "--package", "git-devops-lib", "--example", "path_race"]).current_dir(repository());
    ensure!(build.status().context(|| "cannot run cargo")?.success(), "cannot build the race");
    let mut race = Command::new(target_dir().join("debug/examples/path_race"));
    let status = race.args(["--tries", tries]).args(rest).status().context(|| "cannot run the race")?;
    Ok(ExitCode::from(code_of(status) as u8))
}
