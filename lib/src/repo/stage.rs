//! Records what a scan found: first content, then the index, then the commit, in the order in which each relies on the one before.
//!
//! Chunks are durable before the git objects that name them, those before the index, that before the ref. Whoever is killed in between leaves
//! something that nothing refers to yet, and the next run goes on from there.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::hand_over::{self, HandOver, HandOverOptions};
use super::scan::{self, Change, Found, ScanOptions, Sink, Staged, What};
use super::{Repo, enrolled, next, wip};
use crate::durable::Lock;
use crate::error::{Error, Kind, Result};
use crate::file::index::ChunkIndex;
use crate::git::index::{CachedStat, Index, IndexEntry};
use crate::git::name;
use crate::git::object::{EXECUTABLE, FILE};
use crate::git::pack::PackWriter;
use crate::git::{CommitData, Identity, Kept, NewIndex, Oid, Signature, Staging, empty_tree, write_tree_after};
use crate::metadata::{DirMetadata, Metadata};
use crate::progress::Progress;
use crate::safepath::FileKind;
use crate::store::{FileReferences, Lease, ReferenceWriter, Referenced, WriteOptions, WriteStats, Writer};
use crate::threads;

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
/// On return everything is durable. On an error nothing is committed, and the index is as it was, or what was found is staged.
pub fn record(repo: &Repo, options: &ScanOptions, commit: Option<&CommitInfo>, progress: &Progress) -> Result<Recorded> {
    let lock = repo.lock()?;
    wip::must_not_be(repo)?;
    next::must_not_be(repo)?;
    record_on(repo, &lock, &Line::of_head(repo)?, options, commit, &nothing_else, progress)
}

/// Does as [`record`], but lets other holders take the chunks of large files, and keeps none of them; returns when enough hold everything.
///
/// Fails with [`Kind::NoSpace`] if they do not; then nothing is staged, and the same can be said again.
pub fn record_handing_over(
    repo: &Repo,
    options: &ScanOptions,
    commit: Option<&CommitInfo>,
    how: &HandOverOptions,
    progress: &Progress,
) -> Result<Recorded> {
    let lock = repo.lock()?;
    wip::must_not_be(repo)?;
    next::must_not_be(repo)?;
    let hand_over = HandOver::begin(repo, &lock, how)?;
    let beside = Beside { extra: &|_, _| Ok(Vec::new()), absent: None, hand_over: Some(&hand_over) };
    record_with(repo, &lock, &Line::of_head(repo)?, options, commit, &beside, progress)
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
    pub(super) fn of_head(repo: &Repo) -> Result<Self> {
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
    let extra = |found: &Found, sink: Sink<'_>| match sink {
        Sink::Store { pack, chunks, .. } => extra(found, pack, chunks),
        _ => Err(Error::new(Kind::Bug, "BUG: what is recorded is not stored")),
    };
    record_with(repo, lock, line, options, commit, &Beside { extra: &extra, absent: None, hand_over: None }, progress)
}

/// What is recorded beside what a scan finds, and how.
pub(super) struct Beside<'a> {
    /// Adds to what was found.
    pub extra: &'a dyn Fn(&Found, Sink<'_>) -> Result<Vec<Staged>>,
    /// The stored path of what need not be on the disk.
    pub absent: Option<&'a [u8]>,
    /// Takes the chunks.
    pub hand_over: Option<&'a HandOver<'a>>,
}

pub(super) fn record_with(
    repo: &Repo,
    lock: &Lock,
    line: &Line,
    options: &ScanOptions,
    commit: Option<&CommitInfo>,
    beside: &Beside<'_>,
    progress: &Progress,
) -> Result<Recorded> {
    let index = repo.index()?;
    // The store may have been named on the command line or by hand in the configuration: whoever cleans it up must know of us before a chunk is in it.
    enrolled::enrol(&repo.places)?;
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?.with_index(&index).with_level(repo.settings.level);
    let chunks = repo.store.writer(WriteOptions { level: repo.settings.level })?;
    let has_failed = AtomicBool::new(false);
    let references = Referencing::new(repo, options.by_reference)?;
    let hand_over = beside.hand_over;
    let sink = Sink::Store { pack: &pack, chunks: &chunks, references: references.as_ref(), hand_over, has_failed: &has_failed };
    let mut found = scan::scan(repo, &index, options, sink, progress)?;
    found.n_seen += u64::from(beside.absent.is_some());
    let extra = (beside.extra)(&found, sink)?;
    if let Some(change) = beside.absent.and_then(|path| change_at(&index, &extra, path)) {
        found.changes.push(&change.path, change.what);
    }
    extra.iter().for_each(|staged| found.updates.push(&staged.as_entry()));
    let handed = match hand_over {
        Some(hand_over) => {
            progress.stage("waiting for other hosts to pull", 0, 0);
            hand_over.finish()?
        }
        None => WriteStats::default(),
    };
    let has_news = !found.updates.is_empty() || !found.gone.is_empty();
    let gone = std::mem::take(&mut found.gone);
    let mut new_index = NewIndex::new(&index, std::mem::take(&mut found.updates), &gone)?.with_absent(beside.absent);
    let mut recorded = Recorded { found, ..Recorded::default() };
    let mut new_commit = None;
    if let Some(info) = commit {
        let tree;
        (tree, new_commit) = commit_if_new(repo, &pack, &new_index, line.tip, info)?;
        if has_news {
            new_index = new_index.with_tree(Some(tree));
        }
    }
    progress.stage("writing", 0, 0);
    // From here on the order is all: chunks, objects, index, ref. While the disk takes the chunks, the objects are completed.
    let (pack, finished) = threads::both(|| pack.complete(), || chunks.finish_with_lease());
    let (stats, lease) = finished?;
    recorded.chunks = match hand_over {
        // Beside it there are only the lists.
        Some(_) => handed,
        None => stats,
    };
    let references = references.map(Referencing::finish).transpose()?;
    let kept = pack?.publish()?;
    let unguarded = match has_news {
        true => repo.write_index(&new_index)?.unguarded,
        false => new_index.unguarded(&repo.places.git_dir)?,
    };
    // The commit relied on the old index for them, and others have staged something else in their place.
    let also_kept = new_commit.map(|_| kept_anew(repo, &unguarded)).transpose()?.flatten();
    recorded.commit = new_commit;
    if let (Some(commit), Some(info)) = (new_commit, commit) {
        move_line(repo, commit, line, info, kept, lock)?;
    } else {
        if has_news {
            crate::durable::sync_filesystem(&repo.places.git_dir)?;
        }
        repo.let_go(kept)?;
    }
    also_kept.map_or(Ok(()), Kept::release)?;
    drop((lease, references));
    Ok(recorded)
}

/// Writes objects that the repository has once more, so that nobody can remove them.
fn kept_anew(repo: &Repo, oids: &[Oid]) -> Result<Option<Kept>> {
    if oids.is_empty() {
        return Ok(None);
    }
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    oids.iter().try_for_each(|oid| pack.copy(oid))?;
    pack.finish()
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
    let index = NewIndex::new(&index, updates, &[])?;
    let kept = pack.finish()?;
    repo.write_index(&index)?;
    crate::durable::sync_filesystem(&repo.places.git_dir)?;
    repo.let_go(kept)
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
    let new_index = NewIndex::of(&index);
    let (_, Some(commit)) = commit_if_new(repo, &pack, &new_index, line.tip, info)? else { return Ok(None) };
    let kept = pack.finish()?;
    let also_kept = kept_anew(repo, &new_index.unguarded(&repo.places.git_dir)?)?;
    move_line(repo, commit, line, info, kept, lock)?;
    also_kept.map_or(Ok(()), Kept::release)?;
    Ok(Some(commit))
}

/// Commits on a line of commits of its own, by who holds the lock, that nothing is stored at the path `stored` of a commit any more.
pub fn remove_on(repo: &Repo, lock: &Lock, line: &Line, stored: &[u8], info: &CommitInfo) -> Result<Option<Oid>> {
    let index = repo.index()?;
    let position = index.lookup(stored).ok_or_else(|| Error::new(Kind::NotFound, "it is not there"))?;
    repo.write_index(&NewIndex::new(&index, Staging::default(), &[position])?)?;
    commit_on(repo, lock, line, info)
}

/// Returns the tree of `index`, and the commit with it after `head`, if that has another one.
fn commit_if_new(
    repo: &Repo,
    pack: &PackWriter,
    index: &NewIndex<'_>,
    head: Option<Oid>,
    info: &CommitInfo,
) -> Result<(Oid, Option<Oid>)> {
    let before = head.map(|head| repo.objects.commit(&head).map(|commit| commit.tree)).transpose()?;
    let tree = match before.filter(|before| index.tree() == Some(*before)) {
        Some(before) => before,
        None => write_tree_after(index.files(), pack, before)?,
    };
    if before.unwrap_or(empty_tree()) == tree {
        return Ok((tree, None));
    }
    let signature = Signature::new(&info.identity, info.time, info.offset);
    let data = CommitData {
        tree,
        parents: head.into_iter().collect(),
        author: signature.clone(),
        committer: signature,
        message: info.message.clone().into_bytes(),
    };
    Ok((tree, Some(pack.commit(&data)?)))
}

/// Moves the line to `commit`, durably, and lets go of the pack that it came in.
fn move_line(repo: &Repo, commit: Oid, line: &Line, info: &CommitInfo, kept: Option<Kept>, lock: &Lock) -> Result<()> {
    let first_line = info.message.lines().next().unwrap_or_default();
    let git = repo.git.clone().with_identity(info.identity.clone());
    git.update_ref(&line.name, commit, line.at, &format!("commit: {first_line}"))?;
    // What was staged and handed over is in it; others fetch branches, and no lines beside them.
    if line.name.starts_with("refs/heads/") {
        hand_over::forget(repo)?;
    }
    // After the commit point: if the run ends here, git's log explains why the mirror is behind.
    repo.note_refs(lock)?;
    repo.let_go(kept)
}

/// Returns in which way what is stored at the path `stored` becomes another.
fn change_at(index: &Index, updates: &[Staged], stored: &[u8]) -> Option<Change> {
    let new = updates.iter().find(|update| update.path == stored)?.oid;
    let what = match index.lookup(stored).map(|position| index.entry(position).oid) {
        None => What::Added,
        Some(old) if old != new => What::Content,
        Some(_) => return None,
    };
    Some(Change { path: scan::file_path(stored)?, what })
}

impl Staged {
    fn as_entry(&self) -> IndexEntry<'_> {
        scan::entry_of(&self.path, self.oid, self.mode, self.stat)
    }
}

impl From<Vec<Staged>> for Staging {
    fn from(staged: Vec<Staged>) -> Self {
        let mut all = Self::default();
        staged.iter().for_each(|staged| all.push(&staged.as_entry()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::ObjectKind;
    use crate::git::object::object_id;
    use crate::repo::Places;
    use crate::repo::exclude::{ExcludeOptions, Excludes};
    use crate::repo::scan::Scope;

    fn info() -> CommitInfo {
        let identity = Identity { name: "A".into(), email: "a@b".into() };
        CommitInfo { identity, time: 1, offset: 0, message: "m".into() }
    }

    /// Stages `content` as stock git does, and returns its blob.
    fn stage(repo: &Repo, path: &str, content: &str) -> Oid {
        let oid = repo.git.run_with_input(&["hash-object", "-w", "--stdin"], content.as_bytes()).unwrap();
        let oid = Oid::from_hex(oid.trim_ascii()).unwrap();
        repo.git.run(&["update-index", "--add", "--cacheinfo", &format!("100644,{oid},{path}")]).unwrap();
        oid
    }

    #[test]
    fn what_others_stage_during_a_snapshot_stays_staged_after_it() {
        for is_pruned in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let places = Places::of_directory(dir.path());
            Repo::init(&places, "main").unwrap();
            let repo = Repo::open(places).unwrap();
            std::fs::create_dir_all(dir.path().join("d")).unwrap();
            std::fs::write(dir.path().join("d/f"), "1").unwrap();
            let before = stage(&repo, "p", "staged before");
            let snapshot = |others: &dyn Fn()| {
                let excludes = Excludes::new(ExcludeOptions::default(), &repo.places.git_dir.join("info/exclude")).unwrap();
                let scope = Scope::Paths(vec![b"d".to_vec()]);
                let options = ScanOptions { scope, excludes, one_file_system: false, by_reference: false };
                // By itself: Repo::lock hands it on to children, also to those of other tests.
                let lock = Lock::exclusive(&repo.places.state.join("lock")).unwrap();
                let extra = |_: &Found, _: &PackWriter<'_>, _: &Writer| {
                    others();
                    Ok(Vec::new())
                };
                let line = Line::of_head(&repo).unwrap();
                record_on(&repo, &lock, &line, &options, Some(&info()), &extra, &Progress::default())
            };
            let recorded = snapshot(&|| {
                stage(&repo, "p", "staged meanwhile");
                stage(&repo, "q", "new");
                if is_pruned {
                    repo.git.run(&["prune", "--expire=now"]).unwrap();
                }
            });
            let index = repo.index().unwrap();
            let staged = |path: &str| index.lookup(path.as_bytes()).map(|at| index.entry(at).oid);
            let blob = |content: &str| Some(object_id(ObjectKind::Blob, content.as_bytes()).unwrap());
            assert_eq!([staged("p"), staged("q"), staged("d/f")], ["staged meanwhile", "new", "1"].map(blob));
            if is_pruned {
                // What the commit was to have is gone: that is told, and the next one has all.
                assert_eq!(recorded.unwrap_err().kind(), Kind::Conflict);
                assert_eq!(repo.head().unwrap(), None);
                snapshot(&|| ()).unwrap();
                let head = repo.objects.commit(&repo.head().unwrap().unwrap()).unwrap().tree;
                assert_eq!(
                    ["p", "q", "d/f"].map(|path| repo.blob_in(&head, path.as_bytes()).unwrap()),
                    ["p", "q", "d/f"].map(staged)
                );
            } else {
                // The commit is that of the moment when the index was read.
                let tree = repo.objects.commit(&recorded.unwrap().commit.unwrap()).unwrap().tree;
                let stored = |path: &str| repo.blob_in(&tree, path.as_bytes()).unwrap();
                assert_eq!([stored("p"), stored("q"), stored("d/f")], [Some(before), None, blob("1")]);
                // Where the scan finds nothing and writes no index, what is gone is told, too.
                stage(&repo, "p", "third");
                crate::repo::status::refresh(&repo, &Progress::default()).unwrap();
                let (head, is_ours) = (repo.head().unwrap(), !repo.index().unwrap().is_doubted());
                let recorded = snapshot(&|| {
                    stage(&repo, "p", "fourth");
                    repo.git.run(&["prune", "--expire=now"]).unwrap();
                });
                assert_eq!((recorded.unwrap_err().kind(), repo.head().unwrap()), (Kind::Conflict, head));
                assert!(is_ours && repo.index().unwrap().is_doubted(), "nothing was written");
                // Nothing but the commits leads to what was staged before.
                repo.git.run(&["prune", "--expire=now"]).unwrap();
            }
            assert_eq!(repo.git.run(&["fsck", "--strict", "--no-dangling"]).unwrap(), b"");
        }
    }
}
