//! Looks at the work tree and finds what differs from the index: the one pass behind add, snapshot, status and diff.
//!
//! Directories are worked on by a few threads. A file whose `stat` is the one in the index is not opened. What changed is read, its content handed
//! to a [`Sink`] and its metadata put into the metadata file of its directory. Nothing here changes the repository or the work tree.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::attributes::{Ownership, Policy};
use super::changes::Changes;
use super::exclude::Excludes;
use super::hand_over::HandOver;
use super::jobs::Jobs;
use super::laid::Laid;
use super::pathset::PathSet;
use super::stage::Referencing;
use super::unowned::Unowned;
use super::{Attributes, Repo};
use crate::error::{Context, Error, Kind, Result};
use crate::file::index::ChunkIndex;
use crate::file::write::{ChunkSink, Note, Take, cut_file, cut_stream};
use crate::git::index::{CachedStat, Index, IndexEntry};
use crate::git::name::{self, Stored};
use crate::git::object::{EXECUTABLE, FILE, SYMLINK};
use crate::git::pack::PackWriter;
use crate::git::{ObjectKind, Oid, Staging};
use crate::metadata::{self, DirMetadata, GitKind, Metadata, Names};
use crate::progress::Progress;
use crate::safepath::{self, Dir, FileKind, Stat, Time};
use crate::store::{FileReferences, Writer};

/// A file younger than this when it was looked at may change again without a trace in its times: it is looked at again next time.
const CLOCK_TICK_NANOS: i128 = 20_000_000;

/// The same where times have no fractions of a second.
const COARSE_TICK_NANOS: i128 = 2_000_000_000;

/// How often a file that changes while it is read is tried.
const ATTEMPTS: usize = 3;

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

/// Where content goes.
#[derive(Clone, Copy)]
pub enum Sink<'a> {
    /// Into git and the chunk store.
    Store {
        /// Takes small files, chunk indexes and metadata.
        pack: &'a PackWriter<'a>,
        /// Takes chunks.
        chunks: &'a Writer,
        /// Where chunks stay in their files, takes where they lie.
        references: Option<&'a Referencing>,
        /// Where chunks are handed over to other hosts, takes them in the place of `chunks`.
        hand_over: Option<&'a HandOver<'a>>,
        /// Raised when one of them fails: that ends the run, where a source that fails does not.
        has_failed: &'a AtomicBool,
    },
    /// Small files and indexes into git, to be shown; chunks nowhere.
    Preview {
        /// Takes small files, chunk indexes and metadata.
        pack: &'a PackWriter<'a>,
        /// Raised when it fails.
        has_failed: &'a AtomicBool,
    },
    /// Nowhere: only its ids are wanted, to compare.
    Compare,
    /// Nowhere, but for the metadata of directories, which is handed out by its id.
    Look {
        /// Takes it.
        metadata: &'a Mutex<HashMap<Oid, Vec<u8>>>,
    },
}

impl Sink<'_> {
    pub(super) fn blob(&self, bytes: &[u8]) -> Result<Oid> {
        match self {
            Self::Store { pack, has_failed, .. } | Self::Preview { pack, has_failed } => {
                pack.blob(bytes).inspect_err(|_| has_failed.store(true, Ordering::Relaxed))
            }
            Self::Compare | Self::Look { .. } => crate::git::object::object_id(ObjectKind::Blob, bytes),
        }
    }

    /// Takes the metadata of a directory.
    fn metadata(&self, text: &[u8]) -> Result<Oid> {
        let oid = self.blob(text)?;
        if let Self::Look { metadata } = self {
            metadata.lock().unwrap_or_else(PoisonError::into_inner).insert(oid, text.to_vec());
        }
        Ok(oid)
    }

    /// Returns who notes that the chunks of the file at `path` stay in it, if they do.
    fn references(&self, path: &[u8]) -> Option<FileReferences<'_>> {
        match self {
            Self::Store { references: Some(references), .. } => references.of_file(path),
            _ => None,
        }
    }

    /// Returns who hands chunks over, if they are.
    pub(super) fn hand_over(&self) -> Option<&HandOver<'_>> {
        match self {
            Self::Store { hand_over, .. } => *hand_over,
            _ => None,
        }
    }

    pub(super) fn chunks<'s>(&'s self, note: Option<&'s Note<'s>>, take: Option<&'s Take<'s>>) -> ChunkSink<'s> {
        match self {
            Self::Store { chunks, has_failed, .. } => match (note, take) {
                (Some(note), _) => ChunkSink::Stay { writer: chunks, note, has_failed },
                (None, Some(take)) => ChunkSink::Passed { writer: chunks, take, has_failed },
                (None, None) => ChunkSink::Store { writer: chunks, has_failed },
            },
            Self::Preview { .. } | Self::Compare | Self::Look { .. } => ChunkSink::Discard,
        }
    }

    fn has_failed(&self) -> bool {
        matches!(self, Self::Store { has_failed, .. } | Self::Preview { has_failed, .. } if has_failed.load(Ordering::Relaxed))
    }
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

/// Says whether the index has just this already.
fn is_same(new: &IndexEntry<'_>, old: &IndexEntry<'_>) -> bool {
    (new.oid, new.mode, new.stat) == (old.oid, old.mode, old.stat)
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

/// Hands the content that `input` gives until it ends to `sink`, as that of the file at `path`; returns the blob that stands for it.
pub(super) fn read_stream(repo: &Repo, path: &[u8], input: &mut dyn Read, sink: Sink<'_>, progress: &Progress) -> Result<Oid> {
    let what = || format!("cannot store what comes for '{}'", shown(path));
    let mut head = Vec::new();
    input.take(repo.settings.threshold).read_to_end(&mut head).context(what)?;
    if (head.len() as u64) < repo.settings.threshold && !ChunkIndex::is_index(&head) {
        progress.add(1, head.len() as u64);
        return sink.blob(&head);
    }
    let spec = repo.attributes(&*repo.index()?)?.chunker(path, &repo.settings.chunker);
    let take = sink.hand_over().map(|hand_over| |id, bytes: &[u8]| hand_over.put(id, bytes));
    let chunks = sink.chunks(None, take.as_ref().map(|take| take as &Take<'_>));
    let index = cut_stream(&mut head.as_slice().chain(input), &spec, chunks, repo.settings.n_threads, progress);
    progress.add(1, 0);
    sink.blob(&index.context(what)?.encode())
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

    fn read_entry(&self, dir: &Dir, path: &[u8], entry_name: &[u8], stat: Stat, laid: Option<&Laid>) -> Result<ReadEntry> {
        if stat.kind == FileKind::Symlink {
            let is_racy = is_racy(&stat, clock());
            let target = dir.read_link(entry_name)?;
            let metadata = metadata::of_entry(dir, entry_name, &stat, &self.names)?;
            return Ok(ReadEntry { oid: self.sink.blob(&target)?, mode: SYMLINK, metadata, stat, is_racy });
        }
        for _ in 0..ATTEMPTS {
            let began = clock();
            let (file, before) = dir.open_file_with_stat(entry_name)?;
            let read = self.read_content(&file, path, &before, laid);
            let after = safepath::stat_fd(&file)?;
            let is_stable = (before.mtime, before.ctime, before.size) == (after.mtime, after.ctime, after.size);
            match read {
                Ok((oid, metadata)) if is_stable => {
                    let mode = if after.mode & 0o100 != 0 { EXECUTABLE } else { FILE };
                    return Ok(ReadEntry { oid, mode, metadata, stat: after, is_racy: is_racy(&after, began) });
                }
                Err(error) if is_stable && error.kind() != Kind::Conflict || self.sink.has_failed() => return Err(error),
                _ => (),
            }
        }
        Err(Error::new(Kind::Conflict, "changed while it was read"))
    }

    /// Says whether a file is to become its own store, and read for that even if nothing changed.
    fn is_to_be_referenced(&self, stat: &Stat) -> bool {
        self.options.by_reference && stat.kind == FileKind::File && stat.size >= self.repo.settings.threshold
    }

    fn read_content(&self, file: &File, path: &[u8], stat: &Stat, laid: Option<&Laid>) -> Result<(Oid, Metadata)> {
        let mut found = metadata::of_file(file, stat, &self.names)?;
        let mut holes = Vec::new();
        if stat.blocks.saturating_mul(512) < stat.size {
            holes = metadata::holes(file, stat.size)?;
            (&*file).rewind()?;
        }
        let threshold = self.repo.settings.threshold;
        if stat.size < threshold {
            let content = read_whole(file, stat, threshold)?;
            self.progress.add(0, content.len() as u64);
            if content.len() as u64 == threshold {
                return Err(Error::new(Kind::Conflict, "changed while it was read"));
            }
            if let Some(laid) = laid {
                return Ok((laid.oid_of(Some(&content), self.sink)?, found));
            }
            if !ChunkIndex::is_index(&content) {
                found.holes = holes;
                return Ok((self.sink.blob(&content)?, found));
            }
        }
        if let Some(laid) = laid {
            return Ok((laid.oid_of(None, self.sink)?, found)); // no template is as large, and no secret
        }
        let spec = self.attributes.chunker(path, &self.repo.settings.chunker);
        let n_threads = self.repo.settings.n_threads;
        let references = self.sink.references(path).map(Mutex::new);
        let note = references
            .as_ref()
            .map(|references| |id, offset, len| references.lock().unwrap_or_else(PoisonError::into_inner).push(id, offset, len));
        let take = self.sink.hand_over().map(|hand_over| |id, bytes: &[u8]| hand_over.put(id, bytes));
        let sink = self.sink.chunks(note.as_ref().map(|note| note as &Note<'_>), take.as_ref().map(|take| take as &Take<'_>));
        let index = cut_file(file, stat.size, &holes, &spec, sink, n_threads, self.progress)?;
        if let Some(references) = references {
            references.into_inner().unwrap_or_else(PoisonError::into_inner).finish(file)?;
        }
        Ok((self.sink.blob(&index.encode())?, found))
    }

    /// Reads the directory's own metadata, unless it is as recorded.
    fn own_metadata(&self, dir: &Dir, draft: &mut Draft) -> Result<()> {
        let position = self.meta_position(&draft.path);
        if position.is_some() && draft.only.is_some() {
            return Ok(()); // not all of its names are looked at: the next whole look must still see that it changed
        }
        let is_as_recorded =
            position.is_some_and(|position| self.index.vouches_for(position, &as_dir_stat(draft.stat, !draft.is_whole)));
        if is_as_recorded {
            return Ok(());
        }
        let mut found = match metadata::of_file(dir, &draft.stat, &self.names) {
            Ok(found) => found,
            Err(error) => return self.leave_out(&draft.path.clone(), error),
        };
        found.mtime = found.mtime.filter(|_| self.attributes.policy_of_dir(&draft.path).has_times);
        found.partial = !draft.is_whole;
        draft.own = Some(found);
        Ok(())
    }

    /// Ends a directory: at once, or, if it has files with several names, when all directories were seen.
    fn close(&self, draft: Draft) -> Result<()> {
        if draft.read.values().any(|read| read.inode.is_some()) {
            self.drafts.lock().expect(POISONED).push(draft);
            return Ok(());
        }
        self.conclude(draft)
    }

    /// Writes the metadata file of a directory, if anything in it is not as recorded, and hands over all that was found.
    fn conclude(&self, mut draft: Draft) -> Result<()> {
        let position = self.meta_position(&draft.path);
        if let Some(position) = position {
            self.mark(position);
        }
        if draft.own.is_some() || !draft.read.is_empty() || draft.has_dropped {
            let old = match position {
                Some(position) => self.repo.read_dir_metadata(&self.index.entry(position).oid, &draft.path)?,
                None => DirMetadata::default(),
            };
            let dir = draft.path.clone();
            draft.keep(old.entries.keys().filter(|entry_name| self.stays_recorded(&join(&dir, entry_name))));
            let new = draft.new_metadata(&old);
            draft.compare(&old, &new, position.is_some());
            let stat = match position {
                Some(position) if draft.only.is_some() => self.index.entry(position).stat,
                _ if draft.is_racy => CachedStat::default(),
                _ => CachedStat::of(&as_dir_stat(draft.stat, !draft.is_whole)),
            };
            let oid = self.sink.metadata(&new.encode())?;
            let stored = name::meta_path(&draft.path);
            let update = entry_of(&stored, oid, FILE, stat);
            // A device, a fifo or a socket is looked at each time, and is mostly as it was.
            if self.index.is_doubted() || !position.is_some_and(|position| is_same(&update, &self.index.entry(position))) {
                draft.updates.push(&update);
            }
        }
        let mut out = self.out.lock().expect(POISONED);
        out.n_seen += (draft.unchanged.len() + draft.read.len() + 1) as u64;
        out.updates.append(&draft.updates);
        out.changes.append(&draft.changes);
        Ok(())
    }

    fn finish(self, root: &Dir) -> Result<Found> {
        let mut drafts = std::mem::take(&mut *self.drafts.lock().expect(POISONED));
        let leaders = self.leaders(root, &drafts);
        for mut draft in drafts.drain(..) {
            for (entry_name, read) in &mut draft.read {
                let leader = read.inode.as_ref().and_then(|inode| leaders.get(inode));
                let path = join(&draft.path, entry_name);
                read.metadata.hardlink = leader.filter(|leader| **leader != path).cloned();
            }
            self.conclude(draft)?;
        }
        let mut gone: Vec<usize> = (0..self.index.len())
            .filter(|&position| !self.is_seen(position) && self.is_entry_in_scope(self.path_at(position)))
            .filter(|&position| match name::work_path(self.path_at(position)) {
                Stored::Meta(dir) => !self.leads_to_absent(&dir),
                Stored::File(path) => !self.stays_recorded(path),
                Stored::Alt(path) => !self.stays_recorded(&path),
                Stored::Other => true,
            })
            .collect();
        let mut out = std::mem::take(&mut *self.out.lock().expect(POISONED));
        for &position in &gone {
            if let Some(path) = file_path(self.path_at(position)) {
                out.changes.push(&path, What::Deleted);
            }
        }
        self.take_back(&mut out.updates, &mut gone)?;
        out.gone = gone;
        out.changes.sort();
        Ok(out)
    }

    /// Takes the paths in scope off the list of what was given up: whoever names them owns them again.
    fn take_back(&self, updates: &mut Staging, gone: &mut Vec<usize>) -> Result<()> {
        let mut left = self.unowned.clone();
        if !self.named.as_ref().is_some_and(|named| left.remove(named)) {
            return Ok(());
        }
        let mut list = Vec::new();
        left.stage(self.index, &mut list, gone, |text| self.sink.blob(text))?;
        updates.append(&list.into());
        Ok(())
    }

    /// Returns for each file with several names the one that stands for it: outside the scope if one is known there, or else the smallest.
    fn leaders(&self, root: &Dir, drafts: &[Draft]) -> HashMap<Inode, Vec<u8>> {
        let links = self.links.lock().expect(POISONED);
        let wanted = drafts.iter().flat_map(|draft| draft.read.values().filter_map(|read| read.inode));
        let mut leaders: HashMap<Inode, Vec<u8>> =
            wanted.filter_map(|inode| Some((inode, links.get(&inode)?.iter().min()?.clone()))).collect();
        if self.options.scope == Scope::Owned || leaders.is_empty() {
            return leaders;
        }
        // The index keeps 32 bits of each number, and the number may belong to another file by now: the disk decides.
        let is_at = |path: &[u8], inode: Inode| {
            let (parent, entry_name) = split(path);
            let found = root.open_path(parent).and_then(|dir| dir.stat(entry_name));
            found.is_ok_and(|found| found.is_some_and(|stat| (stat.dev, stat.ino) == inode))
        };
        let by_short: HashMap<(u32, u32), Inode> =
            leaders.keys().map(|inode| ((CachedStat::short_dev(inode.0), inode.1 as u32), *inode)).collect();
        for position in (0..self.index.len()).rev() {
            let stat = &self.index.entry(position).stat;
            let stored = self.path_at(position);
            if let Some(inode) = by_short.get(&(stat.dev, stat.ino))
                && !self.is_entry_in_scope(stored)
                && let Some(path) = file_path(stored)
                && is_at(&path, *inode)
            {
                leaders.insert(*inode, path);
            }
        }
        leaders
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

/// What was read of one entry.
struct ReadEntry {
    oid: Oid,
    mode: u32,
    metadata: Metadata,
    stat: Stat,
    is_racy: bool,
}

impl Draft {
    fn new(job: &Job, stat: Stat, is_racy: bool) -> Self {
        Self {
            path: job.path.clone(),
            is_whole: job.is_whole,
            only: job.only.clone(),
            stat,
            is_racy,
            own: None,
            unchanged: Vec::new(),
            kept: Vec::new(),
            read: BTreeMap::new(),
            updates: Staging::default(),
            changes: Changes::default(),
            has_dropped: false,
            from: job.from,
        }
    }

    /// Leaves what is recorded of these names as it is.
    fn keep<'a>(&mut self, names: impl Iterator<Item = &'a Vec<u8>>) {
        let names: Vec<Vec<u8>> = names.filter(|name| !self.was_met(name)).cloned().collect();
        self.kept.extend(names);
        self.kept.sort();
    }

    fn was_met(&self, entry_name: &Vec<u8>) -> bool {
        // Names were met in their order.
        let is_in = |names: &[Vec<u8>]| names.binary_search(entry_name).is_ok();
        self.read.contains_key(entry_name) || is_in(&self.unchanged) || is_in(&self.kept)
    }

    /// Returns the directory's metadata as it is now; `old` is what was recorded.
    fn new_metadata(&self, old: &DirMetadata) -> DirMetadata {
        let mut new = if self.only.is_some() { old.clone() } else { DirMetadata::default() };
        new.dir = self.own.as_ref().unwrap_or(&old.dir).clone();
        for entry_name in self.only.iter().flatten() {
            new.entries.remove(entry_name);
        }
        for entry_name in self.unchanged.iter().chain(&self.kept) {
            if let Some(recorded) = old.entries.get(entry_name) {
                new.entries.insert(entry_name.clone(), recorded.clone());
            }
        }
        for (entry_name, read) in &self.read {
            new.entries.insert(entry_name.clone(), read.metadata.clone());
        }
        new
    }

    /// Notes which names differ in their metadata alone, and which nodes came or went.
    fn compare(&mut self, old: &DirMetadata, new: &DirMetadata, is_known: bool) {
        let mut changes = Changes::default();
        for (entry_name, read) in self.read.iter().filter(|(_, read)| !read.is_reported) {
            let what = match old.entries.get(entry_name) {
                None if read.metadata.is_node() => What::Added,
                _ if is_recorded_as(old, entry_name, &read.metadata) => continue,
                _ => What::Metadata,
            };
            changes.push(&join(&self.path, entry_name), what);
        }
        for (entry_name, recorded) in &old.entries {
            if recorded.is_node() && !new.entries.contains_key(entry_name) {
                changes.push(&join(&self.path, entry_name), What::Deleted);
            }
        }
        if !is_known || old.dir != new.dir {
            let what = if is_known { What::Metadata } else { What::Added };
            changes.push(&self.path, what);
        }
        self.changes.append(&changes);
    }
}

/// Reads an open file from its start: as far as its `stat` says, or up to `max` bytes where that cannot be believed.
///
/// Filesystems that make content as it is read may give any size; they have no blocks.
fn read_whole(mut file: &File, stat: &Stat, max: u64) -> Result<Vec<u8>> {
    let mut content = Vec::with_capacity(stat.size as usize + 1);
    if stat.blocks > 0 {
        file.take(stat.size).read_to_end(&mut content)?;
    } else {
        // What is not to be read twice, like a pipe of the kernel's, is not read once.
        file.rewind()?;
        file.take(max).read_to_end(&mut content)?;
    }
    Ok(content)
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

/// Says whether `old` tells of the entry just what was read now.
fn is_recorded_as(old: &DirMetadata, entry_name: &[u8], read: &Metadata) -> bool {
    if read.is_node() {
        return old.entries.get(entry_name) == Some(read);
    }
    let git = if read.kind == FileKind::Symlink { GitKind::Symlink } else { GitKind::File };
    old.lookup(entry_name, git).is_ok_and(|recorded| recorded == *read)
}

/// Returns the time, in nanoseconds since the epoch.
fn clock() -> i128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    nanos(Time { secs: now.tv_sec, nanos: now.tv_nsec as u32 })
}

fn nanos(time: Time) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos)
}

/// Says whether the file was so young at `began`, before it was looked at, that a later change could leave the same times behind.
///
/// Every change sets `ctime`, also one that sets `mtime` back or ahead.
fn is_racy(stat: &Stat, began: i128) -> bool {
    // Some filesystems keep whole seconds, or two of them; elsewhere hardly any file has exactly that.
    let tick = if stat.ctime.nanos == 0 { COARSE_TICK_NANOS } else { CLOCK_TICK_NANOS };
    let age = began - nanos(stat.ctime);
    // A time far ahead is that of another clock: the next change has a time of this one.
    (-tick..tick).contains(&age)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_far_as_it_says_if_that_can_be_believed() {
        let read = |file: &File, max| {
            let stat = safepath::stat_fd(file).unwrap();
            read_whole(file, &stat, max).unwrap()
        };
        let of_kernel = File::open("/proc/self/status").unwrap();
        assert_eq!(safepath::stat_fd(&of_kernel).unwrap().size, 0);
        assert_eq!(read(&of_kernel, 64).len(), 64);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"twelve bytes").unwrap();
        let open = || File::open(file.path()).unwrap();
        assert_eq!(read(&open(), 64), b"twelve bytes");
        let stat = safepath::stat_fd(open()).unwrap();
        for (size, blocks, want) in [(6, 8, &b"twelve"[..]), (20, 8, b"twelve bytes"), (6, 0, b"twelve bytes")] {
            assert_eq!(read_whole(&open(), &Stat { size, blocks, ..stat }, 64).unwrap(), want);
        }
        read_whole(&pipe(), &Stat { size: 0, blocks: 0, ..stat }, 64).unwrap_err();
    }

    /// Returns the end of a pipe with something in it.
    fn pipe() -> File {
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, b"once").unwrap();
        File::from(std::os::fd::OwnedFd::from(reader))
    }

    #[test]
    fn a_file_is_believed_once_a_change_would_show() {
        const MS: i128 = 1_000_000;
        // The clock when the file was about to be looked at, against its change time.
        for (nanos_of_ctime, age, want) in [
            (5, 0, true),
            (5, 19 * MS, true),
            (5, 21 * MS, false),
            (5, -MS, true),
            (5, -3_600_000 * MS, false),
            (0, 21 * MS, true),
            (0, 1999 * MS, true),
            (0, 2001 * MS, false),
        ] {
            let ctime = Time { secs: 1_000_000, nanos: nanos_of_ctime };
            let dir = Dir::open(std::path::Path::new("/")).unwrap();
            let stat = Stat { ctime, mtime: Time { secs: i64::MAX, nanos: 0 }, ..dir.stat_self().unwrap() };
            assert_eq!(is_racy(&stat, nanos(ctime) + age), want, "{nanos_of_ctime} {age}");
        }
    }
}
