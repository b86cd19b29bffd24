//! Removes what nothing refers to any more: first in git, then the chunks whose indexes are gone with it.
//!
//! A chunk lives as long as git has a chunk index that names it, whether a ref leads there or not. So git's own rules (reflogs, the grace period for
//! unreferenced objects) protect chunks too, and stock `git gc` by somebody else can only make more chunks removable, never break a file.

use super::Repo;
use super::check::for_each_index;
use super::{Places, enrolled};
use crate::error::{Context, Error, Kind, Result};
use crate::file::read;
use crate::id::ChunkId;
use crate::progress::Progress;
use crate::store::{GcOptions, GcReport};

/// Removes unreferenced objects older than `prune` (as git understands dates: `2.weeks.ago`, `now`), then unreferenced chunks.
///
/// An index that can't be read stops it before anything is removed.
pub fn gc(repo: &Repo, prune: &str, dry_run: bool, progress: &Progress) -> Result<GcReport> {
    let _lock = repo.lock()?;
    if !dry_run {
        progress.stage("cleaning up git objects", 0, 0);
        let prune = format!("--prune={prune}");
        repo.git.run(&["gc", "--quiet", "--no-cruft", &prune])?;
        repo.objects.refresh();
    }
    let others = others(repo)?;
    progress.stage("looking for live chunks", 0, 0);
    let options = GcOptions { dry_run, ..GcOptions::default() };
    repo.store.gc(
        &mut |live| {
            for other in &others {
                let marked = mark(other, live, progress);
                marked.map_err(|error| error.wrap(format!("cannot ask repository '{}'", other.places.git_dir.display())))?;
            }
            mark(repo, live, progress)
        },
        options,
        progress,
    )
}

/// Opens the other repositories that keep chunks in the same store; one that is not there stops the run.
fn others(repo: &Repo) -> Result<Vec<Repo>> {
    let own = std::path::absolute(&repo.places.git_dir)?;
    let mut others = Vec::new();
    for git_dir in enrolled::list(&repo.places.store)?.into_iter().filter(|git_dir| *git_dir != own) {
        let places = match git_dir.ends_with("etc/git-devops/repo") {
            true => Places::system(git_dir.ancestors().nth(3).expect("BUG: it ends with three components")),
            false => Places::apart(&git_dir, &git_dir),
        };
        let what = || {
            let list = repo.places.store.join("repositories");
            let (git_dir, list) = (git_dir.display(), list.display());
            format!("cannot ask '{git_dir}' which chunks it needs; if it is gone for good, take it out of '{list}'")
        };
        others.push(Repo::open(places).context(what)?);
    }
    Ok(others)
}

/// Names every chunk that an index in `repo` refers to.
fn mark(repo: &Repo, live: &mut dyn FnMut(ChunkId) -> Result<()>, progress: &Progress) -> Result<()> {
    for_each_index(repo, &mut |oid, index| {
        let index = index.map_err(|error| error.wrap(format!("cannot tell which chunks are live: object {oid}")))?;
        progress.add(1, 0);
        let walked = read::for_each_id(&repo.store, &index, &mut |id| live(id));
        walked.map_err(|error| match error.kind() {
            Kind::NotFound => Error::new(Kind::Corrupt, format!("cannot tell which chunks are live: {error:#}; see 'gdo check'")),
            _ => error,
        })
    })
}
