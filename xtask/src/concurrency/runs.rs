//! One run of a program among many: which, and how it ended.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{Context, Result, code_of, last_lines};
use crate::crash::verbs::Place;
use crate::fixtures::Seeded;

use super::nemesis::Groups;
use super::tree;

/// A kind of run.
pub struct Kind {
    /// What it is called in the table.
    pub name: &'static str,
    /// How often it comes, beside the others.
    weight: u64,
    program: Program,
    /// The words; `@N` is a number of its own, `@PATH` a path, `@TARGET` a directory of its own.
    words: &'static [&'static str],
    /// The exit codes that say nothing against it, besides 0 and 7.
    pub also: &'static [i32],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    Gdo,
    Git,
}

/// The exit code for: locked by another run.
pub const LOCKED: i32 = 7;

/// Not all could be read or written: a tree that changes meanwhile is no more than that.
const PARTIAL: i32 = 3;
/// There is no such thing (any more).
const NOT_FOUND: i32 = 9;
/// It would undo what somebody else did.
const CONFLICT: i32 = 10;

/// Git's own failures: it waits for nobody.
const OF_GIT: &[i32] = &[1, 128, 255];

/// All kinds.
pub const KINDS: &[Kind] = &[
    gdo("snapshot", 24, &["snapshot", "--json", "-m", "@N", "."], &[PARTIAL, CONFLICT]),
    gdo("add", 8, &["add", "."], &[PARTIAL, CONFLICT]),
    gdo("commit", 8, &["commit", "--json", "-m", "@N"], &[CONFLICT]),
    gdo("rm", 4, &["rm", "@PATH"], &[NOT_FOUND, CONFLICT]),
    gdo("rm --cached", 4, &["rm", "--cached", "@PATH"], &[NOT_FOUND, CONFLICT]),
    gdo("restore --target", 8, &["restore", "--source", "HEAD", "--target", "@TARGET"], &[]),
    // What it reads nothing leads to but itself: stock git may remove it, and then it names what it could not restore.
    gdo("restore --target, staged", 4, &["restore", "--target", "@TARGET"], &[PARTIAL, CONFLICT]),
    gdo("restore", 5, &["restore", "--source", "HEAD"], &[PARTIAL]),
    gdo("restore HEAD~1", 4, &["restore", "--source", "HEAD~1"], &[PARTIAL, NOT_FOUND]),
    gdo("status", 5, &["status"], &[PARTIAL]),
    gdo("check", 3, &["check"], &[]),
    gdo("check --data", 3, &["check", "--data"], &[]),
    gdo("gc", 8, &["gc", "--prune", "now"], &[]),
    git("git gc", 4, &["gc", "--quiet", "--prune=now"]),
    git("git repack", 3, &["repack", "-a", "-d", "-q"]),
    git("git prune", 3, &["prune", "--expire=now"]),
    git("git pack-refs", 2, &["pack-refs", "--all"]),
];

const fn gdo(name: &'static str, weight: u64, words: &'static [&'static str], also: &'static [i32]) -> Kind {
    Kind { name, weight, program: Program::Gdo, words, also }
}

const fn git(name: &'static str, weight: u64, words: &'static [&'static str]) -> Kind {
    Kind { name, weight, program: Program::Git, words, also: OF_GIT }
}

impl Kind {
    /// Chooses one by its weight.
    pub fn any(dice: &mut Seeded) -> &'static Kind {
        let mut rest = dice.next() % KINDS.iter().map(|kind| kind.weight).sum::<u64>();
        KINDS
            .iter()
            .find(|kind| {
                let is_it = rest < kind.weight;
                rest = rest.saturating_sub(kind.weight);
                is_it
            })
            .expect("BUG: the rest is below the sum")
    }

    fn command(&self, place: &Place, number: &str, target: &Path, dice: &mut Seeded) -> Command {
        let path = tree::any_path(dice);
        let words: Vec<&str> = self
            .words
            .iter()
            .map(|word| match *word {
                "@N" => number,
                "@PATH" => &path,
                "@TARGET" => target.to_str().expect("BUG: the scratch directory has a plain name"),
                word => word,
            })
            .collect();
        match self.program {
            Program::Gdo => place.gdo(&words),
            Program::Git => place.git(&words),
        }
    }
}

/// How a run ended.
pub struct Ended {
    /// Which.
    pub kind: &'static Kind,
    /// The exit code.
    pub code: i32,
    /// Whether one of its processes was killed.
    pub is_hit: bool,
    /// What it said.
    pub said: String,
    /// The commit that it told of.
    pub commit: Option<String>,
    /// From its start to its end, also while it was stopped.
    pub wall: Duration,
}

/// Does a run in a process group of its own; what it says goes through a file below `scratch`, which also gets its target.
pub fn run(
    kind: &'static Kind,
    place: &Place,
    number: &str,
    scratch: &Path,
    groups: &Groups,
    dice: &mut Seeded,
) -> Result<Ended> {
    let (output, target) = (scratch.join(format!("{number}.txt")), scratch.join(format!("{number}.target")));
    let file = File::create(&output)?;
    let mut command = kind.command(place, number, &target, dice);
    command.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let started = Instant::now();
    let mut child = command.spawn().context(|| format!("cannot start '{}'", kind.name))?;
    groups.enter(child.id(), format!("{number} {}", kind.name));
    let code = code_of(child.wait()?);
    let said = fs::read_to_string(&output)?;
    fs::remove_file(&output)?;
    let is_hit = groups.look(child.id()).is_hit;
    let ended = Ended { kind, code, is_hit, commit: commit_in(&said), said, wall: started.elapsed() };
    if target.exists() {
        if ended.code == 0 {
            tree::must_be_whole(&target).context(|| format!("{number} {} exited with 0", kind.name))?;
        }
        fs::remove_dir_all(&target)?;
    }
    Ok(ended)
}

fn commit_in(said: &str) -> Option<String> {
    let value: serde_json::Value = said.lines().find_map(|line| serde_json::from_str(line).ok())?;
    Some(value.get("commit")?.as_str()?.to_owned())
}

impl Ended {
    /// Says what is wrong with the way in which it ended; a run that was killed may end as it likes.
    pub fn problem(&self) -> Option<String> {
        let is_expected = self.code == 0 || self.code == LOCKED || self.kind.also.contains(&self.code);
        let is_explained = self.code == 0 || !self.said.trim().is_empty();
        let tells_what_to_do = self.code != LOCKED || self.said.contains("try again") || self.said.contains("run this again");
        if self.is_hit || is_expected && is_explained && tells_what_to_do {
            return None;
        }
        Some(format!("{} exited with {}: {}", self.kind.name, self.code, last_lines(&self.said, 6)))
    }
}
