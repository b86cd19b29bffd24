//! A host where changes are made first, and one that replays them.

use super::{Run, World};

/// Where a change is made first, and where it is replayed.
pub struct Pair {
    /// The first.
    pub origin: World,
    /// The second.
    pub target: World,
}

impl Pair {
    /// Makes both, the origin with a file `conf` in its first commit, and the target at it.
    pub fn new() -> Self {
        let pair = Self { origin: World::new(), target: World::new() };
        pair.origin.write("etc/conf", "old\n");
        pair.origin.write("etc/other", "other\n");
        pair.origin.snapshot();
        pair.send();
        pair.up(0);
        pair
    }

    /// Brings the origin's branch to the target.
    pub fn send(&self) {
        let from = self.origin.path(".git");
        self.target.sh(&format!("git -C .git fetch -q '{}' +refs/heads/main:refs/remotes/o/main", from.display()));
    }

    /// Checks in what was done at the origin, and brings it over.
    pub fn release(&self) {
        self.origin.ok(&["ci"]);
        self.send();
    }

    /// Brings the content of large files over, too.
    pub fn bring_chunks(&self) {
        let chunks = self.origin.path(".git/devops/store");
        self.target.sh(&format!("cp -a '{}'/. .git/devops/store/", chunks.display()));
    }

    /// Replays, and expects this exit code.
    pub fn up(&self, code: i32) -> Run {
        self.run(&["up", "--offline", "--to", "o/main"], code)
    }

    pub fn run(&self, args: &[&str], code: i32) -> Run {
        let run = self.target.gdo(args);
        assert_eq!(run.code, code, "{args:?}: {}{}", run.out, run.err);
        run
    }

    /// Adds a command at the origin.
    pub fn exec(&self, args: &[&str]) {
        self.origin.ok(&[&["exec"], args].concat());
    }

    /// Returns what a command wrote beside the target's tree.
    pub fn note(&self, name: &str) -> String {
        std::fs::read_to_string(self.target.path("../").join(name)).unwrap_or_default()
    }
}

/// Appends a line to a file beside the tree, which nobody owns.
pub fn echo(word: &str) -> [&str; 4] {
    let script = match word {
        "a" => "echo a >> ../ran",
        "b" => "echo b >> ../ran",
        _ => "echo c >> ../ran",
    };
    ["--", "sh", "-c", script]
}
