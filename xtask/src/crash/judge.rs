//! Whether a state is good: the repository sound, every file old or new, and the verb finishes when it is run again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Context, Outcome, Result, last_lines, run};
use crate::compare::{Difference, Options, What, compare};
use crate::ensure;

use super::elsewhere::{held, must_be_promised, must_have_come};
use super::replays::{HALTED, must_have_run_once, n_lines};
use super::verbs::{self, Brings, Place, Verb};

/// What an undisturbed run leaves, to compare with.
pub struct Reference<'a> {
    /// The work tree before.
    pub old: &'a Path,
    /// The work tree after.
    pub new: &'a Path,
    /// Tree and number of commits after.
    pub history: Option<(String, String)>,
    /// The entries of the git index after.
    pub index: String,
    /// The refs after.
    pub refs: String,
    /// What is held after, and by whom.
    pub held: String,
}

/// Judges the state in which something left a place; `is_done` says that the program had said so.
pub fn state(place: &Place, reference: &Reference, verb: &Verb, is_done: bool) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |result: Result| problems.extend(result.err().map(|why| why.0));
    // Without HEAD there is no repository yet, and half a one has nothing to check.
    let is_init = verb.makes_the_repository();
    if !is_init || place.git_dir().join("HEAD").exists() {
        note(fsck(place));
    }
    // What is damaged before may still be.
    if is_done || !is_init && verb.name != "check-repair" {
        note(check(place));
    }
    note(neither_old_nor_new(reference, &place.work()));
    note(must_have_run_once(place, verb, is_done));
    note(must_be_promised(place));
    if is_done {
        note(finished(place, reference, verb).context(|| "it was said to be done"));
    }
    problems
}

/// Runs the verb again and judges what it reached.
pub fn again(place: &Place, reference: &Reference, verb: &Verb) -> Vec<String> {
    if let Err(why) = repeated(place, reference, verb) {
        return vec![format!("the next run fails: {}", why.0.replace('\n', "; "))];
    }
    let mut problems = Vec::new();
    let mut note = |result: Result| problems.extend(result.err().map(|why| format!("after the next run: {}", why.0)));
    note(fsck(place));
    note(check(place));
    note(finished(place, reference, verb));
    note(must_have_run_once(place, verb, true));
    note(must_be_promised(place));
    note(leftovers(place));
    problems
}

/// Says the verb once more, as a person would, and what its answer asks for.
fn repeated(place: &Place, reference: &Reference, verb: &Verb) -> Result {
    // Where it was decided already what becomes of the command, the host only goes on.
    let up = || run(&mut place.gdo(&["up", "--offline", "--to", "o/main"]));
    let restored = || place.does(&["restore", "."]);
    match verb.name {
        "resume-rerun" | "resume-done" => {
            let outcome = up()?;
            if outcome.code != HALTED {
                return outcome.exits(0).map(drop);
            }
            if outcome.said().contains("command-failed") {
                return place.does(&["resume"]).map(drop);
            }
            ensure!(outcome.said().contains("nobody knows"), "it halts for another reason: {}", one_line(&outcome));
            let is_rerun = verb.name == "resume-rerun" && n_lines(place, "ran") < 2;
            return place.does(&["resume", if is_rerun { "--rerun" } else { "--done" }]).map(drop);
        }
        // What is in the work in progress is not done again.
        "exec" if verbs::refs(place)?.contains("refs/devops/wip") => return place.does(&["snap", "-m", "none", "."]).map(drop),
        "exec" => {
            let outcome = run(&mut place.command(verb))?;
            if outcome.code == CONFLICT {
                restored()?;
                return run(&mut place.command(verb))?.exits(0).map(drop);
            }
            return outcome.exits(0).map(drop);
        }
        _ => (),
    }
    // What is removed can't be removed again, and where a clone is there can't be another: that is said, and nothing is wrong.
    let refusal = match verb {
        verb if is_rm(verb) => Some(NOT_FOUND),
        verb if verb.brings == Brings::Clone => Some(REFUSED),
        verb if verb.name.starts_with("rollback") => Some(USAGE),
        verb if ["resume", "ci", "abort"].contains(&verb.name) => Some(NOT_FOUND),
        // Nothing lapses any more.
        verb if verb.name == "drop" => Some(USAGE),
        _ => None,
    };
    let is_refusal = |code: i32| Some(code) == refusal && finished(place, reference, verb).is_ok();
    let outcome = run(&mut place.command(verb))?;
    match outcome.code {
        code if is_refusal(code) => Ok(outcome),
        // Where a command was cut off nobody knows how far it came, and a person decides.
        HALTED | USAGE if outcome.said().contains("nobody knows") => {
            run(&mut place.gdo(&["resume", "--done"]))?.exits(0)?;
            run(&mut place.command(verb))
                .and_then(|outcome| if is_refusal(outcome.code) { Ok(outcome) } else { outcome.exits(0) })
        }
        // One that failed is tried again when a person says so.
        HALTED if outcome.said().contains("command-failed") => run(&mut place.gdo(&["resume"]))?.exits(0),
        // It was decided already that it is run again.
        NOT_FOUND if verb.name == "resume" => up()?.exits(0),
        _ => outcome.exits(0),
    }
    .map(drop)
}

/// The exit code for: there is no such thing.
const NOT_FOUND: i32 = 9;
/// The exit code for: wrong usage; a rollback to where the host is.
const USAGE: i32 = 2;
/// The exit code for: two changes of the same thing.
const CONFLICT: i32 = 10;
/// The exit code for: refused.
const REFUSED: i32 = 65;

fn fsck(place: &Place) -> Result {
    let outcome = run(&mut place.git(&["fsck", "--strict", "--full"]))?;
    let said = outcome.said();
    // Neither a dangling object nor a branch without commits is anything wrong.
    let is_harmless = |line: &&str| line.starts_with("dangling ") || line.starts_with("notice: ");
    let complaints: Vec<&str> = said.lines().filter(|line| !is_harmless(line)).collect();
    ensure!(outcome.code == 0 && complaints.is_empty(), "git fsck, exit code {}: {}", outcome.code, complaints.join("; "));
    Ok(())
}

fn check(place: &Place) -> Result {
    let outcome = run(&mut place.gdo(&["check", "--data"]))?;
    ensure!(outcome.code == 0, "check --data, exit code {}: {}", outcome.code, one_line(&outcome));
    Ok(())
}

fn one_line(outcome: &Outcome) -> String {
    last_lines(&outcome.said(), 6).replace('\n', "; ")
}

/// The work tree, the commits and the index must be those of an undisturbed run.
fn finished(place: &Place, reference: &Reference, verb: &Verb) -> Result {
    let history = verbs::history(place)?;
    ensure!(history == reference.history, "tree and number of commits are {history:?}, undisturbed {:?}", reference.history);
    ensure!(verbs::index(place)? == reference.index, "the index differs from that of an undisturbed run");
    if verb.brings != Brings::Nothing || verb.moves_refs() {
        let refs = verbs::refs(place)?;
        ensure!(refs == reference.refs, "the refs are {refs:?}, undisturbed {:?}", reference.refs);
    }
    let held = held(place, verb)?;
    ensure!(held == reference.held, "what is held is {held}, undisturbed {}", reference.held);
    let differences = compare(reference.new, &place.work(), &options())?;
    // What is removed changes the time of its directory to now, whenever that is; and a convergence does not begin anew for that time alone.
    let leaves_times = is_rm(verb) || verb.name == "converge";
    let counts = |found: &&Difference| !(leaves_times && found.what == What::Mtime && is_dir(&place.work(), &found.path));
    let shown: Vec<String> = differences.iter().filter(counts).take(5).map(ToString::to_string).collect();
    ensure!(shown.is_empty(), "the work tree differs from that of an undisturbed run: {}", shown.join("; "));
    must_have_come(place, verb)
}

/// A clone has its repository in the work tree.
fn options() -> Options {
    Options { ignore: vec![verbs::CLONED.into()] }
}

fn is_rm(verb: &Verb) -> bool {
    verb.name.starts_with("rm")
}

fn is_dir(top: &Path, path: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt;
    top.join(std::ffi::OsStr::from_bytes(path)).symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Nothing may lie about that only a run in progress needs: temporary files of ours, locks and guards of git's.
fn leftovers(place: &Place) -> Result {
    let find = |dirs: &[PathBuf], names: &[&str]| -> Result<String> {
        Ok(run(Command::new("find").args(dirs).arg("(").args(names).args([")", "-print"]))?.text())
    };
    let ours = find(&[place.work(), place.git_dir(), place.store.clone()], &["-name", ".gdo-tmp-*"])?;
    let gits = find(&[place.git_dir()], &["-name", "*.lock", "-o", "-name", "*.keep"])?;
    let found: Vec<&str> = ours.lines().chain(gits.lines()).collect();
    ensure!(found.is_empty(), "left behind: {}", found.join(", "));
    Ok(())
}

/// Fails on entries that are neither what they were nor what they were to become.
///
/// A directory has no temporary name, so its attributes change one by one, and its time with each name in it: each must be old or new by itself,
/// and a directory that is new is not looked at. What becomes a directory, or was one, has no name for a moment. Names of one file
/// are parted and joined one by one, so that which others a file has may be neither. The flags that forbid to change a file can be set only after it has its name.
fn neither_old_nor_new(reference: &Reference, now: &Path) -> Result {
    let by_path = |first: &Path| -> Result<BTreeMap<Vec<u8>, Vec<Difference>>> {
        let mut by_path = BTreeMap::<_, Vec<_>>::new();
        for found in compare(first, now, &options())?.into_iter().filter(|found| !is_excused(found)) {
            by_path.entry(found.path.clone()).or_default().push(found);
        }
        Ok(by_path)
    };
    let (old, new) = (by_path(reference.old)?, by_path(reference.new)?);
    let is_bad = |path: &Vec<u8>, old: &[Difference], new: &[Difference]| {
        let is_made = old.iter().any(|found| found.what == What::OnlyInSecond);
        let in_both = |found: &Difference| found.what != What::Mtime && new.iter().any(|other| other.what == found.what);
        !is_dir(now, path) || !is_made && old.iter().any(in_both)
    };
    let changes_its_kind = |path: &[u8]| is_dir(reference.old, path) != is_dir(reference.new, path);
    let is_absent = |found: &[Difference]| found.iter().any(|found| found.what == What::OnlyInFirst);
    let is_bad = |path: &Vec<u8>, old: &[Difference], new: &[Difference]| {
        let has_other_names_only = [old, new].iter().any(|found| found.iter().all(|found| found.what == What::Links));
        is_bad(path, old, new) && !has_other_names_only && !(is_absent(old) && is_absent(new) && changes_its_kind(path))
    };
    let bad = old.iter().filter_map(|(path, old)| Some((old, new.get(path)?)).filter(|(old, new)| is_bad(path, old, new)));
    let shown: Vec<String> = bad.map(|(old, new)| format!("old: {}, new: {}", list(old), list(new))).collect();
    ensure!(shown.is_empty(), "neither old nor new: {}", shown.join("; "));
    Ok(())
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

fn is_excused(found: &Difference) -> bool {
    let name = found.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let is_temporary = found.what == What::OnlyInSecond && name.starts_with(b".gdo-tmp-");
    is_temporary || found.what == What::Flags && differs_in_locks_only(&found.detail)
}

/// Reads two flag words from a difference and says whether they differ in nothing but immutable and append-only.
fn differs_in_locks_only(detail: &str) -> bool {
    const LOCKS: u32 = 0x30;
    let words = detail.split([' ', ',']).filter_map(|word| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    words.fold(0, |all, word| all ^ word) & !LOCKS == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(old: &str, new: &str, now: &str) -> bool {
        let dir = std::env::temp_dir().join(format!("judge-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        for (name, script) in [("old", old), ("new", new), ("now", now)] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
            let script = format!("{script}\nfind . -exec touch -h -d 2020-01-01 '{{}}' +");
            run(Command::new("sh").args(["-ec", &script]).current_dir(dir.join(name))).unwrap().exits(0).unwrap();
        }
        let reference = Reference {
            old: &dir.join("old"),
            new: &dir.join("new"),
            history: None,
            index: String::new(),
            refs: String::new(),
            held: String::new(),
        };
        let result = neither_old_nor_new(&reference, &dir.join("now"));
        std::fs::remove_dir_all(&dir).unwrap();
        result.is_ok()
    }

    #[test]
    fn each_file_is_old_or_new_and_a_mixture_of_one_is_found() {
        let (old, new) = ("echo 1 >a; echo 1 >b; chmod 600 a", "echo 2 >a; echo 2 >b; chmod 644 a; echo c >c");
        assert!(judged(old, new, "echo 2 >a; echo 1 >b; chmod 644 a"), "one new, one old");
        assert!(judged(old, new, "echo 1 >a; echo 2 >b; chmod 600 a; echo c >c; echo x >.gdo-tmp-1"), "with a leftover");
        let (linked, parted) =
            ("echo 1 >a; ln a b; ln a c; mkdir d; echo f >f", "echo 1 >a; echo 2 >b; rm -f c; echo d >d; mkdir f");
        assert!(judged(linked, parted, "echo 1 >a; echo 2 >b; ln a c; echo f >f; mkdir d"), "only some names are parted");
        assert!(
            judged(linked, parted, "echo 1 >a; echo 2 >b; echo 1 >c; mkdir f"),
            "what changes its kind is missing, and one name is left"
        );
        assert!(!judged(linked, parted, "echo 1 >a; echo 3 >b; ln a c; echo f >f; mkdir d"), "parted, and of neither content");
        assert!(!judged(old, new, "echo 2 >a; echo 1 >b; chmod 600 a"), "new content, old mode");
        assert!(!judged(old, new, ": >a; chmod 600 a; echo 1 >b"), "empty");
        assert!(!judged(old, new, "echo 1 >b"), "missing");
        assert!(!judged(old, new, "echo 1 >a; chmod 600 a; echo 1 >b; : >c"), "new and empty");
        assert!(!judged(old, new, "echo 1 >a; chmod 600 a; echo 1 >b; : >d"), "unknown");
    }
}
