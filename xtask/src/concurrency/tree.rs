//! A tree that changes all the time, and whose files tell what must be in them.
//!
//! A file begins with its number, and the rest follows from that: so each copy of it, wherever it comes from, is either a version that was on the disk
//! or is found out. Versions come by a rename, so that no half of one is ever there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::command::{Context, Result};
use crate::ensure;
use crate::fixtures::Seeded;

/// Returns the content of version `number`: one of five is large enough for the chunk store, and like others of its size but for 4 KiB.
pub fn content(number: u64) -> Vec<u8> {
    let mut bytes = format!("{number}\n").into_bytes();
    let mut own = Seeded::new(number);
    if !number.is_multiple_of(5) {
        let len = own.next() % 2000;
        bytes.extend(own.text(len as usize));
        return bytes;
    }
    let family = number / 5 % 4;
    bytes.extend(Seeded::new(family).bytes(140_000 + family as usize * 60_000));
    let at = 100 + (own.next() % 120_000) as usize;
    own.fill(&mut bytes[at..at + 4096]);
    bytes
}

/// Fails unless every file below `dir` is whole, and returns how many there are.
pub fn must_be_whole(dir: &Path) -> Result<usize> {
    let mut n_files = 0;
    for entry in fs::read_dir(dir).context(|| format!("cannot list '{}'", dir.display()))? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            n_files += must_be_whole(&path)?;
        } else if kind.is_file() {
            let bytes = fs::read(&path)?;
            let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
            let number = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok());
            ensure!(number.is_some_and(|number| content(number) == bytes), "'{}' was never like that", path.display());
            n_files += 1;
        }
    }
    Ok(n_files)
}

/// Returns a path that is mostly there, relative to the tree.
pub fn any_path(dice: &mut Seeded) -> String {
    path(dice.next() % DIRS, dice.next() % NAMES)
}

fn path(dir: u64, name: u64) -> String {
    match dir {
        0 => format!("f{name}"),
        dir => format!("d{dir}/f{name}"),
    }
}

/// Changes one tree.
pub struct Changer {
    work: PathBuf,
    /// Where versions are written before they are there.
    apart: PathBuf,
    dice: Seeded,
}

const DIRS: u64 = 4;
const NAMES: u64 = 7;

impl Changer {
    /// Takes a tree, a directory on the same filesystem, and where the numbers begin.
    pub fn new(work: &Path, apart: &Path, seed: u64) -> Result<Changer> {
        fs::create_dir_all(work)?;
        fs::create_dir_all(apart)?;
        Ok(Changer { work: work.into(), apart: apart.into(), dice: Seeded::new(seed) })
    }

    /// Makes every file anew.
    pub fn fill(&mut self) -> Result {
        for dir in 0..DIRS {
            for name in 0..NAMES {
                self.write(&self.path(dir, name))?;
            }
        }
        Ok(())
    }

    /// Changes something. What a restore takes away just then is no failure.
    pub fn change(&mut self) -> Result {
        let (dir, name) = (self.dice.next() % DIRS, self.dice.next() % NAMES);
        let path = self.path(dir, name);
        match self.dice.next() % 20 {
            0..12 => self.write(&path),
            12..15 => may_vanish(fs::remove_file(&path)),
            15..17 => {
                let mode = [0o600, 0o644, 0o755][(self.dice.next() % 3) as usize];
                may_vanish(fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            }
            17 => {
                let other_dir = self.dice.next() % DIRS;
                let other = self.path(other_dir, name);
                may_vanish(fs::remove_file(&other))?;
                may_vanish(fs::hard_link(&path, &other))
            }
            18 => may_vanish(fs::rename(&path, self.path(dir, NAMES))),
            _ => may_vanish(fs::remove_dir_all(self.work.join(format!("d{dir}")))),
        }
    }

    fn path(&self, dir: u64, name: u64) -> PathBuf {
        self.work.join(path(dir, name))
    }

    fn write(&mut self, path: &Path) -> Result {
        let number = self.dice.next() % 1_000_000;
        let apart = self.apart.join("next");
        fs::write(&apart, content(number))?;
        may_vanish(fs::create_dir_all(path.parent().ok_or("BUG: a file has a directory")?))?;
        may_vanish(fs::rename(&apart, path))
    }
}

/// Others work in the same tree: what was there a moment ago may be gone, or there again.
fn may_vanish(result: std::io::Result<()>) -> Result {
    use std::io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory, NotFound};
    match result {
        Err(why) if [AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory, NotFound].contains(&why.kind()) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_of_two_versions_is_found_out() {
        let dir = std::env::temp_dir().join(format!("whole-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let mut changer = Changer::new(&dir.join("work"), &dir.join("apart"), 1).unwrap();
        changer.fill().unwrap();
        for _ in 0..100 {
            changer.change().unwrap();
        }
        assert!(must_be_whole(&dir.join("work")).unwrap() > 5);
        let (mut mixed, other) = (content(25), content(45));
        assert_eq!(mixed.len(), other.len(), "of one family");
        mixed[..3].copy_from_slice(&other[..3]);
        for bad in [&mixed[..], b"", &content(6)[..1]] {
            fs::write(dir.join("work/bad"), bad).unwrap();
            assert!(must_be_whole(&dir.join("work")).is_err());
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
