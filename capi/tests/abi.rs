//! The shared library as C and Python see it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the directory that has the libraries of this build: as the tests depend on them, they are made before the tests are.
fn library_dir() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let deps = test.ancestors().find(|dir| dir.ends_with("deps")).unwrap();
    assert!(deps.join("libgitdevops.so").exists(), "no library in {}", deps.display());
    deps.to_owned()
}

/// Returns what a program prints, which must succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Returns the C test program, compiled and linked with `link`.
fn c_program(name: &str, link: &[&str]) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-I"]).arg(here().join("include"));
    cc.arg(here().join("tests/c/test.c")).arg("-o").arg(&program).args(link);
    run(&mut cc);
    program
}

/// Checks errors, NULL and all golden vectors against a C program.
fn check_program(program: &Path) {
    assert_eq!(run(&mut Command::new(program)), "ok\n");
    let golden = [
        ("gear", include_str!("../../lib/tests/vectors/gear.jsonl"), &["min", "avg", "max"][..]),
        ("rabin", include_str!("../../lib/tests/vectors/rabin.jsonl"), &["window", "avg", "min", "max"]),
    ];
    for (name, file, keys) in golden {
        for vector in file.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let parameters: Vec<String> = keys.iter().map(|key| format!("{key}={}", vector[key])).collect();
            let mut command = Command::new(program);
            command.arg(format!("{name}:{}", parameters.join(","))).arg(vector["data"].as_str().unwrap());
            command.args([vector["seed"].to_string(), vector["len"].to_string()]);
            assert_eq!(format!("[{}]", run(&mut command).trim()), vector["lengths"].to_string(), "{command:?}");
        }
    }
}

#[test]
fn a_c_program_gets_the_golden_chunks_from_the_shared_library() {
    let dir = library_dir();
    let dir = dir.to_str().unwrap();
    check_program(&c_program("shared", &["-L", dir, &format!("-Wl,-rpath,{dir}"), "-lgitdevops"]));
}

#[test]
fn a_c_program_gets_the_golden_chunks_from_the_static_library() {
    let archive = library_dir().join("libgitdevops.a");
    check_program(&c_program("static", &[archive.to_str().unwrap(), "-lpthread", "-ldl", "-lm"]));
}

#[test]
fn python_gets_the_golden_chunks() {
    let mut python = Command::new("python3");
    python.args(["-B", "-m", "unittest", "discover", "--start-directory"]).arg(here().join("python/tests"));
    python.env("PYTHONPATH", here().join("python")).env("GITDEVOPS_LIBRARY", library_dir().join("libgitdevops.so"));
    run(&mut python);
}

#[test]
fn the_header_declares_what_the_library_exports() {
    let exported = run(Command::new("nm")
        .args(["-D", "--defined-only", "--format=just-symbols"])
        .arg(library_dir().join("libgitdevops.so")));
    let exported: BTreeSet<&str> = exported.lines().collect();
    let header = include_str!("../include/gitdevops.h");
    // A declaration stands on a line of its own, and a comment begins with a space or a slash.
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.ends_with(");"))
        .map(|line| line.split('(').next().unwrap().rsplit([' ', '*']).next().unwrap())
        .collect();
    assert!(declared.len() >= 8, "{declared:?}");
    assert_eq!(exported, declared);
}
