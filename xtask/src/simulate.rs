//! `cargo xtask simulate`: hosts that drop copies at once, by the library's own rules, in worlds made from seeds.
//!
//! The simulation itself is `lib/examples/simulate.rs`. Without each of its rules in turn it must find a violation.

use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};

use crate::command::{Context, Failure, Result, code_of, repository, target_dir};
use crate::ensure;

/// Seeds in the short form, and of each control.
const SHORT: &str = "10000";
/// Seeds of the full form.
const FULL: &str = "1000000";
/// The rules that are left out, one at a time.
const CONTROLS: &[&str] = &["lapse", "proof", "copies", "lock"];

/// Runs `cargo xtask simulate`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let (mut seeds, mut rest) = (OsString::from(SHORT), Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--full") => seeds = FULL.into(),
            Some("--seeds") => seeds = args.next().ok_or("--seeds needs a number")?,
            Some("--first") => rest.extend(["--first".into(), args.next().ok_or("--first needs a seed")?]),
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet", "--package", "git-devops-lib", "--example", "simulate"]).current_dir(repository());
    ensure!(build.status().context(|| "cannot run cargo")?.success(), "cannot build the simulation");
    let simulate = || Command::new(target_dir().join("debug/examples/simulate"));
    let status = simulate().arg("--seeds").arg(seeds).args(&rest).status().context(|| "cannot run the simulation")?;
    for rule in CONTROLS {
        let mut control = simulate();
        control.args(["--seeds", SHORT, "--without", rule]).stdout(Stdio::null()).stderr(Stdio::null());
        let code = code_of(control.status().context(|| "cannot run the simulation")?);
        ensure!(code == 1, "without the rule '{rule}' nothing went wrong: the simulation would not notice anything");
    }
    eprintln!("without each of the rules {} it goes wrong, as it must", CONTROLS.join(", "));
    Ok(ExitCode::from(code_of(status) as u8))
}
