//! A commit that is made on trees here, by a merge or a revert, and is applied next; and the scratch directory where conflicts are edited.
//! Design: `docs/types.md`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Repo;
use super::attributes::{self, Attributes};
use super::scan::{Staged, shown};
use super::stage::CommitInfo;
use crate::durable::{self, Lock};
use crate::error::{Context, Error, Kind, Result};
use crate::file::index::ChunkIndex;
use crate::git::index::CachedStat;
use crate::git::merge::{Conflict, MergedTree};
use crate::git::name::{self, Stored};
use crate::git::{CommitData, NewIndex, Oid, PackWriter, Signature, write_tree_after};
use crate::metadata::DirMetadata;

/// The ref that leads to it.
pub const NEXT: &str = "refs/devops/next";
/// The directory of a merge that has conflicts, below the state directory.
const DIR: &str = "merge";
const FIRST_LINE: &str = "git-devops merge 1";

/// Returns the commit that is applied next, if there is one.
pub fn tip(repo: &Repo) -> Result<Option<Oid>> {
    repo.git.read_ref(NEXT)
}

/// Fails if there is one.
pub fn must_not_be(repo: &Repo) -> Result<()> {
    match tip(repo)? {
        None => Ok(()),
        Some(_) => {
            let message = "a merge or revert is still to be applied; 'gdo up' goes on with it, 'gdo abort' gives it up";
            Err(Error::new(Kind::Conflict, message))
        }
    }
}

/// How two trees are brought together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The other commit is merged.
    Merge,
    /// The other commit is taken back.
    Revert {
        /// Only its files.
        content_only: bool,
    },
}

/// Two commits that are brought together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joining {
    /// How.
    pub way: Way,
    /// Where HEAD is.
    pub head: Oid,
    /// The other one.
    pub other: Oid,
}

impl Joining {
    /// Merges the trees; the same commits give the same.
    pub fn merge(&self, repo: &Repo) -> Result<MergedTree> {
        // Without a work tree, so that no '.gitattributes' in it counts.
        let git = repo.git.clone().without_work_tree();
        let merged = match self.way {
            Way::Merge => git.merge_commits(self.head, self.other),
            Way::Revert { .. } => {
                let tree = |commit: &Oid| repo.objects.commit(commit).map(|data| data.tree);
                let parent = repo.objects.commit(&self.other)?.parents.first().copied();
                let parent = parent
                    .ok_or_else(|| Error::new(Kind::Usage, "the first commit of a type is its base, and cannot be taken back"))?;
                git.merge_trees(tree(&self.other)?, tree(&self.head)?, tree(&parent)?)
            }
        };
        repo.objects.refresh();
        merged
    }

    fn encode(&self) -> String {
        let (kind, content_only) = match self.way {
            Way::Merge => ("merge", false),
            Way::Revert { content_only } => ("revert", content_only),
        };
        let last = if content_only { "content-only yes\n" } else { "" };
        format!("{FIRST_LINE}\nkind {kind}\nhead {}\nother {}\n{last}", self.head, self.other)
    }

    pub(super) fn decode(text: &str) -> Option<Self> {
        let oid = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
            Oid::from_hex(line.as_bytes()).ok()
        };
        let (head, other) = (oid("head")?, oid("other")?);
        let ways = [Way::Merge, Way::Revert { content_only: false }, Way::Revert { content_only: true }];
        ways.into_iter().map(|way| Self { way, head, other }).find(|joining| joining.encode() == text)
    }
}

/// A merge whose conflicts a person settles.
#[derive(Debug)]
pub struct Unsettled {
    /// What is joined.
    pub joining: Joining,
    /// What came of it.
    pub merged: MergedTree,
    files: PathBuf,
}

impl Unsettled {
    /// Lays the conflicts out, instead of those of an earlier merge.
    pub fn begin(repo: &Repo, joining: Joining, merged: MergedTree) -> Result<Self> {
        for Conflict { path, ours, theirs } in &merged.conflicts {
            let is_file = |side: &Option<(u32, Oid)>| side.is_none_or(|(mode, _)| mode & 0o170_000 == 0o100_000);
            let is_whole = ours.is_none() || theirs.is_none() || repo.blob_in(&merged.tree, path)?.is_some();
            if !is_file(ours) || !is_file(theirs) || !is_whole {
                let message =
                    format!("'{}' is of another type on each side; merge it in a plain clone with the git you know", shown(path));
                return Err(Error::new(Kind::Conflict, message));
            }
        }
        let dir = repo.places.state.join(DIR);
        durable::remove_dir_all(&dir)?;
        let unsettled = Self { joining, merged, files: dir.join("files") };
        durable::create_private_dir(&unsettled.files)?;
        for Conflict { path, .. } in &unsettled.merged.conflicts {
            unsettled.lay(repo, path, repo.blob_in(&unsettled.merged.tree, path)?)?;
        }
        // Last, because it says that the rest is there.
        durable::publish(&dir.join("what"), joining.encode().as_bytes(), 0o600)?;
        Ok(unsettled)
    }

    /// Returns the one that was begun, if there is one.
    pub fn open(repo: &Repo) -> Result<Option<Self>> {
        let dir = repo.places.state.join(DIR);
        let what = dir.join("what");
        let Some(text) = durable::read_if_there(&what).context(|| format!("cannot read '{}'", what.display()))? else {
            return Ok(None);
        };
        let joining = std::str::from_utf8(&text).ok().and_then(Joining::decode);
        let joining = joining.ok_or_else(|| {
            Error::new(Kind::Corrupt, format!("'{}' is damaged; 'gdo merge --abort' removes it", what.display()))
        })?;
        Ok(Some(Self { joining, merged: joining.merge(repo)?, files: dir.join("files") }))
    }

    /// Gives it up.
    pub fn forget(repo: &Repo) -> Result<()> {
        durable::remove_dir_all(&repo.places.state.join(DIR))
    }

    /// Returns the directory that has the files in conflict.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// Lays our side, or theirs, of a path in conflict, to be taken as it is.
    pub fn take(&self, repo: &Repo, path: &[u8], theirs: bool) -> Result<()> {
        let conflict = self.merged.conflicts.iter().find(|conflict| conflict.path == path);
        let conflict = conflict.ok_or_else(|| Error::new(Kind::NotFound, format!("'{}' is not in conflict", shown(path))))?;
        let side = if theirs { conflict.theirs } else { conflict.ours };
        self.lay(repo, path, side.map(|(_, oid)| oid))
    }

    fn lay(&self, repo: &Repo, path: &[u8], blob: Option<Oid>) -> Result<()> {
        let file = self.file(path);
        match blob {
            Some(oid) => {
                durable::create_private_dir(file.parent().unwrap_or(&self.files))?;
                durable::publish(&file, &repo.objects.blob(&oid)?, 0o600)
            }
            None if durable::is_there(&file) => durable::remove(&file),
            None => Ok(()),
        }
    }

    fn file(&self, path: &[u8]) -> PathBuf {
        self.files.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Returns what the person made of the conflicts: each path with its mode and text, or nothing where it is gone. What is not settled is refused.
    pub fn settled(&self, repo: &Repo) -> Result<Vec<Settled>> {
        let settle = |conflict: &Conflict| -> Result<Settled> {
            let what = || format!("'{}' is not settled", self.file(&conflict.path).display());
            let Some(text) = durable::read_if_there(&self.file(&conflict.path)).context(what)? else {
                return Ok((conflict.path.clone(), None));
            };
            check(repo, conflict, &text).context(what)?;
            let mode = conflict.ours.or(conflict.theirs).map_or(crate::git::object::FILE, |(mode, _)| mode);
            Ok((conflict.path.clone(), Some((mode, text))))
        };
        self.merged.conflicts.iter().map(settle).collect()
    }
}

/// A path of a commit, with mode and text, or nothing where it is gone.
pub type Settled = (Vec<u8>, Option<(u32, Vec<u8>)>);

/// Fails if `text` is not what may stand at this path.
fn check(repo: &Repo, conflict: &Conflict, text: &[u8]) -> Result<()> {
    let refused = |message: &str| Err(Error::new(Kind::Conflict, message.to_owned()));
    let markers = [b"<<<<<<< ", b">>>>>>> "];
    let oids = [&conflict.ours, &conflict.theirs];
    let is_side = |blob: &[u8]| -> Result<bool> {
        for (_, oid) in oids.iter().filter_map(|side| side.as_ref()) {
            if repo.objects.blob(oid)? == blob {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if is_side(text)? {
        return Ok(());
    }
    if text.len() as u64 >= repo.settings.threshold || ChunkIndex::is_index(text) {
        return refused("a large file is of one side or the other; 'gdo merge --take ours|theirs' lays one there");
    }
    if text.split(|&b| b == b'\n').any(|line| markers.iter().any(|marker| line.starts_with(*marker))) {
        return refused("it still has the markers of a conflict");
    }
    match name::work_path(&conflict.path) {
        Stored::Meta(_) => DirMetadata::decode(text).map(drop),
        _ if conflict.path == attributes::PATH => Attributes::decode(text).map(drop),
        _ => Ok(()),
    }
}

/// Makes the commit that is applied next: the merged tree with what was settled, and more; durable on return.
pub fn make(repo: &Repo, lock: &Lock, tree: Oid, changes: Vec<Settled>, parents: Vec<Oid>, info: &CommitInfo) -> Result<Oid> {
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let mut tree = tree;
    if !changes.is_empty() {
        let index = repo.index_of(&tree)?;
        let mut gone: Vec<usize> =
            changes.iter().filter(|(_, new)| new.is_none()).filter_map(|(path, _)| index.lookup(path)).collect();
        gone.sort_unstable();
        let staged = |(path, new): Settled| {
            let (mode, text) = new?;
            Some(pack.blob(&text).map(|oid| Staged { path, oid, mode, stat: CachedStat::default() }))
        };
        let updates: Vec<Staged> = changes.into_iter().filter_map(staged).collect::<Result<_>>()?;
        tree = write_tree_after(NewIndex::new(&index, updates, &gone)?.files(), &pack, Some(tree))?;
    }
    let signature = Signature::new(&info.identity, info.time, info.offset);
    let message = info.message.clone().into_bytes();
    let commit = pack.commit(&CommitData { tree, parents, author: signature.clone(), committer: signature, message })?;
    let kept = pack.finish()?;
    let git = repo.git.clone().with_identity(info.identity.clone());
    repo.turn_ref(&git, (NEXT, commit), tip(repo)?, "next", lock)?;
    repo.note_refs(lock)?;
    repo.let_go(kept)?;
    Ok(commit)
}

/// Gives up what is to be applied next, or notes that it was.
pub fn remove(repo: &Repo, lock: &Lock) -> Result<()> {
    let Some(tip) = tip(repo)? else { return Ok(()) };
    repo.git.delete_ref(NEXT, tip)?;
    repo.note_refs(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_is_read_as_it_was_written_and_not_otherwise() {
        let [head, other] = [b"0123456789012345678901234567890123456789", b"9876543210987654321098765432109876543210"]
            .map(|hex| Oid::from_hex(hex).unwrap());
        for way in [Way::Merge, Way::Revert { content_only: false }, Way::Revert { content_only: true }] {
            let joining = Joining { way, head, other };
            let text = joining.encode();
            assert_eq!(Joining::decode(&text), Some(joining));
            for wrong in [text.replace("kind", "find"), text.replace("merge 1", "merge 2"), text + "\n", String::new()] {
                assert_eq!(Joining::decode(&wrong), None, "{wrong}");
            }
        }
    }
}
