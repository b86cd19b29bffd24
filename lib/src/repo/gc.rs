//! Removes what nothing refers to any more: first in git, then the chunks whose indexes are gone with it.
//!
//! A chunk lives as long as git has a chunk index that names it, whether a ref leads there or not. So git's own rules (reflogs, the grace period for
//! unreferenced objects) protect chunks too, and stock `git gc` by somebody else can only make more chunks removable, never break a file.

use std::path::{Path, PathBuf};

use super::check::for_each_index;
use super::holders::Own;
use super::{Places, Policy, Repo, enrolled, holders};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::file::read;
use crate::id::ChunkId;
use crate::placement::ledger::MAX_LAPSING;
use crate::progress::Progress;
use crate::store::{GcOptions, GcReport, Live};

/// What to clean up.
#[derive(Clone, Debug)]
pub struct CleanUp {
    /// Remove unreferenced objects older than this, as git understands dates: `2.weeks.ago`, `now`.
    pub prune: String,
    /// Repositories, in the words of a person, that are gone for good: their chunks are not kept any longer.
    pub forget: Vec<PathBuf>,
    /// Change nothing, only tell what would be removed.
    pub dry_run: bool,
    /// Seconds since 1970: what is [promised](crate::placement::ledger) still at this moment stays.
    pub now: u64,
}

/// What a clean-up did.
#[derive(Clone, Debug, Default)]
pub struct Cleaned {
    /// What was removed.
    pub report: GcReport,
    /// Chunks that nothing refers to, and that were promised; the promise lapses.
    pub n_lapsing: u64,
    /// When all of these may go, in seconds since 1970.
    pub due: u64,
}

/// Removes what git has no reference to, then the chunks that no repository of the store refers to and that are not promised to other hosts.
///
/// An index that can't be read, or a repository that can't be asked, stops it before a chunk is removed.
pub fn gc(repo: &Repo, what: &CleanUp, progress: &Progress) -> Result<Cleaned> {
    let lock = repo.lock()?;
    let forgotten = forgotten(repo, &what.forget)?;
    if !what.dry_run {
        enrolled::enrol(&repo.places)?;
        forgotten.iter().try_for_each(|git_dir| enrolled::forget(&repo.places.store, git_dir))?;
        progress.stage("cleaning up git objects", 0, 0);
        // It may lead away from commits that are needed: git neither reads it now, nor finds in it later what it removed.
        repo.git.remove_graph()?;
        let prune = format!("--prune={}", what.prune);
        let cleaned = repo.git.repack(&["gc", "--quiet", "--no-cruft", &prune]);
        cleaned.map_err(|error| match is_about_others(&error.to_string()) {
            true => error.with_kind(Kind::Locked).wrap("somebody else's git cleans up or packs refs; try again when it is done"),
            false => error,
        })?;
        repo.objects.refresh();
        repo.note_refs(&lock)?;
    }
    let others = others(repo, &forgotten)?;
    progress.stage("looking for live chunks", 0, 0);
    let mut live = |take: &mut dyn FnMut(ChunkId) -> Result<()>| {
        for other in &others {
            let marked = mark(other, take, progress);
            marked.map_err(|error| error.wrap(format!("cannot ask repository '{}'", other.places.git_dir.display())))?;
        }
        mark(repo, take, progress)
    };
    let max_skew = holders::terms(repo)?.max_skew;
    let mut cleaned = lapse(repo, &mut live, what, max_skew, progress)?;
    let options = GcOptions { dry_run: what.dry_run, ..GcOptions::default() };
    let mut live_or_promised = |take: &mut dyn FnMut(ChunkId) -> Result<()>| {
        // Now that nobody else can change it.
        if let Some(ledger) = holders::look(repo)? {
            repo.store.for_each_chunk(&mut |id| if ledger.is_over(&id, what.now, max_skew) { Ok(()) } else { take(id) })?;
        }
        live(take)
    };
    cleaned.report = repo.store.gc(&mut live_or_promised, options, progress)?;
    if let Some(references) = repo.chunks.local().references().store()? {
        // What is listed there lies elsewhere: a pack goes when all of it is dead.
        references.gc(&mut live, GcOptions { max_dead_ratio: 1.0, ..options }, progress)?;
    }
    if !what.dry_run {
        // No run of this repository is at work, and whatever one left is read again by the next.
        match repo.chunks.local().in_flight().clear() {
            Err(error) if error.kind() == Kind::Locked => (), // that of another repository of the store is
            other => other?,
        }
    }
    match repo.settings.policy {
        Policy::Cache(quota) if !what.dry_run => drop(repo.chunks.local().cache().shrink(quota)?),
        Policy::None if !what.dry_run => drop(repo.chunks.local().cache().shrink(0)?),
        _ => (),
    }
    Ok(cleaned)
}

/// Says whether git's gc failed because another git was at work on the same files.
fn is_about_others(said: &str) -> bool {
    let is_in_the_way = ["File exists", "No such file or directory"].iter().any(|why| said.contains(why));
    // Temporary packs of one git are what another one's prune removes.
    let is_shared = ["packed-refs", "gc.pid.lock", "/tmp_pack_", "/.tmp-"].iter().any(|file| said.contains(file));
    said.contains("gc is already running") || is_shared && is_in_the_way
}

/// Lets the promise of chunks lapse that nothing refers to.
fn lapse(repo: &Repo, live: &mut Live<'_>, what: &CleanUp, max_skew: u64, progress: &Progress) -> Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    let Some(mut own) = Own::open_if_holder(repo)?.ok().filter(|own| own.ledger.is_binding(what.now, max_skew)) else {
        return Ok(cleaned);
    };
    let mut dead = repo.store.dead(live, MAX_LAPSING, progress)?;
    dead.retain(|id| !own.ledger.is_over(id, what.now, max_skew));
    cleaned.n_lapsing = dead.len() as u64;
    cleaned.due = dead.iter().map(|id| own.ledger.promise_of(id).saturating_add(max_skew + 1)).max().unwrap_or(0);
    if !what.dry_run && !dead.is_empty() {
        own.ledger.lapse(dead.iter().copied());
        own.ledger.write_lapsing(repo.store.dir())?;
    }
    Ok(cleaned)
}

/// Returns the repositories that are to be forgotten, as they stand in the store; one that is there and keeps its chunks here is refused.
fn forgotten(repo: &Repo, dirs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let store = &repo.places.store;
    let mut forgotten = Vec::new();
    for dir in dirs {
        let git_dir = enrolled::find(store, dir)?;
        let shown = git_dir.display();
        match Repo::open(places_of(&git_dir)) {
            Ok(other) if is_same_dir(&other.places.store, store) => {
                let message = format!("'{shown}' is there and keeps its chunks in '{}'; remove it first", store.display());
                return Err(Error::new(Kind::Refused, message));
            }
            Err(error) if error.kind() != Kind::NotFound => {
                return Err(error.wrap(format!("cannot tell whether '{shown}' is gone; remove what is left of it first")));
            }
            _ => forgotten.push(git_dir),
        }
    }
    Ok(forgotten)
}

fn is_same_dir(a: &Path, b: &Path) -> bool {
    a == b || durable::real_path(a).is_ok_and(|a| durable::real_path(b).is_ok_and(|b| a == b))
}

fn places_of(git_dir: &Path) -> Places {
    match git_dir.ends_with("etc/git-devops/repo") {
        true => Places::system(git_dir.ancestors().nth(3).expect("BUG: it ends with three components")),
        false => Places::apart(git_dir, git_dir),
    }
}

/// Opens the other repositories that keep chunks in the same store, but for the `forgotten` ones; one that is not there stops the run.
fn others(repo: &Repo, forgotten: &[PathBuf]) -> Result<Vec<Repo>> {
    let own = enrolled::canonical(&repo.places.git_dir)?;
    let mut others = Vec::new();
    for git_dir in enrolled::list(&repo.places.store)? {
        if git_dir == own || forgotten.contains(&git_dir) {
            continue;
        }
        let what = || {
            let git_dir = git_dir.display();
            format!(
                "cannot ask '{git_dir}' which chunks it needs, so none is removed; mount its disk if it is on one, run 'gdo gc' in its new place if it \
                 was moved, or, if it is gone for good, say 'gdo gc --forget {git_dir}'"
            )
        };
        others.push(Repo::open(places_of(&git_dir)).context(what)?);
    }
    Ok(others)
}

/// Names every chunk that an index in `repo` refers to.
fn mark(repo: &Repo, live: &mut dyn FnMut(ChunkId) -> Result<()>, progress: &Progress) -> Result<()> {
    for_each_index(repo, &mut |oid, index| {
        let index = index.map_err(|error| error.wrap(format!("cannot tell which chunks are live: object {oid}")))?;
        progress.add(1, 0);
        match read::for_each_id(&repo.chunks, &index, &mut |id| live(id)) {
            // A list that is not here leads to chunks that nobody would know to be live.
            Err(error) if error.kind() == Kind::NotFound => {
                let what = format!("cannot tell which chunks are live: {error:#}; get it with 'gdo get', or see 'gdo check'");
                Err(Error::new(Kind::Corrupt, what))
            }
            other => other,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_git_in_the_way_is_told_from_a_failure() {
        for (said, is_about_others_) in [
            ("fatal: gc is already running on machine 'x' pid 5 (use --force if not)", true),
            ("unable to write new packed-refs: error replacing /x/packed-refs: No such file or directory", true),
            ("fatal: Unable to create '/x/packed-refs.lock': File exists.", true),
            ("Unable to create '/x/gc.pid.lock': File exists.  Another git process seems to be running", true),
            ("unable to write file /x/objects/pack/.tmp-9-pack-37e6.pack: No such file or directory", true),
            ("unable to write file /x/objects/pack/.tmp-9-pack-37e6.pack: No space left on device", false),
            ("unable to write new packed-refs: error replacing /x/packed-refs: No space left on device", false),
            ("fatal: unable to read 0123: Input/output error", false),
            ("error: /x/objects/pack: No such file or directory", false),
        ] {
            assert_eq!(is_about_others(said), is_about_others_, "{said}");
        }
    }
}
