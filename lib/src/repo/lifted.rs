//! Directories whose names may not be changed (inode flags `immutable` and `append`), opened up for the time of a restore.
//!
//! What is taken away is noted in the state first, durably, so that the next restore of the same target gives back what a killed one could not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::metadata::{self, Flags, escaped, unescaped};
use crate::safepath::Dir;

const HEAD: &str = "git-devops lifted flags 1\n";

/// The directories that were opened up, and with what they are to be closed again.
pub(super) struct Lifted {
    note: PathBuf,
    dirs: Mutex<BTreeMap<Vec<u8>, Flagged>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flagged {
    ino: u64,
    flags: Flags,
}

impl Lifted {
    /// Takes over what a killed run noted in the directory `state` about this target.
    pub fn open(state: &Path, target: &Dir) -> Result<Self> {
        let stat = target.stat_self()?;
        // A run of its own for each target: they may be worked on at the same time.
        let note = state.join(format!("lifted-{}-{}-{}", stat.dev.0, stat.dev.1, stat.ino));
        let what = || {
            format!(
                "cannot use '{}', which tells what flags a killed run took away; set them by hand and remove it",
                note.display()
            )
        };
        let dirs =
            durable::read_if_there(&note).context(what)?.map_or(Ok(BTreeMap::new()), |text| decode(&text)).context(what)?;
        Ok(Self { note, dirs: Mutex::new(dirs) })
    }

    /// Lets names in `dir`, which is at `path` below the target, be changed, if they may not be.
    pub fn lift(&self, path: &[u8], dir: &Dir) -> Result<()> {
        let flags = metadata::locking_flags(dir)?;
        if flags.is_empty() {
            return Ok(());
        }
        let mut dirs = self.dirs();
        let noted = dirs.entry(path.to_vec()).or_insert(Flagged { ino: dir.stat_self()?.ino, flags });
        noted.flags = noted.flags | flags;
        durable::publish(&self.note, &encode(&dirs), 0o600)?;
        metadata::clear_flags(dir).map(drop)
    }

    /// Forgets a directory that was given the flags that it is to have.
    pub fn settled(&self, path: &[u8]) {
        self.dirs().remove(path);
    }

    /// Gives back everything that was taken away; returns the directories with which that failed, which stay noted.
    pub fn give_back(&self, target: &Dir) -> Result<Vec<(Vec<u8>, Error)>> {
        let mut dirs = self.dirs();
        let mut failed = Vec::new();
        dirs.retain(|path, flagged| match close(target, path, flagged) {
            Ok(()) => false,
            Err(error) => {
                failed.push((path.clone(), error));
                true
            }
        });
        match (dirs.is_empty(), durable::is_there(&self.note)) {
            (true, true) => {
                target.sync_filesystem()?;
                durable::remove(&self.note).context(|| format!("cannot remove '{}'", self.note.display()))?;
            }
            (true, false) => (),
            (false, _) => durable::publish(&self.note, &encode(&dirs), 0o600)?,
        }
        Ok(failed)
    }

    fn dirs(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Flagged>> {
        self.dirs.lock().expect("BUG: a thread panicked while it held the lock")
    }
}

/// Gives one directory its flags back; what is not that directory any more gets none.
fn close(target: &Dir, path: &[u8], flagged: &Flagged) -> Result<()> {
    let dir = match target.open_path(path) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    if dir.stat_self()?.ino != flagged.ino {
        return Ok(());
    }
    metadata::add_flags(&dir, flagged.flags)
}

pub(super) fn encode(dirs: &BTreeMap<Vec<u8>, Flagged>) -> Vec<u8> {
    let mut text = HEAD.as_bytes().to_vec();
    for (path, Flagged { ino, flags }) in dirs {
        text.extend_from_slice(format!("{ino} {} /", flags.bits()).as_bytes());
        text.extend_from_slice(&escaped(path));
        text.push(b'\n');
    }
    text
}

pub(super) fn decode(text: &[u8]) -> Result<BTreeMap<Vec<u8>, Flagged>> {
    let bad = || Error::new(Kind::Corrupt, "it is not what we write");
    let lines = text.strip_prefix(HEAD.as_bytes()).ok_or_else(bad)?;
    let mut dirs = BTreeMap::new();
    for line in lines.split_inclusive(|&b| b == b'\n') {
        let mut words = line.strip_suffix(b"\n").ok_or_else(bad)?.splitn(3, |&b| b == b' ');
        let mut number = || -> Option<u64> { std::str::from_utf8(words.next()?).ok()?.parse().ok() };
        let (ino, bits) = (number().ok_or_else(bad)?, number().ok_or_else(bad)?);
        let path = words.next().and_then(|path| path.strip_prefix(b"/")).ok_or_else(bad)?;
        let flags = Flags::from_bits(u32::try_from(bits).map_err(|_| bad())?).and(Flags::LOCKING);
        dirs.insert(unescaped(path)?, Flagged { ino, flags });
    }
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_again_and_nothing_else_is() {
        let flagged = |ino, flags| Flagged { ino, flags };
        let dirs: BTreeMap<Vec<u8>, Flagged> =
            [(&b""[..], flagged(7, Flags::IMMUTABLE)), (b"etc/a b\n", flagged(u64::MAX, Flags::LOCKING))]
                .map(|(path, flagged)| (path.to_vec(), flagged))
                .into();
        assert_eq!(decode(&encode(&dirs)).unwrap(), dirs);
        for bad in [
            "",
            "7 16 /a\n",
            "git-devops lifted flags 1\n7 16 a\n",
            "git-devops lifted flags 1\n7 16 /a",
            "git-devops lifted flags 1\n7\n",
        ] {
            assert_eq!(decode(bad.as_bytes()).unwrap_err().kind(), Kind::Corrupt, "{bad}");
        }
    }
}
