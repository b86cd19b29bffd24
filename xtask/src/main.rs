//! The repository's chores: `cargo xtask <verb>`.
//!
//! Nothing here uses the library: what judges the program must not share its mistakes.

mod acceptance;
mod bench;
mod command;
mod compare;
mod concurrency;
mod crash;
mod fixtures;
mod fuzz;
mod instructions;
mod larger;
mod netns;
mod packages;
mod race;
mod rot;
mod simulate;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use command::{Failure, Result};

const USAGE: &str = "\
usage: cargo xtask <verb>

  test [--only PART] [NAME...]       everything a change must pass; PART is one of: format, lint, unit, docs, crash, concurrency,
                                     race, rot, simulate, acceptance
  acceptance [--full] [--keep] [--gdo PROGRAM] [--scratch DIR] [--list] [NAME...]
                                     the program against real trees; --full uses the sizes that the promises are made for
  compare [--ignore NAME]... A B     every difference between two trees; exit code 1 if there is one
  fixture NAME DIR                   one of the trees that the tests use; without NAME: lists them
  bench [--quick] [--write] [--only SET]... [--tool NAME]... [--until OPERATION] [--rounds N] [--gdo PROGRAM] [--scratch DIR]
                                     the program beside those that people use for the same, as markdown tables; --only and --tool
                                     take a part of a name, --write puts the tables into docs/performance.md
  bench net [--quick] [--write] [--only SCENE]... [--mbit N] [--rounds N] [--gdo PROGRAM] [--scratch DIR]
                                     the network: hosts in namespaces with lines of a given speed; --write: into docs/network.md
  bench start [--write] [--gdo PROGRAM]
                                     what a run costs before it does anything
  bench growth [--quick] [--full] [--write] [--only SCENE]... [--gdo PROGRAM] [--scratch DIR]
                                     how cost grows with files, bytes, chunks and commits; exit code 1 if anything grows faster than it may;
                                     --full: a million files and 20 million chunks, too; --write: into docs/performance.md
  fuzz [--seconds N] [TARGET...]     every decoder under hostile input, 60 seconds each; needs the nightly toolchain
  instructions [--write] [NAME...]   what the hot paths cost in instructions, compared with what they cost when it was last written down
  larger [--gib N] [--gdo PROGRAM] [--scratch DIR]
                                     a stream of 6 GiB through hosts with 1 GiB of disk, as a markdown table; minutes, root, twice its size
  crash [--full] [--sample N] [--verb V]... [--mode M]... [--fs F]... [--at N] [--without-sync] [--threads N] [--json]
        [--jobs N] [--gdo PROGRAM] [--scratch DIR]
                                     verbs stopped at their Nth mutating system call in every way, as a markdown table
  concurrency [--full] [--rounds N] [--seed N] [--workers N] [--gdo PROGRAM] [--scratch DIR]
                                     many runs at once that share a store, while processes of theirs are stopped and killed
  rot [--full] [--only FILES] [--without-data] [--json] [--jobs N] [--gdo PROGRAM] [--scratch DIR]
                                     every stored file damaged in every way: found, harmless, repaired, as a markdown table
  race [--full] [--scratch DIR] [OPERATION...]
                                     a user who swaps names against what root does in that user's directory, as a markdown table
  simulate [--full] [--seeds N] [--first SEED]
                                     hosts that drop copies at once, by the library's own rules, in worlds made from seeds";

type Verb = fn(Vec<OsString>) -> Result<ExitCode>;

const VERBS: &[(&str, Verb)] = &[
    ("test", test::main),
    ("acceptance", acceptance::main),
    ("compare", compare::main),
    ("fixture", fixtures::main),
    ("bench", bench::main),
    ("fuzz", fuzz::main),
    ("instructions", instructions::main),
    ("larger", larger::main),
    ("crash", crash::main),
    ("concurrency", concurrency::main),
    ("race", race::main),
    ("rot", rot::main),
    ("simulate", simulate::main),
];

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
