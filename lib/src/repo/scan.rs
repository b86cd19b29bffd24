//! Looks at the work tree and finds what differs from the index: the one pass behind add, snapshot, status and diff.
//!
//! Directories are worked on by a few threads. A file whose `stat` is the one in the index is not opened. What changed is read, its content handed
//! to a [`Sink`] and its metadata put into the metadata file of its directory. Nothing here changes the repository or the work tree.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::attributes::{Ownership, Policy};
use super::changes::Changes;
use super::exclude::Excludes;
use super::jobs::Jobs;
use super::laid::Laid;
use super::pathset::PathSet;
use super::unowned::Unowned;
use super::{Attributes, Repo};
use crate::error::{Context, Error, Kind, Result};
use crate::git::index::{CachedStat, Index, IndexEntry};
use crate::git::name::{self, Stored};
use crate::git::object::SYMLINK;
use crate::git::{Oid, Staging};
use crate::metadata::{self, Metadata, Names};
use crate::progress::Progress;
use crate::safepath::{self, Dir, FileKind, Stat};

use racy::{CLOCK_TICK_NANOS, clock, is_racy, nanos};

pub(super) use read::read_stream;
pub use sink::Sink;

mod conclude;
mod racy;
mod read;
mod sink;

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything under the owned paths.
    Owned,
    /// These paths and all below them, owned from now on; relative to the work tree, empty for all of it.
    Paths(Vec<Vec<u8>>),
}

/// How to look.
pub struct ScanOptions {
    /// What to look at.
    pub scope: Scope,
    /// What to leave out.
    pub excludes: Excludes,
    /// Do not enter other filesystems than the one that the work tree lies on.
    pub one_file_system: bool,
    /// Leave the chunks of large files in these files, which become their own store; also of those that did not change.
    pub by_reference: bool,
}

/// An index entry to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Path in the commit.
    pub path: Vec<u8>,
    /// The blob.
    pub oid: Oid,
    /// File type and the executable bit, as git has them.
    pub mode: u32,
    /// What the file looked like when its content was that blob.
    pub stat: CachedStat,
}

/// Returns an entry that is to be put into the index.
pub(super) fn entry_of(path: &[u8], oid: Oid, mode: u32, stat: CachedStat) -> IndexEntry<'_> {
    IndexEntry { path, oid, mode, stat, skip_worktree: false, intent_to_add: false }
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Found {
    /// Index entries that are new or differ, in no order; metadata files among them.
    pub updates: Staging,
    /// Positions in the index whose file is gone, ascending.
    pub gone: Vec<usize>,
    /// The same for people: one line for each path that differs, sorted by path.
    pub changes: Changes,
    /// Files and directories looked at.
    pub n_seen: u64,
    /// Whether something could not be read, or changed while it was; the warnings tell what.
    pub is_partial: bool,
}

/// One path that differs from the index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The path, relative to the work tree.
    pub path: Vec<u8>,
    /// In which way it differs.
    pub what: What,
}

impl Change {
    /// Returns the path, and in which way it differs.
    pub fn parts(&self) -> (&[u8], What) {
        (&self.path, self.what)
    }
}

/// In which way a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It was not there.
    Added,
    /// Its content differs.
    Content,
    /// Only its metadata differs.
    Metadata,
    /// It is gone.
    Deleted,
}

/// Looks at the work tree of `repo` and returns what differs from `index`.
pub fn scan(repo: &Repo, index: &Index, options: &ScanOptions, sink: Sink<'_>, progress: &Progress) -> Result<Found> {
    let root =
        Arc::new(Dir::open(&repo.places.work_tree).context(|| format!("cannot open '{}'", repo.places.work_tree.display()))?);
    let walker = Walker {
        repo,
        index,
        options,
        sink,
        progress,
        names: names_of(&root)?,
        attributes: repo.attributes(index)?,
        unowned: Unowned::of(repo, index)?,
        named: match &options.scope {
            Scope::Owned => None,
            Scope::Paths(paths) => Some(PathSet::new(paths)),
        },
        ours: repo.places.identities(),
        root_dev: root.stat_self()?.dev,
        seen: (0..index.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        jobs: Jobs::default(),
        out: Mutex::default(),
        links: Mutex::default(),
        began: clock(),
        drafts: Mutex::default(),
    };
    walker.run(&root)?;
    walker.finish(&root)
}

/// Returns the metadata of the directory `path` of the work tree as one that is known for what is owned below it; `None` if it is not there.
pub(super) fn dir_on_the_way(repo: &Repo, attributes: &Attributes, path: &[u8]) -> Result<Option<Metadata>> {
    let what = || format!("cannot look at '{}'", shown(path));
    let root = Dir::open(&repo.places.work_tree).context(what)?;
    let dir = match root.open_path(path) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        other => other.context(what)?,
    };
    let mut found = metadata::of_file(&dir, &dir.stat_self()?, &names_of(&root)?).context(what)?;
    found.mtime = found.mtime.filter(|_| attributes.policy_of_dir(path).has_times);
    found.partial = true;
    Ok(Some(found))
}

/// Returns the names of users and groups that count in a tree: its own, if it has any, else this machine's.
fn names_of(root: &Dir) -> Result<Names> {
    let has_own = root.open_path(b"etc").and_then(|etc| etc.stat(b"passwd")).is_ok_and(|found| found.is_some());
    if has_own { Names::of_dir(root) } else { Names::read(std::path::Path::new("/")) }
}

/// A directory to look at.
struct Job {
    dir: Handle,
    path: Vec<u8>,
    /// Whether all of it is owned, or only what the index lists.
    is_whole: bool,
    /// If given, only these names are looked at.
    only: Option<Vec<Vec<u8>>>,
    /// A position in the index before which nothing below it is.
    from: usize,
}

enum Handle {
    Open(Arc<Dir>),
    /// The name of a directory in an open one.
    In(Arc<Dir>, Vec<u8>),
}

/// Names one file on this machine: device and inode number.
type Inode = ((u32, u32), u64);

struct Walker<'a> {
    repo: &'a Repo,
    index: &'a Index,
    options: &'a ScanOptions,
    sink: Sink<'a>,
    progress: &'a Progress,
    names: Names,
    attributes: Attributes,
    unowned: Unowned,
    /// The paths in scope, if not everything that is owned is.
    named: Option<PathSet>,
    ours: Vec<Inode>,
    root_dev: (u32, u32),
    seen: Vec<AtomicU64>,
    jobs: Jobs<Job>,
    out: Mutex<Found>,
    /// All names that were met of each file with several.
    links: Mutex<HashMap<Inode, Vec<Vec<u8>>>>,
    /// When the scan began, in nanoseconds since 1970.
    began: i128,
    /// Directories whose metadata waits until all names of a file are known.
    drafts: Mutex<Vec<Draft>>,
}

/// Metadata read now.
struct ReadNow {
    metadata: Metadata,
    /// The inode, if it has several names.
    inode: Option<Inode>,
    /// Whether the name is reported already, for its content.
    is_reported: bool,
}

/// What was found in one directory.
struct Draft {
    path: Vec<u8>,
    is_whole: bool,
    only: Option<Vec<Vec<u8>>>,
    stat: Stat,
    /// Whether it was so young that a later change could leave the same times behind.
    is_racy: bool,
    own: Option<Metadata>,
    /// Names whose metadata is as recorded.
    unchanged: Vec<Vec<u8>>,
    /// Names that could not be read now: what is recorded of them stays.
    kept: Vec<Vec<u8>>,
    /// Names with metadata read now.
    read: BTreeMap<Vec<u8>, ReadNow>,
    updates: Staging,
    changes: Changes,
    /// Whether something that is stored is left out from now on.
    has_dropped: bool,
    /// The position in the index that the names have come to.
    from: usize,
}

impl Walker<'_> {
    fn run(&self, root: &Arc<Dir>) -> Result<()> {
        self.first_jobs(root)?.into_iter().for_each(|job| self.jobs.push(job));
        self.jobs.run(self.repo.settings.n_threads, |job| self.directory(job))
    }

    /// Returns where to begin: the root, or the directories that hold the paths in scope.
    fn first_jobs(&self, root: &Arc<Dir>) -> Result<Vec<Job>> {
        let Scope::Paths(paths) = &self.options.scope else {
            let is_whole = !self.is_partial_dir(b"")?;
            return Ok(vec![Job { dir: Handle::Open(root.clone()), path: Vec::new(), is_whole, only: None, from: 0 }]);
        };
        if paths.iter().any(Vec::is_empty) {
            return Ok(vec![Job { dir: Handle::Open(root.clone()), path: Vec::new(), is_whole: true, only: None, from: 0 }]);
        }
        let mut by_parent: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        // What lies below another path in scope is looked at with that one.
        for path in paths.iter().filter(|path| !self.is_in_scope(split(path).0)) {
            safepath::check_path(path).context(|| format!("cannot take '{}'", shown(path)))?;
            if self.is_local(path) {
                let message = format!("'{}' is this host's own by the attributes ('local') and is not stored", shown(path));
                return Err(Error::new(Kind::Refused, message));
            }
            let mut child = path.as_slice();
            // Every directory on the way is known from now on, so that it can be made again.
            loop {
                let (parent, name) = split(child);
                by_parent.entry(parent.to_vec()).or_default().push(name.to_vec());
                if parent.is_empty() {
                    break;
                }
                child = parent;
            }
        }
        let mut jobs = Vec::new();
        for (parent, mut only) in by_parent {
            only.sort();
            only.dedup();
            let dir = match root.open_path(&parent) {
                Ok(dir) => Handle::Open(Arc::new(dir)),
                Err(error) if error.kind() == Kind::NotFound => continue, // what is recorded there is gone
                Err(error) => return Err(error.wrap(format!("cannot open '{}'", shown(&parent)))),
            };
            // A directory that leads to a path in scope is looked at for that alone: whether all of it is owned stays as it is.
            let is_new = self.meta_position(&parent).is_none();
            let is_whole = !is_new && !self.is_partial_dir(&parent)?;
            jobs.push(Job { dir, path: parent, is_whole, only: Some(only), from: 0 });
        }
        Ok(jobs)
    }

    fn directory(&self, job: Job) -> Result<()> {
        let opened = match &job.dir {
            Handle::Open(dir) => Ok(dir.clone()),
            Handle::In(parent, name) => parent.open_dir(name).map(Arc::new),
        };
        let began = clock();
        let listed = opened.and_then(|dir| {
            let stat = dir.stat_self()?;
            let mut entries = dir.entries()?;
            entries.sort();
            Ok((dir, stat, entries))
        });
        let (dir, stat, entries) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                self.keep_below(&job.path);
                return self.leave_out(&job.path, error);
            }
        };
        if self.ours.contains(&(stat.dev, stat.ino)) {
            return Ok(());
        }
        let mut draft = Draft::new(&job, stat, is_racy(&stat, began));
        let is_foreign = self.options.one_file_system && stat.dev != self.root_dev;
        if !is_foreign {
            let marks = self.marks_in(&dir, &entries);
            for entry in entries {
                if safepath::is_temp_name(&entry.name) && entry.kind != Some(FileKind::Dir)
                    || job.only.as_ref().is_some_and(|only| only.binary_search(&entry.name).is_err())
                    || !marks.is_empty() && !marks.contains(&entry.name)
                {
                    continue;
                }
                self.entry(&dir, &job, entry.name, &mut draft)?;
            }
        }
        draft.has_dropped |= draft.only.iter().flatten().any(|name| !draft.was_met(name));
        self.progress.add(1, 0);
        self.own_metadata(&dir, &mut draft)?;
        self.close(draft)
    }

    /// Returns the names in a directory that say that the rest of it is to be left out.
    fn marks_in(&self, dir: &Dir, entries: &[safepath::Entry]) -> Vec<Vec<u8>> {
        let is_there = |mark: &&[u8]| {
            entries.binary_search_by(|entry| entry.name.as_slice().cmp(mark)).is_ok() && {
                let mut start = Vec::new();
                let opened = dir.open_file(mark).map(|file| file.take(64).read_to_end(&mut start));
                opened.is_ok() && Excludes::is_mark(mark, &start)
            }
        };
        self.options.excludes.marks().filter(is_there).map(<[u8]>::to_vec).collect()
    }

    fn entry(&self, dir: &Arc<Dir>, job: &Job, entry_name: Vec<u8>, draft: &mut Draft) -> Result<()> {
        let path = join(&job.path, &entry_name);
        let stat = match dir.stat(&entry_name) {
            Ok(Some(stat)) => stat,
            Ok(None) => return self.keep_entry(path, entry_name, draft, vanished()),
            Err(error) => return self.keep_entry(path, entry_name, draft, error),
        };
        let is_dir = stat.kind == FileKind::Dir;
        let stored = name::stored_path(&path);
        let from = match &stored {
            // Names come in the order of the index.
            Cow::Borrowed(stored) => {
                draft.from = self.index.position_from(draft.from, stored);
                draft.from
            }
            Cow::Owned(stored) => self.index.position_from(0, stored),
        };
        let position = self.index.is_at(from, &stored).then_some(from);
        let is_known = if is_dir { is_known_dir(self.index, draft.from, &path) } else { position.is_some() };
        let policy = self.policy(&path, is_dir);
        if self.is_left_to_host(job, &entry_name, &path, &policy, position)? {
            self.keep_below(&path);
            draft.kept.push(entry_name);
            return Ok(());
        }
        if self.options.excludes.is_explicit(&path, is_dir, stat.size) {
            draft.has_dropped |= is_known;
            return Ok(());
        }
        if !is_known && !self.is_named(&path) && self.options.excludes.is_standing(&path, is_dir) {
            return Ok(());
        }
        let is_wanted = (job.only.is_some() || job.is_whole) && !self.is_given_up(&path);
        match stat.kind {
            FileKind::Dir => {
                let is_on_the_way = job.only.is_some() && !self.is_in_scope(&path);
                if (is_wanted || is_known) && !is_on_the_way {
                    let is_whole = is_wanted || !self.is_partial_dir(&path)?;
                    self.jobs.push(Job {
                        dir: Handle::In(dir.clone(), entry_name),
                        path,
                        is_whole,
                        only: None,
                        from: draft.from,
                    });
                }
                Ok(())
            }
            FileKind::File | FileKind::Symlink => match position {
                // What a template becomes may differ though neither it nor the file changed.
                Some(position)
                    if self.index.vouches_for(position, &stat)
                        && !self.is_to_be_referenced(&stat)
                        && policy.ownership != Ownership::Env =>
                {
                    self.mark(position);
                    self.progress.add(1, 0);
                    if stat.nlink > 1 {
                        self.note_link(&stat, &path);
                    }
                    draft.unchanged.push(entry_name);
                    Ok(())
                }
                None if !is_wanted => Ok(()),
                _ => self.changed(dir, path, entry_name, (stat, &policy), position, draft),
            },
            FileKind::Fifo | FileKind::Socket | FileKind::Char | FileKind::Block => {
                if !is_wanted && !self.is_recorded_node(&job.path, &entry_name)? {
                    return Ok(());
                }
                match metadata::of_entry(dir, &entry_name, &stat, &self.names) {
                    Ok(mut metadata) => {
                        metadata.mtime = metadata.mtime.filter(|_| policy.has_times);
                        let inode = self.inode_if_linked(&stat, &path);
                        draft.read.insert(entry_name, ReadNow { metadata, inode, is_reported: false })
                    }
                    Err(error) => return self.keep_entry(path, entry_name, draft, error),
                };
                self.progress.add(1, 0);
                Ok(())
            }
        }
    }

    /// Returns what is laid down for the entry at `path`.
    fn policy(&self, path: &[u8], is_dir: bool) -> Policy {
        if is_dir { self.attributes.policy_of_dir(path) } else { self.attributes.policy(path) }
    }

    /// Says whether what is recorded of an entry stays as it is, whatever the host makes of it.
    fn is_left_to_host(
        &self,
        job: &Job,
        entry_name: &[u8],
        path: &[u8],
        policy: &Policy,
        position: Option<usize>,
    ) -> Result<bool> {
        Ok(match policy.ownership {
            Ownership::Local => true,
            Ownership::Seed => !self.is_named(path) && (position.is_some() || self.is_recorded_node(&job.path, entry_name)?),
            Ownership::Own | Ownership::Env | Ownership::Secret => false,
        })
    }

    fn is_local(&self, path: &[u8]) -> bool {
        self.attributes.policy(path).ownership == Ownership::Local
    }

    /// Says whether what is recorded of a path that is not there is not given up: the host's own, what came from a
    /// stream, and a template or a secret, which the disk never had.
    fn stays_recorded(&self, path: &[u8]) -> bool {
        if self.index.lookup(&name::stored_path(path)).is_some_and(|position| self.need_not_be_there(position)) {
            return true;
        }
        match self.attributes.policy(path).ownership {
            Ownership::Local => true,
            Ownership::Env | Ownership::Secret => matches!(self.sink, Sink::Store { .. }),
            Ownership::Own | Ownership::Seed => false,
        }
    }

    /// Says whether a file is recorded that came from a stream, and was not seen on the disk since.
    fn need_not_be_there(&self, position: usize) -> bool {
        let entry = self.index.entry(position);
        entry.skip_worktree && !name::is_ours(entry.path)
    }

    /// Says whether such a file is recorded below the directory `dir`, which is not there.
    fn leads_to_absent(&self, dir: &[u8]) -> bool {
        recorded_below(self.index, dir)[0].clone().any(|position| self.need_not_be_there(position))
    }

    /// Reads a file or symlink that is new or not as recorded.
    fn changed(
        &self,
        dir: &Dir,
        path: Vec<u8>,
        entry_name: Vec<u8>,
        (stat, policy): (Stat, &Policy),
        position: Option<usize>,
        draft: &mut Draft,
    ) -> Result<()> {
        let stored = position.map(|position| self.index.entry(position).oid);
        let laid = Laid::of(self.repo, &path, policy.ownership, stored);
        let read = match laid.and_then(|laid| self.read_entry(dir, &path, &entry_name, stat, laid.as_ref())) {
            Ok(mut read) => {
                read.metadata.mtime = read.metadata.mtime.filter(|_| policy.has_times);
                read
            }
            // It vanished after it was listed; or the store did.
            Err(error) if error.kind() == Kind::NotFound && !self.sink.has_failed() => {
                return self.keep_entry(path, entry_name, draft, vanished());
            }
            Err(error) => return self.keep_entry(path, entry_name, draft, error),
        };
        self.progress.add(1, 0);
        let what = match position.map(|position| self.index.entry(position)) {
            None => Some(What::Added),
            Some(old) if old.oid != read.oid || (old.mode == SYMLINK) != (read.mode == SYMLINK) => Some(What::Content),
            Some(_) => None, // perhaps its metadata: the directory's draft tells
        };
        if let Some(position) = position {
            self.mark(position);
        }
        if let Some(what) = what {
            draft.changes.push(&path, what);
        }
        let inode = self.inode_if_linked(&read.stat, &path);
        // A name that came while we looked may be of a file that was looked at under its other name before that: it is looked at again next time.
        let is_late = read.stat.nlink > 1 && nanos(read.stat.ctime) >= self.began - CLOCK_TICK_NANOS;
        let stat = if read.is_racy || is_late { CachedStat::default() } else { CachedStat::of(&read.stat) };
        draft.updates.push(&entry_of(&name::stored_path(&path), read.oid, read.mode, stat));
        draft.read.insert(entry_name, ReadNow { metadata: read.metadata, inode, is_reported: what.is_some() });
        Ok(())
    }

    fn path_at(&self, position: usize) -> &[u8] {
        self.index.entry(position).path
    }

    fn note_link(&self, stat: &Stat, path: &[u8]) {
        self.links.lock().expect(POISONED).entry((stat.dev, stat.ino)).or_default().push(path.to_vec());
    }

    fn inode_if_linked(&self, stat: &Stat, path: &[u8]) -> Option<Inode> {
        (stat.nlink > 1 && stat.kind != FileKind::Dir).then(|| {
            self.note_link(stat, path);
            (stat.dev, stat.ino)
        })
    }

    /// Leaves an entry that cannot be read as it is recorded, and says so.
    fn keep_entry(&self, path: Vec<u8>, entry_name: Vec<u8>, draft: &mut Draft, error: Error) -> Result<()> {
        self.keep_below(&path);
        draft.kept.push(entry_name);
        self.leave_out(&path, error)
    }

    /// Goes on without a path after an error of the source; an error of the store ends the run.
    fn leave_out(&self, path: &[u8], error: Error) -> Result<()> {
        if self.sink.has_failed() || matches!(error.kind(), Kind::NoSpace | Kind::Bug | Kind::Corrupt) {
            return Err(error.wrap(format!("cannot store '{}'", shown(path))));
        }
        self.progress.warn(path, format!("{error:#}"));
        self.out.lock().expect(POISONED).is_partial = true;
        Ok(())
    }

    fn mark(&self, position: usize) {
        self.seen[position / 64].fetch_or(1 << (position % 64), Ordering::Relaxed);
    }

    fn is_seen(&self, position: usize) -> bool {
        self.seen[position / 64].load(Ordering::Relaxed) & (1 << (position % 64)) != 0
    }

    /// Counts everything recorded at and below `path` as seen.
    fn keep_below(&self, path: &[u8]) {
        for range in recorded_below(self.index, path) {
            range.for_each(|position| self.mark(position));
        }
        if let Some(position) = self.index.lookup(&name::stored_path(path)) {
            self.mark(position);
        }
    }

    fn meta_position(&self, dir: &[u8]) -> Option<usize> {
        self.index.lookup(&name::meta_path(dir))
    }

    fn is_partial_dir(&self, path: &[u8]) -> Result<bool> {
        is_partial_dir(self.repo, self.index, path)
    }

    /// Says whether a person gave up this very path, and nobody asks for it now.
    fn is_given_up(&self, path: &[u8]) -> bool {
        self.named.is_none() && self.unowned.names(path)
    }

    fn is_recorded_node(&self, dir: &[u8], entry_name: &[u8]) -> Result<bool> {
        let Some(position) = self.meta_position(dir) else { return Ok(false) };
        let recorded = self.repo.read_dir_metadata(&self.index.entry(position).oid, dir)?;
        Ok(recorded.entries.get(entry_name).is_some_and(Metadata::is_node))
    }

    fn is_in_scope(&self, path: &[u8]) -> bool {
        self.named.as_ref().is_none_or(|named| named.covers(path))
    }

    /// Says whether a person named this very path.
    fn is_named(&self, path: &[u8]) -> bool {
        self.named.as_ref().is_some_and(|named| named.names(path))
    }

    fn is_entry_in_scope(&self, stored: &[u8]) -> bool {
        match name::work_path(stored) {
            Stored::File(path) => self.is_in_scope(path) || self.is_above_scope(path),
            Stored::Alt(path) => self.is_in_scope(&path) || self.is_above_scope(&path),
            Stored::Meta(path) => self.is_in_scope(&path),
            Stored::Other => false,
        }
    }

    /// Says whether `path` leads to a path in scope: what is recorded there as a file and was not met is a directory now.
    fn is_above_scope(&self, path: &[u8]) -> bool {
        self.named.as_ref().is_some_and(|named| named.leads_to(path))
    }
}

/// What is said of an entry that was listed and is not there any more; what is recorded of it goes with the next snapshot.
fn vanished() -> Error {
    Error::new(Kind::NotFound, "vanished before it could be read")
}

const POISONED: &str = "BUG: a worker panicked while it held the lock";

/// The size that the cached `stat` of a partly owned directory has; a directory's size means nothing.
const PARTIAL: u32 = 1;

/// Returns what the index keeps of a directory's `stat`, in the entry of its metadata file.
fn as_dir_stat(stat: Stat, is_partial: bool) -> Stat {
    Stat { size: if is_partial { PARTIAL.into() } else { 0 }, ..stat }
}

/// Returns the work-tree path of a stored file; metadata and what else is ours has none.
pub(crate) fn file_path(stored: &[u8]) -> Option<Vec<u8>> {
    match name::work_path(stored) {
        Stored::File(path) => Some(path.to_vec()),
        Stored::Alt(path) => Some(path),
        Stored::Meta(_) | Stored::Other => None,
    }
}

/// Returns where in the index everything below the directory `path` is recorded: files, escaped files, metadata.
pub(super) fn recorded_below(index: &Index, path: &[u8]) -> [Range<usize>; 3] {
    if path.is_empty() {
        return [0..index.len(), 0..0, 0..0];
    }
    [index.range(path), index.range(&name::alt_path(path)), index.range(&name::meta_dir(path))]
}

/// Says whether anything is recorded below the directory `path`; no file below it stands before `from` in the index.
fn is_known_dir(index: &Index, from: usize, path: &[u8]) -> bool {
    if path.is_empty() {
        return !index.is_empty();
    }
    index.has_below(from, path) || index.has_below(0, &name::meta_dir(path)) || index.has_below(0, &name::alt_path(path))
}

/// Says whether a directory is recorded as known only for what is owned below it. What was never recorded is partial for the root alone.
pub(super) fn is_partial_dir(repo: &Repo, index: &Index, path: &[u8]) -> Result<bool> {
    let Some(position) = index.lookup(&name::meta_path(path)) else { return Ok(path.is_empty() || is_known_dir(index, 0, path)) };
    let entry = index.entry(position);
    if entry.stat != CachedStat::default() {
        return Ok(entry.stat.size == PARTIAL);
    }
    let recorded = repo.read_dir_metadata(&entry.oid, path)?;
    Ok(recorded.dir.partial)
}

/// Returns the path of the entry `name` in the directory `dir`, which is empty for the root.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Returns a path for a message; the top is '.'.
pub fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { path.escape_ascii().to_string() }
}

/// Returns the directory and the last component of a path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
