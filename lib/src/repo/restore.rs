//! Writes stored files back: each whole and right before it gets its name, what is already right left alone.
//!
//! Content goes into a temporary file beside its target, then owner, mode, attributes and times; a batch of those is synced at once and only then
//! renamed. Hard links follow when all files are there, directories get their metadata last, deepest first, inode flags after that.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use super::attributes::{Ownership, Policy};
use super::guard;
use super::jobs::Jobs;
use super::lifted::Lifted;
use super::pathset::PathSet;
use super::scan::{Change, What, shown, split};
use super::seen::Seen;
use super::status::compare_work_trees;
use super::tree::{Item, StoredDir};
use super::{Attributes, Repo};
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::git::{Oid, name};
use crate::metadata::{self, Metadata, Names};
use crate::progress::Progress;
use crate::safepath::{self, Dir, FileKind, Stat};
use crate::store::Referenced;

use batch::{Batch, batch_dirs};
use links::Link;

mod batch;
mod entry;
mod links;
mod walk;

/// What to restore and how.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Paths to restore with all below them, relative to the work tree; empty for everything.
    pub paths: Vec<Vec<u8>>,
    /// Change nothing, only tell what would be done.
    pub dry_run: bool,
    /// Take recorded numbers of owners and groups, whatever the names are here.
    pub numeric_ids: bool,
    /// Let a directory take the place of a symlink, and something else that of a top-level directory, on a system.
    pub allow_type_change: bool,
}

impl RestoreOptions {
    pub(super) fn selected(&self) -> PathSet {
        if self.paths.is_empty() { PathSet::new(&[Vec::new()]) } else { PathSet::new(&self.paths) }
    }
}

/// What others have to say about a file before it gets its name.
pub trait Laying: Sync {
    /// Returns what the file at `path`, which has this ownership, is to hold in the place of the bytes that are `stored`; `None` if just these. Only
    /// small files are asked about.
    fn content(&self, path: &[u8], ownership: Ownership, stored: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Says whether the file at `path` is to hold the bytes that are stored, whatever these are.
    fn is_as_stored(&self, _path: &[u8], ownership: Ownership) -> bool {
        !matches!(ownership, Ownership::Env | Ownership::Secret)
    }

    /// Returns the check that the file at `path` has to pass where its attributes demand none.
    fn check(&self, _path: &[u8]) -> Option<String> {
        None
    }

    /// Fails unless the file that lies complete in `dir` as `temp` may become the one at `path`, for which the attributes of the source demand that
    /// `command` succeeds.
    fn validate(&self, path: &[u8], command: &str, dir: &Dir, temp: &[u8]) -> Result<()>;
}

/// Every file as it is stored.
pub struct AsStored;

impl Laying for AsStored {
    fn content(&self, _path: &[u8], _ownership: Ownership, _stored: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn validate(&self, _path: &[u8], _command: &str, _dir: &Dir, _temp: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// How an exchange goes about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExchangeOptions<'a> {
    /// Change nothing, only tell what would be done.
    pub dry_run: bool,
    /// A file that has only another time than recorded counts as right.
    pub ignores_times: bool,
    /// See [`RestoreOptions::allow_type_change`].
    pub allow_type_change: bool,
    /// What lay there when it was decided that this is done; what is something else by now is not touched.
    pub seen: Option<&'a Seen>,
}

/// One step that a restore does, or would do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// The path, relative to the target.
    pub path: Vec<u8>,
    /// What is done there.
    pub action: Action,
}

/// What a restore does with one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Make what was not there.
    Create,
    /// Put something else in the place of what is there.
    Replace,
    /// Set only metadata.
    Metadata,
    /// Remove what is owned but not in the source.
    Remove,
}

/// What a restore did.
#[derive(Debug, Default)]
pub struct Restored {
    /// What was changed, sorted by path.
    pub steps: Vec<Step>,
    /// Files, directories and nodes that were looked at.
    pub n_seen: u64,
    /// Bytes of content written.
    pub n_bytes: u64,
    /// Whether something could not be restored as it was stored; the warnings tell what.
    pub is_partial: bool,
    /// Whether stored data turned out damaged.
    pub is_damaged: bool,
    /// Whether some of the source was refused as something that nobody honest writes; the warnings name the [`Reason`].
    pub is_refused: bool,
    /// What an exchange found at the paths that it looked at.
    pub seen: Seen,
}

/// Writes what the git tree `tree` stands for below `target`.
///
/// What is there and not in `tree` stays. Whatever could not be done is in the warnings of `progress`. Without a `target`, which only a dry run can be,
/// it tells what would be done in a new one.
pub fn restore(repo: &Repo, tree: Oid, target: Option<&Dir>, options: &RestoreOptions, progress: &Progress) -> Result<Restored> {
    guard::admit(repo, tree, target, options)?;
    replace(repo, tree, target, Manner::of(options, &*repo.laying), &Removal::default(), progress)
}

/// How [`replace`] goes about it.
struct Manner<'a> {
    options: &'a RestoreOptions,
    selected: PathSet,
    laying: &'a dyn Laying,
    /// Nothing gets its name before everything is complete; the first thing that cannot be done ends it.
    is_whole: bool,
    ignores_times: bool,
    /// What was seen so far, of an exchange: nothing else is replaced. `None` if all may be.
    seen: Option<Mutex<Seen>>,
}

impl<'a> Manner<'a> {
    fn of(options: &'a RestoreOptions, laying: &'a dyn Laying) -> Self {
        Self { options, selected: options.selected(), laying, is_whole: false, ignores_times: false, seen: None }
    }
}

/// Restores `tree`, and removes what is owned and not in it: in the midst, so that directories get their times when their names are settled.
fn replace(
    repo: &Repo,
    tree: Oid,
    target: Option<&Dir>,
    manner: Manner<'_>,
    removal: &Removal,
    progress: &Progress,
) -> Result<Restored> {
    let root = StoredDir::root(repo, tree)?;
    let is_dry = manner.options.dry_run;
    let run = Run {
        repo,
        target,
        attributes: repo.attributes_of(&tree)?,
        progress,
        names: names_for(target, &root, repo, manner.options)?,
        manner,
        ours: repo.places.identities(),
        target_dev: target.map(Dir::stat_self).transpose()?.map(|stat| stat.dev),
        jobs: Jobs::default(),
        complete: Mutex::default(),
        restored: Mutex::default(),
        links: Mutex::default(),
        linked: Mutex::default(),
        has_failed: Mutex::default(),
        failed: Mutex::default(),
        referenced: repo.chunks.local().references().files()?,
        is_going: removal.before.iter().cloned().collect(),
        lifted: target.filter(|_| !is_dry).map(|target| Lifted::open(&repo.places.state, target)).transpose()?,
        batch_dirs: batch_dirs(walk::n_workers(repo.settings.n_threads)),
        filesystems: Mutex::default(),
        dirs: Mutex::default(),
    };
    if let Some(path) = run.missing_path(root.clone())? {
        return Err(Error::new(Kind::NotFound, format!("'{}' is not in the source", shown(path))));
    }
    // Whatever happened, no directory stays open to changes that was not.
    let done = run.all(root, removal);
    let closed = run.close_dirs();
    done.and(closed)?;
    if !is_dry {
        run.sync()?;
    }
    let mut restored = run.restored.into_inner().expect(POISONED);
    restored.steps.sort();
    restored.seen = run.manner.seen.map(|seen| seen.into_inner().expect(POISONED)).unwrap_or_default();
    Ok(restored)
}

/// Writes what `rev` holds (without one: what is staged) into the work tree, and removes what is owned and not in it.
pub fn into_work_tree(repo: &Repo, rev: Option<&str>, options: &RestoreOptions, progress: &Progress) -> Result<Restored> {
    let _lock = repo.lock()?;
    let root = Dir::open(&repo.places.work_tree).context(|| format!("cannot open '{}'", repo.places.work_tree.display()))?;
    let source = repo.source_tree(rev)?;
    // Before git sees the trees, too.
    guard::admit(repo, source, Some(&root), options)?;
    let owned = repo.source_tree(None)?;
    let changes = changes_between(repo, owned, source)?;
    let index = repo.index()?;
    let was_dir = |path: &[u8]| Ok(index.lookup(&name::meta_path(path)).is_some());
    let removal = Removal::new(&root, &was_dir, changes, &options.selected())?;
    replace(repo, source, Some(&root), Manner::of(options, &*repo.laying), &removal, progress)
}

/// Makes each of `paths`, by itself, what the tree `to` says, where `from` says what is owned: all of them or, if anything is in the way, none.
///
/// Every file is complete under a temporary name before the first one gets its own. Whoever is killed in between leaves each path old or new, and
/// repeats the call. What somebody changed since it was seen stays, and ends it with an error of the kind [`Kind::Conflict`]. The caller holds the lock.
pub fn exchange(
    repo: &Repo,
    (from, to): (Oid, Oid),
    paths: &[Vec<u8>],
    laying: &dyn Laying,
    how: ExchangeOptions<'_>,
    progress: &Progress,
) -> Result<Restored> {
    let root = Dir::open(&repo.places.work_tree).context(|| format!("cannot open '{}'", repo.places.work_tree.display()))?;
    let selected = PathSet::exactly(paths);
    let options = RestoreOptions { dry_run: how.dry_run, allow_type_change: how.allow_type_change, ..RestoreOptions::default() };
    guard::admit_selected(repo, to, Some(&root), &options, &selected)?;
    let changes = changes_between(repo, from, to)?;
    let owned = StoredDir::root(repo, from)?;
    let was_dir = |path: &[u8]| Ok(owned.clone().descend(repo, path)?.is_some());
    let removal = Removal::new(&root, &was_dir, changes, &selected)?;
    let seen = Some(Mutex::new(how.seen.cloned().unwrap_or_default()));
    let manner = Manner { options: &options, selected, laying, is_whole: !how.dry_run, ignores_times: how.ignores_times, seen };
    replace(repo, to, Some(&root), manner, &removal, progress)
}

/// Returns what differs between two trees, without what goes from the second one but is the host's by now.
fn changes_between(repo: &Repo, from: Oid, to: Oid) -> Result<Vec<Change>> {
    if from == to {
        return Ok(Vec::new());
    }
    let attributes = [repo.attributes_of(&from)?, repo.attributes_of(&to)?];
    let is_hosts =
        |path: &[u8]| attributes.iter().any(|all| matches!(all.policy(path).ownership, Ownership::Local | Ownership::Seed));
    let mut changes = compare_work_trees(repo, from, to)?;
    changes.retain(|change| change.what != What::Deleted || !is_hosts(&change.path));
    Ok(changes)
}

/// What is owned and not in the source, in the order in which it can be removed.
#[derive(Default)]
struct Removal {
    /// What stands in the way: a directory, with all below it, where the source has a file.
    before: Vec<Vec<u8>>,
    /// All else.
    after: Vec<Vec<u8>>,
}

impl Removal {
    /// Sorts what is gone; `was_dir` says of what is owned whether it was a directory.
    fn new(root: &Dir, was_dir: &dyn Fn(&[u8]) -> Result<bool>, changes: Vec<Change>, selected: &PathSet) -> Result<Self> {
        let paths_of = |is_meant: fn(What) -> bool| -> HashSet<Vec<u8>> {
            changes.iter().filter(|change| is_meant(change.what)).map(|change| change.path.clone()).collect()
        };
        let added = paths_of(|what| what == What::Added);
        let there = paths_of(|what| what != What::Deleted);
        let gone = changes.into_iter().rev().filter(|change| change.what == What::Deleted).map(|change| change.path);
        let is_dir = |path: &[u8]| root.open_path(path).is_ok();
        let mut removal = Self::default();
        // The deepest first.
        for path in gone.filter(|path| selected.covers(path)) {
            let mut above = std::iter::successors(Some(split(&path).0), |dir| (!dir.is_empty()).then(|| split(dir).0));
            if !is_dir(&path) && was_dir(&path)? {
                continue; // what took the place of a directory is not ours
            }
            match there.contains(&path) {
                true if is_dir(&path) => removal.before.push(path),
                true => (), // the source has something else there, which takes its place
                false if above.any(|dir| added.contains(dir)) => removal.before.push(path),
                false => removal.after.push(path),
            }
        }
        Ok(removal)
    }
}

/// Returns the entry without its time, where that is not kept.
fn timed(mut item: Item, policy: &Policy) -> Item {
    item.metadata.mtime = item.metadata.mtime.filter(|_| policy.has_times);
    item
}

fn is_there(root: &Dir, path: &[u8]) -> bool {
    let (parent, name) = split(path);
    !path.is_empty() && root.open_path(parent).and_then(|dir| dir.stat(name)).is_ok_and(|found| found.is_some())
}

/// Returns the names of users and groups that count in `target`: its own, if it has any; the bare numbers, if it is about to get its own; else this
/// machine's.
fn names_for(target: Option<&Dir>, source: &StoredDir, repo: &Repo, options: &RestoreOptions) -> Result<Names> {
    let brings_its_own = || -> Result<bool> {
        let etc = source.clone().descend(repo, b"etc")?;
        Ok(etc.map(|etc| etc.list(repo)).transpose()?.is_some_and(|listing| listing.files.contains_key(&b"passwd"[..])))
    };
    if options.numeric_ids {
        Ok(Names::numeric())
    } else if let Some(target) = target.filter(|target| is_there(target, b"etc/passwd")) {
        Names::of_dir(target)
    } else if brings_its_own()? {
        Ok(Names::numeric())
    } else {
        Names::read(std::path::Path::new("/"))
    }
}

struct Run<'a> {
    repo: &'a Repo,
    target: Option<&'a Dir>,
    manner: Manner<'a>,
    /// Those of the source.
    attributes: Attributes,
    progress: &'a Progress,
    names: Names,
    ours: Vec<((u32, u32), u64)>,
    target_dev: Option<(u32, u32)>,
    jobs: Jobs<walk::Job>,
    /// What the threads have staged of an exchange, until all of them have.
    complete: Mutex<Batch>,
    /// What was done so far; what was seen is in the manner until the end.
    restored: Mutex<Restored>,
    /// By the path of the group's first member.
    links: Mutex<BTreeMap<Vec<u8>, Vec<Link>>>,
    /// Files that are right, but have other names on the disk, with the number of their names.
    linked: Mutex<Vec<(Link, u32)>>,
    /// Whether a sync failed.
    has_failed: Mutex<bool>,
    /// Paths that could not be restored.
    failed: Mutex<HashSet<Vec<u8>>>,
    /// Directories that are removed before anything else is done.
    is_going: HashSet<Vec<u8>>,
    /// Files that are their own store: what lies in one is kept elsewhere before it goes.
    referenced: Referenced,
    /// Directories that were opened up for this run; `None` in a dry run.
    lifted: Option<Lifted>,
    /// So many directories a batch holds open.
    batch_dirs: usize,
    /// One directory of each filesystem below the target.
    filesystems: Mutex<BTreeMap<(u32, u32), Arc<Dir>>>,
    dirs: Mutex<Vec<(Vec<u8>, Metadata)>>,
}

impl Run<'_> {
    /// Notes what is at `path`, or fails if something else was seen there.
    fn look(&self, path: &[u8], there: Option<&Stat>) -> Result<()> {
        let Some(seen) = &self.manner.seen else { return Ok(()) };
        let mut seen = seen.lock().expect(POISONED);
        seen.must_be(path, there)?;
        seen.note(path, there);
        Ok(())
    }

    /// Notes that what was at `path` went by our own doing.
    fn note_gone(&self, path: &[u8]) {
        if let Some(seen) = &self.manner.seen {
            seen.lock().expect(POISONED).note_gone(path);
        }
    }

    /// Opens a directory of the target.
    fn dir_at(&self, path: &[u8]) -> Result<Dir> {
        self.target.ok_or_else(|| Error::new(Kind::NotFound, "the target is not there"))?.open_path(path)
    }

    fn find(&self, path: &[u8]) -> Result<Option<Stat>> {
        safepath::check_path(path)?;
        let (parent, name) = split(path);
        match self.dir_at(parent) {
            Ok(dir) => dir.stat(name),
            Err(_) => Ok(None),
        }
    }

    /// Returns a path that was asked for and is not in the source.
    fn missing_path(&self, root: StoredDir) -> Result<Option<&Vec<u8>>> {
        for path in &self.manner.options.paths {
            if path.is_empty() {
                continue;
            }
            safepath::check_path(path).context(|| format!("cannot restore '{}'", shown(path)))?;
            let (parent, name) = split(path);
            let is_there = match root.clone().descend(self.repo, parent)? {
                Some(node) => {
                    let listing = node.list(self.repo)?;
                    listing.files.contains_key(name) || listing.dirs.contains_key(name)
                }
                None => false,
            };
            if !is_there {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Says whether nothing may be changed.
    fn is_dry(&self) -> bool {
        self.manner.options.dry_run
    }

    fn is_selected(&self, path: &[u8]) -> bool {
        self.manner.selected.covers(path)
    }

    fn leads_to_selected(&self, path: &[u8]) -> bool {
        self.manner.selected.leads_to(path)
    }

    fn or_warn(&self, path: &[u8], result: Result<()>) -> Result<()> {
        match result {
            Err(error)
                if self.manner.is_whole
                    || matches!(error.kind(), Kind::NoSpace | Kind::Bug)
                    || *self.has_failed.lock().expect(POISONED) =>
            {
                Err(error.wrap(format!("cannot restore '{}'", shown(path))))
            }
            Err(error) => {
                self.progress.warn(path, error.told());
                self.failed.lock().expect(POISONED).insert(path.to_vec());
                let mut restored = self.restored();
                restored.is_damaged |= error.kind() == Kind::Corrupt;
                restored.is_refused |= matches!(error.reason(), Some(Reason::Index | Reason::Meta));
                restored.is_partial = true;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn skipped(&self, path: &[u8], skipped: Vec<String>) {
        for message in skipped {
            self.progress.warn(path, message);
            self.restored().is_partial = true;
        }
    }

    fn step(&self, path: &[u8], action: Action) {
        let step = Step { path: path.to_vec(), action };
        self.restored().steps.push(step);
    }

    /// Locks what was done so far.
    fn restored(&self) -> MutexGuard<'_, Restored> {
        self.restored.lock().expect(POISONED)
    }
}

/// Takes away the inode flags that forbid to replace the regular file `name`; anything else has none.
fn clear_flags(dir: &Dir, name: &[u8]) -> Result<()> {
    match dir.stat(name)? {
        Some(stat) if stat.kind == FileKind::File => {
            let (file, stat) = dir.open_file_with_stat(name)?;
            // Where others can change names, one of its names may be that of a file which is none of theirs.
            match stat.nlink == 1 || dir.is_ours_alone()? {
                true => metadata::clear_flags(&file).map(drop),
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

const POISONED: &str = "BUG: a thread panicked while it held the lock";

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::Places;
    use super::super::exclude::{ExcludeOptions, Excludes};
    use super::super::scan::{ScanOptions, Scope};
    use super::super::stage::{CommitInfo, record};
    use super::*;
    use crate::git::Identity;

    /// Somebody edits a file, which is staged already, while the last of `n_left` files is checked.
    struct Meanwhile {
        n_left: AtomicU64,
        files: [std::path::PathBuf; 2],
    }

    impl Laying for Meanwhile {
        fn content(&self, _path: &[u8], _ownership: Ownership, _stored: &[u8]) -> Result<Option<Vec<u8>>> {
            Ok(None)
        }

        fn check(&self, _path: &[u8]) -> Option<String> {
            Some(String::new())
        }

        fn validate(&self, path: &[u8], _command: &str, _dir: &Dir, _temp: &[u8]) -> Result<()> {
            if self.n_left.fetch_sub(1, Ordering::SeqCst) == 1 {
                let other = self.files.iter().find(|file| !file.as_os_str().as_encoded_bytes().ends_with(path));
                std::fs::write(other.unwrap(), "edited meanwhile")?;
            }
            Ok(())
        }
    }

    #[test]
    fn an_exchange_is_all_or_none_whichever_thread_meets_what_is_in_the_way() {
        const N_DIRS: usize = 60;
        let temp = tempfile::tempdir().unwrap();
        let places = Places::of_directory(temp.path());
        Repo::init(&places, "main").unwrap();
        let repo = Repo::open(places).unwrap();
        let path = |n: usize| format!("{n:02}/f");
        let mut trees = [("old", 0), ("new", 1)].map(|(content, time)| {
            for n in 0..N_DIRS {
                std::fs::create_dir_all(temp.path().join(format!("{n:02}"))).unwrap();
                std::fs::write(temp.path().join(path(n)), content).unwrap();
            }
            let options = ScanOptions {
                scope: Scope::Paths(vec![Vec::new()]),
                excludes: Excludes::new(ExcludeOptions::default(), std::path::Path::new("none")).unwrap(),
                one_file_system: false,
                by_reference: false,
            };
            let identity = Identity { name: "A".into(), email: "a@b".into() };
            let info = CommitInfo { identity, time, offset: 0, message: content.into() };
            let recorded = record(&repo, &options, Some(&info), &Progress::default()).unwrap();
            repo.objects.commit(&recorded.commit.unwrap()).unwrap().tree
        });
        trees.reverse();
        let (from, to) = trees.into();
        let paths: Vec<Vec<u8>> = (0..N_DIRS).map(|n| path(n).into_bytes()).collect();
        let look = ExchangeOptions { dry_run: true, ..ExchangeOptions::default() };
        let seen = exchange(&repo, (from, to), &paths, &AsStored, look, &Progress::default()).unwrap().seen;
        let laying = Meanwhile { n_left: AtomicU64::new(N_DIRS as u64), files: [0, 1].map(|n| temp.path().join(path(n))) };
        let how = ExchangeOptions { seen: Some(&seen), ..ExchangeOptions::default() };
        let error = exchange(&repo, (from, to), &paths, &laying, how, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error:#}");
        for n in 0..N_DIRS {
            let content = std::fs::read_to_string(temp.path().join(path(n))).unwrap();
            assert!(content == "new" || n < 2 && content == "edited meanwhile", "{n}: {content}");
            assert_eq!(std::fs::read_dir(temp.path().join(format!("{n:02}"))).unwrap().count(), 1, "nothing stays beside it");
        }
    }
}
