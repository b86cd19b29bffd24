//! Which repositories keep their chunks in a store: `gc` must ask all of them what is live.
//!
//! The file `repositories` in the store, one absolute path a line; see `docs/formats/store-layout.md`.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::durable::{self, Lock};
use crate::error::{Context, Error, Kind, Result};
use crate::safepath::TEMP_PREFIX;

const FILE: &str = "repositories";
const LOCK: &str = "repositories.lock";

/// Notes that the repository at `git_dir` keeps chunks in `store`, durably; noting it twice changes nothing.
pub fn enrol(store: &Path, git_dir: &Path) -> Result<()> {
    let git_dir = std::path::absolute(git_dir)?;
    if git_dir.as_os_str().as_bytes().contains(&b'\n') {
        return Err(Error::new(Kind::Refused, format!("'{}' has a line end in its name; give it another", git_dir.display())));
    }
    if list(store)?.contains(&git_dir) {
        return Ok(()); // as nearly always: nobody has to wait
    }
    let lock = Lock::exclusive(&store.join(LOCK))?;
    clear_leftovers(store, &lock)?;
    let mut all = list(store)?;
    if all.contains(&git_dir) {
        return Ok(());
    }
    all.push(git_dir);
    let text: Vec<u8> = all.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\n"]).collect::<Vec<_>>().concat();
    durable::publish(&store.join(FILE), &text, 0o600)
}

/// Returns the repositories that keep chunks in `store`.
pub fn list(store: &Path) -> Result<Vec<PathBuf>> {
    let path = store.join(FILE);
    let what = || format!("cannot read '{}', which tells whose chunks are in the store", path.display());
    let text = durable::read_if_there(&path).context(what)?.unwrap_or_default();
    let lines = text.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    let paths: Vec<PathBuf> = lines.map(|line| PathBuf::from(std::ffi::OsString::from_vec(line.to_vec()))).collect();
    match paths.iter().find(|path| !path.is_absolute()) {
        Some(bad) => Err(Error::new(Kind::Corrupt, format!("'{}' is not an absolute path", bad.display())).wrap(what())),
        None => Ok(paths),
    }
}

/// Removes the temporary files that an init which was killed left at the top of the store: they are made under the lock, or before there is a store.
pub(super) fn clear_leftovers(store: &Path, _held: &Lock) -> Result<()> {
    let what = || format!("cannot clear '{}'", store.display());
    for listed in durable::list(store).context(what)? {
        if listed.path.file_name().is_some_and(|name| name.as_bytes().starts_with(TEMP_PREFIX)) {
            durable::remove(&listed.path).context(what)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_noted_once_and_leftovers_of_a_dead_run_go() {
        let store = tempfile::tempdir().unwrap();
        std::fs::write(store.path().join(".gdo-tmp-1"), "half").unwrap();
        for git_dir in ["/a/.git", "/b/.git", "/a/.git"] {
            enrol(store.path(), Path::new(git_dir)).unwrap();
        }
        assert_eq!(list(store.path()).unwrap(), ["/a/.git", "/b/.git"].map(PathBuf::from));
        assert!(!store.path().join(".gdo-tmp-1").exists());
        std::fs::write(store.path().join(FILE), "/a/.git\nrelative\n").unwrap();
        assert_eq!(list(store.path()).unwrap_err().kind(), Kind::Corrupt);
    }
}
