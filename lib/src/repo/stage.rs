//! Records what a scan found: first content, then the index, then the commit, in the order in which each relies on the one before.
//!
//! Chunks are durable before the git objects that name them, those before the index, that before the ref. Whoever is killed in between leaves
//! something that nothing refers to yet, and the next run goes on from there.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::scan::{self, Found, ScanOptions, Sink, Staged};
use super::{Repo, enrolled, next, wip};
use crate::durable::Lock;
use crate::error::{Error, Kind, Result};
use crate::file::index::ChunkIndex;
use crate::git::index::{CachedStat, Index, IndexBuilder, IndexEntry};
use crate::git::name;
use crate::git::object::{EXECUTABLE, FILE};
use crate::git::pack::PackWriter;
use crate::git::{CommitData, Identity, Kept, Oid, Signature, empty_tree, write_tree_after};
use crate::metadata::{DirMetadata, Metadata};
use crate::progress::Progress;
use crate::safepath::FileKind;
use crate::store::{FileReferences, Lease, ReferenceWriter, Referenced, WriteOptions, WriteStats, Writer};

/// Who commits, when, and why.
#[derive(Clone, Debug)]
pub struct CommitInfo {
    /// Who.
    pub identity: Identity,
    /// When, in seconds since the epoch.
    pub time: i64,
    /// Offset of the local time from UTC, in minutes.
    pub offset: i32,
    /// Why.
    pub message: String,
}

/// What was recorded.
#[derive(Debug, Default)]
pub struct Recorded {
    /// The new commit; `None` if there was nothing to commit, or only staging was asked for.
    pub commit: Option<Oid>,
    /// What the scan found.
    pub found: Found,
    /// What went into the chunk store.
    pub chunks: WriteStats,
}

/// Stages what `options` take in, and, if `commit` is given, commits all that is staged.
///
/// On return everything is durable. On an error the index and the refs are as they were.
pub fn record(repo: &Repo, options: &ScanOptions, commit: Option<&CommitInfo>, progress: &Progress) -> Result<Recorded> {
    let lock = repo.lock()?;
    wip::must_not_be(repo)?;
    next::must_not_be(repo)?;
    record_on(repo, &lock, &Line::of_head(repo)?, options, commit, &nothing_else, progress)
}

/// Where commits are added: a ref, and the commit that it, or what it begins from, is at.
pub struct Line {
    /// The full name of the ref.
    pub name: String,
    /// Where it is; `None` if it is not there yet.
    pub at: Option<Oid>,
    /// What the next commit follows.
    pub tip: Option<Oid>,
}

impl Line {
    /// Returns the branch that HEAD stands on.
    fn of_head(repo: &Repo) -> Result<Self> {
        let head = repo.head()?;
        Ok(Self { name: repo.git.head_ref()?.unwrap_or_else(|| "HEAD".to_owned()), at: head, tip: head })
    }
}

/// What goes into a commit beside what a scan found, once that is known.
pub type Extra<'a> = &'a dyn Fn(&Found, &PackWriter<'_>, &Writer) -> Result<Vec<Staged>>;

/// Adds nothing to what a scan found.
pub fn nothing_else(_: &Found, _: &PackWriter<'_>, _: &Writer) -> Result<Vec<Staged>> {
    Ok(Vec::new())
}

/// The same on a line of commits of its own, with something beside what the scan finds, by who holds the lock.
pub fn record_on(
    repo: &Repo,
    lock: &Lock,
    line: &Line,
    options: &ScanOptions,
    commit: Option<&CommitInfo>,
    extra: Extra<'_>,
    progress: &Progress,
) -> Result<Recorded> {
    let index = repo.index()?;
    // The store may have been named on the command line or by hand in the configuration: whoever cleans it up must know of us before a chunk is in it.
    enrolled::enrol(&repo.places)?;
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?.with_index(&index);
    let chunks = repo.store.writer(WriteOptions { level: repo.settings.level })?;
    let has_failed = AtomicBool::new(false);
    let references = Referencing::new(repo, options.by_reference)?;
    let sink = Sink::Store { pack: &pack, chunks: &chunks, references: references.as_ref(), has_failed: &has_failed };
    let mut found = scan::scan(repo, &index, options, sink, progress)?;
    let extra = extra(&found, &pack, &chunks)?;
    found.updates.extend(extra);
    let has_news = !found.updates.is_empty() || !found.gone.is_empty();
    let new_index = merged(&index, std::mem::take(&mut found.updates), &found.gone)?;
    let mut recorded = Recorded { found, ..Recorded::default() };
    let mut new_commit = None;
    if let Some(info) = commit {
        new_commit = commit_if_new(repo, &pack, &new_index, line.tip, info)?;
    }
    progress.stage("writing", 0, 0);
    // From here on the order is all: chunks, objects, index, ref.
    let (stats, lease) = chunks.finish_with_lease()?;
    recorded.chunks = stats;
    let references = references.map(Referencing::finish).transpose()?;
    let kept = pack.finish()?;
    if has_news {
        repo.write_index(&new_index)?;
    }
    recorded.commit = new_commit;
    if let (Some(commit), Some(info)) = (new_commit, commit) {
        move_line(repo, commit, line, info, kept, lock)?;
    } else {
        if has_news {
            crate::durable::sync_filesystem(&repo.places.git_dir)?;
        }
        kept.map_or(Ok(()), Kept::release)?;
    }
    drop((lease, references));
    Ok(recorded)
}

/// Which files are their own store, and where that is noted.
pub struct Referencing {
    writer: ReferenceWriter,
    known: Referenced,
    root: PathBuf,
    is_for_all: bool,
}

impl Referencing {
    /// Begins a run in which the chunks of `all` large files stay in them, or only those of files that are their own store already; `None` if none are.
    fn new(repo: &Repo, is_for_all: bool) -> Result<Option<Self>> {
        let references = repo.chunks.local().references();
        let known = references.files()?;
        if !is_for_all && known.is_empty() {
            return Ok(None);
        }
        let root = crate::durable::real_path(&repo.places.work_tree)?;
        Ok(Some(Self { writer: references.writer(&root)?, known, root, is_for_all }))
    }

    /// Returns who notes the chunks of the file at `path`, if they stay in it.
    pub(super) fn of_file(&self, path: &[u8]) -> Option<FileReferences<'_>> {
        (self.is_for_all || self.known.has(&self.root, path)).then(|| self.writer.file(path))
    }

    fn finish(self) -> Result<Lease> {
        self.writer.finish()
    }
}

/// Stages `content` for the path `stored` of a commit, as a small file; the next commit has it.
///
/// What is on the disk is not looked at, and what is recorded of the file's metadata stays.
pub fn put(repo: &Repo, stored: &[u8], content: &[u8]) -> Result<()> {
    put_with(repo, stored, content, &|_, _| Ok(None))
}

/// Stages `content` for the file at `path`, which gets this mode if nothing is recorded of it, and its directory likewise if that is not known.
pub fn put_private(repo: &Repo, path: &[u8], content: &[u8], mode: u16) -> Result<()> {
    put_with(repo, &name::stored_path(path), content, &|index, pack| {
        let (dir, entry_name) = scan::split(path);
        let position = index.lookup(&name::meta_path(dir));
        let mut recorded = match position {
            Some(position) => repo.read_dir_metadata(&index.entry(position).oid, dir)?,
            None => DirMetadata { dir: Metadata { partial: true, ..Metadata::new(FileKind::Dir) }, ..DirMetadata::new() },
        };
        if recorded.entries.contains_key(entry_name) {
            return Ok(None);
        }
        recorded.entries.insert(entry_name.to_vec(), Metadata { mode, ..Metadata::new(FileKind::File) });
        let oid = pack.blob(&recorded.encode())?;
        Ok(Some(Staged { path: name::meta_path(dir), oid, mode: FILE, stat: CachedStat::default() }))
    })
}

type Also<'a> = &'a dyn Fn(&Index, &PackWriter) -> Result<Option<Staged>>;

fn put_with(repo: &Repo, stored: &[u8], content: &[u8], also: Also<'_>) -> Result<()> {
    if content.len() as u64 >= repo.settings.threshold || ChunkIndex::is_index(content) {
        let message = format!("cannot stage '{}': it is too large, or looks like a chunk index", scan::shown(stored));
        return Err(Error::new(Kind::Usage, message));
    }
    let _lock = repo.lock()?;
    let index = repo.index()?;
    let mode = index.lookup(stored).map(|position| index.entry(position).mode).filter(|mode| *mode == EXECUTABLE);
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let (path, oid, mode) = (stored.to_vec(), pack.blob(content)?, mode.unwrap_or(FILE));
    let mut updates = vec![Staged { path, oid, mode, stat: CachedStat::default() }];
    updates.extend(also(&index, &pack)?);
    let index = merged(&index, updates, &[])?;
    let kept = pack.finish()?;
    repo.write_index(&index)?;
    crate::durable::sync_filesystem(&repo.places.git_dir)?;
    kept.map_or(Ok(()), Kept::release)
}

/// Commits what is staged.
pub fn commit(repo: &Repo, info: &CommitInfo) -> Result<Option<Oid>> {
    let lock = repo.lock()?;
    wip::must_not_be(repo)?;
    next::must_not_be(repo)?;
    commit_on(repo, &lock, &Line::of_head(repo)?, info)
}

/// The same on a line of commits of its own, by who holds the lock.
pub fn commit_on(repo: &Repo, lock: &Lock, line: &Line, info: &CommitInfo) -> Result<Option<Oid>> {
    let index = repo.index()?;
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let Some(commit) = commit_if_new(repo, &pack, &index, line.tip, info)? else { return Ok(None) };
    let kept = pack.finish()?;
    move_line(repo, commit, line, info, kept, lock)?;
    Ok(Some(commit))
}

/// Commits on a line of commits of its own, by who holds the lock, that nothing is stored at the path `stored` of a commit any more.
pub fn remove_on(repo: &Repo, lock: &Lock, line: &Line, stored: &[u8], info: &CommitInfo) -> Result<Option<Oid>> {
    let index = repo.index()?;
    let position = index.lookup(stored).ok_or_else(|| Error::new(Kind::NotFound, "it is not there"))?;
    repo.write_index(&merged(&index, Vec::new(), &[position])?)?;
    commit_on(repo, lock, line, info)
}

fn commit_if_new(repo: &Repo, pack: &PackWriter, index: &Index, head: Option<Oid>, info: &CommitInfo) -> Result<Option<Oid>> {
    let before = head.map(|head| repo.objects.commit(&head).map(|commit| commit.tree)).transpose()?;
    let tree = write_tree_after(entries_of(index), pack, before)?;
    if before.unwrap_or(empty_tree()) == tree {
        return Ok(None);
    }
    let signature = Signature::new(&info.identity, info.time, info.offset);
    let data = CommitData {
        tree,
        parents: head.into_iter().collect(),
        author: signature.clone(),
        committer: signature,
        message: info.message.clone().into_bytes(),
    };
    Ok(Some(pack.commit(&data)?))
}

/// Moves the line to `commit`, durably, and lets go of the pack that it came in.
fn move_line(repo: &Repo, commit: Oid, line: &Line, info: &CommitInfo, kept: Option<Kept>, lock: &Lock) -> Result<()> {
    let first_line = info.message.lines().next().unwrap_or_default();
    let git = repo.git.clone().with_identity(info.identity.clone());
    git.update_ref(&line.name, commit, line.at, &format!("commit: {first_line}"))?;
    // After the commit point: if the run ends here, git's log explains why the mirror is behind.
    repo.note_refs(lock)?;
    kept.map_or(Ok(()), Kept::release)
}

/// Returns what a tree is written from.
pub(super) fn entries_of(index: &Index) -> impl Iterator<Item = (&[u8], u32, Oid)> {
    index.iter().map(|entry| (entry.path, entry.mode, entry.oid))
}

/// Returns `index` with `updates` put in and the entries at the ascending positions `gone` left out.
pub(crate) fn merged(index: &Index, mut updates: Vec<Staged>, gone: &[usize]) -> Result<Index> {
    updates.sort_by(|a, b| a.path.cmp(&b.path));
    let mut new = IndexBuilder::default();
    let mut updates = updates.iter().peekable();
    let mut gone = gone.iter().peekable();
    for (position, entry) in index.iter().enumerate() {
        while let Some(update) = updates.next_if(|update| update.path.as_slice() < entry.path) {
            new.push(&update.as_entry())?;
        }
        let is_gone = gone.next_if(|&&gone| gone == position).is_some();
        match updates.next_if(|update| update.path == entry.path) {
            Some(update) => new.push(&update.as_entry())?,
            None if is_gone => (),
            None => new.push(&entry)?,
        }
    }
    updates.try_for_each(|update| new.push(&update.as_entry()))?;
    Ok(new.build())
}

impl Staged {
    fn as_entry(&self) -> IndexEntry<'_> {
        let Self { path, oid, mode, stat } = self;
        IndexEntry { path, oid: *oid, mode: *mode, stat: *stat, skip_worktree: false, intent_to_add: false }
    }
}
