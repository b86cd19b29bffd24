//! Who may hold a lock file of git's, and live: all that git itself has to say of a lock is that the file is there.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::child;
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
    /// Looks at the lock at `path`; `None` if it is gone, or no file.
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

/// Returns for each lock a process other than this one that may hold it.
///
/// That is one which has the file open, but not all who hold a lock do: `git commit -a` closes that of the index before its hooks and the editor run,
/// and git does so with those of refs. So any git that may write may hold the locks that are no older than itself, unless it was told to work in another
/// repository than `git_dir`. Such a one is not found where the clock was put forward meanwhile, nor a process that is not to be seen in `/proc`.
pub(super) fn holders(locks: &[LockFile], git_dir: &Path) -> Result<Vec<Option<u32>>> {
    let ids = match process::all() {
        Err(error) if error.kind() == Kind::NotFound => Vec::new(),
        ids => ids?,
    };
    let by_path: HashMap<&[u8], usize> =
        locks.iter().enumerate().map(|(at, lock)| (lock.real_path.as_os_str().as_bytes(), at)).collect();
    let (boot, git_dir) = (process::boot_time(), durable::real_path(git_dir)?);
    let mut holders = vec![None; locks.len()];
    for id in ids.into_iter().filter(|id| *id != std::process::id()) {
        // Who ends while it is looked at holds nothing.
        let Some(user) = process::user(id).filter(|user| locks.iter().any(|lock| lock.may_be_of(*user))) else { continue };
        for_each_open(id, |path| {
            if let Some(at) = by_path.get(path).filter(|at| locks[**at].may_be_of(user)) {
                holders[*at] = Some(id);
            }
        });
        let is_git = |name: &str| name == "git" || name.starts_with("git-");
        let found = process::look(id).filter(|found| found.is_alive && is_git(&found.name));
        let Some(found) = found.filter(|_| is_writer(id) && !is_elsewhere(id, &git_dir)) else { continue };
        let started = boot.map_or(i64::MIN, |boot| found.started_at(boot));
        for (lock, holder) in locks.iter().zip(&mut holders).filter(|(lock, _)| lock.may_be_of(user)) {
            if started <= lock.made.saturating_add(ROUNDED) {
                holder.get_or_insert(id);
            }
        }
    }
    Ok(holders)
}

/// So far apart, in seconds, two times can be that are told as the same: both are rounded.
const ROUNDED: i64 = 2;

/// Says who may hold the lock at `path`, as in a message; `None` if nobody is seen.
pub(super) fn told_holder(path: &Path, git_dir: &Path) -> Option<String> {
    let id = holders(&[LockFile::at(path)?], git_dir).ok()?.pop()??;
    let words = words_of(id, "cmdline");
    let call = match (words.first()?.as_slice(), command_of(&words)) {
        (b"git", Some(command)) => [b"git ", command].concat(),
        _ => words.join(&b' '),
    };
    Some(format!("'{}' (process {id})", child::told(String::from_utf8_lossy(&call).trim_end())))
}

/// Hands over what the kernel tells of each file that a process has open: where it is, not what is there, since a server may not answer.
fn for_each_open(id: u32, mut take: impl FnMut(&[u8])) {
    let open = Dir::open(&Path::new("/proc").join(id.to_string()).join("fd"));
    let Ok((open, entries)) = open.and_then(|open| open.entries().map(|entries| (open, entries))) else { return };
    // One that was closed meanwhile says nothing of the others.
    entries.iter().filter_map(|entry| open.read_link(&entry.name).ok()).for_each(|path| take(&path));
}

/// Returns the words, each of which ends with a NUL byte, of a file that the kernel has of a process.
fn words_of(id: u32, file: &str) -> Vec<Vec<u8>> {
    let words = durable::read(&Path::new("/proc").join(id.to_string()).join(file)).unwrap_or_default();
    words.split(|&b| b == 0).map(<[u8]>::to_vec).collect()
}

/// Says whether a git may hold locks that it has not open.
fn is_writer(id: u32) -> bool {
    !command_of(&words_of(id, "cmdline")).is_some_and(|command| READERS.iter().any(|reader| reader.as_bytes() == command))
}

/// Says whether the environment of a git names another repository than that at `git_dir`, and nothing else does.
fn is_elsewhere(id: u32, git_dir: &Path) -> bool {
    let variables = words_of(id, "environ");
    let value = |name: &[u8]| variables.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix(b"="));
    let Some(told) = value(b"GIT_DIR").filter(|told| told.starts_with(b"/")) else { return false };
    let has_option = words_of(id, "cmdline").iter().any(|word| word.starts_with(b"--git-dir"));
    let told = Path::new(OsStr::from_bytes(told));
    // A linked work tree, or a file that leads to one, may be of this repository.
    let is_linked = value(b"GIT_COMMON_DIR").is_some() || !durable::is_dir(told) || durable::is_there(&told.join("commondir"));
    !has_option && !is_linked && durable::real_path(told).is_ok_and(|told| !told.starts_with(git_dir))
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
const WITH_VALUE: &[&str] =
    &["-C", "-c", "--attr-source", "--config-env", "--git-dir", "--namespace", "--shallow-file", "--work-tree"];

/// Commands that hold no locks which they have not open, some of which run for long: as long as somebody reads what they say. `devops` starts us.
const READERS: &[&str] = &[
    "archive",
    "blame",
    "cat-file",
    "check-attr",
    "check-ignore",
    "credential-cache--daemon",
    "daemon",
    "devops",
    "diff",
    "diff-index",
    "diff-tree",
    "for-each-ref",
    "fsck",
    "fsmonitor--daemon",
    "grep",
    "hash-object",
    "help",
    "index-pack",
    "log",
    "ls-files",
    "ls-remote",
    "ls-tree",
    "merge-tree",
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
