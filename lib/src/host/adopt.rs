//! Takes over a machine that was not built by us: looks what it has of a commit, and lets its history begin there.

use std::collections::{BTreeMap, BTreeSet};

use super::dpkg::{Owner, Packages};
use super::history::Model;
use super::preimage::differing;
use super::{Host, machine};
use crate::error::{Error, Kind, Result};
use crate::git::name::{self, Stored};
use crate::git::{Index, NewIndex, Oid};
use crate::progress::Progress;
use crate::repo::scan::{Change, What, file_path};
use crate::repo::{Repo, wip};

/// What a machine has of a commit.
#[derive(Debug)]
pub struct Adoption {
    /// The commit.
    pub commit: Oid,
    /// Files and directories that it has.
    pub n_owned: usize,
    /// Those that differ here.
    pub changes: Vec<Change>,
    /// Whose those are that dpkg knows.
    pub owners: BTreeMap<Vec<u8>, Owner>,
    /// What is there and not owned, in directories that are owned as a whole.
    pub n_unowned: usize,
    /// Whether something could not be looked at.
    pub is_partial: bool,
}

impl Adoption {
    /// Returns how many differ in this way.
    pub fn count(&self, what: What) -> usize {
        self.changes.iter().filter(|change| change.what == what).count()
    }
}

/// Compares the work tree with `commit`; writes nothing at all.
pub fn compare(repo: &Repo, commit: Oid, progress: &Progress) -> Result<Adoption> {
    let index = repo.index_of(&repo.objects.commit(&commit)?.tree)?;
    let attributes = repo.attributes(&index)?;
    let found = differing(repo, &index, &attributes, progress)?;
    let (unowned, changes): (Vec<Change>, Vec<Change>) = found.changes.into_iter().partition(|change| change.what == What::Added);
    let paths: BTreeSet<&[u8]> = changes.iter().map(|change| &*change.path).collect();
    let packages = Packages::of(repo)?.filter(|_| !paths.is_empty());
    let owners = packages.map(|packages| packages.owners(repo, &paths)).transpose()?.unwrap_or_default();
    Ok(Adoption { commit, n_owned: n_owned(&index), changes, owners, n_unowned: unowned.len(), is_partial: found.is_partial })
}

/// Returns how many files and directories an index has.
pub fn n_owned(index: &Index) -> usize {
    let is_owned = |path: &[u8]| file_path(path).is_some() || matches!(name::work_path(path), Stored::Meta(_));
    index.iter().filter(|entry| is_owned(entry.path)).count()
}

impl Host<'_> {
    /// Lets this host follow `kind` by convergence from `commit` on: HEAD and index say so, no file is touched. What differs is drift from then on.
    pub fn adopt(&mut self, kind: &str, commit: Oid, progress: &Progress) -> Result<()> {
        wip::must_not_be(self.repo)?;
        if self.history.pending.is_some() || self.history.backing.is_some() {
            return Err(Error::new(Kind::Halted, "a commit is applied by half here; 'gdo up' or 'gdo rollback' ends that first"));
        }
        let here = self.repo.index()?;
        let branch = format!("refs/heads/{kind}");
        let at = self.repo.git.read_ref(&branch)?;
        self.must_not_lose(&branch, at, commit)?;
        let tree = self.repo.objects.commit(&commit)?.tree;
        let (machine, by, over) = (machine(&self.repo.places)?, self.call.by.clone(), commit.to_string());
        let fields = [("model", Model::Convergent.name()), ("type", kind), ("machine", &machine), ("over", &over), ("by", &by)];
        self.note("begin", &fields)?;
        self.owe_nothing_unknown(tree)?;
        let git = self.repo.git.clone().with_identity(self.call.identity.clone());
        if at != Some(commit) {
            self.repo.turn_ref(&git, (&branch, commit), at, "adopt", &self.lock)?;
        }
        git.stand_on(&branch)?;
        self.repo.note_refs(&self.lock)?;
        self.repo.write_index(&NewIndex::of(&self.repo.index_of(&tree)?).in_place_of(&here))?;
        crate::repo::status::refresh(self.repo, progress)
    }
}
