//! Stops owning paths.

use super::Repo;
use super::exclude::{ExcludeOptions, Excludes};
use super::pathset::PathSet;
use super::scan::{Change, ScanOptions, Scope, Sink, Staged, What, is_partial_dir, recorded_below, scan, shown, split};
use super::unowned::Unowned;
use crate::error::{Context, Error, Kind, Result};
use crate::git::index::{CachedStat, Index};
use crate::git::name::{self, Stored};
use crate::git::object::FILE;
use crate::git::{NewIndex, PackWriter};
use crate::progress::Progress;
use crate::safepath::{Dir, FileKind};

/// How to remove.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveOptions {
    /// Leave the files on the disk.
    pub keep_files: bool,
    /// Remove also what differs from its stored state.
    pub force: bool,
    /// Change nothing, only tell what would be removed.
    pub dry_run: bool,
}

/// Takes `paths` and all below them out of the index and, unless told otherwise, from the disk; returns what was removed.
///
/// The next commit records it. What is left on the disk stays without an owner until somebody names it again, or a directory above it. Nothing is
/// removed at all if one of the paths is not stored, or differs on the disk and `force` is not given.
pub fn remove(repo: &Repo, paths: &[Vec<u8>], options: &RemoveOptions, progress: &Progress) -> Result<Vec<Change>> {
    let _lock = repo.lock()?;
    let index = repo.index()?;
    if let Some(path) = paths.iter().find(|path| !repo.is_stored(&index, path)) {
        return Err(Error::new(Kind::NotFound, format!("'{}' is not stored, so there is nothing to remove", shown(path))));
    }
    let mut gone = positions(&index, paths);
    let mut removed: Vec<Change> = gone.iter().filter_map(|&position| removed_path(index.entry(position).path)).collect();
    let (updates, nodes) = parents_without(repo, &index, paths)?;
    removed.extend(nodes);
    removed.sort();
    if !options.keep_files && !options.force {
        refuse_changed(repo, &index, paths, &removed, progress)?;
    }
    if options.dry_run {
        return Ok(removed);
    }
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let updates = updates.into_iter().map(|(path, text, stat)| {
        let oid = pack.blob(&text)?;
        Ok(Staged { path, oid, mode: FILE, stat })
    });
    let mut updates = updates.collect::<Result<Vec<_>>>()?;
    if options.keep_files
        && let Some(list) = given_up(repo, &index, paths)?
    {
        list.stage(&index, &mut updates, &mut gone, |text| pack.blob(text))?;
    }
    let new = NewIndex::new(&index, updates, &gone)?;
    let kept = pack.finish()?;
    // The index comes last: as long as it has the paths, a run that was cut short can be repeated, or undone by a restore.
    if !options.keep_files {
        let root = Dir::open(&repo.places.work_tree)?;
        let referenced = repo.chunks.local().references().files()?;
        for change in removed.iter().rev() {
            let (parent, name) = split(&change.path);
            let dir = if referenced.is_empty() { None } else { root.open_path(parent).ok().filter(|_| !name.is_empty()) };
            let spared = dir.map_or(Ok(()), |dir| repo.spare(&referenced, &dir, name));
            spared
                .and_then(|()| remove_file(&root, &change.path))
                .context(|| format!("cannot remove '{}'", shown(&change.path)))?;
        }
        root.sync_filesystem()?;
    }
    repo.write_index(&new)?;
    crate::durable::sync_filesystem(&repo.places.git_dir)?;
    repo.let_go(kept)?;
    Ok(removed)
}

/// Refuses to go on if anything that is to be removed from the disk is not what is stored, or cannot be compared.
fn refuse_changed(repo: &Repo, index: &Index, paths: &[Vec<u8>], removed: &[Change], progress: &Progress) -> Result<()> {
    let excludes = Excludes::new(ExcludeOptions::default(), &repo.places.git_dir.join("info/exclude"))?;
    let options = ScanOptions { scope: Scope::Paths(paths.to_vec()), excludes, one_file_system: false, by_reference: false };
    let found = scan(repo, index, &options, Sink::Compare, progress)?;
    // Something of another type may have taken the place of what is stored: then it is new under an old name.
    let is_at_stake = |(path, what): &(&[u8], What)| match what {
        What::Content => true,
        What::Added => removed.binary_search_by(|removed| removed.path.as_slice().cmp(path)).is_ok(),
        What::Metadata | What::Deleted => false,
    };
    match found.changes.iter().find(is_at_stake) {
        Some((path, _)) => {
            let message =
                format!("'{}' differs from what is stored; take it with 'gdo snapshot' first, or say --force", shown(path));
            Err(Error::new(Kind::Conflict, message))
        }
        None if found.is_partial => {
            Err(Error::new(Kind::Conflict, "not all of it can be compared with what is stored; if it may go anyway, say --force"))
        }
        None => Ok(()),
    }
}

/// Returns the positions of everything recorded at and below `paths`, ascending.
fn positions(index: &Index, paths: &[Vec<u8>]) -> Vec<usize> {
    let mut positions: Vec<usize> = Vec::new();
    for path in paths {
        positions.extend(recorded_below(index, path).into_iter().flatten());
        positions.extend(index.lookup(&name::stored_path(path)));
    }
    positions.sort_unstable();
    positions.dedup();
    positions
}

fn removed_path(stored: &[u8]) -> Option<Change> {
    let path = match name::work_path(stored) {
        Stored::File(path) => path.to_vec(),
        Stored::Alt(path) | Stored::Meta(path) => path,
        Stored::Other => return None,
    };
    Some(Change { path, what: What::Deleted })
}

/// Returns the list of what was given up with `paths` on it, if that differs; where nothing is owned unless it is named, it need not be.
fn given_up(repo: &Repo, index: &Index, paths: &[Vec<u8>]) -> Result<Option<Unowned>> {
    if paths.iter().any(Vec::is_empty) {
        return Ok(None); // not even the top is owned
    }
    let before = Unowned::of(repo, index)?;
    let mut list = before.clone();
    let all = PathSet::new(paths);
    list.remove(&all);
    for path in paths {
        let parent = split(path).0;
        if !all.covers(parent) && !is_partial_dir(repo, index, parent)? {
            list.add(path);
        }
    }
    Ok((list != before).then_some(list))
}

type Update = (Vec<u8>, Vec<u8>, CachedStat);

/// Returns the metadata files of the directories that hold `paths`, without them, and the nodes among them.
fn parents_without(repo: &Repo, index: &Index, paths: &[Vec<u8>]) -> Result<(Vec<Update>, Vec<Change>)> {
    let mut by_parent = std::collections::BTreeMap::new();
    for path in paths.iter().filter(|path| !path.is_empty()) {
        let (parent, entry_name) = split(path);
        by_parent.entry(parent).or_insert_with(Vec::new).push(entry_name);
    }
    let (mut updates, mut nodes) = (Vec::new(), Vec::new());
    for (parent, names) in by_parent {
        let stored = name::meta_path(parent);
        let Some(position) = index.lookup(&stored) else { continue };
        let entry = index.entry(position);
        let mut recorded = repo.read_dir_metadata(&entry.oid, parent)?;
        let mut is_changed = false;
        for entry_name in names {
            let Some(found) = recorded.entries.remove(entry_name) else { continue };
            is_changed = true;
            if found.is_node() {
                nodes.push(Change { path: super::scan::join(parent, entry_name), what: What::Deleted });
            }
        }
        if is_changed {
            updates.push((stored, recorded.encode(), CachedStat::default()));
        }
    }
    Ok((updates, nodes))
}

/// Removes a file, or a directory if nothing is left in it.
pub(super) fn remove_file(root: &Dir, path: &[u8]) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let (parent, entry_name) = split(path);
    let Ok(dir) = root.open_path(parent) else { return Ok(()) };
    match dir.stat(entry_name)? {
        Some(stat) if stat.kind == FileKind::Dir => match dir.open_dir(entry_name)?.entries()?.is_empty() {
            true => dir.remove_dir(entry_name),
            false => Ok(()), // what is not owned stays, and with it the directory
        },
        Some(_) => dir.remove_file(entry_name),
        None => Ok(()),
    }
}
