//! The repository's chores: `cargo xtask <verb>`.
//!
//! Nothing here uses the library: what judges the program must not share its mistakes.

mod command;
mod compare;
mod packages;

use std::ffi::OsString;
use std::process::ExitCode;

use command::{Failure, Result};

const USAGE: &str = "\
usage: cargo xtask <verb>

  compare [--ignore NAME]... A B     every difference between two trees; exit code 1 if there is one";

type Verb = fn(Vec<OsString>) -> Result<ExitCode>;

const VERBS: &[(&str, Verb)] = &[("compare", compare::main)];

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let name = args.next().unwrap_or_default();
    let Some((_, verb)) = VERBS.iter().find(|(known, _)| name == **known) else {
        eprintln!("{USAGE}");
        return if name == "--help" { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    verb(args.collect()).unwrap_or_else(|Failure(why)| {
        eprintln!("error: {why}");
        ExitCode::from(2)
    })
}
