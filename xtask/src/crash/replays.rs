//! What is there before the verbs of a host that follows its type, and how often its commands may have run.

use crate::command::{Result, run, succeed};
use crate::ensure;

use super::verbs::{EXEC, Place, Verb, change_all, changed, one_commit, sh};

/// Another host has a second commit with every way in which an entry can change, and a command and a handler after it; here is its first one.
pub fn released(place: &Place) -> Result {
    let origin = Place::new(&place.gdo, &place.top.join("origin"), place.n_threads).with_store(place.store.clone());
    std::fs::create_dir_all(&origin.top)?;
    one_commit(&origin)?;
    std::fs::create_dir_all(place.work())?;
    place.does(&["init"])?;
    succeed(&mut place.git(&["config", "devops.threads", &place.n_threads.to_string()]))?;
    let bring = |from: &str, to: &str| {
        let refspec = format!("+{from}:refs/remotes/o/{to}");
        succeed(&mut place.git(&["fetch", "--quiet", &origin.git_dir().display().to_string(), &refspec]))
    };
    bring("refs/heads/main", "first")?;
    place.does(&["up", "--offline", "--to", "o/first"])?;
    change_all(&origin)?;
    origin.does(&["handler", "reload", "--", "sh", "-c", "echo x >>../handled; ! test -e ../broken"])?;
    origin.does(&["attributes", "fresh", "handler=reload"])?;
    origin.does(&["snap", "-m", "second", "."])?;
    origin.does(&[
        "exec",
        "--undo",
        "echo x >>../undone",
        "--",
        "sh",
        "-c",
        "! test -e ../failing && echo x >>../ran && { ! test -e ../cut || kill -9 $PPID; }",
    ])?;
    origin.does(&["ci"])?;
    bring("refs/heads/main", "main")?;
    Ok(())
}

/// The same, applied here.
pub fn applied(place: &Place) -> Result {
    released(place)?;
    place.does(&["up", "--offline", "--to", "o/main"]).map(drop)
}

/// The same, applied by half: the files of the second commit are in place, its handler failed. Now it would succeed.
pub fn halted(place: &Place) -> Result {
    halted_by(place, "broken")
}

/// The same, but for the last command, which failed, and would succeed now.
pub fn failed(place: &Place) -> Result {
    halted_by(place, "failing")
}

/// The same, but the host died while the last command ran.
pub fn interrupted(place: &Place) -> Result {
    released(place)?;
    let flag = place.top.join("cut");
    std::fs::write(&flag, "")?;
    let outcome = run(&mut place.gdo(&["up", "--offline", "--to", "o/main"]))?;
    ensure!(outcome.code == KILLED, "'up' was not killed by its command: {}", outcome.said());
    Ok(std::fs::remove_file(flag)?)
}

/// As a shell tells it.
const KILLED: i32 = 128 + 9;

/// The other host's first commit is applied here; its second one is what another type of hosts is.
pub fn aside(place: &Place) -> Result {
    released(place)?;
    succeed(&mut place.git(&["update-ref", "refs/heads/web", "refs/remotes/o/main"]))?;
    place.does(&["check", "--accept"]).map(drop)
}

/// Files and a command are work in progress.
pub fn begun(place: &Place) -> Result {
    changed(place)?;
    place.does(&["snap", "-m", "second", "."])?;
    place.does(EXEC).map(drop)
}

fn halted_by(place: &Place, what: &str) -> Result {
    released(place)?;
    let flag = place.top.join(what);
    std::fs::write(&flag, "")?;
    let outcome = run(&mut place.gdo(&["up", "--offline", "--to", "o/main"]))?;
    ensure!(outcome.code == HALTED, "'up' did not halt: {}", outcome.said());
    Ok(std::fs::remove_file(flag)?)
}

/// A host that was made otherwise is to become what the other host's second commit is.
pub fn adopted(place: &Place) -> Result {
    released(place)?;
    place.does(&["adopt", "o/first", "--begin"])?;
    std::fs::write(place.work().join("by-hand"), "what is not owned stays\n")?;
    sh(&place.work(), "echo by hand > plain; chmod 700 dir; rm link")
}

/// What was applied was changed by hand since, and some of it is gone.
pub fn drifted(place: &Place) -> Result {
    applied(place)?;
    sh(&place.work(), "chmod 600 fresh; echo by hand > fresh; rm -f large; touch -d '2020-02-02 02:02:02' .")
}

/// The exit code for: a person decides.
pub const HALTED: i32 = 12;

/// Fails if a command ran twice, or what is owed was not done; `is_over`: nothing is left to do.
pub fn must_have_run_once(place: &Place, verb: &Verb, is_over: bool) -> Result {
    let (ran, undone) = (n_lines(place, "ran"), n_lines(place, "undone"));
    match verb.name {
        "up" | "resume" | "resume-done" => ensure!(ran <= 1, "the command ran {ran} times"),
        // Once more, because a person said so.
        "resume-rerun" => ensure!(ran <= 2, "the command ran {ran} times"),
        "exec" => ensure!(ran <= if is_over { 2 } else { 1 }, "the command ran {ran} times"),
        "snap" | "ci" | "switch" => ensure!(ran <= 1 && undone == 0, "a command ran {ran} times, its undoing {undone} times"),
        name if name.starts_with("rollback") || name == "abort" => {
            ensure!(ran <= 1 && undone <= 1, "a command ran {ran} times, its undoing {undone} times");
        }
        _ => (),
    }
    let applies = verb.name == "up" || verb.name.starts_with("resume");
    ensure!(!is_over || !applies || n_lines(place, "handled") >= 1, "the handler did not run");
    Ok(())
}

/// Returns how often a command noted beside the work tree that it ran.
pub fn n_lines(place: &Place, name: &str) -> usize {
    std::fs::read_to_string(place.top.join(name)).unwrap_or_default().lines().count()
}
