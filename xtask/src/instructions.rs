//! `cargo xtask instructions`: what the hot paths cost in instructions, which no busy machine changes.
//!
//! Callgrind runs each benchmark of `lib/benches/hot.rs` once, with each of its arguments by itself (`cut::rabin`), and counts what happens inside
//! its function of `work`. The counts are compared with those in `lib/benches/instructions.txt`, which `--write` replaces. They are of AVX2 at
//! most, and of SHA-1 by software: callgrind knows neither AVX-512 nor the instructions for SHA.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::command::{Context, Failure, Result, repository, succeed};
use crate::{ensure, packages};

/// By so much a count may grow, in percent, before it is called a regression: another compiler alone changes some.
const TOLERANCE: f64 = 5.0;

/// Runs `cargo xtask instructions [--write] [NAME...]`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let (mut write, mut names) = (false, Vec::new());
    for arg in args {
        match arg.to_str() {
            Some("--write") => write = true,
            Some(name) if !name.starts_with('-') => names.push(name.to_owned()),
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    ensure!(!write || names.is_empty(), "only all counts together are worth writing down");
    packages::install(&[&[("valgrind", "valgrind")]])?;
    let program = build()?;
    let known = known_counts()?;
    let mut counts = BTreeMap::new();
    let mut is_worse = false;
    for name in benchmarks(&program)?.into_iter().filter(|name| is_wanted(name, &names)) {
        let count = count(&program, &name)?;
        let verdict = verdict(known.get(&name).copied(), count);
        is_worse |= verdict.starts_with("WORSE");
        println!("{name:24} {count:>14}  {verdict}");
        counts.insert(name, count);
    }
    ensure!(!counts.is_empty(), "no benchmark has such a name");
    if write {
        let mut text = String::new();
        for (name, count) in counts {
            writeln!(text, "{name} {count}").expect("BUG: writing to a string cannot fail");
        }
        std::fs::write(file(), text).context(|| "cannot write the counts")?;
    }
    Ok(ExitCode::from(u8::from(is_worse && !write)))
}

fn file() -> PathBuf {
    repository().join("lib/benches/instructions.txt")
}

/// Builds the benchmarks and returns their program.
fn build() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["bench", "--locked", "-p", "git-devops-lib", "--bench", "hot", "--no-run", "--message-format=json"]);
    let built = succeed(cargo.current_dir(repository()))?.text();
    let program = built.lines().filter(|line| line.contains("\"kind\":[\"bench\"]")).find_map(|line| {
        let rest = line.split_once("\"executable\":\"")?.1;
        Some(PathBuf::from(&rest[..rest.find('"')?]))
    });
    program.ok_or_else(|| "cargo did not say where the benchmarks are".into())
}

/// Lists the benchmarks, once for each argument of those that have some.
fn benchmarks(program: &Path) -> Result<Vec<String>> {
    let mut valgrind = Command::new("valgrind");
    // Some arguments are what the processor can do, which under valgrind is less. Divan lists arguments for nextest only.
    valgrind.args(["--tool=none", "-q"]).arg(program).args(["--list", "--format", "terse"]).env("NEXTEST", "1");
    Ok(names_in(&succeed(&mut valgrind)?.text()))
}

fn names_in(listed: &str) -> Vec<String> {
    let name = |line: &str| Some(line.strip_prefix("hot::")?.strip_suffix(": benchmark")?.to_owned());
    let mut names: Vec<String> = listed.lines().filter_map(name).collect();
    names.sort_unstable();
    names
}

/// Says whether `wanted` has the benchmark, with its argument or without; it has all where it is empty.
fn is_wanted(name: &str, wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|wanted| name == wanted || function(name) == wanted)
}

/// Returns the benchmark without its argument.
fn function(name: &str) -> &str {
    name.split_once("::").map_or(name, |(function, _)| function)
}

/// Counts the instructions of one benchmark's work.
fn count(program: &Path, name: &str) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    let toggle = format!("--toggle-collect=*::work::{}", function(name));
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", &toggle]);
    valgrind.arg(program).args(["--test", "--exact", &format!("hot::{name}")]);
    let said = succeed(&mut valgrind)?.said();
    let count = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.filter(|count| *count > 0).ok_or_else(|| format!("callgrind counted nothing in '{name}'").into())
}

fn known_counts() -> Result<BTreeMap<String, u64>> {
    let Ok(text) = std::fs::read_to_string(file()) else { return Ok(BTreeMap::new()) };
    let parse = |line: &str| Some((line.split_once(' ')?.0.to_owned(), line.split_once(' ')?.1.parse().ok()?));
    text.lines().map(|line| parse(line).ok_or_else(|| format!("cannot read '{line}' in '{}'", file().display()).into())).collect()
}

fn verdict(known: Option<u64>, count: u64) -> String {
    let Some(known) = known else { return "new".to_owned() };
    let percent = (count as f64 / known as f64 - 1.0) * 100.0;
    let word = if percent > TOLERANCE {
        "WORSE"
    } else if percent < -TOLERANCE {
        "better"
    } else {
        "same"
    };
    format!("{word} {percent:+.1} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_argument_is_a_benchmark_by_itself() {
        let names = names_in(
            "hot::look_up::present: benchmark\nhot::cut::rabin: benchmark\nhot::cut::fixed: benchmark\nhot::cut_all: benchmark\n",
        );
        assert_eq!(names, ["cut::fixed", "cut::rabin", "cut_all", "look_up::present"]);
        for (wanted, expected) in
            [(&[][..], &names[..]), (&["cut"], &names[..2]), (&["cut::rabin", "cut_all"], &names[1..3]), (&["look"], &[])]
        {
            let wanted: Vec<String> = wanted.iter().map(|name| name.to_string()).collect();
            let found: Vec<_> = names.iter().filter(|name| is_wanted(name, &wanted)).collect();
            assert_eq!(found, expected.iter().collect::<Vec<_>>(), "{wanted:?}");
        }
    }

    #[test]
    fn only_a_count_that_grew_by_more_than_compilers_do_is_worse() {
        for (known, count, expected) in [
            (None, 5, "new"),
            (Some(1000), 1049, "same +4.9 %"),
            (Some(1000), 1100, "WORSE +10.0 %"),
            (Some(1000), 500, "better -50.0 %"),
        ] {
            assert_eq!(verdict(known, count), expected);
        }
    }
}
