//! Upkeep that makes a repository smaller: git's objects in one pack with good deltas, chunks at a high level of compression.
//!
//! Design: `docs/maintenance.md`. Nothing is removed but what something smaller is there for.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Repo;
use crate::durable;
use crate::error::{Context, Result};
use crate::progress::Progress;
use crate::store::{Recompress, Recompressed};

/// Git's objects are packed anew when at least this part of them was not packed by maintenance.
const PART: u64 = 4;
/// With so many packs, the small ones are put together: each lookup may ask all of them.
const MANY: usize = 50;
/// What names git's last pack by maintenance, in the state directory.
const NOTE: &str = "maintained";

/// What maintenance did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Bytes of git's objects before.
    pub git_before: u64,
    /// Bytes of git's objects after; those before, where they were left as they are.
    pub git_after: u64,
    /// Whether git's objects were, or would be, packed anew.
    pub is_repacked: bool,
    /// What became of the chunks.
    pub chunks: Recompressed,
}

/// Packs git's objects anew if that may pay, then compresses the chunks that were not yet.
pub fn maintain(repo: &Repo, how: &Recompress, progress: &Progress) -> Result<Maintained> {
    let _lock = repo.lock()?;
    let before = Objects::look(&repo.places.git_dir)?;
    let noted = durable::read_if_there(&repo.places.state.join(NOTE))?.unwrap_or_default();
    let mut maintained = Maintained { git_before: before.bytes(), git_after: before.bytes(), ..Maintained::default() };
    let is_late = how.until.is_some_and(|until| Instant::now() >= until);
    maintained.is_repacked = before.is_worth_it(&noted) && !is_late;
    if maintained.is_repacked && !how.dry_run {
        progress.stage("packing git objects", 0, 0);
        repack(repo)?;
        let after = Objects::look(&repo.places.git_dir)?;
        maintained.git_after = after.bytes();
        durable::publish(&repo.places.state.join(NOTE), &after.names(), 0o600)?;
    }
    maintained.chunks = repo.store.recompress(how, progress)?;
    Ok(maintained)
}

/// Lets git pack all objects into one pack, with the deltas found anew; what nothing refers to stays.
fn repack(repo: &Repo) -> Result<()> {
    let args =
        ["repack", "-a", "-d", "-F", "--keep-unreachable", "-n", "--quiet", "--window=50", "--depth=50", "--window-memory=64m"];
    // Git would hold its index, which is a third of all that it has in memory, to know what is referred to: but all is kept here.
    repo.git.clone().without_index().repack(&args).context(|| "cannot pack git's objects anew; nothing of them is lost")?;
    repo.objects.refresh();
    Ok(())
}

/// Puts small packs of git together, if there are many, so that each one is at least twice as large as the next: each commit makes one.
///
/// That git cannot do so is no failure of what was done before: it is tried again after the next commit.
pub(super) fn roll_up(repo: &Repo) -> Result<()> {
    let dir = repo.places.git_dir.join("objects/pack");
    let listed = durable::list(&dir).context(|| format!("cannot list '{}'", dir.display()))?;
    if listed.iter().filter(|listed| listed.path.extension().is_some_and(|extension| extension == "pack")).count() < MANY {
        return Ok(());
    }
    let _ = repo.git.repack(&["repack", "--geometric=2", "-d", "-n", "--quiet", "--window-memory=64m"]);
    repo.objects.refresh();
    Ok(())
}

/// Git's objects as the directory shows them.
#[derive(Debug)]
struct Objects {
    /// Packs, each with its length.
    packs: Vec<(PathBuf, u64)>,
    /// Bytes of objects in files of their own.
    loose: u64,
}

impl Objects {
    fn look(git_dir: &Path) -> Result<Self> {
        let objects = git_dir.join("objects");
        let mut found = Self { packs: Vec::new(), loose: 0 };
        for dir in durable::list(&objects).context(|| format!("cannot list '{}'", objects.display()))? {
            let name = dir.path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
            if !dir.is_dir || name != b"pack" && name.len() != 2 {
                continue;
            }
            for file in durable::list(&dir.path).context(|| format!("cannot list '{}'", dir.path.display()))? {
                // What vanishes meanwhile was packed by somebody else.
                let Ok(len) = durable::look(&file.path).map(|file| file.len()) else { continue };
                match name == b"pack" {
                    false => found.loose += len,
                    true if file.path.extension().is_some_and(|extension| extension == "pack") => {
                        found.packs.push((file.path, len))
                    }
                    true => (),
                }
            }
        }
        found.packs.sort();
        Ok(found)
    }

    fn bytes(&self) -> u64 {
        self.loose + self.packs.iter().map(|(_, len)| len).sum::<u64>()
    }

    /// Returns the names of the packs, one in a line.
    fn names(&self) -> Vec<u8> {
        let name = |path: &PathBuf| [path.file_name().unwrap_or_default().as_encoded_bytes(), b"\n"].concat();
        self.packs.iter().flat_map(|(path, _)| name(path)).collect()
    }

    /// Says whether much of it is not in the packs that are noted.
    fn is_worth_it(&self, noted: &[u8]) -> bool {
        let is_noted = |path: &Path| {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            noted.split(|&b| b == b'\n').any(|line| line == name)
        };
        let new = self.packs.iter().filter(|(path, _)| !is_noted(path)).map(|(_, len)| len).sum::<u64>() + self.loose;
        new > 0 && new * PART >= self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_packs_anew_when_a_quarter_is_new() {
        let objects = |new: u64, loose| Objects { packs: vec![("p/a.pack".into(), 300), ("p/b.pack".into(), new)], loose };
        for (new, loose, is_worth_it) in [(99, 0, false), (100, 0, true), (50, 50, true), (0, 0, false)] {
            assert_eq!(objects(new, loose).is_worth_it(b"a.pack\n"), is_worth_it, "{new} {loose}");
        }
        assert!(objects(0, 0).is_worth_it(b"") && !objects(500, 0).is_worth_it(&objects(500, 0).names()));
    }
}
