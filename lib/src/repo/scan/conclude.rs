//! What comes of a directory when all in it was looked at, and of the scan when all directories were.

use std::collections::{BTreeMap, HashMap};

use super::{Draft, Found, Inode, Job, POISONED, Scope, Walker, What, as_dir_stat, entry_of, file_path, join, split};
use crate::error::Result;
use crate::git::Staging;
use crate::git::index::{CachedStat, IndexEntry};
use crate::git::name::{self, Stored};
use crate::git::object::FILE;
use crate::metadata::{self, DirMetadata, GitKind, Metadata};
use crate::repo::changes::Changes;
use crate::safepath::{Dir, FileKind, Stat};

impl Walker<'_> {
    /// Reads the directory's own metadata, unless it is as recorded.
    pub(super) fn own_metadata(&self, dir: &Dir, draft: &mut Draft) -> Result<()> {
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
    pub(super) fn close(&self, draft: Draft) -> Result<()> {
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

    pub(super) fn finish(self, root: &Dir) -> Result<Found> {
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
}

impl Draft {
    pub(super) fn new(job: &Job, stat: Stat, is_racy: bool) -> Self {
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

    pub(super) fn was_met(&self, entry_name: &Vec<u8>) -> bool {
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

/// Says whether `old` tells of the entry just what was read now.
fn is_recorded_as(old: &DirMetadata, entry_name: &[u8], read: &Metadata) -> bool {
    if read.is_node() {
        return old.entries.get(entry_name) == Some(read);
    }
    let git = if read.kind == FileKind::Symlink { GitKind::Symlink } else { GitKind::File };
    old.lookup(entry_name, git).is_ok_and(|recorded| recorded == *read)
}

/// Says whether the index has just this already.
fn is_same(new: &IndexEntry<'_>, old: &IndexEntry<'_>) -> bool {
    (new.oid, new.mode, new.stat) == (old.oid, old.mode, old.stat)
}
