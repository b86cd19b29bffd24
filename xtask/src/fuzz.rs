//! `cargo xtask fuzz`: every decoder under hostile input, for a while.
//!
//! It begins with the inputs in `fuzz/corpus`, which were chosen so that each reaches something that no other does; what it finds goes to
//! `fuzz/corpus-found`, which git leaves alone, and is there for the next time.
//!
//! Needs the nightly toolchain, and cargo-fuzz from crates.io, which is installed below `target` if it is missing.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use crate::command::{Context, Result, repository, succeed, target_dir};

/// Runs `cargo xtask fuzz [--seconds N] [TARGET...]`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let mut seconds = 60;
    let mut names = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--seconds") => {
                let value = args.next().unwrap_or_default();
                seconds = value.to_str().and_then(|value| value.parse().ok()).ok_or("--seconds needs a number")?;
            }
            _ => names.push(arg.to_string_lossy().into_owned()),
        }
    }
    install()?;
    let all = targets()?;
    let mut failed = Vec::new();
    for name in all.iter().filter(|name| names.is_empty() || names.contains(name)) {
        let limits = [
            format!("-max_total_time={seconds}"),
            "-rss_limit_mb=256".into(),
            "-timeout=1".into(),
            "-print_final_stats=1".into(),
        ];
        let (found, chosen) = (format!("fuzz/corpus-found/{name}"), format!("fuzz/corpus/{name}"));
        for dir in [&found, &chosen] {
            std::fs::create_dir_all(repository().join(dir)).context(|| format!("cannot make '{dir}'"))?;
        }
        let mut run = Command::new("cargo");
        // A thread that is ending looks like a leak, and what was freed and is kept from use counts as memory.
        run.env("ASAN_OPTIONS", "detect_leaks=0:quarantine_size_mb=16");
        // What is new goes into the first directory.
        run.args(["+nightly", "fuzz", "run", name, &found, &chosen, "--"])
            .args(limits)
            .current_dir(repository())
            .env("PATH", path_with_tools());
        let output = run.output().context(|| "cannot run cargo fuzz".to_owned())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let stat = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("?").trim().to_owned();
        let (runs, rss) = (stat("stat::number_of_executed_units:"), stat("stat::peak_rss_mb:"));
        println!("{} {name}: {runs} runs, peak {rss} MiB", if output.status.success() { "ok    " } else { "FAILED" });
        if !output.status.success() {
            println!("{}", crate::command::last_lines(&said, 30));
            failed.push(name.clone());
        }
    }
    Ok(ExitCode::from(u8::from(!failed.is_empty())))
}

/// Returns the names of the fuzz targets.
fn targets() -> Result<Vec<String>> {
    let dir = repository().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).context(|| format!("cannot read '{}'", dir.display()))? {
        names.push(entry?.path().file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Installs cargo-fuzz below `target`, unless it is there or in the search path.
fn install() -> Result {
    if target_dir().join("tools/bin/cargo-fuzz").exists() || Command::new("cargo-fuzz").arg("--version").output().is_ok() {
        return Ok(());
    }
    let mut install = Command::new("cargo");
    succeed(install.args(["install", "--locked", "cargo-fuzz", "--root"]).arg(target_dir().join("tools"))).map(drop)
}

fn path_with_tools() -> OsString {
    let mut path = target_dir().join("tools/bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}
