//! One entry that is no directory: what it is to hold, whether it is right already, and how it is made complete beside its place.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use super::batch::{Batch, Ready};
use super::links::Link;
use super::{Action, POISONED, Run};
use crate::durable;
use crate::error::{Error, Kind, Result};
use crate::file::read;
use crate::metadata::{self, Flags, Metadata};
use crate::repo::attributes::Ownership;
use crate::repo::content::{Content, file_as_stored, write_around};
use crate::repo::laid;
use crate::repo::scan::split;
use crate::repo::tree::Item;
use crate::safepath::{self, Dir, FileKind, Stat};

/// Files of this many bytes are on their way to the disk while the next ones are written; of shorter ones a sync makes one long write.
const WRITEBACK_FROM: u64 = 64 << 10;

/// An entry that is to be right: a name in an open directory, and its path for messages.
pub(super) struct Spot<'a> {
    pub(super) dir: &'a Arc<Dir>,
    pub(super) name: &'a [u8],
    pub(super) path: &'a [u8],
}

impl Run<'_> {
    /// Returns what the entry at `path` is to hold.
    pub(super) fn content_of(&self, path: &[u8], item: &Item) -> Result<Content> {
        let ownership = self.attributes.policy(path).ownership;
        let is_other = matches!(ownership, Ownership::Env | Ownership::Secret);
        if let (true, Some(oid)) = (is_other, item.content) {
            laid::must_be_short(self.repo, &oid)?;
        }
        match Content::of(self.repo, item)? {
            Content::Small(stored) => match self.manner.laying.content(path, ownership, &stored)? {
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

    /// Makes an entry what `item` says, unless it is.
    pub(super) fn place(
        &self,
        spot: &Spot<'_>,
        item: &Item,
        there: Option<Stat>,
        batch: &mut Batch,
        content: &mut Vec<u8>,
    ) -> Result<()> {
        self.look(spot.path, there.as_ref())?;
        if let Some(stat) = &there
            && self.manner.laying.is_as_stored(spot.path, self.attributes.policy(spot.path).ownership)
            && let Some(file) = file_as_stored(self.repo, (spot.dir, spot.name), stat, item, content)
            && self.only_metadata(spot, item, stat, Some(&file))?
        {
            return Ok(());
        }
        let stored = self.content_of(spot.path, item)?;
        let mut old = None;
        match there {
            Some(stat) if stat.kind == FileKind::Dir && self.is_dry() && self.is_going.contains(spot.path) => {
                self.step(spot.path, Action::Replace);
            }
            Some(stat) if stat.kind == FileKind::Dir => {
                return Err(Error::new(Kind::Refused, "a directory is in the place of a file; move it away first"));
            }
            Some(stat) => {
                if stored.is_kind(item, stat.kind) {
                    let (has_content, file) = stored.is_in(self.repo, (spot.dir, spot.name), &stat, item, content)?;
                    if has_content && self.only_metadata(spot, item, &stat, file.as_ref())? {
                        return Ok(());
                    }
                    old = file;
                }
                self.step(spot.path, Action::Replace);
            }
            None => self.step(spot.path, Action::Create),
        }
        if self.is_dry() {
            return Ok(());
        }
        self.replace(spot, item, &stored, old.as_ref(), batch)
    }

    /// Stages an entry, to be renamed with the rest of its batch.
    pub(super) fn replace(
        &self,
        spot: &Spot<'_>,
        item: &Item,
        stored: &Content,
        old: Option<&File>,
        batch: &mut Batch,
    ) -> Result<()> {
        self.spare(spot.dir, spot.name)?;
        self.open_up(split(spot.path).0, spot.dir)?;
        let (temp, n_bytes, file) = self.stage(spot, item, stored, old)?;
        self.restored().n_bytes += n_bytes;
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
            if is_right && self.manner.options.paths.is_empty() {
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
        if self.is_dry() {
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
    pub(super) fn differences(
        &self,
        spot: &Spot<'_>,
        item: &Item,
        stat: &Stat,
        file: Option<&File>,
    ) -> Result<Vec<&'static str>> {
        let want = &item.metadata;
        let have = match file {
            Some(file) => metadata::of_file(file, stat, &self.names)?,
            None => metadata::of_entry(spot.dir, spot.name, stat, &self.names)?,
        };
        // Holes and links were compared as content.
        let have = Metadata { holes: want.holes.clone(), hardlink: want.hardlink.clone(), ..have };
        Ok(self.that_count(metadata::differences(want, &have)))
    }

    pub(super) fn that_count(&self, mut differences: Vec<&'static str>) -> Vec<&'static str> {
        differences.retain(|field| !self.manner.ignores_times || *field != "mtime");
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
            if n_bytes >= WRITEBACK_FROM {
                durable::begin_writeback(&file)?;
            }
            Ok(n_bytes)
        });
        match filled.and_then(|n_bytes| Ok((n_bytes, self.validated(spot, &temp, file)?))) {
            Ok((n_bytes, file)) => Ok((temp, n_bytes, Some(file))),
            Err(error) => spot.dir.remove_file(&temp).and(Err(error)),
        }
    }

    /// Returns a file that is complete as `temp`, open, once it passed the check that it has to.
    fn validated(&self, spot: &Spot<'_>, temp: &[u8], file: File) -> Result<File> {
        let check = self.attributes.policy(spot.path).validate.or_else(|| self.manner.laying.check(spot.path));
        let Some(command) = check else { return Ok(file) };
        // A program that somebody could still write to does not run.
        let to_read = safepath::reopen_to_read(&file)?;
        drop(file);
        self.manner.laying.validate(spot.path, &command, spot.dir, temp)?;
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
}

/// Says whether an entry gets from what differs to what is wanted in one system call, so that nobody can meet a mixture.
pub(super) fn changes_at_once(want: &Metadata, differences: &[&str]) -> bool {
    // A new owner takes setuid, setgid and capabilities away, which come back by other calls.
    let survives_chown = want.mode & 0o6000 == 0 && want.xattr(b"security.capability").is_none();
    match differences {
        ["owner" | "group"] | ["owner", "group"] => survives_chown,
        ["mode" | "mtime" | "flags"] => true,
        _ => false,
    }
}

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
