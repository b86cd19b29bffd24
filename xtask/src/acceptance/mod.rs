//! The acceptance suite: the release build against real trees, judged by [`crate::compare`] and by stock git.
//!
//! Each test is a sentence in [`TESTS`]. It gets a directory of its own, which is kept when the test fails.

mod booted;
mod dpkg;
mod faults;
mod fidelity;
mod follows;
mod git;
mod increments;
mod machine;
mod memory;
mod restore;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::command::{Context, Failure, Outcome, Result, repository, run, succeed, target_dir};
use crate::compare::{Options, must_be_equal};
use crate::{ensure, fixtures, packages};

/// One sentence that must hold; what it returns are figures worth printing beside it.
struct Test {
    name: &'static str,
    run: fn(&World) -> Result<String>,
}

const TESTS: &[Test] = &[
    Test { name: "a_debian_root_comes_back_in_every_detail", run: fidelity::debian_root },
    Test { name: "every_oddity_comes_back_in_every_detail", run: fidelity::oddities },
    Test { name: "a_directory_of_100000_entries_comes_back", run: fidelity::big_dir },
    Test { name: "stock_git_reads_checks_and_clones_the_repository", run: git::clone },
    Test { name: "stock_git_housekeeping_loses_nothing", run: git::housekeeping },
    Test { name: "git_gc_in_a_loop_while_snapshots_are_made_loses_nothing", run: git::housekeeping_meanwhile },
    Test { name: "metadata_of_different_entries_merges", run: git::merge_metadata },
    Test { name: "two_versions_of_a_large_file_conflict", run: git::merge_large },
    Test { name: "an_unchanged_tree_adds_no_commit_and_opens_no_file", run: increments::unchanged },
    Test { name: "a_4_kib_edit_in_a_4_gib_image_adds_at_most_1_mib", run: increments::small_edit },
    Test { name: "restore_rewrites_only_what_differs", run: restore::only_differences },
    Test { name: "restore_n_changes_nothing_and_lists_what_it_would_do", run: restore::dry_run },
    Test { name: "restore_replaces_a_running_program", run: restore::running_program },
    Test { name: "a_sparse_image_is_stored_and_restored_in_256_mib", run: memory::sparse_image },
    Test { name: "many_small_files_are_stored_and_restored_in_256_mib", run: memory::many_files },
    Test { name: "a_debian_that_is_up_to_date_takes_a_blink_and_40_mib", run: follows::idle },
    Test { name: "many_changes_with_commands_are_replayed_in_order_and_in_time", run: follows::long_line },
    Test { name: "files_that_cannot_be_read_are_named_and_the_rest_is_stored", run: faults::unreadable },
    Test { name: "a_file_that_vanishes_or_fails_is_named_and_the_rest_is_stored", run: faults::vanishing },
    Test { name: "a_file_that_changes_while_it_is_read_is_named", run: faults::changing },
    Test { name: "files_that_come_and_go_disturb_nothing", run: faults::flickering },
    Test { name: "a_full_ext4_aborts_and_leaves_the_repository_as_it_was", run: faults::full_ext4 },
    Test { name: "a_full_tmpfs_aborts_and_leaves_the_repository_as_it_was", run: faults::full_tmpfs },
    Test { name: "what_needs_a_new_start_of_the_machine_waits_for_it_and_is_done_by_itself", run: booted::reboot },
    Test { name: "an_upgrade_by_apt_asks_nothing_and_keeps_what_was_changed", run: dpkg::upgrade },
    Test { name: "an_upgrade_is_merged_with_what_was_changed_as_the_manual_says", run: dpkg::vendor },
    Test { name: "while_apt_is_at_work_nothing_is_written", run: dpkg::at_work },
];

/// What one run of the suite is made with.
pub struct World {
    gdo: PathBuf,
    scratch: PathBuf,
    full: bool,
}

/// Runs `cargo xtask acceptance`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let (mut full, mut keep, mut gdo, mut scratch, mut names) = (false, false, None, None, Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--full") => full = true,
            Some("--keep") => keep = true,
            Some("--gdo") => gdo = Some(PathBuf::from(args.next().ok_or("--gdo needs a program")?)),
            Some("--scratch") => scratch = Some(PathBuf::from(args.next().ok_or("--scratch needs a directory")?)),
            Some("--list") => {
                TESTS.iter().for_each(|test| println!("{}", test.name));
                return Ok(ExitCode::SUCCESS);
            }
            Some(name) if !name.starts_with('-') => names.push(name.to_owned()),
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    packages::install(&[packages::TEST])?;
    ensure!(packages::is_root(), "the acceptance tests need root: devices, owners and inode flags are part of them");
    let gdo = program(gdo)?;
    let world = World { gdo, scratch: std::path::absolute(scratch.unwrap_or_else(|| target_dir().join("acceptance")))?, full };
    let failed = world.try_all(&names, keep)?;
    Ok(ExitCode::from(u8::from(!failed.is_empty())))
}

/// Returns where the program to judge lies: `gdo` if it is given, else what is built as it is released.
pub fn program(gdo: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(gdo) = gdo {
        return gdo.canonicalize().context(|| format!("cannot find '{}'", gdo.display()));
    }
    succeed(Command::new("cargo").args(["build", "--release", "-p", "git-devops"]).current_dir(repository()))?;
    Ok(target_dir().join("release/gdo"))
}

impl World {
    /// Runs the tests whose names contain one of `names` (all without any) and returns the names of those that failed.
    fn try_all(&self, names: &[String], keep: bool) -> Result<Vec<&'static str>> {
        let chosen: Vec<&Test> =
            TESTS.iter().filter(|test| names.is_empty() || names.iter().any(|name| test.name.contains(name.as_str()))).collect();
        ensure!(!chosen.is_empty(), "no test has such a name; see --list");
        let mut failed = Vec::new();
        for test in &chosen {
            let started = Instant::now();
            let scratch = self.scratch.join(test.name);
            let outcome = (test.run)(&World { gdo: self.gdo.clone(), scratch: scratch.clone(), full: self.full });
            let seconds = started.elapsed().as_secs_f64();
            match &outcome {
                Ok(note) if note.is_empty() => println!("ok     {seconds:7.1} s  {}", test.name),
                Ok(note) => println!("ok     {seconds:7.1} s  {}  ({note})", test.name),
                Err(Failure(why)) => {
                    println!("FAILED {seconds:7.1} s  {}\n  {}", test.name, why.replace('\n', "\n  "));
                    failed.push(test.name);
                }
            }
            if outcome.is_ok() && !keep {
                fixtures::remove(&scratch)?;
            }
        }
        println!("{} of {} acceptance tests passed", chosen.len() - failed.len(), chosen.len());
        Ok(failed)
    }

    /// Returns an empty place for a test, with an empty work tree.
    fn place(&self, name: &str) -> Result<Place> {
        Place::new(&self.gdo, &self.scratch.join(name))
    }
}

/// A work tree, and beside it the repository and the store that belong to it.
struct Place {
    gdo: PathBuf,
    /// Holds all the rest.
    dir: PathBuf,
    work: PathBuf,
    git_dir: PathBuf,
    store: PathBuf,
}

impl Place {
    fn new(gdo: &Path, dir: &Path) -> Result<Place> {
        fixtures::remove(dir)?;
        let at = |name: &str| dir.join(name);
        std::fs::create_dir_all(at("work")).context(|| format!("cannot create '{}'", dir.display()))?;
        std::fs::create_dir(at("home"))?;
        Ok(Place { gdo: gdo.to_owned(), dir: dir.to_owned(), work: at("work"), git_dir: at("repo.git"), store: at("store") })
    }

    /// Makes the repository, beside the work tree.
    fn init(&self) -> Result {
        succeed(&mut self.gdo(&["init"])).map(drop)
    }

    /// Returns the program with the three places named, to be started in the work tree.
    fn gdo(&self, args: &[&str]) -> Command {
        let mut gdo = Command::new(&self.gdo);
        self.surroundings(&mut gdo);
        gdo.arg("--git-dir").arg(&self.git_dir).arg("--work-tree").arg(&self.work).arg("--store").arg(&self.store);
        gdo.current_dir(&self.work).args(args);
        gdo
    }

    /// Returns stock git on the repository, as if it were any other.
    fn git(&self, args: &[&str]) -> Command {
        let mut git = Command::new("git");
        self.surroundings(&mut git);
        git.arg("--git-dir").arg(&self.git_dir).args(args).current_dir(&self.dir);
        git
    }

    /// The settings of whoever runs the tests must not matter.
    fn surroundings(&self, command: &mut Command) {
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_DEVOPS_STORE", "XDG_CONFIG_HOME"] {
            command.env_remove(variable);
        }
        command.env("HOME", self.dir.join("home")).env("LC_ALL", "C.UTF-8");
    }

    /// Stores the whole work tree; the exit code must be 0.
    fn snapshot(&self, message: &str) -> Result<Outcome> {
        succeed(&mut self.gdo(&["snapshot", "-m", message, "."]))
    }

    /// Returns the commit that HEAD names.
    fn head(&self) -> Result<String> {
        Ok(succeed(&mut self.git(&["rev-parse", "--verify", "HEAD^{commit}"]))?.text())
    }

    /// Restores into a new empty directory, and returns it.
    fn restored(&self, name: &str, more: &[&str]) -> Result<PathBuf> {
        let target = self.dir.join(name);
        fixtures::remove(&target)?;
        std::fs::create_dir(&target)?;
        let target_name = target.to_str().expect("BUG: scratch directories have plain names");
        succeed(&mut self.gdo(&[&["restore", "--target", target_name], more].concat()))?;
        Ok(target)
    }

    /// Restores into a new empty directory, where nothing may differ from the work tree.
    fn restores_exactly(&self) -> Result {
        let target = self.restored("restored", &[])?;
        must_be_equal(&self.work, &target, &Options::default()).context(|| "restored tree differs from the stored one")?;
        fixtures::remove(&target)
    }

    /// Our own check and git's must both find nothing.
    fn checks_clean(&self) -> Result {
        succeed(&mut self.gdo(&["check", "--data"]))?;
        fsck(self.git(&["fsck", "--strict", "--full"]))
    }

    /// Returns the bytes in the repository and the store together.
    fn stored_bytes(&self) -> Result<u64> {
        Ok(size_of(&self.git_dir)? + size_of(&self.store)?)
    }
}

/// Runs a `git fsck` that must find nothing to complain of.
fn fsck(mut fsck: Command) -> Result {
    let outcome = succeed(&mut fsck)?;
    let said = outcome.said();
    // A dangling object is nothing wrong: git itself leaves them behind.
    let complaints: Vec<&str> = said.lines().filter(|line| !line.starts_with("dangling ")).collect();
    ensure!(complaints.is_empty(), "'{}' complains:\n{}", outcome.line, complaints.join("\n"));
    Ok(())
}

/// Returns the bytes in all files below a directory, 0 if there is none.
fn size_of(dir: &Path) -> Result<u64> {
    if !dir.exists() {
        return Ok(0);
    }
    let found = succeed(Command::new("find").arg(dir).args(["-type", "f", "-printf", "%s\\n"]))?;
    Ok(found.text().lines().filter_map(|line| line.parse::<u64>().ok()).sum())
}

/// Everything that shows whether someone touched an entry: path, then inode, ctime, mtime, size, mode and owner.
type Fingerprint = BTreeMap<String, String>;

fn fingerprint(dir: &Path) -> Result<Fingerprint> {
    let found = succeed(Command::new("find").arg(".").args(["-printf", "%P\\t%i %C@ %T@ %s %m %U:%G %n\\0"]).current_dir(dir))?;
    let entries = found.stdout.split(|&byte| byte == 0).filter(|entry| !entry.is_empty());
    Ok(entries
        .map(|entry| {
            let entry = entry.escape_ascii().to_string();
            let (path, rest) = entry.rsplit_once("\\t").expect("BUG: find was told to print a tab");
            (path.to_owned(), rest.to_owned())
        })
        .collect())
}

/// Returns the paths whose fingerprints differ.
fn touched(before: &Fingerprint, after: &Fingerprint) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    paths.into_iter().filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

/// Copies a tree with all that cp can copy.
fn copy(from: &Path, to: &Path) -> Result {
    succeed(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}

/// Fails unless the outcome's text, standard output and error together, has the word.
fn must_name(outcome: &Outcome, word: &str) -> Result {
    ensure!(outcome.said().contains(word), "'{}' does not name '{word}':\n{}", outcome.line, outcome.tail(15));
    Ok(())
}

/// Runs a command as shell words; for mounts and the like, whose failure is reported as it is.
fn tool(words: &[&str]) -> Result<Outcome> {
    run(Command::new(words[0]).args(&words[1..]))?.exits(0)
}
