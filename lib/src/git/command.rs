//! The one place that starts the git program, always in the same clean environment.
//!
//! Nothing of the caller's environment reaches git: no `GIT_*`, no home, no system configuration, no hooks,
//! no pager, no prompt. The repository's own configuration was checked by the module `config` before.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::config::{Config, METADATA_DRIVER_KEY, metadata_driver};
use crate::child::{self, shell_quoted};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};

/// A repository on which the git program is run.
#[derive(Clone, Debug)]
pub struct Git {
    git_dir: PathBuf,
    work_tree: Option<PathBuf>,
    identity: Option<Identity>,
    program: Option<PathBuf>,
    has_index: bool,
}

/// Who makes a commit or moves a ref.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the person or the host.
    pub name: String,
    /// Mail address; need not be reachable.
    pub email: String,
}

impl Git {
    /// Opens the repository at `git_dir` and refuses a configuration that could run programs or lose data.
    pub fn open(git_dir: &Path) -> Result<(Self, Config)> {
        let git_dir = std::path::absolute(git_dir).context(|| format!("cannot open repository '{}'", git_dir.display()))?;
        if !durable::is_file(&git_dir.join("HEAD")) {
            return Err(Error::new(
                Kind::NotFound,
                format!("'{}' is not a repository; make one with 'gdo init'", git_dir.display()),
            ));
        }
        let git = Self { git_dir, work_tree: None, identity: None, program: None, has_index: true };
        let config = Config::read(&git)?;
        Ok((git, config))
    }

    /// Takes a repository whose configuration we wrote a moment ago, or that is about to be checked.
    pub(crate) fn at(git_dir: &Path) -> Self {
        Self { git_dir: git_dir.to_owned(), work_tree: None, identity: None, program: None, has_index: true }
    }

    /// Sets where this program is, for merges: git starts it to merge metadata. Else it must be in the search path.
    #[must_use]
    pub fn with_program(self, program: &Path) -> Self {
        Self { program: Some(program.to_owned()), ..self }
    }

    /// Sets the directory that git takes for the work tree, for commands that compare with one.
    #[must_use]
    pub fn with_work_tree(self, work_tree: &Path) -> Self {
        Self { work_tree: Some(work_tree.to_owned()), ..self }
    }

    /// Takes the work tree away again: git then makes its temporary files in the repository, where it is to be started.
    #[must_use]
    pub fn without_work_tree(self) -> Self {
        Self { work_tree: None, ..self }
    }

    /// Takes git's index away, for commands that read it and do not need it.
    #[must_use]
    pub fn without_index(self) -> Self {
        Self { has_index: false, ..self }
    }

    /// Sets who is named in the reflog and in commits that git itself makes.
    #[must_use]
    pub fn with_identity(self, identity: Identity) -> Self {
        Self { identity: Some(identity), ..self }
    }

    /// Returns the repository's directory, as an absolute path.
    pub fn git_dir(&self) -> &Path {
        &self.git_dir
    }

    /// Runs git and returns what it printed; if it fails, the error carries git's own words.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Vec<u8>> {
        self.run_with_input(args, b"")
    }

    /// Runs git with `input` on its standard input and returns what it printed.
    pub fn run_with_input<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Result<Vec<u8>> {
        let output = self.output(args, input)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(Error::new(Kind::Io, failure(args, &output)))
    }

    /// Runs git with `input` on its standard input, for callers that read its exit code themselves.
    pub fn output<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Result<Output> {
        let mut command = self.command(args);
        command.current_dir(self.work_tree.as_deref().unwrap_or(&self.git_dir));
        run_to_end(command, input)
    }

    /// Returns the prepared command, for handing git's streams through to a person or a peer.
    ///
    /// Streams and working directory are the caller's; everything else is as for [`Self::run`].
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = clean_command();
        command.env("GIT_DIR", &self.git_dir);
        if let Some(work_tree) = &self.work_tree {
            command.env("GIT_WORK_TREE", work_tree);
        }
        if !self.has_index {
            command.env("GIT_INDEX_FILE", "/nonexistent");
        }
        if let Some(Identity { name, email }) = &self.identity {
            command.env("GIT_AUTHOR_NAME", name).env("GIT_AUTHOR_EMAIL", email);
            command.env("GIT_COMMITTER_NAME", name).env("GIT_COMMITTER_EMAIL", email);
        }
        if let Some(program) = &self.program {
            // Given in the environment, not on the command line, so that the first argument stays git's command.
            command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", METADATA_DRIVER_KEY);
            command.env("GIT_CONFIG_VALUE_0", metadata_driver(&shell_quoted(program)));
        }
        command.args(args);
        command
    }
}

/// Lists a configuration file as git understands it, without includes and without opening any repository.
pub(super) fn list_config(path: &Path) -> Result<Vec<u8>> {
    let mut command = clean_command();
    // A directory that is no repository: git must not look for one upwards from where we happen to stand.
    command.env("GIT_DIR", "/dev/null").current_dir("/");
    let args: [OsString; 6] =
        ["config".into(), "--no-includes".into(), "-z".into(), "--list".into(), "--file".into(), path.into()];
    command.args(&args);
    let output = run_to_end(command, b"")?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::new(Kind::Corrupt, failure(&args, &output)))
}

/// Returns git with the environment and the options that every call has.
#[allow(clippy::disallowed_methods)] // the one place
fn clean_command() -> Command {
    let mut command = Command::new("git");
    command.env_clear().envs(ENVIRONMENT.iter().copied());
    command.args(["--no-pager", "--literal-pathspecs", "--no-replace-objects"]);
    for setting in SETTINGS {
        command.args(["-c", setting]);
    }
    command
}

/// Directories that only root can write on any sane host; a newer git is usually in `/usr/local`.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LC_ALL", "C"),
    ("HOME", "/nonexistent"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_NO_REPLACE_OBJECTS", "1"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_ALLOW_PROTOCOL", "ssh"),
    ("GIT_ATTR_NOSYSTEM", "1"),
    ("GIT_OPTIONAL_LOCKS", "0"),
];

const SETTINGS: &[&str] = &[
    // Git takes a file for clean whose content is: it must not note the times of one whose owner or mode we have yet to see.
    "diff.autoRefreshIndex=false",
    // Whole packs need not fit into the memory that we may use, and smaller windows cost no time.
    "core.packedGitWindowSize=4m",
    "core.packedGitLimit=16m",
    // Copies of what the commits and the indexes of packs say, and no git looks at their checksums before it relies on them.
    "core.commitGraph=false",
    "gc.writeCommitGraph=false",
    "core.multiPackIndex=false",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.fsync=all",
    "core.fsyncMethod=fsync",
    "transfer.fsckObjects=true",
    "fetch.recurseSubmodules=no",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
];

fn run_to_end(mut command: Command, input: &[u8]) -> Result<Output> {
    let what = || "cannot run git (is it installed?)";
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context(what)?;
    child::feed(child, input).context(|| "cannot talk to git")
}

fn failure<S: AsRef<OsStr>>(args: &[S], output: &Output) -> String {
    let verb = args.first().map(|verb| verb.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim().trim_start_matches("fatal: ").trim_start_matches("error: ");
    let words: String = words.chars().take(MAX_WORDS).map(|c| if c == '\n' { ' ' } else { c }).collect();
    match (words.is_empty(), output.status.code()) {
        (false, _) => format!("git {verb} failed: {words}"),
        (true, Some(code)) => format!("git {verb} failed with exit code {code}"),
        (true, None) => format!("git {verb} was killed by a signal"),
    }
}

/// More of git's words than this help nobody.
const MAX_WORDS: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    fn repo() -> (tempfile::TempDir, Git) {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(&dir.path().join("repo"), "main").unwrap();
        (dir, git)
    }

    #[test]
    fn git_sees_nothing_of_the_callers_environment() {
        let (_dir, git) = repo();
        let command = git.command(&["status"]);
        let keys: Vec<_> = command.get_envs().map(|(key, _)| key.to_str().unwrap().to_owned()).collect();
        let mut expected: Vec<_> = ENVIRONMENT.iter().map(|(key, _)| (*key).to_owned()).chain(["GIT_DIR".to_owned()]).collect();
        expected.sort();
        assert_eq!(keys, expected);
        // The probe is an alias given on the command line; it prints what the child really has.
        let out = git.run(&["-c", "alias.probe=!env", "probe"]).unwrap();
        let out = String::from_utf8(out).unwrap();
        for key in ["CARGO_MANIFEST_DIR", "USER", "RUST_BACKTRACE"] {
            assert!(!out.lines().any(|line| line.starts_with(&format!("{key}="))), "{out}");
        }
        assert!(out.contains("GIT_CONFIG_GLOBAL=/dev/null\n"), "{out}");
    }

    #[test]
    fn an_error_carries_gits_own_words() {
        let (_dir, git) = repo();
        let error = git.run(&["rev-parse", "--verify", "nothing"]).unwrap_err();
        assert_eq!(error.to_string(), "git rev-parse failed: Needed a single revision");
    }

    #[test]
    fn input_larger_than_a_pipe_is_read_while_output_is_written() {
        let (_dir, git) = repo();
        let input = "0000000000000000000000000000000000000000\n".repeat(20_000);
        let out = git.run_with_input(&["cat-file", "--batch-check"], input.as_bytes()).unwrap();
        assert_eq!(out.len(), "0000000000000000000000000000000000000000 missing\n".len() * 20_000);
    }

    #[test]
    fn a_directory_that_is_no_repository_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let error = Git::open(dir.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
    }
}
