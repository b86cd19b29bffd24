//! `cargo xtask bench start`: what the program costs before it does anything.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use super::with_section;
use crate::command::{Context, Failure, Result, repository, succeed, target_dir};
use crate::{acceptance, fixtures};

const TITLE: &str = "Start-up";
const RUNS: usize = 101;
const FILES: usize = 100;
const GIT_STATUS: &[&str] = &["--git-dir", ".git", "--work-tree", ".", "-c", "core.bare=false", "status", "--porcelain"];

/// Runs `cargo xtask bench start`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let (mut write, mut gdo) = (false, None);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--write") => write = true,
            Some("--gdo") => gdo = Some(PathBuf::from(args.next().ok_or("--gdo needs a value")?)),
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    let gdo = acceptance::program(gdo)?;
    let scratch = target_dir().join("bench-start");
    fixtures::remove(&scratch)?;
    fixtures::many_files(&scratch, FILES)?;
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).current_dir(&scratch);
        command
    };
    let ours = gdo.to_string_lossy().into_owned();
    for args in [&["init", "-q"][..], &["snapshot", "-q", "-m", "all", "."]] {
        succeed(&mut run(&ours, args))?;
    }
    // What was written in the moment of the snapshot is looked at once more.
    std::thread::sleep(std::time::Duration::from_millis(50));
    succeed(&mut run(&ours, &["snapshot", "-q", "-m", "all", "."]))?;
    let measured: [(&str, &str, &[&str], &str); 4] = [
        ("gdo --version", &ours, &["--version"], "5"),
        ("git --version", "git", &["--version"], ""),
        ("gdo status, 100 files", &ours, &["status"], "15"),
        ("git status, 100 files", "git", GIT_STATUS, ""),
    ];
    let mut times = vec![Vec::new(); measured.len()];
    for _ in 0..RUNS {
        for (at, (_, program, args, _)) in measured.iter().enumerate() {
            let begun = Instant::now();
            succeed(&mut run(program, args))?;
            times[at].push(begun.elapsed());
        }
    }
    let date = succeed(Command::new("date").args(["-u", "+%F"]))?.text();
    let commit = succeed(Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(repository()))?.text();
    let mut section = format!("{}, commit {}; {RUNS} runs of each in turns, with warm cache.\n\n", date.trim(), commit.trim());
    section += "| what | median ms | wanted |\n|---|--:|--:|\n";
    for ((what, _, _, wanted), times) in measured.iter().zip(&mut times) {
        times.sort();
        let median = times[RUNS / 2].as_secs_f64() * 1000.0;
        writeln!(section, "| {what} | {median:.1} | {wanted} |").expect("BUG: writing to a string cannot fail");
    }
    fixtures::remove(&scratch)?;
    println!("## {TITLE}\n\n{section}");
    if write {
        let path = repository().join("docs/performance.md");
        let page = std::fs::read_to_string(&path).context(|| format!("cannot read '{}'", path.display()))?;
        std::fs::write(&path, with_section(&page, TITLE, &section)).context(|| "cannot write the page")?;
    }
    Ok(ExitCode::SUCCESS)
}
