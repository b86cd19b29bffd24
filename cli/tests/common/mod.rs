//! A repository in a temporary directory, and the built program to work on it.

pub mod pair;
pub mod root;
pub mod sshd;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A directory under control.
pub struct World {
    temp: tempfile::TempDir,
}

/// How a run of the program ended.
pub struct Run {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl World {
    /// Makes a directory with an empty repository.
    pub fn new() -> Self {
        let world = Self { temp: tempfile::tempdir().unwrap() };
        std::fs::create_dir(world.path("")).unwrap();
        world.ok(&["init"]);
        world
    }

    /// Returns a path in the work tree; `../x` leads to what is private to this test, too.
    pub fn path(&self, path: &str) -> PathBuf {
        self.temp.path().join("tree").join(path)
    }

    /// Runs the program in the work tree.
    pub fn gdo(&self, args: &[&str]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gdo"));
        command.args(args);
        self.run(command)
    }

    /// Runs the program in the work tree with more in its environment.
    pub fn gdo_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gdo"));
        command.args(args).envs(environment.iter().copied());
        self.run(command)
    }

    /// Runs `gdo serve` as sshd does for a client that asks for `command`.
    pub fn gdo_asked(&self, command: &str) -> Run {
        let mut serve = Command::new(env!("CARGO_BIN_EXE_gdo"));
        serve.arg("serve").env("SSH_ORIGINAL_COMMAND", command).stdin(std::process::Stdio::null());
        self.run(serve)
    }

    /// Runs the program in the work tree within 256 MiB of address space.
    pub fn gdo_limited(&self, args: &[&str]) -> Run {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 262144; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_gdo")]).args(args);
        self.run(command)
    }

    /// Runs the program in the work tree and expects success; returns what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let run = self.gdo(args);
        assert_eq!(run.code, 0, "{args:?}: {}{}", run.out, run.err);
        run.out
    }

    /// Runs a shell script in the work tree and expects success; `gdo` in it is the program.
    pub fn sh(&self, script: &str) -> String {
        let mut command = Command::new("sh");
        let dir = PathBuf::from(env!("CARGO_BIN_EXE_gdo")).parent().unwrap().to_owned();
        command.args(["-ec", script]).env("PATH", format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()));
        let run = self.run(command);
        assert_eq!(run.code, 0, "{script}: {}{}", run.out, run.err);
        run.out
    }

    /// Runs a command in the work tree, with an identity and without what names other repositories.
    pub fn run(&self, mut command: Command) -> Run {
        for key in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_DEVOPS_STORE"] {
            command.env_remove(key);
        }
        let identity = ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"];
        for key in identity {
            command.env(key, "somebody");
        }
        let output: Output = command.current_dir(self.path("")).output().unwrap();
        Run {
            code: output.status.code().expect("killed by a signal"),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn write(&self, path: &str, content: &str) {
        std::fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        std::fs::write(self.path(path), content).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path(path)).unwrap()).into_owned()
    }

    pub fn link(&self, from: &str, to: &str) {
        std::fs::hard_link(self.path(from), self.path(to)).unwrap();
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    pub fn inode(&self, path: &str) -> u64 {
        self.path(path).symlink_metadata().unwrap().ino()
    }

    pub fn mode(&self, path: &str) -> u32 {
        self.path(path).symlink_metadata().unwrap().mode() & 0o7777
    }

    /// Commits what is there.
    pub fn snapshot(&self) {
        self.ok(&["snapshot", "-q"]);
    }

    /// Returns the paths of files that the last commit has, metadata left out.
    pub fn stored(&self) -> Vec<String> {
        let listed = self.ok(&["git", "ls-tree", "-r", "--name-only", "HEAD"]);
        listed.lines().filter(|path| !path.starts_with(".git-devops/")).map(str::to_owned).collect()
    }
}
