//! Writes stored files back: each whole and right before it gets its name, what is already right left alone.
//!
//! Content goes into a temporary file beside its target, then owner, mode, attributes and times; a batch of those is synced at once and only then
//! renamed. Hard links follow when all files are there, directories get their metadata last, deepest first, inode flags after that.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::attributes::{Ownership, Policy};
use super::content::{Content, write_around};
use super::guard;
use super::lifted::Lifted;
use super::pathset::PathSet;
use super::remove::remove_file;
use super::scan::{Change, What, join, shown, split};
use super::seen::Seen;
use super::status::compare_work_trees;
use super::tree::{Item, Listing, StoredDir};
use super::{Attributes, Repo};
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::file::read;
use crate::git::{Oid, name};
use crate::metadata::{self, Flags, Metadata, Names};
use crate::progress::Progress;
use crate::safepath::{self, Dir, FileKind, Stat};
use crate::store::Referenced;

/// So many files, or so many bytes of them, are synced and renamed together by each thread.
const BATCH_FILES: usize = 4096;
const BATCH_BYTES: u64 = 256 << 20;
/// So many directories a batch holds open, or fewer where a process may not open many files.
const BATCH_DIRS: usize = 200;

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
    /// What was seen before, of an exchange: nothing else is replaced.
    seen: Option<Seen>,
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
    let Manner { options, selected, laying, is_whole, ignores_times, seen } = manner;
    let root = StoredDir::root(repo, tree)?;
    let run = Run {
        repo,
        target,
        options,
        selected,
        laying,
        is_whole,
        ignores_times,
        attributes: repo.attributes_of(&tree)?,
        progress,
        names: names_for(target, &root, repo, options)?,
        ours: repo.places.identities(),
        target_dev: target.map(Dir::stat_self).transpose()?.map(|stat| stat.dev),
        queue: Mutex::default(),
        wake: Condvar::new(),
        out: Mutex::default(),
        links: Mutex::default(),
        linked: Mutex::default(),
        failed: Mutex::default(),
        referenced: repo.chunks.local().references().files()?,
        is_going: removal.before.iter().cloned().collect(),
        lifted: target.filter(|_| !options.dry_run).map(|target| Lifted::open(&repo.places.state, target)).transpose()?,
        batch_dirs: batch_dirs(repo.settings.n_threads),
        filesystems: Mutex::default(),
        dirs: Mutex::default(),
        n_seen: AtomicU64::new(0),
        n_bytes: AtomicU64::new(0),
        is_partial: AtomicBool::new(false),
        is_damaged: AtomicBool::new(false),
        is_refused: AtomicBool::new(false),
        seen: seen.map(Mutex::new),
    };
    if let Some(path) = run.missing_path(root.clone())? {
        return Err(Error::new(Kind::NotFound, format!("'{}' is not in the source", shown(path))));
    }
    // Whatever happened, no directory stays open to changes that was not.
    let done = run.all(root, removal);
    let closed = run.close_dirs();
    done.and(closed)?;
    if !options.dry_run {
        run.sync()?;
    }
    let mut steps = run.out.into_inner().expect(POISONED);
    steps.sort();
    Ok(Restored {
        steps,
        n_seen: run.n_seen.into_inner(),
        n_bytes: run.n_bytes.into_inner(),
        is_partial: run.is_partial.into_inner(),
        is_damaged: run.is_damaged.into_inner(),
        is_refused: run.is_refused.into_inner(),
        seen: run.seen.map(|seen| seen.into_inner().expect(POISONED)).unwrap_or_default(),
    })
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
    let seen = Some(how.seen.cloned().unwrap_or_default());
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

/// A directory to restore.
struct Job {
    node: StoredDir,
    /// Where; `None` in a dry run, below a directory that would be made.
    dir: Option<Arc<Dir>>,
    /// The name in `dir` if that is not yet the directory itself: so that few are open at once.
    name: Option<Vec<u8>>,
    /// Whether this run made it, so that nothing can be in it.
    is_new: bool,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    n_busy: usize,
    failure: Option<Error>,
}

/// A file that has, or is to have, several names.
#[derive(Clone)]
struct Link {
    path: Vec<u8>,
    item: Item,
}

/// An entry that is to be right: a name in an open directory, and its path for messages.
struct Spot<'a> {
    dir: &'a Arc<Dir>,
    name: &'a [u8],
    path: &'a [u8],
}

struct Run<'a> {
    repo: &'a Repo,
    target: Option<&'a Dir>,
    options: &'a RestoreOptions,
    selected: PathSet,
    laying: &'a dyn Laying,
    is_whole: bool,
    ignores_times: bool,
    /// Those of the source.
    attributes: Attributes,
    progress: &'a Progress,
    names: Names,
    ours: Vec<((u32, u32), u64)>,
    target_dev: Option<(u32, u32)>,
    queue: Mutex<Queue>,
    wake: Condvar,
    out: Mutex<Vec<Step>>,
    /// By the path of the group's first member.
    links: Mutex<BTreeMap<Vec<u8>, Vec<Link>>>,
    /// Files that are right, but have other names on the disk, with the number of their names.
    linked: Mutex<Vec<(Link, u32)>>,
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
    n_seen: AtomicU64,
    n_bytes: AtomicU64,
    is_partial: AtomicBool,
    is_damaged: AtomicBool,
    is_refused: AtomicBool,
    /// What is replaced only while it is as it was seen; `None` if all may be.
    seen: Option<Mutex<Seen>>,
}

/// Files that are complete under their temporary names.
#[derive(Default)]
struct Batch {
    files: Vec<Ready>,
    n_bytes: u64,
    n_dirs: usize,
}

struct Ready {
    dir: Arc<Dir>,
    temp: Vec<u8>,
    name: Vec<u8>,
    path: Vec<u8>,
    metadata: Metadata,
    /// The file itself, if it is to get flags once it has its name.
    file: Option<File>,
}

impl Run<'_> {
    /// Does all of it, but for the last sync.
    fn all(&self, root: StoredDir, removal: &Removal) -> Result<()> {
        self.remove(&removal.before)?;
        let source = root.clone();
        if self.target.is_none() {
            self.step(b"", Action::Create);
        }
        let dir = self.target.map(Dir::try_clone).transpose()?.map(Arc::new);
        self.queue().jobs.push(Job { node: root, dir, name: None, is_new: self.target.is_none() });
        std::thread::scope(|scope| {
            for _ in 0..self.repo.settings.n_threads {
                scope.spawn(|| self.work());
            }
        });
        if let Some(failure) = self.queue().failure.take() {
            return Err(failure);
        }
        self.unlink_foreign()?;
        self.link(&source)?;
        self.remove(&removal.after)?;
        self.finish_dirs()
    }

    /// Gives the directories that were opened up for this run their flags back.
    fn close_dirs(&self) -> Result<()> {
        let (Some(lifted), Some(target)) = (&self.lifted, self.target) else { return Ok(()) };
        for (path, error) in lifted.give_back(target)? {
            self.or_warn(&path, Err(error.wrap("cannot put back its flags")))?;
        }
        Ok(())
    }

    /// Lets names in `dir`, which is at `path`, be changed, if its flags forbid that.
    fn open_up(&self, path: &[u8], dir: &Dir) -> Result<()> {
        self.lifted.as_ref().map_or(Ok(()), |lifted| lifted.lift(path, dir))
    }

    /// Keeps what lies in the file `name` of `dir`, if that is its own store, before it is replaced or removed.
    fn spare(&self, dir: &Dir, name: &[u8]) -> Result<()> {
        self.repo.spare(&self.referenced, dir, name)
    }

    fn work(&self) {
        let mut batch = Batch::default();
        let mut content = Vec::new();
        while let Some(job) = self.next_job(&mut batch) {
            // Who waits for the others must not wait for one that is no more.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.directory(job, &mut batch, &mut content)));
            self.done(result.unwrap_or_else(|_| Err(Error::new(Kind::Bug, "BUG: a worker panicked"))));
        }
    }

    /// Takes the newest job; with none left, ends this thread's batch.
    fn next_job(&self, batch: &mut Batch) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            if queue.failure.is_some() {
                drop(queue);
                batch.discard();
                return None;
            }
            if let Some(job) = queue.jobs.pop() {
                queue.n_busy += 1;
                return Some(job);
            }
            if queue.n_busy == 0 {
                drop(queue);
                let flushed = self.flush(batch);
                if let Err(error) = flushed {
                    self.queue().failure.get_or_insert(error);
                    batch.discard();
                }
                return None;
            }
            queue = self.wake.wait(queue).expect(POISONED);
        }
    }

    fn done(&self, result: Result<()>) {
        let mut queue = self.queue();
        queue.n_busy -= 1;
        if let Err(error) = result {
            queue.failure.get_or_insert(error);
        }
        if queue.n_busy == 0 || queue.failure.is_some() {
            self.wake.notify_all();
        }
    }

    /// Opens the directory of a job.
    fn open(&self, job: &mut Job) -> Result<()> {
        let (Some(parent), Some(name)) = (&job.dir, job.name.take()) else { return Ok(()) };
        let dir = Arc::new(parent.open_dir(&name)?);
        let stat = dir.stat_self()?;
        if self.ours.contains(&(stat.dev, stat.ino)) {
            return Err(Error::new(Kind::Refused, "is the repository or the chunk store itself"));
        }
        if Some(stat.dev) != self.target_dev {
            self.filesystems.lock().expect(POISONED).entry(stat.dev).or_insert_with(|| dir.clone());
        }
        job.dir = Some(dir);
        Ok(())
    }

    fn directory(&self, mut job: Job, batch: &mut Batch, content: &mut Vec<u8>) -> Result<()> {
        if let Err(error) = self.open(&mut job) {
            return self.or_warn(&job.node.path, Err(error));
        }
        let path = &job.node.path;
        let listing = match job.node.list(self.repo) {
            Ok(listing) => listing,
            Err(error) => return self.or_warn(path, Err(error)),
        };
        if let Some(dir) = &job.dir
            && !job.is_new
            && !self.options.dry_run
        {
            // Somebody may have removed it just now: that costs what is in it, not all the rest.
            self.or_warn(path, self.remove_leftovers(path, dir).context(|| "cannot clear what a killed run left"))?;
        }
        // A directory that this run made needs its metadata, also if it only leads to what was asked for or comes from a plain clone.
        if self.is_selected(path) && listing.is_recorded || job.is_new {
            let result = self.note_dir(&job, &listing);
            self.or_warn(path, result)?;
        }
        self.count(0);
        for (name, item) in listing.files {
            let path = join(path, &name);
            let policy = self.attributes.policy(&path);
            if self.is_selected(&path) && !self.is_left_to_host(&job, &name, &path, &policy) {
                self.count(1);
                let item = timed(item, &policy);
                let result = self.file(&job, &name, path.clone(), item, batch, content);
                self.or_warn(&path, result)?;
            }
        }
        batch.n_dirs += 1;
        if self.is_full(batch) {
            self.flush(batch)?;
        }
        for (name, node) in listing.dirs {
            let is_meant = self.is_selected(&node.path) || self.leads_to_selected(&node.path);
            if is_meant && self.attributes.policy_of_dir(&node.path).ownership != Ownership::Local {
                let path = node.path.clone();
                let result = self.enter(&job, &name, node);
                self.or_warn(&path, result)?;
            }
        }
        Ok(())
    }

    /// Says whether an entry is not ours to lay down: the host's own, or a seed where something is already and nobody names this very path.
    fn is_left_to_host(&self, job: &Job, name: &[u8], path: &[u8], policy: &Policy) -> bool {
        let is_there = || !job.is_new && job.dir.as_ref().is_some_and(|dir| !matches!(dir.stat(name), Ok(None)));
        match policy.ownership {
            Ownership::Local => true,
            Ownership::Seed => !self.options.paths.iter().any(|named| named == path) && is_there(),
            Ownership::Own | Ownership::Env | Ownership::Secret => false,
        }
    }

    /// Opens or makes the directory `name` and queues it.
    fn enter(&self, job: &Job, name: &[u8], node: StoredDir) -> Result<()> {
        let Some(parent) = &job.dir else {
            self.step(&node.path, Action::Create);
            self.push(Job { node, dir: None, name: None, is_new: true });
            return Ok(());
        };
        let there = if job.is_new { None } else { parent.stat(name)? };
        match there {
            Some(stat) if stat.kind == FileKind::Dir => {
                self.push(Job { node, dir: Some(parent.clone()), name: Some(name.to_vec()), is_new: false });
                return Ok(());
            }
            Some(stat) if self.options.dry_run => {
                self.look(&node.path, Some(&stat))?;
                self.step(&node.path, Action::Replace);
            }
            Some(stat) => {
                self.look(&node.path, Some(&stat))?;
                self.step(&node.path, Action::Replace);
                self.spare(parent, name)?;
                self.open_up(split(&node.path).0, parent)?;
                clear_flags(parent, name)?;
                parent.remove_file(name)?;
                self.note_gone(&node.path);
            }
            None => self.step(&node.path, Action::Create),
        }
        if self.options.dry_run {
            self.push(Job { node, dir: None, name: None, is_new: true });
            return Ok(());
        }
        self.open_up(split(&node.path).0, parent)?;
        parent.make_dir(name)?;
        self.push(Job { node, dir: Some(parent.clone()), name: Some(name.to_vec()), is_new: true });
        Ok(())
    }

    /// Notes a directory whose metadata is to be set when all below it is done.
    fn note_dir(&self, job: &Job, listing: &Listing) -> Result<()> {
        let has_times = self.attributes.policy_of_dir(&job.node.path).has_times;
        let mtime = listing.metadata.dir.mtime.filter(|_| has_times);
        let want = &Metadata { mtime, ..listing.metadata.dir.clone() };
        if let (Some(dir), false) = (&job.dir, job.is_new) {
            let mut have = metadata::of_file(dir.as_ref(), &dir.stat_self()?, &self.names)?;
            have.partial = want.partial;
            if !self.that_count(metadata::differences(want, &have)).is_empty() {
                self.step(&job.node.path, Action::Metadata);
            }
        }
        self.dirs.lock().expect(POISONED).push((job.node.path.clone(), want.clone()));
        Ok(())
    }

    fn file(&self, job: &Job, name: &[u8], path: Vec<u8>, item: Item, batch: &mut Batch, content: &mut Vec<u8>) -> Result<()> {
        if let Some(leader) = item.metadata.hardlink.clone() {
            self.links.lock().expect(POISONED).entry(leader).or_default().push(Link { path, item });
            return Ok(());
        }
        let Some(dir) = &job.dir else {
            self.step(&path, Action::Create);
            return Ok(());
        };
        let there = if job.is_new { None } else { dir.stat(name)? };
        self.place(&Spot { dir, name, path: &path }, &item, there, batch, content)
    }

    /// Returns what the entry at `path` is to hold.
    fn content_of(&self, path: &[u8], item: &Item) -> Result<Content> {
        let ownership = self.attributes.policy(path).ownership;
        let is_other = matches!(ownership, Ownership::Env | Ownership::Secret);
        match Content::of(self.repo, item)? {
            Content::Small(stored) => match self.laying.content(path, ownership, &stored)? {
                Some(content) => Ok(Content::Small(content)),
                None if is_other => {
                    Err(Error::new(Kind::Refused, "is stored as a template or encrypted, and nobody here renders or decrypts it"))
                }
                None => Ok(Content::Small(stored)),
            },
            Content::Large(_) if is_other => Err(Error::new(Kind::Refused, "is too large for a template or a secret")),
            other => Ok(other),
        }
    }

    /// Notes what is at `path`, or fails if something else was seen there.
    fn look(&self, path: &[u8], there: Option<&Stat>) -> Result<()> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let mut seen = seen.lock().expect(POISONED);
        seen.must_be(path, there)?;
        seen.note(path, there);
        Ok(())
    }

    /// Notes that what was at `path` went by our own doing.
    fn note_gone(&self, path: &[u8]) {
        if let Some(seen) = &self.seen {
            seen.lock().expect(POISONED).note_gone(path);
        }
    }

    /// Makes an entry what `item` says, unless it is.
    fn place(&self, spot: &Spot<'_>, item: &Item, there: Option<Stat>, batch: &mut Batch, content: &mut Vec<u8>) -> Result<()> {
        self.look(spot.path, there.as_ref())?;
        let stored = self.content_of(spot.path, item)?;
        let mut old = None;
        match there {
            Some(stat) if stat.kind == FileKind::Dir && self.options.dry_run && self.is_going.contains(spot.path) => {
                self.step(spot.path, Action::Replace);
            }
            Some(stat) if stat.kind == FileKind::Dir => {
                return Err(Error::new(Kind::Refused, "a directory is in the place of a file; move it away first"));
            }
            Some(stat) => {
                if stored.is_kind(item, stat.kind) {
                    let (has_content, file) = stored.is_in(spot.dir, spot.name, &stat, item, content)?;
                    if has_content && self.only_metadata(spot, item, &stat, file.as_ref())? {
                        return Ok(());
                    }
                    old = file;
                }
                self.step(spot.path, Action::Replace);
            }
            None => self.step(spot.path, Action::Create),
        }
        if self.options.dry_run {
            return Ok(());
        }
        self.replace(spot, item, &stored, old.as_ref(), batch)
    }

    /// Stages an entry, to be renamed with the rest of its batch.
    fn replace(&self, spot: &Spot<'_>, item: &Item, stored: &Content, old: Option<&File>, batch: &mut Batch) -> Result<()> {
        self.spare(spot.dir, spot.name)?;
        self.open_up(split(spot.path).0, spot.dir)?;
        let (temp, n_bytes, file) = self.stage(spot, item, stored, old)?;
        self.n_bytes.fetch_add(n_bytes, Ordering::Relaxed);
        batch.n_bytes += n_bytes;
        let (dir, name, path) = (spot.dir.clone(), spot.name.to_vec(), spot.path.to_vec());
        let file = file.filter(|_| !item.metadata.flags.and(Flags::LOCKING).is_empty());
        batch.files.push(Ready { dir, temp, name, path, metadata: item.metadata.clone(), file });
        if self.is_full(batch) { self.flush(batch) } else { Ok(()) }
    }

    /// Sets the metadata of an entry whose content is right, if it is not as recorded; returns whether that was possible in place.
    fn only_metadata(&self, spot: &Spot<'_>, item: &Item, stat: &Stat, file: Option<&File>) -> Result<bool> {
        let want = &item.metadata;
        let differences = self.differences(spot, item, stat, file)?;
        let is_right = differences.is_empty();
        if stat.nlink > 1 {
            // Its other names, which may not be ours, must not get new metadata. If it is right, the links tell later whether it may stay;
            // where only a part is restored they can't, and it stays.
            if is_right && self.options.paths.is_empty() {
                let link = Link { path: spot.path.to_vec(), item: item.clone() };
                self.linked.lock().expect(POISONED).push((link, stat.nlink));
            }
            return Ok(is_right);
        }
        if is_right {
            return Ok(true);
        }
        // Who can change names there can give us another file for it, or have given this one a name elsewhere.
        if !changes_at_once(want, &differences) || !spot.dir.is_ours_alone()? {
            return Ok(false);
        }
        self.step(spot.path, Action::Metadata);
        if self.options.dry_run {
            return Ok(true);
        }
        let ids = metadata::owner(want, &self.names)?;
        match file {
            Some(file) => {
                metadata::clear_flags(file)?;
                self.skipped(spot.path, metadata::apply_to_file(file, want, ids)?);
                self.skipped(spot.path, metadata::apply_flags(file, want.flags)?);
            }
            None => self.skipped(spot.path, metadata::apply_to_entry(spot.dir, spot.name, want, ids)?),
        }
        Ok(true)
    }

    /// Names the fields in which the metadata of an entry, whose content is right, is not as recorded.
    fn differences(&self, spot: &Spot<'_>, item: &Item, stat: &Stat, file: Option<&File>) -> Result<Vec<&'static str>> {
        let want = &item.metadata;
        let have = match file {
            Some(file) => metadata::of_file(file, stat, &self.names)?,
            None => metadata::of_entry(spot.dir, spot.name, stat, &self.names)?,
        };
        // Holes and links were compared as content.
        let have = Metadata { holes: want.holes.clone(), hardlink: want.hardlink.clone(), ..have };
        Ok(self.that_count(metadata::differences(want, &have)))
    }

    fn that_count(&self, mut differences: Vec<&'static str>) -> Vec<&'static str> {
        differences.retain(|field| !self.ignores_times || *field != "mtime");
        differences
    }

    /// Makes the entry complete under a temporary name; returns that name, the bytes written, and a regular file open.
    fn stage(&self, spot: &Spot<'_>, item: &Item, stored: &Content, old: Option<&File>) -> Result<(Vec<u8>, u64, Option<File>)> {
        let ids = metadata::owner(&item.metadata, &self.names)?;
        if matches!(stored, Content::Link(_) | Content::Node) {
            return Ok((self.stage_node(spot, item, stored, ids)?, 0, None));
        }
        let (temp, file) = spot.dir.create_temp()?;
        let filled = self.fill(&file, item, stored, old).and_then(|n_bytes| {
            self.skipped(spot.path, metadata::apply_to_file(&file, &item.metadata, ids)?);
            self.set_early_flags(&file, spot.path, item.metadata.flags)?;
            Ok(n_bytes)
        });
        match filled.and_then(|n_bytes| Ok((n_bytes, self.validated(spot, &temp, file)?))) {
            Ok((n_bytes, file)) => Ok((temp, n_bytes, Some(file))),
            Err(error) => spot.dir.remove_file(&temp).and(Err(error)),
        }
    }

    /// Returns a file that is complete as `temp`, open, once it passed the check that it has to.
    fn validated(&self, spot: &Spot<'_>, temp: &[u8], file: File) -> Result<File> {
        let check = self.attributes.policy(spot.path).validate.or_else(|| self.laying.check(spot.path));
        let Some(command) = check else { return Ok(file) };
        // A program that somebody could still write to does not run.
        let to_read = safepath::reopen_to_read(&file)?;
        drop(file);
        self.laying.validate(spot.path, &command, spot.dir, temp)?;
        Ok(to_read)
    }

    /// Makes a symlink or a node complete under a temporary name.
    ///
    /// These have no handle before they have a name: where others can change names, they are made where nobody else can reach.
    fn stage_node(&self, spot: &Spot<'_>, item: &Item, stored: &Content, ids: (u32, u32)) -> Result<Vec<u8>> {
        if spot.dir.is_ours_alone()? {
            return self.make_node(spot.dir, spot.path, item, stored, ids);
        }
        let (private_name, private) = spot.dir.make_private()?;
        let made = self.make_node(&private, spot.path, item, stored, ids);
        let moved = made.and_then(|temp| {
            let adopted = spot.dir.adopt(&private, &temp);
            adopted.or_else(|error| private.remove_file(&temp).and(Err(error)))
        });
        // Its name may stand for something else by now, which is not ours to remove.
        let _ = spot.dir.remove_dir(&private_name);
        moved
    }

    fn make_node(&self, dir: &Dir, path: &[u8], item: &Item, stored: &Content, ids: (u32, u32)) -> Result<Vec<u8>> {
        let temp = match stored {
            Content::Link(target) => dir.create_temp_symlink(target)?,
            _ => dir.create_temp_node(item.metadata.kind, item.metadata.rdev.unwrap_or_default())?,
        };
        match metadata::apply_to_entry(dir, &temp, &item.metadata, ids) {
            Ok(skipped) => self.skipped(path, skipped),
            Err(error) => return dir.remove_file(&temp).and(Err(error)),
        }
        Ok(temp)
    }

    /// Writes the content into an empty file; returns its length.
    fn fill(&self, mut file: &File, item: &Item, stored: &Content, old: Option<&File>) -> Result<u64> {
        metadata::apply_flags_before_content(file, item.metadata.flags)?;
        match stored {
            Content::Small(bytes) => {
                if item.metadata.holes.is_empty() {
                    file.write_all(bytes)?;
                } else {
                    write_around(file, bytes, &item.metadata.holes)?;
                }
                self.progress.add(0, bytes.len() as u64);
                Ok(bytes.len() as u64)
            }
            Content::Large(index) => {
                read::write_to_file(&self.repo.chunks, index, file, old, self.repo.settings.n_threads, self.progress)?;
                Ok(index.size)
            }
            Content::Link(_) | Content::Node => Ok(0),
        }
    }

    fn is_full(&self, batch: &Batch) -> bool {
        // A thread that finds no more work ends its batch, and then nobody has work left that could fail.
        !self.is_whole && self.has_enough(batch)
    }

    fn has_enough(&self, batch: &Batch) -> bool {
        batch.files.len() >= BATCH_FILES || batch.n_bytes >= BATCH_BYTES || batch.n_dirs >= self.batch_dirs
    }

    /// Syncs what is staged and gives it its names.
    fn flush(&self, batch: &mut Batch) -> Result<()> {
        if batch.files.is_empty() {
            batch.n_dirs = 0;
            return Ok(());
        }
        self.sync()?;
        let mut batch = std::mem::take(batch);
        let given = self.give_names(&mut batch);
        batch.discard();
        given
    }

    /// Gives the files of a batch their names; those that have none when it fails stay in it.
    fn give_names(&self, batch: &mut Batch) -> Result<()> {
        if self.seen.is_some() {
            // All of them are looked at before the first one gets its name.
            for staged in &batch.files {
                let there = staged.dir.stat(&staged.name);
                self.or_warn(&staged.path, there.and_then(|there| self.look(&staged.path, there.as_ref())))?;
            }
        }
        batch.files.reverse();
        while let Some(staged) = batch.files.pop() {
            let result = self.publish(&staged);
            if result.is_err() {
                // What can't be removed, because it is something else by now, is met as a leftover next time.
                let _ = staged.dir.remove_file(&staged.temp);
            }
            self.or_warn(&staged.path, result)?;
        }
        Ok(())
    }

    /// Returns once everything written below the target, also to filesystems mounted there, would survive a power cut.
    fn sync(&self) -> Result<()> {
        let mounted: Vec<Arc<Dir>> = self.filesystems.lock().expect(POISONED).values().cloned().collect();
        let all = self.target.into_iter().chain(mounted.iter().map(Arc::as_ref));
        all.into_iter().try_for_each(Dir::sync_filesystem).context(|| "cannot sync the target")
    }

    fn publish(&self, staged: &Ready) -> Result<()> {
        let Ready { dir, temp, name, metadata, path, file } = staged;
        self.rename(dir, (temp, name), path)?;
        if let Some(file) = file {
            self.skipped(path, metadata::apply_flags(file, metadata.flags)?);
        }
        Ok(())
    }

    /// Gives what is complete as `temp` its name, unless something else was seen there.
    fn rename(&self, dir: &Dir, (temp, name): (&[u8], &[u8]), path: &[u8]) -> Result<()> {
        if self.seen.is_some() {
            let there = dir.stat(name)?;
            self.look(path, there.as_ref())?;
            if there.is_none() {
                return dir.rename_new(temp, name);
            }
        }
        if let Err(error) = dir.rename(temp, name) {
            // Perhaps an immutable file is in the way.
            clear_flags(dir, name)?;
            dir.rename(temp, name).map_err(|_| error)?;
        }
        Ok(())
    }

    /// Sets the flags that a file can have before it gets its name: all but those that forbid to rename it.
    fn set_early_flags(&self, file: &File, path: &[u8], flags: Flags) -> Result<()> {
        if flags.is_empty() {
            return Ok(());
        }
        let skipped = metadata::apply_flags(file, flags.without(Flags::LOCKING))?;
        if flags.and(Flags::LOCKING).is_empty() {
            self.skipped(path, skipped);
        }
        Ok(())
    }

    /// Gives a file of its own to each name that shares one with names that are not of its group.
    fn unlink_foreign(&self) -> Result<()> {
        for (link, n_names) in std::mem::take(&mut *self.linked.lock().expect(POISONED)) {
            if n_names as usize <= 1 + self.n_linked_members(&link.path)? {
                continue;
            }
            self.step(&link.path, Action::Replace);
            if self.options.dry_run {
                continue;
            }
            let (parent, name) = split(&link.path);
            let result = self.dir_at(parent).and_then(|dir| {
                let mut batch = Batch::default();
                let spot = Spot { dir: &Arc::new(dir), name, path: &link.path };
                self.replace(&spot, &link.item, &self.content_of(&link.path, &link.item)?, None, &mut batch)?;
                self.flush(&mut batch)
            });
            self.or_warn(&link.path, result)?;
        }
        Ok(())
    }

    /// Counts the other members of the group that `first` leads which are on the disk the same file as it is.
    fn n_linked_members(&self, first: &[u8]) -> Result<usize> {
        let members: Vec<Vec<u8>> = match self.links.lock().expect(POISONED).get(first) {
            Some(links) => links.iter().map(|link| link.path.clone()).collect(),
            None => return Ok(0),
        };
        let inode = |path: &[u8]| Ok::<_, Error>(self.find(path)?.map(|stat| (stat.dev, stat.ino)));
        let own = inode(first)?;
        members.iter().try_fold(0, |n, member| Ok(n + usize::from(inode(member)? == own)))
    }

    /// Removes paths that are owned and not in the source; a directory only if nothing is left in it.
    fn remove(&self, paths: &[Vec<u8>]) -> Result<()> {
        let Some(target) = self.target else { return Ok(()) };
        for path in paths.iter().filter(|path| is_there(target, path)) {
            let (parent, name) = split(path);
            let dir = target.open_path(parent).and_then(|dir| {
                self.look(path, dir.stat(name)?.as_ref())?;
                Ok(dir)
            });
            if !self.options.dry_run {
                let spared = dir.and_then(|dir| self.spare(&dir, name).map(|()| dir));
                let cleared = spared.and_then(|dir| self.open_up(parent, &dir).and_then(|()| clear_flags(&dir, name)));
                let result = cleared.and_then(|()| remove_file(target, path));
                self.or_warn(path, result.context(|| "cannot be removed"))?;
                if is_there(target, path) {
                    continue;
                }
                self.note_gone(path);
            }
            self.step(path, Action::Remove);
        }
        Ok(())
    }

    /// Makes the hard links, when all files are there.
    fn link(&self, source: &StoredDir) -> Result<()> {
        let groups = std::mem::take(&mut *self.links.lock().expect(POISONED));
        let mut siblings = Siblings::default();
        for (leader, links) in groups {
            let mut first = siblings.find(self.repo, source, &leader).unwrap_or_default().map(|item| Link { path: leader, item });
            if first.as_ref().is_some_and(|first| !self.is_restored(first)) {
                first = None;
            }
            for link in links {
                let path = link.path.clone();
                // Whoever edits one of them where git knows nothing of links wants two files.
                let is_same = first.as_ref().is_none_or(|first| first.item.is_same_file(&link.item));
                let result = self.link_one(first.as_ref().filter(|_| is_same).map(|first| &first.path[..]), link.clone());
                if result.is_ok() && first.is_none() {
                    // The first member is not among what is restored: the group begins with this one.
                    first = Some(link);
                }
                self.or_warn(&path, result)?;
            }
        }
        Ok(())
    }

    /// Says whether the first member of a group is on the disk as it is in the source, so that other names may lead to it.
    fn is_restored(&self, first: &Link) -> bool {
        let Ok(Some(stat)) = self.find(&first.path) else { return false };
        if self.is_selected(&first.path) && !self.failed.lock().expect(POISONED).contains(&first.path) {
            return true;
        }
        // It was not ours to restore this time, or that failed: what is there may be something else.
        let (parent, name) = split(&first.path);
        let compare = || -> Result<bool> {
            let dir = Arc::new(self.dir_at(parent)?);
            let spot = Spot { dir: &dir, name, path: &first.path };
            let stored = self.content_of(&first.path, &first.item)?;
            Ok(stored.is_kind(&first.item, stat.kind) && {
                let (has_content, file) = stored.is_in(&dir, name, &stat, &first.item, &mut Vec::new())?;
                has_content && self.differences(&spot, &first.item, &stat, file.as_ref())?.is_empty()
            })
        };
        compare().unwrap_or(false)
    }

    fn link_one(&self, first: Option<&[u8]>, link: Link) -> Result<()> {
        let (parent, name) = split(&link.path);
        let Ok(dir) = self.dir_at(parent) else {
            self.step(&link.path, Action::Create);
            return if self.options.dry_run { Ok(()) } else { Err(Error::new(Kind::NotFound, "its directory is not there")) };
        };
        let there = dir.stat(name)?;
        self.look(&link.path, there.as_ref())?;
        let Some(first) = first.filter(|_| !self.options.dry_run || there.is_some()) else {
            let mut batch = Batch::default();
            let spot = Spot { dir: &Arc::new(dir), name, path: &link.path };
            self.place(&spot, &link.item, there, &mut batch, &mut Vec::new())?;
            return self.flush(&mut batch);
        };
        let (first_parent, first_name) = split(first);
        let first_dir = self.dir_at(first_parent)?;
        if !can_share(&first_dir, &dir, link.item.metadata.flags)? {
            self.skipped(
                &link.path,
                vec!["is a file of its own now: somebody else can change the names of what it was linked to".into()],
            );
            return self.link_one(None, link);
        }
        let leader = first_dir
            .stat(first_name)?
            .ok_or_else(|| Error::new(Kind::NotFound, "the first member of its links is not there"))?;
        if there.is_some_and(|there| (there.dev, there.ino) == (leader.dev, leader.ino)) {
            return Ok(());
        }
        self.step(&link.path, if there.is_some() { Action::Replace } else { Action::Create });
        if self.options.dry_run {
            return Ok(());
        }
        self.spare(&dir, name)?;
        if there.is_some_and(|there| there.kind == FileKind::Dir) {
            return Err(Error::new(Kind::Refused, "a directory is in the place of a file; move it away first"));
        }
        self.open_up(parent, &dir)?;
        let flags = &link.item.metadata.flags;
        if !flags.is_empty() {
            clear_flags(&first_dir, first_name)?;
        }
        let temp = dir.create_temp_link(&first_dir, first_name)?;
        if let Err(error) = self.rename(&dir, (&temp, name), &link.path) {
            let _ = dir.remove_file(&temp); // else it is met as a leftover next time
            return Err(error);
        }
        if !flags.is_empty() && link.item.metadata.kind == FileKind::File {
            self.skipped(&link.path, metadata::apply_flags(&dir.open_file(name)?, link.item.metadata.flags)?);
        }
        Ok(())
    }

    /// Opens a directory of the target.
    fn dir_at(&self, path: &[u8]) -> Result<Dir> {
        self.target.ok_or_else(|| Error::new(Kind::NotFound, "the target is not there"))?.open_path(path)
    }

    /// Removes the temporary files that a run which was killed left in `dir`, which is at `path`, and private directories with what is in them.
    fn remove_leftovers(&self, path: &[u8], dir: &Dir) -> Result<()> {
        for entry in dir.entries()?.into_iter().filter(|entry| safepath::is_temp_name(&entry.name)) {
            let is_dir = dir.stat(&entry.name).is_ok_and(|stat| stat.is_some_and(|stat| stat.kind == FileKind::Dir));
            match is_dir.then(|| dir.open_dir(&entry.name)) {
                None => {
                    self.open_up(path, dir)?;
                    clear_flags(dir, &entry.name)?;
                    dir.remove_file(&entry.name)?;
                }
                Some(Ok(private)) if private.is_private()? => {
                    self.open_up(path, dir)?;
                    let inner = private.entries()?.into_iter().filter(|inner| safepath::is_temp_name(&inner.name));
                    inner.into_iter().try_for_each(|inner| private.remove_file(&inner.name))?;
                    let _ = dir.remove_dir(&entry.name); // if there is more in it, it is not ours
                }
                Some(_) => (),
            }
        }
        Ok(())
    }

    fn find(&self, path: &[u8]) -> Result<Option<Stat>> {
        safepath::check_path(path)?;
        let (parent, name) = split(path);
        match self.dir_at(parent) {
            Ok(dir) => dir.stat(name),
            Err(_) => Ok(None),
        }
    }

    /// Sets the metadata of all directories, the deepest first.
    fn finish_dirs(&self) -> Result<()> {
        let mut dirs = std::mem::take(&mut *self.dirs.lock().expect(POISONED));
        if self.options.dry_run {
            return Ok(());
        }
        dirs.sort_by(|(a, _), (b, _)| b.cmp(a));
        for (path, want) in dirs {
            let result = self.finish_dir(&path, &want);
            self.or_warn(&path, result)?;
        }
        Ok(())
    }

    fn finish_dir(&self, path: &[u8], want: &Metadata) -> Result<()> {
        self.finish_open_dir(path, want)?;
        if let Some(lifted) = &self.lifted {
            lifted.settled(path);
        }
        Ok(())
    }

    fn finish_open_dir(&self, path: &[u8], want: &Metadata) -> Result<()> {
        let dir = self.dir_at(path)?;
        let have = Metadata { partial: want.partial, ..metadata::of_file(&dir, &dir.stat_self()?, &self.names)? };
        if metadata::differences(want, &have).is_empty() {
            return Ok(());
        }
        let ids = metadata::owner(want, &self.names)?;
        metadata::clear_flags(&dir)?;
        self.skipped(path, metadata::apply_to_file(&dir, want, ids)?);
        self.skipped(path, metadata::apply_flags(&dir, want.flags)?);
        Ok(())
    }

    /// Returns a path that was asked for and is not in the source.
    fn missing_path(&self, root: StoredDir) -> Result<Option<&Vec<u8>>> {
        for path in &self.options.paths {
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

    fn is_selected(&self, path: &[u8]) -> bool {
        self.selected.covers(path)
    }

    fn leads_to_selected(&self, path: &[u8]) -> bool {
        self.selected.leads_to(path)
    }

    fn or_warn(&self, path: &[u8], result: Result<()>) -> Result<()> {
        match result {
            Err(error) if self.is_whole || matches!(error.kind(), Kind::NoSpace | Kind::Bug) => {
                Err(error.wrap(format!("cannot restore '{}'", shown(path))))
            }
            Err(error) => {
                self.progress.warn(path, error.told());
                self.is_damaged.fetch_or(error.kind() == Kind::Corrupt, Ordering::Relaxed);
                self.is_refused.fetch_or(matches!(error.reason(), Some(Reason::Index | Reason::Meta)), Ordering::Relaxed);
                self.is_partial.store(true, Ordering::Relaxed);
                self.failed.lock().expect(POISONED).insert(path.to_vec());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn skipped(&self, path: &[u8], skipped: Vec<String>) {
        for message in skipped {
            self.progress.warn(path, message);
            self.is_partial.store(true, Ordering::Relaxed);
        }
    }

    fn count(&self, n_files: u64) {
        self.n_seen.fetch_add(1, Ordering::Relaxed);
        self.progress.add(n_files, 0);
    }

    fn step(&self, path: &[u8], action: Action) {
        self.out.lock().expect(POISONED).push(Step { path: path.to_vec(), action });
    }

    fn push(&self, job: Job) {
        self.queue().jobs.push(job);
        self.wake.notify_one();
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().expect(POISONED)
    }
}

impl Batch {
    /// Removes what was staged, after a failure; what can't be removed is met as a leftover next time.
    fn discard(&mut self) {
        for staged in self.files.drain(..) {
            let _ = staged.dir.remove_file(&staged.temp);
        }
    }
}

/// The files of the directory of the source that was asked for last: first members of links come sorted by path.
#[derive(Default)]
struct Siblings {
    dir: Option<Vec<u8>>,
    files: BTreeMap<Vec<u8>, Item>,
}

impl Siblings {
    /// Returns what the source has at `path`, if that is a file which leads a group of links.
    fn find(&mut self, repo: &Repo, source: &StoredDir, path: &[u8]) -> Result<Option<Item>> {
        safepath::check_path(path)?;
        let (parent, name) = split(path);
        if self.dir.as_deref() != Some(parent) {
            let node = source.clone().descend(repo, parent)?;
            self.files = node.map(|node| node.list(repo)).transpose()?.map(|listing| listing.files).unwrap_or_default();
            self.dir = Some(parent.to_vec());
        }
        Ok(self.files.get(name).filter(|item| item.metadata.hardlink.is_none()).cloned())
    }
}

impl Item {
    /// Says whether the two can be one file under two names.
    fn is_same_file(&self, other: &Self) -> bool {
        let of = |item: &Self| (item.content, item.metadata.kind, item.metadata.rdev);
        of(self) == of(other)
    }
}

/// Says whether an entry gets from what differs to what is wanted in one system call, so that nobody can meet a mixture.
fn changes_at_once(want: &Metadata, differences: &[&str]) -> bool {
    // A new owner takes setuid, setgid and capabilities away, which come back by other calls.
    let survives_chown = want.mode & 0o6000 == 0 && want.xattr(b"security.capability").is_none();
    match differences {
        ["owner" | "group"] | ["owner", "group"] => survives_chown,
        ["mode" | "mtime" | "flags"] => true,
        _ => false,
    }
}

/// Says whether a file in `first` can get a second name in `dir`: whoever can change the names in one must be able to in the other, or anyone at all
/// could slip in a file of his own, or have the flags of one taken away that is not his.
fn can_share(first: &Dir, dir: &Dir, flags: Flags) -> Result<bool> {
    let is_one_owners = || -> Result<bool> { Ok(first.stat_self()?.uid == dir.stat_self()?.uid) };
    Ok(first.is_ours_alone()? && dir.is_ours_alone()? || flags.is_empty() && is_one_owners()?)
}

/// Takes away the inode flags that forbid to replace the regular file `name`; anything else has none.
fn clear_flags(dir: &Dir, name: &[u8]) -> Result<()> {
    match dir.stat(name)? {
        Some(stat) if stat.kind == FileKind::File => {
            let file = dir.open_file(name)?;
            // Where others can change names, one of its names may be that of a file which is none of theirs.
            match safepath::stat_fd(&file)?.nlink == 1 || dir.is_ours_alone()? {
                true => metadata::clear_flags(&file).map(drop),
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Returns how many directories the batch of one thread may hold open: all of them together a quarter of what this process may open.
fn batch_dirs(n_threads: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    (limit / 4 / n_threads.max(1) as u64).clamp(1, BATCH_DIRS as u64) as usize
}

const POISONED: &str = "BUG: a thread panicked while it held the lock";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_one_call_changes_is_changed_in_place() {
        let wanted = |mode, xattrs: &[&[u8]]| Metadata {
            mode,
            xattrs: xattrs.iter().map(|name| (name.to_vec(), b"1".to_vec())).collect(),
            ..Metadata::new(FileKind::File)
        };
        let plain = wanted(0o644, &[b"user.x"]);
        for at_once in [&["mode"][..], &["owner"], &["group"], &["owner", "group"], &["mtime"], &["flags"]] {
            assert!(changes_at_once(&plain, at_once), "{at_once:?}");
        }
        for in_steps in [&["mode", "owner"][..], &["mode", "mtime"], &["xattrs"], &["group", "xattrs"]] {
            assert!(!changes_at_once(&plain, in_steps), "{in_steps:?}");
        }
        assert!(!changes_at_once(&wanted(0o4755, &[]), &["owner"]), "chown takes setuid away");
        assert!(!changes_at_once(&wanted(0o755, &[b"security.capability"]), &["group"]), "and capabilities");
    }
}
