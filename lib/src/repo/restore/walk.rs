//! The way through the source: directory by directory, several at once, and what is made of a directory itself.

use std::sync::Arc;

use super::batch::Batch;
use super::entry::Spot;
use super::links::Link;
use super::{Action, POISONED, Removal, Run, clear_flags, is_there, timed};
use crate::error::{Context, Error, Kind, Result};
use crate::metadata::{self, Metadata};
use crate::repo::attributes::{Ownership, Policy};
use crate::repo::jobs::{End, Jobs};
use crate::repo::remove::remove_file;
use crate::repo::scan::{join, split};
use crate::repo::tree::{Item, Listing, StoredDir};
use crate::safepath::{self, Dir, FileKind};

/// A directory to restore.
pub(super) struct Job {
    pub(super) node: StoredDir,
    /// Where; `None` in a dry run, below a directory that would be made.
    pub(super) dir: Option<Arc<Dir>>,
    /// The name in `dir` if that is not yet the directory itself: so that few are open at once.
    pub(super) name: Option<Vec<u8>>,
    /// Whether this run made it, so that nothing can be in it.
    pub(super) is_new: bool,
}

/// So many more threads than processors work where there are several: while the batches of some are synced, the others have something to do.
const SYNCING: usize = 2;

/// For fewer directories than these no further thread is started to finish them.
const DIRS_PER_THREAD: usize = 32;

/// Returns how many threads work when so many processors may be used.
pub(super) fn n_workers(n_threads: usize) -> usize {
    if n_threads > 1 { n_threads + SYNCING } else { 1 }
}

impl Run<'_> {
    /// Does all of it, but for the last sync.
    pub(super) fn all(&self, root: StoredDir, removal: &Removal) -> Result<()> {
        self.remove(&removal.before)?;
        let source = root.clone();
        if self.target.is_none() {
            self.step(b"", Action::Create);
        }
        let dir = self.target.map(Dir::try_clone).transpose()?.map(Arc::new);
        self.jobs.push(Job { node: root, dir, name: None, is_new: self.target.is_none() });
        let begin = || (Batch::default(), Vec::new());
        let work = |job, (batch, content): &mut (Batch, Vec<u8>)| self.directory(job, batch, content);
        let ended =
            self.jobs.run_with(n_workers(self.repo.settings.n_threads), begin, work, |(batch, _), how| self.end(batch, how));
        self.give_all_names(ended)?;
        self.unlink_foreign()?;
        self.link(&source)?;
        self.remove(&removal.after)?;
        self.finish_dirs()
    }

    /// Gives the directories that were opened up for this run their flags back.
    pub(super) fn close_dirs(&self) -> Result<()> {
        let (Some(lifted), Some(target)) = (&self.lifted, self.target) else { return Ok(()) };
        for (path, error) in lifted.give_back(target)? {
            self.or_warn(&path, Err(error.wrap("cannot put back its flags")))?;
        }
        Ok(())
    }

    /// Lets names in `dir`, which is at `path`, be changed, if its flags forbid that.
    pub(super) fn open_up(&self, path: &[u8], dir: &Dir) -> Result<()> {
        self.lifted.as_ref().map_or(Ok(()), |lifted| lifted.lift(path, dir))
    }

    /// Keeps what lies in the file `name` of `dir`, if that is its own store, before it is replaced or removed.
    pub(super) fn spare(&self, dir: &Dir, name: &[u8]) -> Result<()> {
        self.repo.spare(&self.referenced, dir, name)
    }

    /// Ends what a thread has staged: with names, or without if anything failed. Where it is all or none, it waits for what the others have staged.
    fn end(&self, mut batch: Batch, how: End) -> Result<()> {
        if self.manner.is_whole {
            self.complete.lock().expect(POISONED).append(batch);
            return Ok(());
        }
        let flushed = if how == End::Done { self.flush(&mut batch) } else { Ok(()) };
        batch.discard();
        flushed
    }

    /// Gives what all threads have staged its names, or discards it after a failure.
    fn give_all_names(&self, ended: Result<()>) -> Result<()> {
        let mut batch = std::mem::take(&mut *self.complete.lock().expect(POISONED));
        let given = ended.and_then(|()| self.flush(&mut batch));
        batch.discard();
        given
    }

    /// Opens the directory of a job.
    pub(super) fn open(&self, job: &mut Job) -> Result<()> {
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
            && !self.is_dry()
        {
            // Somebody may have removed it just now: that costs what is in it, not all the rest.
            self.or_warn(path, self.remove_leftovers(path, dir).context(|| "cannot clear what a killed run left"))?;
        }
        // A directory that this run made needs its metadata, also if it only leads to what was asked for or comes from a plain clone.
        if self.is_selected(path) && listing.is_recorded || job.is_new {
            let result = self.note_dir(&job, &listing);
            self.or_warn(path, result)?;
        }
        let mut n_seen = 1;
        for (name, item) in listing.files {
            let path = join(path, &name);
            let policy = self.attributes.policy(&path);
            if self.is_selected(&path) && !self.is_left_to_host(&job, &name, &path, &policy) {
                n_seen += 1;
                self.progress.add(1, 0);
                let item = timed(item, &policy);
                let result = self.file(&job, &name, path.clone(), item, batch, content);
                self.or_warn(&path, result)?;
            }
        }
        self.restored().n_seen += n_seen;
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
            Ownership::Seed => !self.manner.options.paths.iter().any(|named| named == path) && is_there(),
            Ownership::Own | Ownership::Env | Ownership::Secret => false,
        }
    }

    /// Opens or makes the directory `name` and queues it.
    fn enter(&self, job: &Job, name: &[u8], node: StoredDir) -> Result<()> {
        let Some(parent) = &job.dir else {
            self.step(&node.path, Action::Create);
            self.jobs.push(Job { node, dir: None, name: None, is_new: true });
            return Ok(());
        };
        let there = if job.is_new { None } else { parent.stat(name)? };
        match there {
            Some(stat) if stat.kind == FileKind::Dir => {
                self.jobs.push(Job { node, dir: Some(parent.clone()), name: Some(name.to_vec()), is_new: false });
                return Ok(());
            }
            Some(stat) if self.is_dry() => {
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
        if self.is_dry() {
            self.jobs.push(Job { node, dir: None, name: None, is_new: true });
            return Ok(());
        }
        self.open_up(split(&node.path).0, parent)?;
        parent.make_dir(name)?;
        self.jobs.push(Job { node, dir: Some(parent.clone()), name: Some(name.to_vec()), is_new: true });
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

    pub(super) fn file(
        &self,
        job: &Job,
        name: &[u8],
        path: Vec<u8>,
        item: Item,
        batch: &mut Batch,
        content: &mut Vec<u8>,
    ) -> Result<()> {
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

    /// Removes paths that are owned and not in the source; a directory only if nothing is left in it.
    pub(super) fn remove(&self, paths: &[Vec<u8>]) -> Result<()> {
        let Some(target) = self.target else { return Ok(()) };
        for path in paths.iter().filter(|path| is_there(target, path)) {
            let (parent, name) = split(path);
            let dir = target.open_path(parent).and_then(|dir| {
                self.look(path, dir.stat(name)?.as_ref())?;
                Ok(dir)
            });
            if !self.is_dry() {
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

    /// Sets the metadata of all directories, the deepest first.
    fn finish_dirs(&self) -> Result<()> {
        let mut dirs = std::mem::take(&mut *self.dirs.lock().expect(POISONED));
        if self.is_dry() {
            return Ok(());
        }
        let depth = |path: &[u8]| path.iter().filter(|&&b| b == b'/').count() + usize::from(!path.is_empty());
        dirs.sort_by_cached_key(|(path, _)| depth(path));
        // What is above may be closed to us when it is as it should be. No directory has to wait for another of its depth.
        for level in dirs.chunk_by(|(a, _), (b, _)| depth(a) == depth(b)).rev() {
            let jobs = Jobs::default();
            level.iter().for_each(|dir| jobs.push(dir));
            let n_threads = self.repo.settings.n_threads.min(level.len().div_ceil(DIRS_PER_THREAD));
            jobs.run(n_threads, |(path, want)| self.or_warn(path, self.finish_dir(path, want)))?;
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
}
