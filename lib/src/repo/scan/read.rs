//! Reads a file or symlink that is new or not as recorded, and hands its content to a [`Sink`].

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::{Mutex, PoisonError};

use super::racy::{clock, is_racy};
use super::{Sink, Walker, shown};
use crate::error::{Context, Error, Kind, Result};
use crate::file::index::ChunkIndex;
use crate::file::write::{Note, Take, cut_file, cut_stream};
use crate::git::Oid;
use crate::git::object::{EXECUTABLE, FILE, SYMLINK};
use crate::metadata::{self, Metadata};
use crate::progress::Progress;
use crate::repo::Repo;
use crate::repo::laid::Laid;
use crate::safepath::{self, Dir, FileKind, Stat};

/// How often a file that changes while it is read is tried.
const ATTEMPTS: usize = 3;

/// What was read of one entry.
pub(super) struct ReadEntry {
    pub(super) oid: Oid,
    pub(super) mode: u32,
    pub(super) metadata: Metadata,
    pub(super) stat: Stat,
    pub(super) is_racy: bool,
}

impl Walker<'_> {
    /// Reads an entry; one that changes meanwhile is read again.
    pub(super) fn read_entry(
        &self,
        dir: &Dir,
        path: &[u8],
        entry_name: &[u8],
        stat: Stat,
        laid: Option<&Laid>,
    ) -> Result<ReadEntry> {
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
    pub(super) fn is_to_be_referenced(&self, stat: &Stat) -> bool {
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

/// Hands the content that `input` gives until it ends to `sink`, as that of the file at `path`; returns the blob that stands for it.
pub(in crate::repo) fn read_stream(
    repo: &Repo,
    path: &[u8],
    input: &mut dyn Read,
    sink: Sink<'_>,
    progress: &Progress,
) -> Result<Oid> {
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
}
