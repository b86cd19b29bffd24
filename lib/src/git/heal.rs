//! Removing what a killed git or a killed run of ours left in the repository.

use std::path::Path;
use std::time::{Duration, Instant};

use super::command::Git;
use super::locks::{LockFile, holders};
use super::pack::KEEP_NOTE;
use crate::durable::{self, Listed, Lock};
use crate::error::{Context, Kind, Result};
use crate::process;
use crate::safepath::TEMP_PREFIX;

/// So long those are given to end who may hold a lock; what they still have then stays.
const PATIENCE: Duration = Duration::from_secs(1);

impl Git {
    /// Removes lock files of a dead git, and temporary files and pack guards of a dead run of ours; returns how many.
    ///
    /// The caller holds the lock under which every run of ours starts git and writes packs, so none of them is in use by one. Somebody else may have
    /// started git, too: a lock file that a living process may hold stays, and so do those on refs and their logs while a `git gc` runs.
    pub fn heal_stale_locks(&self, _held: &Lock) -> Result<usize> {
        let gc = self.git_dir().join("gc.pid");
        let is_gc_running = durable::is_file(&gc) && is_held_by_git(&gc);
        let (mut count, mut locks) = (0, Vec::new());
        for (dir, is_deep) in
            [("", false), ("refs", true), ("logs", true), ("objects/pack", false), ("objects/info", true), ("info", false)]
        {
            count += clear(&self.git_dir().join(dir), is_deep, &mut locks)?;
        }
        locks.retain(|lock| !(is_gc_running && may_be_of_gc(&lock.path)));
        Ok(count + remove_unheld(&locks, self.git_dir())?)
    }
}

/// Removes what a dead run of ours left in `dir`; adds the lock files in it to `locks`.
fn clear(dir: &Path, is_deep: bool, locks: &mut Vec<LockFile>) -> Result<usize> {
    let what = || format!("cannot clear stale locks in '{}'", dir.display());
    let entries = match durable::list(dir) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(0),
        other => other.context(what)?,
    };
    let mut count = 0;
    for Listed { path, is_dir } in entries {
        if is_dir {
            count += if is_deep { clear(&path, true, locks)? } else { 0 };
        } else if let Some(lock) = is_lock(&path).then(|| LockFile::at(&path)).flatten() {
            locks.push(lock);
        } else if is_lock(&path) || is_leftover(&path) {
            durable::remove(&path).context(what)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Removes the locks that nobody holds; returns how many.
fn remove_unheld(locks: &[LockFile], git_dir: &Path) -> Result<usize> {
    if locks.is_empty() {
        return Ok(0);
    }
    let start = Instant::now();
    let mut held_by = holders(locks, git_dir)?;
    while held_by.iter().any(Option::is_some) && start.elapsed() < PATIENCE {
        std::thread::sleep(PATIENCE / 20);
        held_by = holders(locks, git_dir)?;
    }
    let mut count = 0;
    // What another one made under the same name meanwhile is not what was looked at.
    for (lock, _) in locks.iter().zip(held_by).filter(|(lock, holder)| holder.is_none() && lock.is_unchanged()) {
        durable::remove(&lock.path).context(|| "cannot clear a stale lock")?;
        count += 1;
    }
    Ok(count)
}

fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name == b"gc.pid" && !is_held_by_git(path)
        || name.starts_with(TEMP_PREFIX)
        // Someone else's guard says something else, and stays.
        || name.ends_with(b".keep") && durable::read(path).is_ok_and(|note| note == KEEP_NOTE)
}

/// Says whether the name is one that git gives to what is to take the place of another file, and keeps others from it.
fn is_lock(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.ends_with(b".lock") || name == b"packed-refs.new"
}

/// Says whether a `git gc` may have made it: it packs refs and expires logs, and touches neither index nor configuration.
fn may_be_of_gc(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(b"packed-refs.") || name.ends_with(b".lock") && name != b"index.lock" && name != b"config.lock"
}

/// Says whether the process that a `gc.pid` names may be a git: git itself takes any process with that number for one, even a dead one.
fn is_held_by_git(path: &Path) -> bool {
    let Some(note) = durable::read(path).ok().and_then(|note| String::from_utf8(note).ok()) else { return true };
    let id = note.split(' ').next().and_then(|number| number.parse().ok());
    id.and_then(process::look).is_some_and(|found| found.is_alive && found.name == "git")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};
    use std::time::SystemTime;

    use super::*;
    use crate::git::Identity;
    use crate::git::locks::told_holder;

    #[test]
    fn what_dead_runs_left_goes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        fs::create_dir_all(dir.path().join("refs/heads/a")).unwrap();
        fs::create_dir_all(dir.path().join("devops/store")).unwrap();
        let stale = [
            "HEAD.lock",
            "index.lock",
            "packed-refs.lock",
            "packed-refs.new",
            "gc.pid",
            "refs/heads/a/b.lock",
            "objects/pack/.gdo-tmp-1",
            "objects/pack/pack-1.keep",
        ];
        let kept = ["devops/store/x.lock", "objects/pack/pack-2.keep", "refs/heads/a/block"];
        let own = format!("{} host", std::process::id());
        let content = |name: &str| match name {
            "objects/pack/pack-1.keep" => KEEP_NOTE,
            "gc.pid" => own.as_bytes(),
            _ => b"mine",
        };
        for name in stale.iter().chain(&kept) {
            fs::write(dir.path().join(name), content(name)).unwrap();
        }
        let lock = Lock::exclusive(&dir.path().join("devops/lock")).unwrap();
        assert_eq!(git.heal_stale_locks(&lock).unwrap(), stale.len());
        assert!(stale.iter().all(|name| !dir.path().join(name).exists()));
        assert!(kept.iter().all(|name| dir.path().join(name).exists()));
        assert_eq!(git.heal_stale_locks(&lock).unwrap(), 0);
    }

    #[test]
    fn a_running_git_gc_keeps_its_note() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let mut running = git.command(&["cat-file", "--batch"]).stdin(Stdio::piped()).spawn().unwrap();
        fs::write(dir.path().join("gc.pid"), format!("{} host", running.id())).unwrap();
        fs::create_dir_all(dir.path().join("logs/refs/heads")).unwrap();
        let of_gc = [
            "packed-refs.lock",
            "packed-refs.new",
            "HEAD.lock",
            "refs/heads/main.lock",
            "logs/HEAD.lock",
            "logs/refs/heads/main.lock",
        ];
        for name in of_gc.iter().chain(&["index.lock"]) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let lock = Lock::exclusive(&dir.path().join("devops-lock")).unwrap();
        assert_eq!(git.heal_stale_locks(&lock).unwrap(), 1, "no gc locks the index");
        assert!(of_gc.iter().all(|name| dir.path().join(name).exists()));
        assert_eq!(git.heal_stale_locks(&lock).unwrap(), 0);
        running.kill().unwrap();
        // Dead, and nobody has waited for it: its number is still taken.
        while git.heal_stale_locks(&lock).unwrap() == 0 {
            std::thread::yield_now();
        }
        running.wait().unwrap();
        git.heal_stale_locks(&lock).unwrap();
        assert!(!dir.path().join("gc.pid").exists() && of_gc.iter().all(|name| !dir.path().join(name).exists()));
    }

    #[test]
    fn what_somebody_holds_who_lives_stays() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir(&work).unwrap();
        let identity = Identity { name: "A".into(), email: "a@b".into() };
        let git = Git::init(&dir.path().join("repo"), "main").unwrap().with_work_tree(&work).with_identity(identity);
        let instance = Lock::exclusive(&dir.path().join("lock")).unwrap();
        let heal = || git.heal_stale_locks(&instance).unwrap();
        let index_lock = git.git_dir().join("index.lock");
        let begin = |mut command: Command| command.current_dir(dir.path()).stdin(Stdio::piped()).spawn().unwrap();
        let end = |mut child: Child| {
            drop(child.stdin.take());
            child.wait().unwrap()
        };

        // Nobody has one that leads nowhere.
        std::os::unix::fs::symlink("nowhere", &index_lock).unwrap();
        assert_eq!(heal(), 1);

        // Who has it open.
        fs::write(&index_lock, "").unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 9<\"$0\" && echo && read -r line"]).arg(&index_lock).stdout(Stdio::piped());
        let mut holder = begin(shell);
        holder.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(heal(), 0);
        end(holder);
        assert_eq!(heal(), 1);

        // A git that has closed it, and waits for its editor.
        fs::write(work.join("file"), "content").unwrap();
        git.run(&["add", "file"]).unwrap();
        let mut command = git.command(&["commit", "-q", "-a"]);
        command.env("GIT_EDITOR", "head -n 1 >");
        let mut commit = begin(command);
        while !git.git_dir().join("COMMIT_EDITMSG").exists() {
            assert!(commit.try_wait().unwrap().is_none());
            std::thread::sleep(PATIENCE / 100);
        }
        assert_eq!(heal(), 0);
        assert!(index_lock.exists());
        assert!(told_holder(&index_lock, git.git_dir()).unwrap().starts_with("'git commit' (process "));
        commit.stdin.as_mut().unwrap().write_all(b"message\n").unwrap();
        assert!(end(commit).success());
        assert!(!index_lock.exists());

        // A git that only reads takes none, nor does one that works in another repository.
        let other = Git::init(&dir.path().join("other"), "main").unwrap();
        let others = [git.command(&["cat-file", "--batch"]), other.command(&["update-ref", "--stdin"])].map(begin);
        fs::write(&index_lock, "").unwrap();
        assert_eq!(heal(), 1);

        // One that was begun later has not made it, one that was there before it perhaps has.
        fs::write(&index_lock, "").unwrap();
        File::open(&index_lock).unwrap().set_modified(SystemTime::now() - PATIENCE * 10).unwrap();
        let before = begin(git.command(&["update-ref", "--stdin"]));
        assert_eq!(heal(), 1);
        fs::write(&index_lock, "").unwrap();
        assert_eq!(heal(), 0);
        end(before);
        assert_eq!(heal(), 1);
        for other in others {
            end(other);
        }
    }
}
