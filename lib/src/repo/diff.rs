//! Makes two git trees out of what a person wants to compare, so that git itself can show the difference.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::AtomicBool;

use super::Repo;
use super::exclude::{ExcludeOptions, Excludes};
use super::scan::{ScanOptions, Scope, Sink, scan};
use crate::error::Result;
use crate::git::pack::PackWriter;
use crate::git::{Index, NewIndex, Oid, name, write_tree};
use crate::progress::Progress;

/// What to compare.
pub enum Side<'a> {
    /// A commit.
    Revision(&'a str),
    /// What is staged.
    Index,
    /// The work tree as it is now.
    WorkTree,
}

/// Two trees, ready to compare.
pub struct Prepared {
    /// The tree of the first side.
    pub a: Oid,
    /// The tree of the second side.
    pub b: Oid,
    /// Whether something in the work tree could not be read; the warnings tell what.
    pub is_partial: bool,
}

/// Returns the trees of two sides.
///
/// For the work tree, small files that changed and new trees are written into the repository, where the next `gc` removes them; chunks of large files
/// are not stored, only their indexes.
pub fn prepare(repo: &Repo, a: &Side<'_>, b: &Side<'_>, progress: &Progress) -> Result<Prepared> {
    let (a, is_a_partial) = tree_of(repo, a, progress)?;
    let (b, is_b_partial) = tree_of(repo, b, progress)?;
    Ok(Prepared { a, b, is_partial: is_a_partial || is_b_partial })
}

/// Returns the tree of one side, and whether that is not all of it.
fn tree_of(repo: &Repo, side: &Side<'_>, progress: &Progress) -> Result<(Oid, bool)> {
    match side {
        Side::Revision(rev) => Ok((repo.tree_of(rev)?, false)),
        Side::Index => Ok((repo.source_tree(None)?, false)),
        Side::WorkTree => repo.with_index(|index| work_tree(repo, index, progress)),
    }
}

fn work_tree(repo: &Repo, index: &Index, progress: &Progress) -> Result<(Oid, bool)> {
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let excludes = Excludes::new(ExcludeOptions::default(), &repo.places.git_dir.join("info/exclude"))?;
    let options = ScanOptions { scope: Scope::Owned, excludes, one_file_system: false, by_reference: false };
    let has_failed = AtomicBool::new(false);
    let sink = Sink::Preview { pack: &pack, has_failed: &has_failed };
    let found = scan(repo, index, &options, sink, progress)?;
    let tree = write_tree(NewIndex::new(index, found.updates, &found.gone)?.files(), &pack)?;
    super::publish_for_a_look(pack)?;
    Ok((tree, found.is_partial))
}

/// Returns the paths in a commit that make up the given paths of the work tree: content and metadata.
pub fn stored_paths(paths: &[Vec<u8>]) -> Vec<OsString> {
    let mut stored = Vec::new();
    for path in paths.iter().filter(|path| !path.is_empty()) {
        stored.push(name::stored_path(path).into_owned());
        stored.push(name::alt_path(path));
        stored.push(name::meta_dir(path));
        // A file's metadata stands with that of its neighbours.
        stored.push(name::meta_path(super::scan::split(path).0));
    }
    stored.into_iter().map(OsString::from_vec).collect()
}
