//! Files are brought back to what was applied, and what lay there is kept: `gdo fix`, `gdo fix --undo`, and what a convergence overwrites.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::handlers::Tell;
use super::plan::{Step, Stop, parents};
use super::{Host, dpkg};
use crate::error::{Error, Kind, Result};
use crate::git::{Index, Oid};
use crate::progress::Progress;
use crate::repo::attributes::{Attributes, Ownership};
use crate::repo::exclude::{ExcludeOptions, Excludes};
use crate::repo::preimage::{self, is_below};
use crate::repo::restore::{AsStored, ExchangeOptions, Laying, exchange};
use crate::repo::scan::{Change, ScanOptions, Scope, Sink, What, scan, shown};
use crate::repo::seen::Seen;
use crate::repo::stage::CommitInfo;
use crate::repo::{Repo, status, wip};

/// Where pre-images are kept: a ref for each, named after the line of the log that tells of it.
pub const UNDO: &str = "refs/devops/undo/";
/// So many are kept in any case,
const MOST: usize = 50;
/// and all that are younger than this, in seconds.
const YOUNG: i64 = 30 * 24 * 3600;

/// What a fix did, or would do.
#[derive(Debug, Default)]
pub struct Fixed {
    /// What differed and is, or would be, as it was applied.
    pub changes: Vec<Change>,
    /// What cannot be made so, and why.
    pub left: Vec<(Vec<u8>, String)>,
    /// The number under which what lay there is kept.
    pub undo: Option<u64>,
}

/// What is laid down over what is there.
pub(super) struct Over {
    /// The commit that it is of.
    pub commit: Oid,
    /// The tree that says what is owned, and the one that says what is to be there.
    pub trees: (Oid, Oid),
    /// The paths, each by itself.
    pub paths: BTreeSet<Vec<u8>>,
    /// What is to follow.
    pub handlers: BTreeSet<String>,
}

impl Host<'_> {
    /// Brings what is owned at or below `paths` (all of it, if there are none) back to what was applied last, and keeps what lay there.
    pub fn fix(&mut self, paths: &[Vec<u8>], dry_run: bool, progress: &Progress, tell: Tell<'_>) -> Step<Fixed> {
        wip::must_not_be(self.repo)?;
        let commit = self.is_at()?;
        let tree = self.repo.objects.commit(&commit)?.tree;
        let index = index_of(self.repo, tree)?;
        if let Some(path) = paths.iter().find(|path| !path.is_empty() && !self.repo.is_stored(&index, path)) {
            return Err(Error::new(Kind::NotFound, format!("'{}' is not owned", shown(path))).into());
        }
        let attributes = self.repo.attributes(&index)?;
        let mut fixed = Fixed { changes: differing(self.repo, &index, &attributes, progress)?.changes, ..Fixed::default() };
        fixed.changes.retain(|change| change.what != What::Added && (paths.is_empty() || is_below(paths, &change.path)));
        let look = blocked(self.repo, (tree, tree), &fixed.changes)?;
        fixed.left = look.blocked;
        fixed.changes.retain(|change| !fixed.left.iter().any(|(path, _)| *path == change.path));
        if dry_run || fixed.changes.is_empty() {
            return Ok(fixed);
        }
        self.must_be_alone()?;
        let paths: BTreeSet<Vec<u8>> = fixed.changes.iter().map(|change| change.path.clone()).collect();
        let handlers = handlers_of(self.repo, tree, &attributes, &paths)?;
        fixed.undo = Some(self.keep(&Over { commit, trees: (tree, tree), paths: paths.clone(), handlers }, "fix", progress)?);
        self.lay((tree, tree), &paths, &self.laying(), &look.seen, progress)?;
        status::refresh(self.repo, progress)?;
        self.run_handlers(&[tree], tell)?;
        Ok(fixed)
    }

    /// Lays down again what lay there before the fix or the convergence number `n`, or the last one; what lies there now is kept in turn.
    pub fn undo_fix(&mut self, n: Option<u64>, progress: &Progress, tell: Tell<'_>) -> Step<Fixed> {
        wip::must_not_be(self.repo)?;
        let all = pre_images(self.repo)?;
        let found = n.map_or_else(|| all.last(), |n| all.iter().find(|(number, _)| *number == n));
        let (n, commit) = *found.ok_or_else(|| {
            let numbers: Vec<String> = all.iter().map(|(number, _)| number.to_string()).collect();
            let kept = if numbers.is_empty() { "nothing is".to_owned() } else { format!("kept are {}", numbers.join(", ")) };
            Error::new(Kind::NotFound, format!("nothing is kept under this number; {kept}"))
        })?;
        let kept = preimage::read(self.repo, commit)?;
        let owned = self.repo.objects.commit(&kept.over)?.tree;
        let attributes = self.repo.attributes_of(&owned)?;
        let trees = (owned, kept.tree);
        let changes: Vec<Change> = kept.paths.into_iter().map(|path| Change { path, what: What::Content }).collect();
        let look = blocked(self.repo, trees, &changes)?;
        let mut fixed = Fixed { left: look.blocked, changes, undo: None };
        fixed.changes.retain(|change| !fixed.left.iter().any(|(path, _)| *path == change.path));
        let paths: BTreeSet<Vec<u8>> = fixed.changes.iter().map(|change| change.path.clone()).collect();
        if paths.is_empty() {
            return Ok(fixed);
        }
        self.must_be_alone()?;
        let handlers = handlers_of(self.repo, owned, &attributes, &paths)?;
        let over = Over { commit: kept.over, trees, paths: paths.clone(), handlers };
        fixed.undo = Some(self.keep(&over, &format!("undo {n}"), progress)?);
        self.lay(trees, &paths, &AsStored, &look.seen, progress)?;
        let head = self.repo.head()?.map(|head| self.repo.objects.commit(&head).map(|data| data.tree)).transpose()?;
        self.run_handlers(&[head.unwrap_or(owned)], tell)?;
        Ok(fixed)
    }

    /// Returns the commit whose files were laid down last.
    fn is_at(&self) -> Result<Oid> {
        if self.history.begun.is_none() {
            let message = "this host follows no type, so nothing was applied here; 'gdo restore' brings back what is staged";
            return Err(Error::new(Kind::Usage, message));
        }
        let pending = self.history.pending.as_ref().filter(|pending| pending.has_content).map(|pending| pending.commit);
        let head = pending.map_or_else(|| self.repo.head(), |commit| Ok(Some(commit)))?;
        head.ok_or_else(|| Error::new(Kind::NotFound, "nothing was applied here yet; 'gdo up' or 'gdo converge' does"))
    }

    /// Keeps what lies at the paths, then writes down what is laid over it and what has to follow; returns the number.
    pub(super) fn keep(&mut self, over: &Over, what: &str, progress: &Progress) -> Result<u64> {
        let sequence = self.log.next_sequence();
        let (old, new) = (self.repo.attributes_of(&over.trees.0)?, self.repo.attributes_of(&over.trees.1)?);
        // What a secret became, or what is to be one, is nowhere in git, also where somebody changed it.
        let is_secret = |attributes: &Attributes, path: &[u8]| attributes.policy(path).ownership == Ownership::Secret;
        let is_kept = |path: &&Vec<u8>| !is_secret(&old, path) && !is_secret(&new, path);
        let paths: BTreeSet<Vec<u8>> = over.paths.iter().filter(is_kept).cloned().collect();
        if !paths.is_empty() {
            let info = CommitInfo {
                identity: self.call.identity.clone(),
                time: self.call.now as i64,
                offset: self.call.offset,
                message: format!("{what}: what lay there before"),
            };
            preimage::keep(self.repo, &self.lock, &format!("{UNDO}{sequence}"), over.commit, &paths, &info, progress)?;
        }
        let handlers: Vec<&str> = over.handlers.iter().map(String::as_str).collect();
        let (n, commit, by) = (over.paths.len().to_string(), over.commit.to_string(), self.call.by.clone());
        let fields = [("what", what), ("commit", &commit), ("paths", &n), ("handlers", &handlers.join(",")), ("by", &by)];
        let noted = self.note("fixed", &fields)?;
        self.forget_old()?;
        Ok(noted)
    }

    /// Removes pre-images that are neither new nor among the last ones.
    fn forget_old(&self) -> Result<()> {
        let all = pre_images(self.repo)?;
        let n_older = all.len().saturating_sub(MOST);
        let mut has_gone = false;
        for (number, commit) in &all[..n_older] {
            if self.repo.objects.commit(commit)?.committer.seconds + YOUNG < self.call.now as i64 {
                self.repo.git.delete_ref(&format!("{UNDO}{number}"), *commit)?;
                has_gone = true;
            }
        }
        if has_gone { self.repo.note_refs(&self.lock) } else { Ok(()) }
    }

    /// Lays `paths` down, all or none, over what was `seen` there, and gives the directories around them their times.
    pub(super) fn lay(
        &self,
        trees: (Oid, Oid),
        paths: &BTreeSet<Vec<u8>>,
        laying: &dyn Laying,
        seen: &Seen,
        progress: &Progress,
    ) -> Step<()> {
        let paths: Vec<Vec<u8>> = paths.iter().cloned().collect();
        let paths = [parents(self.repo, trees, &paths)?, paths].concat();
        let how = ExchangeOptions { allow_type_change: true, seen: Some(seen), ..ExchangeOptions::default() };
        let _held = dpkg::hold(self.repo, progress)?;
        exchange(self.repo, trees, &paths, laying, how, progress).map(drop).map_err(Stop::Error)
    }
}

/// What a work tree has, compared with a tree.
#[derive(Debug, Default)]
pub(super) struct Differing {
    /// What differs, and what is there and not owned in directories that are owned as a whole.
    pub changes: Vec<Change>,
    /// Whether something could not be looked at.
    pub is_partial: bool,
}

/// Compares the work tree with the tree that `index` holds; what is made from other files only has to be there.
pub(super) fn differing(repo: &Repo, index: &Index, attributes: &Attributes, progress: &Progress) -> Result<Differing> {
    let excludes = Excludes::new(ExcludeOptions::default(), &repo.places.git_dir.join("info/exclude"))?;
    let options = ScanOptions { scope: Scope::Owned, excludes, one_file_system: false, by_reference: false };
    let found = scan(repo, index, &options, Sink::Compare, progress)?;
    let mut changes = found.changes.to_vec();
    let is_compared = |what: What| matches!(what, What::Content | What::Metadata);
    changes.retain(|change| !(is_compared(change.what) && attributes.policy(&change.path).is_derived));
    Ok(Differing { changes, is_partial: found.is_partial })
}

/// Returns an index that holds `tree`: the one that is there, which knows the times of files, if that does.
pub(super) fn index_of(repo: &Repo, tree: Oid) -> Result<Arc<Index>> {
    let here = repo.index()?;
    // What is only announced is in no tree.
    let is_plain = !here.is_doubted() && here.iter().all(|entry| !entry.intent_to_add);
    if is_plain && here.tree() == Some(tree) {
        return Ok(here);
    }
    let wanted = repo.index_of(&tree)?;
    let ids = |index: &Index| index.iter().map(|entry| (entry.path.to_vec(), entry.oid, entry.mode)).collect::<Vec<_>>();
    Ok(if is_plain && ids(&here) == ids(&wanted) { here } else { Arc::new(wanted) })
}

/// What a look at what is to be laid over showed.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// What cannot be, and why.
    pub blocked: Vec<(Vec<u8>, String)>,
    /// What lay there.
    pub seen: Seen,
}

/// Looks what cannot be made as the second tree says; changes nothing.
pub(super) fn blocked(repo: &Repo, trees: (Oid, Oid), changes: &[Change]) -> Result<Look> {
    let paths: Vec<Vec<u8>> = changes.iter().map(|change| change.path.clone()).collect();
    let how = ExchangeOptions { dry_run: true, allow_type_change: true, ..ExchangeOptions::default() };
    let progress = Progress::default();
    let seen = exchange(repo, trees, &paths, &*repo.laying, how, &progress)?.seen;
    let warnings = progress.take_warnings().into_iter();
    let blocked =
        warnings.filter(|warning| paths.contains(&warning.path)).map(|warning| (warning.path, warning.message)).collect();
    Ok(Look { blocked, seen })
}

/// Returns the handlers that changes of `paths` ask for, as far as the tree has them.
pub(super) fn handlers_of(
    repo: &Repo,
    tree: Oid,
    attributes: &Attributes,
    paths: &BTreeSet<Vec<u8>>,
) -> Result<BTreeSet<String>> {
    let known = super::plan::handlers(repo, tree)?;
    let all = paths.iter().flat_map(|path| attributes.policy(path).handlers);
    Ok(all.filter(|name| known.contains_key(name)).collect())
}

/// Returns the pre-images that are kept, with their numbers, ascending.
pub fn pre_images(repo: &Repo) -> Result<Vec<(u64, Oid)>> {
    let listed = repo.git.run(&["for-each-ref", "--format=%(objectname) %(refname)", UNDO])?;
    let one = |line: &str| {
        let (oid, name) = line.split_once(' ')?;
        Some((name.strip_prefix(UNDO)?.parse().ok()?, Oid::from_hex(oid.as_bytes()).ok()?))
    };
    let mut all: Vec<(u64, Oid)> = String::from_utf8_lossy(&listed).lines().filter_map(one).collect();
    all.sort_unstable();
    Ok(all)
}
