//! Who may hold a lock file of git's, and live: all that git itself has to say of a lock is that the file is there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::durable::{self, FileStamp};
use crate::error::{Kind, Result};
use crate::process;
use crate::safepath::Dir;

/// A lock file, as it was found.
pub(super) struct LockFile {
    pub(super) path: PathBuf,
    /// As the kernel tells it of whoever has it open.
    real_path: PathBuf,
    stamp: Option<FileStamp>,
    /// In seconds since 1970.
    made: i64,
    owner: u32,
}

impl LockFile {
    /// Looks at the lock at `path`; `None` if it is gone.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let (stamp, meta, real_path) = (durable::stamp(path), durable::look(path).ok()?, durable::real_path(path).ok()?);
        Some(Self { path: path.to_owned(), real_path, stamp, made: meta.mtime(), owner: meta.uid() })
    }

    /// Says whether it is there as it was found.
    pub(super) fn is_unchanged(&self) -> bool {
        self.stamp.is_some() && durable::stamp(&self.path) == self.stamp
    }

    /// Says whether a process of this user may hold it: nobody else can stand in the way of those who clear up.
    fn may_be_of(&self, user: u32) -> bool {
        user == 0 || user == self.owner
    }
}

/// Whether a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// By nobody who is to be seen.
    No,
    /// Perhaps by a git that was there before it.
    Perhaps,
    /// By a process that has it open.
    Yes,
}

/// Says of each lock whether another process than this one holds it.
///
/// Not all who hold a lock have it open: `git commit -a` closes that of the index before its hooks and the editor run, and git does so with those of
/// refs. So any git that may write may hold the locks that are no older than itself, unless it is seen to work in another repository than `git_dir`. It
/// is not found where the clock was put forward meanwhile; nothing is known of processes in other containers or on other hosts, and, unless we are root,
/// of those of other users.
pub(super) fn held(locks: &[LockFile], git_dir: &Path) -> Result<Vec<Held>> {
    let ids = match process::all() {
        Err(error) if error.kind() == Kind::NotFound => Vec::new(),
        ids => ids?,
    };
    let (boot, git_dir) = (process::boot_time(), durable::real_path(git_dir)?);
    let mut held = vec![Held::No; locks.len()];
    for id in ids.into_iter().filter(|id| *id != std::process::id()) {
        // Who ends while it is looked at holds nothing.
        let open = open_files(id).unwrap_or_default();
        let is_writer = |name: &str| (name == "git" || name.starts_with("git-")) && is_writer(id);
        let writer = process::look(id).filter(|found| found.is_alive && is_writer(&found.name) && !is_elsewhere(id, &git_dir));
        let started = writer.map(|found| boot.map_or(i64::MIN, |boot| found.started_at(boot)));
        for (lock, held) in locks.iter().zip(&mut held) {
            let has_it_open = open.iter().any(|path| path == lock.real_path.as_os_str().as_bytes());
            // Both are rounded, the one down and the other perhaps up.
            let was_before = started.is_some_and(|started| started <= lock.made.saturating_add(ROUNDED));
            if *held == Held::Yes || !(has_it_open || was_before) || !process::user(id).is_some_and(|user| lock.may_be_of(user)) {
                continue;
            }
            *held = if has_it_open { Held::Yes } else { Held::Perhaps };
        }
    }
    Ok(held)
}

/// So far apart, in seconds, two times can be that are told as the same.
const ROUNDED: i64 = 2;

/// Returns what the kernel tells of the files that a process has open: where they are, not what is there, since a server may not answer.
fn open_files(id: u32) -> Result<Vec<Vec<u8>>> {
    let open = Dir::open(&Path::new("/proc").join(id.to_string()).join("fd"))?;
    open.entries()?.iter().map(|entry| open.read_link(&entry.name)).collect()
}

/// Returns the words, each of which ends with a NUL byte, of a file that the kernel has of a process.
fn words_of(id: u32, file: &str) -> Vec<Vec<u8>> {
    let words = durable::read(&Path::new("/proc").join(id.to_string()).join(file)).unwrap_or_default();
    words.split(|&b| b == 0).map(<[u8]>::to_vec).collect()
}

/// Says whether a git may take locks.
fn is_writer(id: u32) -> bool {
    !command_of(&words_of(id, "cmdline")).is_some_and(|command| READERS.iter().any(|reader| reader.as_bytes() == command))
}

/// Says whether a git works in another repository than that at `git_dir`: it was told so, or stands in one.
fn is_elsewhere(id: u32, git_dir: &Path) -> bool {
    let is_other = |dir: PathBuf| durable::real_path(&dir).is_ok_and(|dir| !dir.starts_with(git_dir));
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    if let Some(told) = words_of(id, "environ").iter().find_map(|word| word.strip_prefix(b"GIT_DIR=")) {
        return told.starts_with(b"/") && is_other(path(told));
    }
    if words_of(id, "cmdline").iter().any(|word| word.starts_with(b"--git-dir")) {
        return false;
    }
    let process = Dir::open(&Path::new("/proc").join(id.to_string()));
    let Ok(stands) = process.and_then(|process| process.read_link(b"cwd")).map(|cwd| path(&cwd)) else { return false };
    // Where that is a file, it names a repository, which may be this one.
    let near = stands.ancestors().map(|dir| dir.join(".git")).find(|git| durable::is_there(git));
    near.is_some_and(|git| durable::is_dir(&git) && is_other(git)) && !stands.starts_with(git_dir)
}

/// Returns the command of a git that was started with these words.
fn command_of(words: &[Vec<u8>]) -> Option<&[u8]> {
    let mut words = words.iter();
    let program = words.next()?.rsplit(|&b| b == b'/').next()?;
    if let Some(command) = program.strip_prefix(b"git-") {
        return Some(command);
    }
    loop {
        match words.next()? {
            option if WITH_VALUE.iter().any(|known| known.as_bytes() == option) => drop(words.next()?),
            word if !word.starts_with(b"-") => return Some(word).filter(|word| !word.is_empty()).map(Vec::as_slice),
            _ => (),
        }
    }
}

/// Options before the command whose value is a word of its own.
const WITH_VALUE: &[&str] = &["-C", "-c", "--attr-source", "--config-env", "--git-dir", "--namespace", "--work-tree"];

/// Commands that take no locks, some of which run for long: as long as somebody reads what they say. `devops` starts us.
const READERS: &[&str] = &[
    "archive",
    "blame",
    "cat-file",
    "daemon",
    "devops",
    "diff",
    "diff-index",
    "diff-tree",
    "for-each-ref",
    "fsck",
    "grep",
    "help",
    "log",
    "ls-files",
    "ls-tree",
    "pack-objects",
    "rev-list",
    "shortlog",
    "show",
    "upload-archive",
    "upload-pack",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_of_a_git_is_told_from_what_it_is_given() {
        let command = |line: &str| {
            let words: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
            command_of(&words).map(|word| String::from_utf8_lossy(word).into_owned())
        };
        for (line, wanted) in [
            ("git add daemon", "add"),
            ("/usr/bin/git --no-pager -c a.b=log -C log --git-dir x --git-dir=y commit -m log", "commit"),
            ("git -p log -n 1", "log"),
            ("/usr/lib/git-core/git-receive-pack /x", "receive-pack"),
        ] {
            assert_eq!(command(line).as_deref(), Some(wanted), "{line}");
        }
        for none in ["git", "", "git --version", "git -c", "git -C x"] {
            assert_eq!(command(none), None, "{none}");
        }
    }
}
