//! What differs: HEAD from the index, the index from the work tree.

use std::collections::HashSet;

use super::Repo;
use super::exclude::{ExcludeOptions, Excludes};
use super::scan::{self, Change, Found, ScanOptions, Scope, Sink, Staged, What, file_path, join};
use crate::durable;
use crate::error::{Error, Kind, Result};
use crate::git::index::{CachedStat, Index, IndexEntry};
use crate::git::name::{self, Stored};
use crate::git::{NewIndex, Oid};
use crate::metadata::DirMetadata;
use crate::progress::Progress;
use crate::threads;

/// What differs.
#[derive(Debug)]
pub struct Status {
    /// The branch that HEAD names; `None` if HEAD names a commit.
    pub branch: Option<String>,
    /// The commit that HEAD names; `None` before the first one.
    pub head: Option<Oid>,
    /// What the next commit would change, sorted by path.
    pub staged: Vec<Change>,
    /// What the next snapshot would stage, sorted by path.
    pub found: Found,
}

/// Compares HEAD, index and work tree; changes nothing.
pub fn status(repo: &Repo, options: &ScanOptions, progress: &Progress) -> Result<Status> {
    repo.with_index(|index| status_of(repo, index, options, progress))
}

fn status_of(repo: &Repo, index: &Index, options: &ScanOptions, progress: &Progress) -> Result<Status> {
    let head = repo.head()?;
    // git is a program of its own, and looks at what is staged while we look at the files.
    let look = || scan::scan(repo, index, options, Sink::Compare, progress);
    let (staged, found) = threads::both(|| staged(repo, index, head), look);
    let (found, staged) = (found?, staged?);
    Ok(Status { branch: branch(repo)?, head, staged, found })
}

/// Returns what the next commit would change, without a look at the work tree.
pub fn only_staged(repo: &Repo) -> Result<Vec<Change>> {
    let head = repo.head()?;
    repo.with_index(|index| staged(repo, index, head))
}

/// Returns what the index has that HEAD has not, and the other way round.
fn staged(repo: &Repo, index: &Index, head: Option<Oid>) -> Result<Vec<Change>> {
    match head {
        // Made from HEAD a moment ago; git would take one that is not there for an empty one.
        Some(_) if !durable::is_there(&repo.index_path()) => Ok(Vec::new()),
        Some(head) if index.tree() == Some(repo.objects.commit(&head)?.tree) => Ok(Vec::new()),
        Some(_) => {
            let raw = repo.git.run(&[
                "diff-index",
                "--cached",
                "--ita-invisible-in-index",
                "--raw",
                "-z",
                "--no-abbrev",
                "--no-renames",
                "HEAD",
                "--",
            ])?;
            changes(repo, &raw, true)
        }
        None => {
            let staged = index.iter().filter(|entry| !entry.intent_to_add);
            Ok(staged.filter_map(|entry| Some(Change { path: file_path(entry.path)?, what: What::Added })).collect())
        }
    }
}

fn branch(repo: &Repo) -> Result<Option<String>> {
    let head = repo.git.head_ref()?;
    Ok(head.map(|name| name.strip_prefix("refs/heads/").unwrap_or(&name).to_owned()))
}

/// Compares two trees; what is ours in them, such as the attributes, has the path that it has in a commit.
pub fn compare_trees(repo: &Repo, a: Oid, b: Oid) -> Result<Vec<Change>> {
    changes(repo, &raw_difference(repo, a, b)?, true)
}

/// Compares what two trees say of the work tree: what is ours in them has no place there, also where a file has that same name.
pub(crate) fn compare_work_trees(repo: &Repo, a: Oid, b: Oid) -> Result<Vec<Change>> {
    changes(repo, &raw_difference(repo, a, b)?, false)
}

/// Returns `index`, which holds the tree `a`, as one that holds the tree `b`: what differs is to be looked at anew.
pub(crate) fn index_after(repo: &Repo, index: &Index, a: Oid, b: Oid) -> Result<Index> {
    let raw = raw_difference(repo, a, b)?;
    let (mut updates, mut gone) = (Vec::new(), Vec::new());
    for change in raw_changes(&raw) {
        let (raw, path) = change?;
        match raw.new {
            Some(oid) => updates.push(Staged { path: path.to_vec(), oid, mode: raw.new_mode, stat: CachedStat::default() }),
            None => gone.extend(index.lookup(path)),
        }
    }
    gone.sort_unstable();
    let tree = index.tree().filter(|tree| *tree == a).map(|_| b);
    NewIndex::new(index, updates, &gone)?.with_tree(tree).build()
}

/// Returns the blobs that the tree `b` has and `a` has not, each with its path in a commit.
pub(crate) fn new_blobs(repo: &Repo, a: Oid, b: Oid) -> Result<Vec<(Vec<u8>, Oid)>> {
    let raw = raw_difference(repo, a, b)?;
    let mut blobs = Vec::new();
    for change in raw_changes(&raw) {
        let (raw, path) = change?;
        blobs.extend(raw.new.filter(|_| raw.new_mode & 0o170_000 == 0o100_000).map(|oid| (path.to_vec(), oid)));
    }
    Ok(blobs)
}

/// Notes the times of the files that are as the index says, so that nobody reads them again; the caller holds the lock.
pub(crate) fn refresh(repo: &Repo, progress: &Progress) -> Result<()> {
    let index = repo.index()?;
    let excludes = Excludes::new(ExcludeOptions::default(), &repo.places.git_dir.join("info/exclude"))?;
    let options = ScanOptions { scope: Scope::Owned, excludes, one_file_system: false, by_reference: false };
    let found = scan::scan(repo, &index, &options, Sink::Compare, progress)?;
    let changed: HashSet<&[u8]> = found.changes.iter().map(|(path, _)| path).collect();
    let is_same = |update: &IndexEntry<'_>| {
        // Of a file that has another owner or mode the content is the same, and its directory's metadata tells.
        let is_changed = file_path(update.path).is_some_and(|path| changed.contains(&path[..]));
        let is_there = |position| {
            let entry = index.entry(position);
            (entry.oid, entry.mode) == (update.oid, update.mode)
        };
        !is_changed && index.lookup(update.path).is_some_and(is_there)
    };
    let mut updates = found.updates;
    updates.retain(is_same);
    if !updates.is_empty() {
        repo.write_index(&NewIndex::new(&index, updates, &[])?.with_tree(index.tree()))?;
    }
    Ok(())
}

/// So often git is asked again when it fails: while others repack, it may miss a tree that is there all the time.
const DIFF_AGAIN: usize = 2;

fn raw_difference(repo: &Repo, a: Oid, b: Oid) -> Result<Vec<u8>> {
    let (a, b) = (a.to_string(), b.to_string());
    let ask = || repo.git.run(&["diff-tree", "-r", "--raw", "-z", "--no-abbrev", "--no-renames", &a, &b, "--"]);
    let mut told = ask();
    for _ in 0..DIFF_AGAIN {
        if told.is_ok() {
            break;
        }
        told = ask();
    }
    // The tree of an index is made for a look: somebody's gc, which cannot know that, may remove it before git looks.
    told.map_err(|error| match error.to_string().contains("bad object") {
        true => error.with_kind(Kind::Locked).wrap("somebody's gc is removing objects; try again when it is done"),
        false => error,
    })
}

/// Turns git's raw difference of two trees into changes of work-tree paths.
fn changes(repo: &Repo, raw: &[u8], shows_ours: bool) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for change in raw_changes(raw) {
        let (raw, path) = change?;
        let what = match (raw.old, raw.new) {
            (None, _) => What::Added,
            (_, None) => What::Deleted,
            _ => What::Content,
        };
        match name::work_path(path) {
            Stored::File(path) => changes.push(Change { path: path.to_vec(), what }),
            Stored::Alt(path) => changes.push(Change { path, what }),
            Stored::Meta(dir) => metadata_changes(repo, &dir, &raw, &mut changes)?,
            Stored::Other if shows_ours => changes.push(Change { path: path.to_vec(), what }),
            Stored::Other => (),
        }
    }
    changes.sort();
    // A file whose content differs is named once.
    changes.dedup_by(|later, first| later.path == first.path && later.what == What::Metadata);
    Ok(changes)
}

/// Decodes git's raw difference of two trees: each change, and the path in a commit.
fn raw_changes(raw: &[u8]) -> impl Iterator<Item = Result<(RawChange, &[u8])>> {
    let mut fields = raw.split(|&b| b == 0).filter(|field| !field.is_empty());
    std::iter::from_fn(move || {
        let (info, path) = (fields.next()?, fields.next()?);
        let change = RawChange::decode(info).ok_or_else(|| Error::new(Kind::Bug, "BUG: git diff --raw is not understood"));
        Some(change.map(|change| (change, path)))
    })
}

pub(super) struct RawChange {
    old: Option<Oid>,
    new: Option<Oid>,
    new_mode: u32,
}

impl RawChange {
    /// Decodes `:100644 100644 <oid> <oid> M`.
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let mut words = info.strip_prefix(b":")?.split(|&b| b == b' ');
        let old_mode = words.next()?;
        let new_mode = words.next()?;
        let oid = |mode: &[u8], hex: &[u8]| Some(if mode == b"000000" { None } else { Some(Oid::from_hex(hex).ok()?) });
        let number = u32::from_str_radix(std::str::from_utf8(new_mode).ok()?, 8).ok()?;
        Some(Self { old: oid(old_mode, words.next()?)?, new: oid(new_mode, words.next()?)?, new_mode: number })
    }
}

/// Names the entries whose metadata differs between two versions of a directory's metadata file.
fn metadata_changes(repo: &Repo, dir: &[u8], raw: &RawChange, changes: &mut Vec<Change>) -> Result<()> {
    let read = |oid: Option<Oid>| oid.map_or(Ok(DirMetadata::default()), |oid| repo.read_dir_metadata(&oid, dir));
    let (old, new) = (read(raw.old)?, read(raw.new)?);
    match (raw.old, raw.new) {
        (None, _) => changes.push(Change { path: dir.to_vec(), what: What::Added }),
        (_, None) => changes.push(Change { path: dir.to_vec(), what: What::Deleted }),
        _ if old.dir != new.dir => changes.push(Change { path: dir.to_vec(), what: What::Metadata }),
        _ => (),
    }
    let mut note = |entry_name: &[u8], what| changes.push(Change { path: join(dir, entry_name), what });
    for (entry_name, was) in &old.entries {
        match new.entries.get(entry_name) {
            None if was.is_node() => note(entry_name, What::Deleted),
            Some(is) if is != was => note(entry_name, What::Metadata),
            _ => (),
        }
    }
    for (entry_name, is) in &new.entries {
        if is.is_node() && !old.entries.contains_key(entry_name) {
            note(entry_name, What::Added);
        }
    }
    Ok(())
}
