//! Which repositories keep their chunks in a store: `gc` must ask all of them what is live.
//!
//! The file `repositories` in the store, one absolute path a line, and in the state of each repository the file `enrolled`, by which one that was
//! moved is told from one that was copied; see `docs/formats/store-layout.md`.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Places;
use crate::durable::{self, Lock};
use crate::error::{Context, Error, Kind, Result};
use crate::safepath::TEMP_PREFIX;
use crate::store;

const FILE: &str = "repositories";
const LOCK: &str = "repositories.lock";
/// In the state of a repository: what it was when it was noted.
const NOTE: &str = "enrolled";

/// Notes that the repository at `places` keeps chunks in its store, durably; noting it twice changes nothing.
///
/// A repository that was moved within its filesystem renews its line. Whoever may be a copy gets a line of its own, and the other one stays.
pub fn enrol(places: &Places) -> Result<()> {
    let now = Identity::of(&places.git_dir)?;
    if now.path.as_os_str().as_bytes().contains(&b'\n') {
        return Err(Error::new(Kind::Refused, format!("'{}' has a line end in its name; give it another", now.path.display())));
    }
    let note = places.state.join(NOTE);
    let before = durable::read(&note).ok().and_then(|text| Identity::decode(&text));
    let is_noted = before.as_ref() == Some(&now);
    if !is_noted || !list(&places.store)?.contains(&now.path) {
        let old_path = before.filter(|before| now.was(before)).map(|before| before.path);
        change(&places.store, |all| {
            all.retain(|path| Some(path) != old_path.as_ref());
            if !all.contains(&now.path) {
                all.push(now.path.clone());
            }
        })?;
    }
    // The note comes last: whoever is killed before it does the same again.
    if is_noted { Ok(()) } else { durable::publish(&note, &now.encode(), 0o600) }
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

/// Returns the path by which the repository at `git_dir`, which must exist, is listed.
pub(super) fn canonical(git_dir: &Path) -> Result<PathBuf> {
    durable::real_path(git_dir).context(|| format!("cannot look at '{}'", git_dir.display()))
}

/// Returns the line of `store` that a person means by `dir`: a repository, or the directory or the root of the system that it belongs to.
pub fn find(store: &Path, dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    // It may be gone; what is left of the way to it is followed.
    let left = dir.ancestors().find_map(|above| Some((above, durable::real_path(above).ok()?)));
    let rest = left.as_ref().and_then(|(above, _)| dir.strip_prefix(above).ok());
    let dir = left.as_ref().zip(rest).map_or(dir.clone(), |((_, above), rest)| above.join(rest));
    let all = list(store)?;
    let meant = [dir.clone(), Places::of_directory(&dir).git_dir, Places::system(&dir).git_dir];
    meant.into_iter().find(|path| all.contains(path)).ok_or_else(|| {
        let known: Vec<String> = all.iter().map(|path| format!("'{}'", path.display())).collect();
        let message =
            format!("'{}' does not keep chunks in '{}'; known are {}", dir.display(), store.display(), known.join(", "));
        Error::new(Kind::NotFound, message)
    })
}

/// Takes the repository at `git_dir` out of the list, durably: nobody asks it any more which chunks it needs.
pub fn forget(store: &Path, git_dir: &Path) -> Result<()> {
    change(store, |all| all.retain(|path| path != git_dir))
}

/// Changes the list under its lock, durably.
fn change(store: &Path, edit: impl FnOnce(&mut Vec<PathBuf>)) -> Result<()> {
    let _lock = Lock::exclusive(&store.join(LOCK))?;
    // What a holder promises is written there under that lock.
    if let Ok(removal) = store::removal_lock(store) {
        clear_leftovers(store, &removal)?;
    }
    let before = list(store)?;
    let mut all = before.clone();
    edit(&mut all);
    if all == before {
        return Ok(());
    }
    let text: Vec<u8> = all.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\n"]).collect::<Vec<_>>().concat();
    durable::publish(&store.join(FILE), &text, 0o600)
}

/// Returns where the list of a store is.
pub(super) fn path(store: &Path) -> PathBuf {
    store.join(FILE)
}

/// Says whether the list of a store ends as a writer ends it.
pub(super) fn ends_well(store: &Path) -> Result<bool> {
    let text = durable::read(&path(store)).context(|| format!("cannot read '{}'", path(store).display()))?;
    Ok(text.ends_with(b"\n"))
}

/// Removes the temporary files that a dead run left at the top of the store, for whoever has the lock for removal, unless the list is being changed.
pub(super) fn clear_store(store: &Path, removal: &Lock) -> Result<()> {
    match Lock::exclusive(&store.join(LOCK)) {
        Ok(_changing) => clear_leftovers(store, removal),
        Err(error) if error.kind() == Kind::Locked => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the temporary files that a dead run left in `dir`; all that are made there are made under the lock that is held.
pub(super) fn clear_leftovers(dir: &Path, _held: &Lock) -> Result<()> {
    let what = || format!("cannot clear '{}'", dir.display());
    for listed in durable::list(dir).context(what)? {
        if listed.path.file_name().is_some_and(|name| name.as_bytes().starts_with(TEMP_PREFIX)) {
            durable::remove(&listed.path).context(what)?;
        }
    }
    Ok(())
}

/// What tells one repository from another: a move within a filesystem keeps its inode, a copy has its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    path: PathBuf,
    ino: u64,
    /// When the inode was made, in nanoseconds since 1970; `None` where the filesystem does not tell.
    born: Option<u128>,
}

impl Identity {
    fn of(git_dir: &Path) -> Result<Self> {
        // One name for one place, however a person spells it.
        let path = canonical(git_dir)?;
        let metadata = durable::look(&path).context(|| format!("cannot look at '{}'", path.display()))?;
        let born = metadata.created().ok().and_then(|time: SystemTime| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self { path, ino: metadata.ino(), born: born.map(|time| time.as_nanos()) })
    }

    /// Says whether `before` surely was this same directory, under a name that it has no more.
    ///
    /// A place that is gone because its disk is not mounted looks the same but for the filesystem that it would be on.
    fn was(&self, before: &Self) -> bool {
        let is_gone = |path| !durable::is_there(path) && durable::look(path).is_err_and(|error| error.kind() == Kind::NotFound);
        let device = |path: &Path| durable::look(path).ok().map(|found| found.dev());
        self.born.is_some()
            && (self.ino, self.born) == (before.ino, before.born)
            && is_gone(&before.path)
            && before.path.ancestors().find_map(device) == device(&self.path)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let born = self.born.map_or("-".to_owned(), |born| born.to_string());
        [format!("{} {born} ", self.ino).as_bytes(), self.path.as_os_str().as_bytes(), b"\n"].concat()
    }

    pub(super) fn decode(text: &[u8]) -> Option<Self> {
        let mut words = text.strip_suffix(b"\n")?.splitn(3, |&b| b == b' ');
        let ino = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        let born = match words.next()? {
            b"-" => None,
            born => Some(std::str::from_utf8(born).ok()?.parse().ok()?),
        };
        Some(Self { path: PathBuf::from(std::ffi::OsString::from_vec(words.next()?.to_vec())), ino, born })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the places of an empty repository `name` in `dir`, whose chunks are in `dir/store`.
    fn places(dir: &Path, name: &str) -> Places {
        let mut places = Places::of_directory(&dir.join(name));
        places.store = dir.join("store");
        std::fs::create_dir_all(&places.state).unwrap();
        std::fs::create_dir_all(&places.store).unwrap();
        places
    }

    fn names(dir: &Path) -> Vec<String> {
        let name = |path: PathBuf| path.parent().unwrap().strip_prefix(dir).unwrap().display().to_string();
        list(&dir.join("store")).unwrap().into_iter().map(name).collect()
    }

    #[test]
    fn a_repository_is_noted_once_and_leftovers_of_a_dead_run_go() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (places(dir.path(), "a"), places(dir.path(), "b"));
        std::fs::write(a.store.join(".gdo-tmp-1"), "half").unwrap();
        for places in [&a, &b, &a] {
            enrol(places).unwrap();
        }
        assert_eq!(names(dir.path()), ["a", "b"]);
        assert!(!a.store.join(".gdo-tmp-1").exists());
        // What a holder writes under the lock for removal stays until that is free.
        let temp = a.store.join(".gdo-tmp-2");
        std::fs::write(&temp, "being written").unwrap();
        let removal = store::removal_lock(&a.store).unwrap();
        enrol(&a).unwrap();
        assert!(temp.exists());
        let changing = Lock::exclusive(&a.store.join(LOCK)).unwrap();
        clear_store(&a.store, &removal).unwrap();
        assert!(temp.exists());
        drop(changing);
        clear_store(&a.store, &removal).unwrap();
        assert!(!temp.exists());
        std::fs::write(a.store.join(FILE), "/a/.git\nrelative\n").unwrap();
        assert_eq!(list(&a.store).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn one_that_was_moved_renews_its_line_and_a_copy_is_a_second_one() {
        let dir = tempfile::tempdir().unwrap();
        enrol(&places(dir.path(), "old")).unwrap();
        let run = |program: &str, args: &[&str]| {
            assert!(std::process::Command::new(program).args(args).current_dir(dir.path()).status().unwrap().success());
        };
        run("mv", &["old", "new"]);
        enrol(&places(dir.path(), "new")).unwrap();
        assert_eq!(names(dir.path()), ["new"]);
        run("cp", &["-a", "new", "copy"]);
        enrol(&places(dir.path(), "copy")).unwrap();
        assert_eq!(names(dir.path()), ["new", "copy"]);
        // The original may lie on a disk that is not mounted: a copy never takes its line.
        run("cp", &["-a", "new", "second"]);
        run("mv", &["new", "away"]);
        enrol(&places(dir.path(), "second")).unwrap();
        assert_eq!(names(dir.path()), ["new", "copy", "second"]);
        enrol(&places(dir.path(), "away")).unwrap();
        assert_eq!(names(dir.path()), ["copy", "second", "away"]);
        // Somebody else stands in the old place by now.
        run("mv", &["away", "further"]);
        enrol(&places(dir.path(), "away")).unwrap();
        enrol(&places(dir.path(), "further")).unwrap();
        assert_eq!(names(dir.path()), ["copy", "second", "away", "further"]);
    }

    #[test]
    fn a_place_that_may_be_on_another_filesystem_is_no_old_place() {
        let dir = tempfile::tempdir().unwrap();
        let now = Identity::of(dir.path()).unwrap();
        let at = |path: &str| Identity { path: path.into(), ino: now.ino, born: now.born };
        // Nothing is ever made in /proc, which is a filesystem of its own.
        assert!(!now.was(&at("/proc/not-mounted/repo")));
        let beside = dir.path().join("gone/repo");
        assert_eq!(now.was(&at(beside.to_str().unwrap())), now.born.is_some());
        assert!(!now.was(&Identity { ino: now.ino + 1, ..at(beside.to_str().unwrap()) }));
        assert_eq!(Identity::decode(&now.encode()).unwrap(), now);
    }

    #[test]
    fn a_line_is_found_by_what_a_person_calls_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path();
        std::fs::write(store.join(FILE), "/a/.git\n/srv/root/etc/git-devops/repo\n/bare\n").unwrap();
        for (dir, line) in
            [("/a", "/a/.git"), ("/a/.git/", "/a/.git"), ("/srv/root", "/srv/root/etc/git-devops/repo"), ("/bare", "/bare")]
        {
            assert_eq!(find(store, Path::new(dir)).unwrap(), Path::new(line));
        }
        assert_eq!(find(store, Path::new("/b")).unwrap_err().kind(), Kind::NotFound);
        forget(store, Path::new("/a/.git")).unwrap();
        assert_eq!(list(store).unwrap().len(), 2);
    }
}
