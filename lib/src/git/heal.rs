//! Removing what a killed git or a killed run of ours left in the repository.

use std::fs;
use std::io;
use std::path::Path;

use super::command::Git;
use super::pack::KEEP_NOTE;
use crate::durable::Lock;
use crate::error::{Context, Result};
use crate::safepath::TEMP_PREFIX;

impl Git {
    /// Removes lock files of a dead git, and temporary files and pack guards of a dead run of ours; returns how many.
    ///
    /// The caller holds the lock under which every run of ours starts git and writes packs, so none of them is in use.
    pub fn heal_stale_locks(&self, _held: &Lock) -> Result<usize> {
        let mut count = 0;
        for (dir, is_deep) in
            [("", false), ("refs", true), ("logs", true), ("objects/pack", false), ("objects/info", true), ("info", false)]
        {
            count += clear(&self.git_dir().join(dir), is_deep)?;
        }
        Ok(count)
    }
}

fn clear(dir: &Path, is_deep: bool) -> Result<usize> {
    let what = || format!("cannot clear stale locks in '{}'", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other.context(what)?,
    };
    let mut count = 0;
    for entry in entries {
        let entry = entry.context(what)?;
        let path = entry.path();
        if entry.file_type().context(what)?.is_dir() {
            count += if is_deep { clear(&path, true)? } else { 0 };
        } else if is_leftover(&path) {
            fs::remove_file(&path).context(what)?;
            count += 1;
        }
    }
    Ok(count)
}

fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.ends_with(b".lock")
        || name.starts_with(TEMP_PREFIX)
        // Someone else's guard says something else, and stays.
        || name.ends_with(b".keep") && fs::read(path).is_ok_and(|note| note == KEEP_NOTE)
}

#[cfg(test)]
mod tests {
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
            "refs/heads/a/b.lock",
            "objects/pack/.gdo-tmp-1",
            "objects/pack/pack-1.keep",
        ];
        let kept = ["devops/store/x.lock", "objects/pack/pack-2.keep", "refs/heads/a/block"];
        for name in stale.iter().chain(&kept) {
            fs::write(dir.path().join(name), if name.ends_with("pack-1.keep") { KEEP_NOTE } else { b"mine" }).unwrap();
        }
        let lock = Lock::exclusive(&dir.path().join("devops/lock")).unwrap();
        assert_eq!(git.heal_stale_locks(&lock).unwrap(), stale.len());
        assert!(stale.iter().all(|name| !dir.path().join(name).exists()));
        assert!(kept.iter().all(|name| dir.path().join(name).exists()));
        assert_eq!(git.heal_stale_locks(&lock).unwrap(), 0);
    }
}
