//! What is complete under temporary names: synced together, then renamed.

use std::fs::File;
use std::sync::Arc;

use super::{POISONED, Run, clear_flags};
use crate::error::{Context, Error, Kind, Result};
use crate::metadata::{self, Metadata};
use crate::safepath::Dir;

/// So many files, or so many bytes of them, are synced and renamed together by each thread.
const BATCH_FILES: usize = 4096;
const BATCH_BYTES: u64 = 256 << 20;

/// So many directories a batch holds open, or fewer where a process may not open many files.
const BATCH_DIRS: usize = 200;

/// Files that are complete under their temporary names.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) files: Vec<Ready>,
    pub(super) n_bytes: u64,
    pub(super) n_dirs: usize,
}

pub(super) struct Ready {
    pub(super) dir: Arc<Dir>,
    pub(super) temp: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) path: Vec<u8>,
    pub(super) metadata: Metadata,
    /// The file itself, if it is to get flags once it has its name.
    pub(super) file: Option<File>,
}

impl Batch {
    /// Adds what is in another one.
    pub(super) fn append(&mut self, mut other: Self) {
        self.files.append(&mut other.files);
        self.n_bytes += other.n_bytes;
        self.n_dirs += other.n_dirs;
    }

    /// Removes what was staged, after a failure; what can't be removed is met as a leftover next time.
    pub(super) fn discard(&mut self) {
        for staged in self.files.drain(..) {
            let _ = staged.dir.remove_file(&staged.temp);
        }
    }
}

impl Run<'_> {
    pub(super) fn is_full(&self, batch: &Batch) -> bool {
        // What has to be all or none gets its names when nobody has work left that could fail.
        !self.manner.is_whole && self.has_enough(batch)
    }

    fn has_enough(&self, batch: &Batch) -> bool {
        batch.files.len() >= BATCH_FILES || batch.n_bytes >= BATCH_BYTES || batch.n_dirs >= self.batch_dirs
    }

    /// Syncs what is staged and gives it its names.
    pub(super) fn flush(&self, batch: &mut Batch) -> Result<()> {
        if batch.files.is_empty() {
            batch.n_dirs = 0;
            return Ok(());
        }
        self.sync()?;
        let mut batch = std::mem::take(batch);
        let given = self.give_names(&mut batch);
        batch.discard();
        given
    }

    /// Gives the files of a batch their names; those that have none when it fails stay in it.
    fn give_names(&self, batch: &mut Batch) -> Result<()> {
        if self.manner.seen.is_some() {
            // All of them are looked at before the first one gets its name.
            for staged in &batch.files {
                let there = staged.dir.stat(&staged.name);
                self.or_warn(&staged.path, there.and_then(|there| self.look(&staged.path, there.as_ref())))?;
            }
        }
        batch.files.reverse();
        while let Some(staged) = batch.files.pop() {
            let result = self.publish(&staged);
            if result.is_err() {
                // What can't be removed, because it is something else by now, is met as a leftover next time.
                let _ = staged.dir.remove_file(&staged.temp);
            }
            self.or_warn(&staged.path, result)?;
        }
        Ok(())
    }

    /// Returns once everything written below the target, also to filesystems mounted there, would survive a power cut.
    ///
    /// The kernel tells of a write that failed only once, whoever's it was: after that, nothing that anybody has staged gets a name.
    pub(super) fn sync(&self) -> Result<()> {
        let mut has_failed = self.has_failed.lock().expect(POISONED);
        if *has_failed {
            return Err(Error::new(Kind::Io, "something of what was written is not on the disk"));
        }
        let done = self.sync_all();
        *has_failed = done.is_err();
        done
    }

    fn sync_all(&self) -> Result<()> {
        let mounted: Vec<Arc<Dir>> = self.filesystems.lock().expect(POISONED).values().cloned().collect();
        let all = self.target.into_iter().chain(mounted.iter().map(Arc::as_ref));
        all.into_iter().try_for_each(Dir::sync_filesystem).context(|| "cannot sync the target")
    }

    fn publish(&self, staged: &Ready) -> Result<()> {
        let Ready { dir, temp, name, metadata, path, file } = staged;
        self.rename(dir, (temp, name), path)?;
        if let Some(file) = file {
            self.skipped(path, metadata::apply_flags(file, metadata.flags)?);
        }
        Ok(())
    }

    /// Gives what is complete as `temp` its name, unless something else was seen there.
    pub(super) fn rename(&self, dir: &Dir, (temp, name): (&[u8], &[u8]), path: &[u8]) -> Result<()> {
        if self.manner.seen.is_some() {
            let there = dir.stat(name)?;
            self.look(path, there.as_ref())?;
            if there.is_none() {
                return dir.rename_new(temp, name);
            }
        }
        if let Err(error) = dir.rename(temp, name) {
            // Perhaps an immutable file is in the way.
            clear_flags(dir, name)?;
            dir.rename(temp, name).map_err(|_| error)?;
        }
        Ok(())
    }
}

/// Returns how many directories the batch of one thread may hold open: all of them together a quarter of what this process may open.
pub(super) fn batch_dirs(n_threads: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    (limit / 4 / n_threads.max(1) as u64).clamp(1, BATCH_DIRS as u64) as usize
}
