//! `cargo xtask test`: everything that a change must pass, in one command.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use crate::command::{Context, Failure, Result, code_of, last_lines, repository, target_dir};
use crate::{ensure, packages};

/// One thing to pass: a command line, and the environment it needs.
struct Step {
    name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

const STEPS: &[Step] = &[
    Step { name: "format", program: "cargo", args: &["fmt", "--all", "--check"], env: &[] },
    Step {
        name: "lint",
        program: "cargo",
        args: &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
        env: &[],
    },
    Step { name: "unit", program: "cargo", args: &["test", "--quiet", "--workspace"], env: &[] },
    Step {
        name: "docs",
        program: "cargo",
        args: &["doc", "--quiet", "--workspace", "--no-deps"],
        env: &[("RUSTDOCFLAGS", "-Dwarnings")],
    },
    Step { name: "crash", program: "cargo", args: &["xtask", "crash"], env: &[] },
    Step { name: "concurrency", program: "cargo", args: &["xtask", "concurrency"], env: &[] },
    Step { name: "race", program: "cargo", args: &["xtask", "race", "naive-read", "add", "temp"], env: &[] },
    Step { name: "simulate", program: "cargo", args: &["xtask", "simulate"], env: &[] },
    Step { name: "rot", program: "cargo", args: &["xtask", "rot"], env: &[] },
    Step { name: ACCEPTANCE, program: "cargo", args: &["xtask", "acceptance"], env: &[] },
];

const ACCEPTANCE: &str = "acceptance";

/// Runs `cargo xtask test`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let mut only: Option<String> = None;
    let mut names = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--only") => only = Some(args.next().ok_or("--only needs a part")?.to_string_lossy().into_owned()),
            Some(name) if !name.starts_with('-') => names.push(name.to_owned()),
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    ensure!(
        names.is_empty() || only.as_deref() == Some(ACCEPTANCE),
        "names are of acceptance tests: say '--only acceptance' too"
    );
    let steps: Vec<&Step> = STEPS.iter().filter(|step| only.as_ref().is_none_or(|only| only == step.name)).collect();
    ensure!(!steps.is_empty(), "no such part; there are: {}", STEPS.iter().map(|step| step.name).collect::<Vec<_>>().join(", "));
    packages::install(&[packages::TEST])?;
    run_all(&steps, &names)
}

fn run_all(steps: &[&Step], names: &[String]) -> Result<ExitCode> {
    let logs = target_dir().join("xtask-test");
    std::fs::create_dir_all(&logs)?;
    let mut failed = Vec::new();
    for step in steps {
        let started = Instant::now();
        let log = logs.join(format!("{}.log", step.name));
        let code = run_logged(step, names, &log).context(|| format!("cannot run '{}'", step.name))?;
        let seconds = started.elapsed().as_secs_f64();
        println!("{} {seconds:7.1} s  {}", if code == 0 { "ok    " } else { "FAILED" }, step.name);
        if code != 0 {
            let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
            println!("--- the last lines of '{}', exit code {code}:\n{}\n---", log.display(), last_lines(&said, 12));
            failed.push(step.name);
        }
    }
    match failed.as_slice() {
        [] => println!("all of {} parts passed", steps.len()),
        _ => println!("{} of {} parts FAILED: {}", failed.len(), steps.len(), failed.join(", ")),
    }
    Ok(ExitCode::from(u8::from(!failed.is_empty())))
}

/// Runs a step with both its outputs in a log, and returns its exit code.
///
/// The acceptance tests take minutes, so their lines are shown as they come.
fn run_logged(step: &Step, names: &[String], log: &Path) -> Result<i32> {
    let mut command = Command::new(step.program);
    command.args(step.args).envs(step.env.iter().copied()).current_dir(repository()).stdin(Stdio::null());
    let mut log = File::create(log)?;
    command.stderr(log.try_clone()?);
    if step.name != ACCEPTANCE {
        return Ok(code_of(command.stdout(log).status()?));
    }
    let mut child = command.args(names).stdout(Stdio::piped()).spawn()?;
    for line in BufReader::new(child.stdout.take().expect("BUG: the output is piped")).lines() {
        let line = line?;
        println!("  {line}");
        writeln!(log, "{line}")?;
    }
    Ok(code_of(child.wait()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_fails_the_whole() {
        let steps = [
            Step { name: "good", program: "true", args: &[], env: &[] },
            Step { name: "bad", program: "sh", args: &["-c", "echo why; exit 3"], env: &[] },
        ];
        assert_eq!(run_all(&[&steps[0]], &[]).unwrap(), ExitCode::SUCCESS);
        assert_eq!(run_all(&[&steps[0], &steps[1]], &[]).unwrap(), ExitCode::FAILURE);
    }
}
