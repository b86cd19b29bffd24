//! Child processes, and the one error type of the chores.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Why a chore could not go on, as a sentence for the person who started it.
#[derive(Debug)]
pub struct Failure(pub String);

/// The result of a chore's step.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl From<String> for Failure {
    fn from(why: String) -> Failure {
        Failure(why)
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Failure {
        Failure(why.to_owned())
    }
}

impl From<std::io::Error> for Failure {
    fn from(why: std::io::Error) -> Failure {
        Failure(why.to_string())
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(why: rustix::io::Errno) -> Failure {
        Failure(why.to_string())
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Puts `what` before the cause.
    fn context<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for std::result::Result<T, E> {
    fn context<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T> {
        self.map_err(|cause| Failure(format!("{}: {}", what(), cause.into().0)))
    }
}

/// Fails with a formatted sentence unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($holds:expr, $($sentence:tt)+) => {
        if !$holds {
            return Err($crate::command::Failure(format!($($sentence)+)));
        }
    };
}

/// What a finished child left behind.
#[derive(Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub line: String,
    /// The exit code; 128 + the signal's number where a signal ended it, as a shell counts.
    pub code: i32,
    /// All that it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// All that it wrote to its standard error.
    pub stderr: Vec<u8>,
    /// From start to end.
    pub wall: Duration,
}

impl Outcome {
    /// Passes the outcome on if the child exited with `code`, and otherwise fails with what it said.
    pub fn exits(self, code: i32) -> Result<Outcome> {
        ensure!(self.code == code, "'{}' exited with {}, expected {code}:\n{}", self.line, self.code, self.tail(15));
        Ok(self)
    }

    /// Returns the standard output as text without the last line's end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Returns both outputs as text, standard output first.
    pub fn said(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr))
    }

    /// Returns the last `n` lines of both outputs.
    pub fn tail(&self, n: usize) -> String {
        last_lines(&self.said(), n)
    }
}

/// Runs a child to its end with nothing on its standard input.
pub fn run(command: &mut Command) -> Result<Outcome> {
    let line = line_of(command);
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().context(|| format!("cannot run '{line}'"))?;
    Ok(Outcome { line, code: code_of(output.status), stdout: output.stdout, stderr: output.stderr, wall: started.elapsed() })
}

/// Runs a child that must succeed.
pub fn succeed(command: &mut Command) -> Result<Outcome> {
    run(command)?.exits(0)
}

/// Returns the exit code as a shell would show it.
pub fn code_of(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Returns the last `n` lines of a text, clipped where a name makes them endless.
pub fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let clipped = |line: &&str| line.chars().take(400).collect::<String>();
    lines[lines.len().saturating_sub(n)..].iter().map(clipped).collect::<Vec<_>>().join("\n")
}

/// Returns the command as one would type it, long arguments and the environment left out.
fn line_of(command: &Command) -> String {
    let short = |word: &OsStr| {
        let word = word.to_string_lossy();
        if word.chars().count() > 200 { format!("{}...", word.chars().take(200).collect::<String>()) } else { word.into_owned() }
    };
    std::iter::once(command.get_program()).chain(command.get_args()).map(short).collect::<Vec<_>>().join(" ")
}

/// What a child and all its descendants used, as the kernel counted it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds of processor time, user and system together.
    pub cpu: f64,
    /// The largest resident set that any one of the processes had, in bytes.
    pub peak_rss: u64,
}

/// Runs a child under GNU time, which waits with `wait4` and is itself too small to hide what the child used.
///
/// `scratch` names a directory for its notes.
pub fn measured(command: &Command, scratch: &Path) -> Result<(Outcome, Usage)> {
    let notes = scratch.join("usage.txt");
    let note_to = notes.to_str().ok_or("the scratch directory's name is not UTF-8")?;
    let mut timed = wrapped(command, Path::new("/usr/bin/time"), &["-q", "-f", "%U %S %M", "-o", note_to]);
    let outcome = run(&mut timed)?;
    let text = std::fs::read_to_string(&notes).context(|| "cannot read what GNU time noted")?;
    let fields: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    ensure!(fields.len() == 3, "GNU time noted '{}', expected three numbers", text.trim());
    Ok((outcome, Usage { cpu: fields[0] + fields[1], peak_rss: fields[2] as u64 * 1024 }))
}

/// Returns `command` as the argument of another program.
pub fn wrapped(command: &Command, program: &Path, before: &[&str]) -> Command {
    let mut outer = rebuilt(command, program);
    outer.args(before).arg(command.get_program()).args(command.get_args());
    outer
}

/// Returns a command for `program` with the environment and directory of another.
fn rebuilt(command: &Command, program: &Path) -> Command {
    let mut outer = Command::new(program);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        outer.current_dir(dir);
    }
    outer
}

/// Returns the root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("BUG: xtask is in the workspace").to_owned()
}

/// Returns where the built things go.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// A program that runs beside, until it is dropped.
pub struct Beside(pub Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unexpected_exit_code_is_reported_with_what_the_child_said() {
        let why = run(Command::new("sh").args(["-c", "echo spoken >&2; exit 7"])).unwrap().exits(0).unwrap_err();
        assert_eq!(why.0, "'sh -c echo spoken >&2; exit 7' exited with 7, expected 0:\nspoken");
    }

    #[test]
    fn a_signal_counts_as_a_shell_counts_it() {
        assert_eq!(run(Command::new("sh").args(["-c", "kill -9 $$"])).unwrap().code, 137);
    }

    #[test]
    fn usage_covers_the_descendants() {
        if !Path::new("/usr/bin/time").exists() {
            return;
        }
        let mut busy = Command::new("sh");
        busy.args(["-c", "head -c 100000000 /dev/zero | tail -c 50000000 | wc -c"]);
        let (outcome, usage) = measured(&busy, &std::env::temp_dir()).unwrap();
        assert_eq!((outcome.code, outcome.text().as_str()), (0, "50000000"));
        assert!(usage.peak_rss > 40 << 20, "{usage:?}");
    }
}
