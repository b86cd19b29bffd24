//! Hard links, when all files are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::batch::Batch;
use super::entry::Spot;
use super::{Action, POISONED, Run, clear_flags};
use crate::error::{Error, Kind, Result};
use crate::metadata::{self, Flags};
use crate::repo::Repo;
use crate::repo::scan::split;
use crate::repo::tree::{Item, StoredDir};
use crate::safepath::{self, Dir, FileKind};

/// A file that has, or is to have, several names.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) path: Vec<u8>,
    pub(super) item: Item,
}

/// The files of the directory of the source that was asked for last: first members of links come sorted by path.
#[derive(Default)]
pub(super) struct Siblings {
    pub(super) dir: Option<Vec<u8>>,
    pub(super) files: BTreeMap<Vec<u8>, Item>,
}

impl Siblings {
    /// Returns what the source has at `path`, if that is a file which leads a group of links.
    pub(super) fn find(&mut self, repo: &Repo, source: &StoredDir, path: &[u8]) -> Result<Option<Item>> {
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
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        let of = |item: &Self| (item.content, item.metadata.kind, item.metadata.rdev);
        of(self) == of(other)
    }
}

impl Run<'_> {
    /// Gives a file of its own to each name that shares one with names that are not of its group.
    pub(super) fn unlink_foreign(&self) -> Result<()> {
        for (link, n_names) in std::mem::take(&mut *self.linked.lock().expect(POISONED)) {
            if n_names as usize <= 1 + self.n_linked_members(&link.path)? {
                continue;
            }
            self.step(&link.path, Action::Replace);
            if self.is_dry() {
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

    /// Makes the hard links, when all files are there.
    pub(super) fn link(&self, source: &StoredDir) -> Result<()> {
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
                let (has_content, file) = stored.is_in(self.repo, (&dir, name), &stat, &first.item, &mut Vec::new())?;
                has_content && self.differences(&spot, &first.item, &stat, file.as_ref())?.is_empty()
            })
        };
        compare().unwrap_or(false)
    }

    fn link_one(&self, first: Option<&[u8]>, link: Link) -> Result<()> {
        let (parent, name) = split(&link.path);
        let Ok(dir) = self.dir_at(parent) else {
            self.step(&link.path, Action::Create);
            return if self.is_dry() { Ok(()) } else { Err(Error::new(Kind::NotFound, "its directory is not there")) };
        };
        let there = dir.stat(name)?;
        self.look(&link.path, there.as_ref())?;
        let Some(first) = first.filter(|_| !self.is_dry() || there.is_some()) else {
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
        if self.is_dry() {
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
}

/// Says whether a file in `first` can get a second name in `dir`: whoever can change the names in one must be able to in the other, or anyone at all
/// could slip in a file of his own, or have the flags of one taken away that is not his.
pub(super) fn can_share(first: &Dir, dir: &Dir, flags: Flags) -> Result<bool> {
    let is_one_owners = || -> Result<bool> { Ok(first.stat_self()?.uid == dir.stat_self()?.uid) };
    Ok(first.is_ours_alone()? && dir.is_ours_alone()? || flags.is_empty() && is_one_owners()?)
}
