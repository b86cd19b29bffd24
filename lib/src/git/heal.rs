//! Removing what a killed git or a killed run of ours left in the repository.

use std::path::Path;

use super::command::Git;
use super::pack::KEEP_NOTE;
use crate::durable::{self, Listed, Lock};
use crate::error::{Context, Kind, Result};
use crate::safepath::TEMP_PREFIX;

impl Git {
    /// Removes lock files of a dead git, and temporary files and pack guards of a dead run of ours; returns how many.
    ///
    /// The caller holds the lock under which every run of ours starts git and writes packs, so none of them is in use. A `git gc` that somebody else runs
    /// keeps the locks on refs and their logs, which it expires.
    pub fn heal_stale_locks(&self, _held: &Lock) -> Result<usize> {
        let gc = self.git_dir().join("gc.pid");
        let is_gc_running = durable::is_file(&gc) && is_held_by_git(&gc);
        let mut count = 0;
        for (dir, is_deep) in
            [("", false), ("refs", true), ("logs", true), ("objects/pack", false), ("objects/info", true), ("info", false)]
        {
            count += clear(&self.git_dir().join(dir), is_deep, is_gc_running)?;
        }
        Ok(count)
    }
}

fn clear(dir: &Path, is_deep: bool, is_gc_running: bool) -> Result<usize> {
    let what = || format!("cannot clear stale locks in '{}'", dir.display());
    let entries = match durable::list(dir) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(0),
        other => other.context(what)?,
    };
    let mut count = 0;
    for Listed { path, is_dir } in entries {
        if is_dir {
            count += if is_deep { clear(&path, true, is_gc_running)? } else { 0 };
        } else if is_leftover(&path) && !(is_gc_running && may_be_of_gc(&path)) {
            durable::remove(&path).context(what)?;
            count += 1;
        }
    }
    Ok(count)
}

fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.ends_with(b".lock")
        || name == b"packed-refs.new"
        || name == b"gc.pid" && !is_held_by_git(path)
        || name.starts_with(TEMP_PREFIX)
        // Someone else's guard says something else, and stays.
        || name.ends_with(b".keep") && durable::read(path).is_ok_and(|note| note == KEEP_NOTE)
}

/// Says whether a `git gc` may have made it: it packs refs and expires logs, and touches neither index nor configuration.
fn may_be_of_gc(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(b"packed-refs.") || name.ends_with(b".lock") && name != b"index.lock" && name != b"config.lock"
}

/// Says whether the process that a `gc.pid` names may be a git: git itself takes any process with that number for one, even a dead one.
fn is_held_by_git(path: &Path) -> bool {
    let text = |path: &Path| durable::read(path).ok().and_then(|note| String::from_utf8(note).ok());
    let Some(note) = text(path) else { return true };
    let Some(status) = note.split(' ').next().map(|number| Path::new("/proc").join(number).join("stat")) else { return true };
    // As in '42 (git) S 1': dead is Z.
    text(&status).is_some_and(|status| status.contains(" (git) ") && !status.contains(") Z "))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
        let mut running = git.command(&["cat-file", "--batch"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
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
}
